"""The first tier: what this process holds of candles, within its bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

from store.cache.entries import Entries, Gone
from store.cache.memory import MEMORY_TIER
from store.cache.statistics import TierStatistics

#: What statistics call candles, and answers kept as bytes.
CANDLES_KIND = "candles"
QUERY_KIND = "query"

#: What is kept, the first part of every key: a series, a period of it, larger candles made of it, an answer.
Key = tuple[Hashable, ...]


def _monotonic_ms() -> float:
    return time.monotonic_ns() / 1e6


class ProcessMemory:
    """Entries within one limit, of two sorts.

    Whole periods are large, and the disk tier gives them back in a moment. Tails, larger candles and answers are
    small, and cost a read of the database. So periods take what the others leave, and make room for them; a quarter
    is theirs at least.
    """

    def __init__(
        self, limit_bytes: int, statistics: TierStatistics, monotonic_ms: Callable[[], float] = _monotonic_ms
    ) -> None:
        self._limit = limit_bytes
        self._statistics = statistics
        self._small: Entries[Key, object] = Entries(
            limit_bytes - limit_bytes // 4, monotonic_ms=monotonic_ms, gone=self._went
        )
        self._periods: Entries[Key, object] = Entries(limit_bytes, monotonic_ms=monotonic_ms, gone=self._went)

    @property
    def limit_bytes(self) -> int:
        """The most bytes that are kept."""
        return self._limit

    @property
    def used_bytes(self) -> int:
        """The bytes of all that is kept."""
        return self._small.used_bytes + self._periods.used_bytes

    @property
    def frozen(self) -> bool:
        """While true nothing is added, changed, taken out or evicted; reading goes on."""
        return self._small.frozen

    @frozen.setter
    def frozen(self, frozen: bool) -> None:
        self._small.frozen = self._periods.frozen = frozen

    def __len__(self) -> int:
        return len(self._small) + len(self._periods)

    def get(self, key: Key) -> object | None:
        """What is kept under `key`, which is now the most recently used of its sort."""
        return self._of(key).get(key)

    def put(self, key: Key, value: object, size: int) -> bool:
        """Keep a value of `size` bytes, in place of an older one of that key; False if it is not kept."""
        if self.frozen:
            return False
        entries = self._of(key)
        if entries is self._small:
            entries.pop(key)
            if size <= entries.limit_bytes:
                # Periods go first; what is still too much is taken from its own sort.
                room = max(self._limit - min(entries.used_bytes + size, entries.limit_bytes), 0)
                self._periods.limit_bytes = room
        else:
            entries.limit_bytes = self._limit - self._small.used_bytes
        kept = entries.put(key, value, size)
        if kept:
            self._statistics.bytes_changed(MEMORY_TIER, _kind(key), size)
        return kept

    def pop_where(self, matches: Callable[[Key], bool]) -> int:
        """Take out the entries whose key matches; how many. None of them while frozen."""
        return self._small.pop_where(matches) + self._periods.pop_where(matches)

    def clear(self) -> int:
        """Take out everything; how many entries. None of them while frozen."""
        return self._small.clear() + self._periods.clear()

    def _of(self, key: Key) -> Entries[Key, object]:
        return self._periods if key[0] == "sealed" else self._small

    def _went(self, key: Key, value: object, size: int, why: Gone) -> None:
        self._statistics.bytes_changed(MEMORY_TIER, _kind(key), -size)
        if why is Gone.EVICTED:
            self._statistics.evicted(MEMORY_TIER, _kind(key))


def _kind(key: Key) -> str:
    return QUERY_KIND if key[0] == "encoded" else CANDLES_KIND
