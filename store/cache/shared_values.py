"""Values shared between processes: what the cache asks of them, and what it owes them after an outage."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
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

    What is to be deleted is owed until it is. Before a read the debt of an outage is settled, and what is still
    owed then is not read, since it may be what should have been deleted.

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
        #: By number, oldest first.
        self._owed: dict[int, Invalidation] = {}
        self._numbers = itertools.count()
        #: The keys and patterns in them.
        self._owed_names = 0
        #: The numbers of those that somebody is delivering right now.
        self._delivering: set[int] = set()
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
        # While somebody else settles, possibly for long, the other values can be read.
        if self._owed.keys() - self._delivering and not self._settling.locked() and not await self.settle():
            return self._failed(keys)
        untrue = self._untrue()
        asked = []
        for key in keys:
            if untrue(key):
                self._statistics.miss(ROUTER_TIER, key.kind)
            else:
                asked.append(key)
        try:
            answers = await self.values.get(asked) if asked else []
        except SharedAway:
            return self._failed(asked)
        found = {}
        # Again: something may have been invalidated while we asked.
        untrue = self._untrue()
        now = self._clock.now_ms()
        for key, answer in zip(asked, answers, strict=True):
            held = None if answer is None or untrue(key) else self._opened(key, answer)
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
        return await self._attempt(self.owe(invalidations))

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

    def owe(self, invalidations: Sequence[Invalidation]) -> set[int]:
        """Remember to :meth:`drop` these. Bounded: too many become one that names everything.

        :returns: the numbers under which they are owed now.
        """
        if self.values is None:
            return set()
        added = {next(self._numbers): one for one in invalidations}
        self._owed_names += _names(invalidations)
        self._owed.update(added)
        if self._owed_names > MOST_OWED:
            added = {next(self._numbers): Invalidation(sender=self._sender, everything=True)}
            self._owed_names, self._owed = 1, dict(added)
        return set(added)

    async def settle(self) -> bool:
        """Deliver what is owed and nobody is delivering; False if that is not possible now."""
        if not self._owed:
            return True
        failures = self._failures
        async with self._settling:
            # Whoever waited for an attempt that failed does not make another: the time-outs would add up.
            return failures == self._failures and await self._attempt(self._owed.keys() - self._delivering)

    async def _attempt(self, numbers: set[int]) -> bool:
        owed = [self._owed[number] for number in sorted(numbers)]
        self._delivering |= numbers
        try:
            await self._deliver(owed)
        except SharedAway:
            self._failures += 1
            return False
        else:
            self._owed = {number: one for number, one in self._owed.items() if number not in numbers}
            self._owed_names = _names(self._owed.values())
            return True
        finally:
            self._delivering -= numbers

    def _untrue(self) -> Callable[[CacheKey], bool]:
        """Tells of a key whether something is owed about it."""
        if not self._owed:
            return lambda key: False
        keys = {key for one in self._owed.values() for key in one.keys}
        matchers = [one.matcher() for one in self._owed.values() if one.everything or one.pattern or one.series]
        return lambda key: key in keys or any(matches(key) for matches in matchers)

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


def _names(invalidations: Iterable[Invalidation]) -> int:
    """The keys and patterns in them."""
    return sum(len(one.keys) or 1 for one in invalidations)
