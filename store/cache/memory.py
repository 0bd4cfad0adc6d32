"""The cache's first tier: values in this process's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from market.clock import Clock
from store.cache.entries import Entries, Gone
from store.cache.key import CacheKey
from store.cache.shared_values import Held
from store.cache.statistics import TierStatistics
from store.cache.time_to_live import TimesToLive

#: The tier of values that were in this process.
MEMORY_TIER = "memory"
#: What an entry takes beside its value: key, its text, dictionary and tuples.
ENTRY_BYTES = 600


class Memory:
    """Values by key, least recently used out first, each judged by its time to live when it is asked for.

    :param limit_bytes: of values, keys and what keeps them.
    """

    def __init__(
        self,
        limit_bytes: int,
        times: TimesToLive,
        clock: Clock,
        statistics: TierStatistics,
        monotonic_ms: Callable[[], float],
    ) -> None:
        self._times = times
        self._clock = clock
        self._statistics = statistics
        self.entries: Entries[CacheKey, Held] = Entries(limit_bytes, monotonic_ms=monotonic_ms, gone=self._gone)

    def get(self, key: CacheKey) -> Held | None:
        """The value if it may still be served; counted as hit or miss."""
        held = self.entries.get(key)
        if held is not None:
            now = self._clock.now_ms()
            # Judged anew: times to live may have become shorter since it was put.
            if held.left_ms(now, self._times.milliseconds(key.kind, now)) > 0:
                self._statistics.hit(MEMORY_TIER, key.kind)
                return held
        self._statistics.miss(MEMORY_TIER, key.kind)
        return None

    def newer(self, key: CacheKey, held: Held) -> Held | None:
        """What is kept, if it is as new as `held` or newer; not counted."""
        kept = self.entries.get(key)
        return kept if kept is not None and kept.stored_at >= held.stored_at else None

    def put(self, key: CacheKey, held: Held, *, own: bool = True) -> None:
        """Keep a value, unless frozen or its time is over.

        :param own: False for a value another process put: that process may put a newer one, so it is asked for
            again after the time to live of the kind, even if this value has a longer one of its own.
        """
        now = self._clock.now_ms()
        of_kind = self._times.milliseconds(key.kind, now)
        left = held.left_ms(now, of_kind)
        size = held.size + ENTRY_BYTES + sum(map(len, key.parts))
        if self.entries.put(key, held, size, left if own else min(left, of_kind)):
            self._statistics.bytes_changed(MEMORY_TIER, key.kind, size)

    def forget(self, keys: Iterable[CacheKey]) -> None:
        """These values are untrue: drop them, frozen or not. Read-only is no reason to serve what is wrong."""
        frozen, self.entries.frozen = self.entries.frozen, False
        for key in keys:
            self.entries.pop(key)
        self.entries.frozen = frozen

    def forget_where(self, matches: Callable[[CacheKey], bool]) -> None:
        """:meth:`forget` for all keys that match."""
        frozen, self.entries.frozen = self.entries.frozen, False
        self.entries.pop_where(matches)
        self.entries.frozen = frozen

    def _gone(self, key: CacheKey, held: Held, size: int, why: Gone) -> None:
        self._statistics.bytes_changed(MEMORY_TIER, key.kind, -size)
        if why is Gone.EVICTED:
            self._statistics.evicted(MEMORY_TIER, key.kind)
