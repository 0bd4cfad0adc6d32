"""Publishing what the streams bring: messages of one instrument and channel are put together into batches.

A batch goes out when it has 50 messages, and at the latest 100 ms after its first one. Nothing here waits: the bus
takes a batch at once, and drops the oldest when its server is away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from market.channel import Topic
from store.bus.bus import Bus
from store.bus.message import MarketBatch, MarketMessage
from store.bus.numbering import new_run
from store.bus.topic import checked_topic, market_topic

#: Messages in a batch at most.
BATCH_MESSAGES = 50
#: Seconds that a message waits for its batch at most.
BATCH_SECONDS = 0.1


class Outlet:
    """Where the messages of one topic go in. Keep it: to look it up for every message costs more than the rest.

    Order books go in as :class:`market.book_message.BookSnapshot` of their best levels.
    """

    __slots__ = ("_most", "_send", "_waiting")

    def __init__(self, send: Callable[[list[MarketMessage]], None], most: int) -> None:
        self._send = send
        self._most = most
        self._waiting: list[MarketMessage] = []

    def add(self, message: MarketMessage) -> None:
        """Take a message of the topic's channel; returns at once."""
        self._waiting.append(message)
        if len(self._waiting) >= self._most:
            self.flush()

    def flush(self) -> None:
        """Send what waits."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            self._send(waiting)


class Publisher:
    """Publishes one exchange's messages on a bus, while it is open; an asynchronous context manager.

    Closing it sends what waits. Used from one event loop.
    """

    def __init__(
        self, bus: Bus, exchange: str, *, messages: int = BATCH_MESSAGES, seconds: float = BATCH_SECONDS
    ) -> None:
        """:param exchange: ccxt's id, a part of the topics' names."""
        self._bus = bus
        self._exchange = exchange
        self._messages = messages
        self._seconds = seconds
        self._run = new_run()
        self._outlets: dict[Topic, Outlet] = {}
        #: Of each topic of the bus, which the channels of an instrument share.
        self._sequences: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        #: Batches handed to the bus, and the messages in them.
        self.batches = 0
        self.published = 0

    async def __aenter__(self) -> Self:
        self._wind(asyncio.get_running_loop())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.flush()

    def outlet(self, topic: Topic) -> Outlet:
        """Where messages of `topic` go in; the same for every call.

        :raises BadInput: the symbol cannot be a part of a topic's name.
        """
        outlet = self._outlets.get(topic)
        if outlet is None:
            checked_topic(market_topic(self._exchange, topic.symbol))
            outlet = self._outlets[topic] = Outlet(lambda messages: self._send(topic, messages), self._messages)
        return outlet

    def add(self, topic: Topic, message: MarketMessage) -> None:
        """Publish one message with others of its topic. Where there are many, use the topic's :meth:`outlet`."""
        self.outlet(topic).add(message)

    def flush(self) -> None:
        """Hand everything that waits to the bus."""
        for outlet in self._outlets.values():
            outlet.flush()

    def _wind(self, loop: asyncio.AbstractEventLoop) -> None:
        # One timer for all: what came since it last rang has waited for no longer than its interval.
        self._timer = loop.call_later(self._seconds, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._wind(loop)
        self.flush()

    def _send(self, topic: Topic, messages: list[MarketMessage]) -> None:
        name = market_topic(self._exchange, topic.symbol)
        sequence = self._sequences.get(name, 0) + 1
        self._sequences[name] = sequence
        batch = MarketBatch(
            exchange=self._exchange,
            symbol=topic.symbol,
            channel=topic.channel,
            timeframe=topic.timeframe,
            messages=messages,
            run=self._run,
            sequence=sequence,
        )
        self._bus.publish(name, batch.packed())
        self.batches += 1
        self.published += len(messages)
