"""Several sockets that are one connection: subscribed on entering, ended when the first of them ends.

For exchanges that serve some channels at one address and some at another. Most connections need one socket only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import structlog

from exchange.errors import one_line
from exchange.plausible import EventTimes, PriceBand
from exchange.reading import Answer, AnswerKind, Message, Reading, refused
from exchange.socket import Socket, SocketRules, opened_socket
from exchange.stream import Listener, RefusedMessage
from market.candle_update import CandleUpdate
from market.channel import Topic
from market.clock import Clock
from market.errors import BadInput, ExchangeRefused, ExchangeUnavailable
from market.ticker import Ticker
from market.trade import Trade

log = structlog.get_logger(__name__)

#: Seconds from the first request to the last answer to it.
SUBSCRIBE_TIMEOUT = 15.0


@dataclass(frozen=True, kw_only=True)
class SocketPlan:
    """One socket, and what to subscribe to on it."""

    url: str
    #: Sent in this order, at once.
    requests: Sequence[bytes]
    #: What the answers to `requests` must name together before the socket counts as subscribed.
    awaited: frozenset[Hashable]
    #: Reads a message, given when it was received (epoch milliseconds); raises nothing.
    read: Callable[[bytes, int], list[Reading]]
    rules: SocketRules


class _Subscribing:
    """One socket's messages, and what is still to be answered."""

    def __init__(
        self,
        exchange: str,
        plan: SocketPlan,
        listeners: Mapping[Topic, Listener],
        on_refused: Callable[[RefusedMessage], None],
        clock: Clock,
        times: EventTimes,
    ) -> None:
        self._exchange = exchange
        self._read = plan.read
        self._listeners = listeners
        self._refused = on_refused
        self._clock = clock
        self._times = times
        self._bands: dict[Topic, PriceBand] = {}
        self._missing = set(plan.awaited)
        #: Set once everything is subscribed; has the error where something cannot be.
        self.subscribed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self, raw: bytes) -> None:
        """Hand on what one message says."""
        received_at = self._clock.now_ms()
        for one in self._read(raw, received_at):
            if isinstance(one, Answer):
                self._answer(one)
            elif isinstance(one, RefusedMessage):
                self._refused(replace(one, exchange=self._exchange))
            else:
                topic, message = one
                try:
                    self._judge(topic, message)
                except BadInput as error:
                    self._refused(refused(self._exchange, topic, error, raw, received_at))
                else:
                    self._listeners[topic](message)

    def _judge(self, topic: Topic, message: Message) -> None:
        """Nothing, or BadInput for a price or a time that is not to be believed.

        Order books are left alone: a level far away is nothing odd, and a book without one of its changes is wrong.
        """
        if isinstance(message, Trade):
            self._times.check("event_time", message.event_time, message.received_at)
            self._band(topic).check("price", message.price)
        elif isinstance(message, CandleUpdate):
            self._times.check("open_time", message.open_time, message.received_at)
            self._band(topic).check("close", message.close)
        elif isinstance(message, Ticker) and message.event_time is not None:
            self._times.check("event_time", message.event_time, message.received_at)

    def _band(self, topic: Topic) -> PriceBand:
        band = self._bands.get(topic)
        if band is None:
            band = self._bands[topic] = PriceBand()
        return band

    def _answer(self, answer: Answer) -> None:
        if answer.kind is AnswerKind.SUBSCRIBED:
            self._missing -= answer.names
            if not self._missing and not self.subscribed.done():
                self.subscribed.set_result(None)
        elif answer.kind is AnswerKind.NOTICE:
            log.info("stream_notice", exchange=self._exchange, text=one_line(answer.text))
        elif answer.kind is not AnswerKind.PONG:
            text = one_line(answer.text)
            if self.subscribed.done():
                log.warning("stream_refusal", exchange=self._exchange, text=text)
            elif answer.kind is AnswerKind.BUSY:
                self.subscribed.set_exception(
                    ExchangeUnavailable(f"{self._exchange} does not subscribe now: {text}")
                )
            else:
                self.subscribed.set_exception(ExchangeRefused(f"{self._exchange} refused to subscribe: {text}"))


class JoinedSockets:
    """One open connection over all its sockets; get it from :func:`joined_sockets`."""

    def __init__(self, sockets: Sequence[Socket]) -> None:
        self._sockets = sockets

    @property
    def frames(self) -> int:
        """Messages received so far, of whatever kind."""
        return sum(one.frames for one in self._sockets)

    async def ended(self) -> None:
        """Return never; raise ExchangeUnavailable, saying why, once one of the sockets has ended."""
        await first_error([one.ended() for one in self._sockets])

    def pause(self) -> None:
        """Stop reading. Calling it again changes nothing."""
        for one in self._sockets:
            one.pause()

    def resume(self) -> None:
        """Read on."""
        for one in self._sockets:
            one.resume()


@asynccontextmanager
async def joined_sockets(
    exchange: str,
    plans: Sequence[SocketPlan],
    listeners: Mapping[Topic, Listener],
    refused: Callable[[RefusedMessage], None],
    clock: Clock,
    *,
    own_time: bool = False,
    subscribe_timeout: float = SUBSCRIBE_TIMEOUT,
) -> AsyncIterator[JoinedSockets]:
    """Open the socket of each plan and subscribe; all are closed on leaving.

    :param own_time: what is at the other end may live in a time of its own: a replay.
    :param subscribe_timeout: seconds for the answers to all requests.
    :raises ExchangeUnavailable: on entering, where a connection or a subscription does not come about.
    :raises ExchangeRefused: on entering, where the exchange refuses one for good.
    :raises BadInput: for no plan: a connection without a topic would be ended by every exchange.
    """
    if not plans:
        raise BadInput("topics", [], "at least one")
    async with AsyncExitStack() as stack:
        sockets: list[Socket] = []
        waiting: list[_Subscribing] = []
        times = EventTimes(own_time=own_time)
        for plan in plans:
            one = _Subscribing(exchange, plan, listeners, refused, clock, times)
            socket = await stack.enter_async_context(opened_socket(plan.url, one.take, rules=plan.rules))
            for request in plan.requests:
                socket.send(request)
            sockets.append(socket)
            waiting.append(one)
        joined = JoinedSockets(sockets)
        await _all_subscribed(exchange, joined, waiting, subscribe_timeout)
        yield joined


async def _all_subscribed(
    exchange: str, joined: JoinedSockets, waiting: Sequence[_Subscribing], timeout_seconds: float
) -> None:
    """Wait until every socket is subscribed.

    :raises ExchangeUnavailable: where one ends first, or it takes too long.
    :raises ExchangeRefused: where the exchange says no.
    """
    ended = asyncio.ensure_future(joined.ended())
    answered = asyncio.gather(*(one.subscribed for one in waiting))
    both: tuple[asyncio.Future[Any], ...] = (ended, answered)
    try:
        async with asyncio.timeout(timeout_seconds):
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        # An answer that says why comes before the end that follows it.
        await (answered if answered.done() else ended)
    except TimeoutError as error:
        raise ExchangeUnavailable(
            f"{exchange} did not answer every request to subscribe within {timeout_seconds:g} s"
        ) from error
    finally:
        for future in both:
            future.cancel()
        await asyncio.gather(*both, return_exceptions=True)
        for one in waiting:
            if one.subscribed.done() and not one.subscribed.cancelled():
                one.subscribed.exception()


async def first_error(waits: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Wait for what only ever raises; raise what the first of them raises, and cancel the others."""
    tasks = [asyncio.create_task(one) for one in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for one in tasks:
            if one in done:
                one.result()
    finally:
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
