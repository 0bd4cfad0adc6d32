"""Values shared between processes: what the cache asks of them, and what it owes them after an outage."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from market.clock import Clock
from market.errors import Retryable
from store.cache.codec import Codec, Envelope
from store.cache.invalidation import Invalidation
from store.cache.key import CacheKey
from store.cache.statistics import TierStatistics
from store.cache.time_to_live import TimesToLive

#: The tier of values that came from another process.
ROUTER_TIER = "router"
#: More keys and patterns than this are owed as one: everything.
MOST_OWED = 1_000


class SharedAway(Retryable):
    """The shared tier does not answer, or is not asked because it has not answered lately."""


class SharedValues(Protocol):
    """Bytes by key with an end, seen by all processes. Any failure is a SharedAway, within a bounded time."""

    async def get(self, keys: Sequence[CacheKey]) -> list[bytes | None]:
        """The bytes of each key in that order; None where there are none."""
        ...

    async def put(self, items: Sequence[tuple[CacheKey, bytes, int]]) -> None:
        """Keep bytes, each for so many milliseconds (1 or more) from now."""
        ...

    async def delete(self, keys: Sequence[CacheKey]) -> None:
        """Forget these keys; those that are not there are none the worse."""
        ...

    async def delete_matching(self, pattern: str) -> int:
        """Forget the keys that a pattern (:func:`store.cache.key.check_pattern`) names; how many there were."""
        ...

    async def publish(self, invalidation: Invalidation) -> None:
        """Tell all processes that listen."""
        ...


class Held(NamedTuple):
    """A value and what tells whether it may still be served."""

    value: Any
    #: When it was true, epoch milliseconds.
    stored_at: int
    #: Its own time to live in milliseconds; None: that of its kind.
    ttl_ms: int | None
    #: Bytes, about, as its codec says.
    size: int

    def left_ms(self, now_ms: int, ttl_of_kind: int) -> int:
        """For how long it may still be served; 0 or less: not at all."""
        return (ttl_of_kind if self.ttl_ms is None else self.ttl_ms) - max(0, now_ms - self.stored_at)


class SharedTier:
    """The shared values as one process uses them. Nothing here fails because they are away.

    What could not be deleted while they were away is owed. While anything is owed nothing is read, since it may be
    what should have been deleted; so the debt is settled before the next read.

    :param values: None: there are none, and every read misses.
    """

    def __init__(
        self,
        values: SharedValues | None,
        codecs: Mapping[str, Codec],
        times: TimesToLive,
        clock: Clock,
        statistics: TierStatistics,
        sender: str,
    ) -> None:
        self.values = values
        self._codecs = codecs
        self._times = times
        self._clock = clock
        self._statistics = statistics
        self._sender = sender
        self._owed: list[Invalidation] = []
        #: The keys and patterns in them.
        self._owed_names = 0
        self._settling = asyncio.Lock()
        #: Attempts to deliver what is owed that failed.
        self._failures = 0

    @property
    def owed(self) -> int:
        """Messages that could not be delivered yet."""
        return len(self._owed)

    async def read(self, keys: Sequence[CacheKey]) -> dict[CacheKey, Held]:
        """Those of the keys that are there and may still be served."""
        if self.values is None or not keys:
            return {}
        if not await self.settle():
            return self._failed(keys)
        try:
            answers = await self.values.get(keys)
        except SharedAway:
            return self._failed(keys)
        found = {}
        # Invalidated while we asked and not yet deleted: who knows what this is.
        untrue = [one.matcher() for one in self._owed]
        now = self._clock.now_ms()
        for key, answer in zip(keys, answers, strict=True):
            held = None if answer is None or any(one(key) for one in untrue) else self._opened(key, answer)
            if held is not None and held.left_ms(now, self._times.milliseconds(key.kind, now)) > 0:
                found[key] = held
                self._statistics.hit(ROUTER_TIER, key.kind)
            else:
                self._statistics.miss(ROUTER_TIER, key.kind)
        return found

    async def write(self, items: Sequence[tuple[CacheKey, Envelope]]) -> bool:
        """Keep these; False if they could not be kept, and what is there may be older."""
        if self.values is None:
            return True
        now = self._clock.now_ms()
        lasting = []
        for key, envelope in items:
            ttl = self._times.milliseconds(key.kind, now)
            left = Held(None, envelope.stored_at, envelope.ttl_ms, 0).left_ms(now, ttl)
            if left > 0:
                lasting.append((key, envelope.packed(), left))
        if not lasting:
            return False
        try:
            if not await self.settle():
                return False
            await self.values.put(lasting)
        except SharedAway:
            for key, _, _ in lasting:
                self._statistics.error(ROUTER_TIER, key.kind)
            return False
        return len(lasting) == len(items)

    async def drop(self, invalidations: Sequence[Invalidation]) -> bool:
        """Delete what these name and tell the others; what cannot be done now is owed. False if so."""
        if self.values is None:
            return True
        # Owed from the start, so that being cancelled half-way forgets nothing.
        self.owe(invalidations)
        return await self.settle()

    async def tell(self, invalidations: Sequence[Invalidation]) -> bool:
        """Tell the others without deleting anything; False if they could not be told."""
        if self.values is None:
            return True
        try:
            for one in invalidations:
                await self.values.publish(one)
        except SharedAway:
            return False
        return True

    def owe(self, invalidations: Sequence[Invalidation]) -> None:
        """Remember to :meth:`drop` these. Bounded: too many become one that names everything."""
        if self.values is None:
            return
        self._owed.extend(invalidations)
        self._owed_names += sum(len(one.keys) or 1 for one in invalidations)
        if self._owed_names > MOST_OWED:
            self._owed_names = 1
            self._owed = [Invalidation(sender=self._sender, everything=True)]

    async def settle(self) -> bool:
        """Deliver what is owed; False if that is not possible now."""
        if not self._owed:
            return True
        failures = self._failures
        async with self._settling:
            # Whoever waited for an attempt that failed does not make another: the time-outs would add up.
            if failures != self._failures:
                return False
            # What is added meanwhile stays owed: its keys may have been written after they were deleted here.
            while self._owed:
                owed = list(self._owed)
                try:
                    await self._deliver(owed)
                except SharedAway:
                    self._failures += 1
                    return False
                done = {id(one) for one in owed}
                self._owed = [one for one in self._owed if id(one) not in done]
                self._owed_names = sum(len(one.keys) or 1 for one in self._owed)
        return True

    async def _deliver(self, owed: Sequence[Invalidation]) -> None:
        values = self.values
        if values is None or not owed:
            return
        if any(one.everything for one in owed):
            await values.delete_matching("*")
        else:
            keys = list(dict.fromkeys(key for one in owed for key in one.keys))
            if keys:
                await values.delete(keys)
            for one in owed:
                if one.pattern is not None:
                    await values.delete_matching(one.pattern)
                if one.series is not None:
                    for pattern in one.series.patterns:
                        await values.delete_matching(pattern)
        for one in owed:
            await values.publish(one)

    def _opened(self, key: CacheKey, data: bytes) -> Held | None:
        envelope = Envelope.unpack(data)
        if envelope is None:
            return None
        codec = self._codecs[key.kind]
        try:
            value = codec.decode(envelope.payload)
        except ValueError:
            # Another release's, or damaged: as good as not there, but somebody should know.
            self._statistics.error(ROUTER_TIER, key.kind)
            return None
        return Held(value, envelope.stored_at, envelope.ttl_ms, codec.size(value, envelope.payload))

    def _failed(self, keys: Sequence[CacheKey]) -> dict[CacheKey, Held]:
        for key in keys:
            self._statistics.error(ROUTER_TIER, key.kind)
        return {}
