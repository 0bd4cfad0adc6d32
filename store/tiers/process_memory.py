"""The first tier: what this process holds of candles, within its bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

from store.cache.entries import Entries, Gone
from store.cache.statistics import TierStatistics

MEMORY_TIER = "memory"
#: What statistics call candles, and answers kept as bytes.
CANDLES_KIND = "candles"
QUERY_KIND = "query"

#: What is kept, the first part of every key: a series, a period of it, larger candles made of it, an answer.
Key = tuple[Hashable, ...]


def _monotonic_ms() -> float:
    return time.monotonic_ns() / 1e6


class ProcessMemory(Entries[Key, object]):
    """Entries that tell the statistics what they take and what had to make room."""

    __slots__ = ("_statistics",)

    def __init__(
        self, limit_bytes: int, statistics: TierStatistics, monotonic_ms: Callable[[], float] = _monotonic_ms
    ) -> None:
        super().__init__(limit_bytes, monotonic_ms=monotonic_ms, gone=self._went)
        self._statistics = statistics

    def put(self, key: Key, value: object, size: int, lifetime_ms: float | None = None) -> bool:
        """See :meth:`store.cache.entries.Entries.put`."""
        kept = super().put(key, value, size, lifetime_ms)
        if kept:
            self._statistics.bytes_changed(MEMORY_TIER, _kind(key), size)
        return kept

    def _went(self, key: Key, value: object, size: int, why: Gone) -> None:
        self._statistics.bytes_changed(MEMORY_TIER, _kind(key), -size)
        if why is Gone.EVICTED:
            self._statistics.evicted(MEMORY_TIER, _kind(key))


def _kind(key: Key) -> str:
    return QUERY_KIND if key[0] == "encoded" else CANDLES_KIND
