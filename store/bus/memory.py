"""The bus within one process: no server, nothing to install."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from store.bus.bus import BusRules, BusStatus, checked_backlog
from store.bus.message import Message
from store.bus.numbering import Numbering
from store.bus.ring import RingBuffer
from store.bus.topic import Patterns

LOCATION = "memory://"


class MemoryBus:
    """Hands every message to the queues of its subscribers at once."""

    def __init__(self, rules: BusRules | None = None) -> None:
        self._rules = rules or BusRules()
        self._numbering = Numbering()
        self._ring = RingBuffer(self._rules.ring_messages, self._rules.ring_bytes, self._rules.ring_total_bytes)
        self._subscriptions: list[_Subscription] = []
        #: Who gets what is published on a topic; forgotten whenever subscriptions change.
        self._wanted_by: dict[str, list[_Subscription]] = {}
        self._published = 0

    @property
    def status(self) -> BusStatus:
        return BusStatus(
            location=LOCATION,
            connected=True,
            published=self._published,
            dropped=0,
            waiting=0,
            subscriptions=len(self._subscriptions),
        )

    def publish(self, topic: str, payload: bytes) -> None:
        message = self._numbering.stamped(topic, payload)
        self._published += 1
        self._ring.append(message)
        wanted_by = self._wanted_by.get(topic)
        if wanted_by is None:
            wanted_by = [one for one in self._subscriptions if one.patterns.match(topic)]
            self._wanted_by[topic] = wanted_by
        for subscription in wanted_by:
            subscription.put(message)

    async def flush(self, seconds: float = 5.0) -> None:
        """Nothing to wait for: what is published is with its subscribers."""

    @contextlib.asynccontextmanager
    async def subscribe(self, *patterns: str, backlog: int = 0) -> AsyncIterator[_Subscription]:
        """See :class:`store.bus.bus.Bus`."""
        wanted = Patterns(patterns)
        most = checked_backlog(backlog)
        # Ring and queue change hands in one step of the event loop, so that nothing comes between them.
        past = [message for topic in self._ring.topics(wanted) for message in self._ring.last(topic, most)]
        subscription = _Subscription(wanted, past, self._rules.waiting_messages)
        self._subscriptions.append(subscription)
        self._wanted_by.clear()
        try:
            yield subscription
        finally:
            self._subscriptions.remove(subscription)
            self._wanted_by.clear()


class _Subscription:
    """What waits for one subscriber. When too much does, the oldest live message is dropped and counted."""

    connected = True

    def __init__(self, patterns: Patterns, past: list[Message], most: int) -> None:
        self.patterns = patterns
        self.missed = 0
        self._past = deque(past)
        self._live: deque[Message] = deque()
        self._most = most
        self._filled = asyncio.Event()

    def put(self, message: Message) -> None:
        if len(self._live) >= self._most:
            self._live.popleft()
            self.missed += 1
        self._live.append(message)
        self._filled.set()

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        while not self._past and not self._live:
            self._filled.clear()
            await self._filled.wait()
        return (self._past or self._live).popleft()
