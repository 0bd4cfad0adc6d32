"""Views through tiers, for tests."""

from __future__ import annotations

from pathlib import Path

from market.clock import Clock
from store.archive.archive import Archive
from store.cache.statistics import TierStatistics
from store.cache.time_to_live import TimesToLive
from store.candle_store import CandleStore
from store.tiers.disk import DiskTier
from store.tiers.process_memory import ProcessMemory
from store.tiers.tiered_views import TieredViews

MEBIBYTE = 1 << 20


def tiered(
    store: CandleStore,
    archive: Archive | None,
    clock: Clock,
    folder: Path | None,
    *,
    memory_bytes: int = 64 * MEBIBYTE,
    disk_bytes: int = 64 * MEBIBYTE,
    times: TimesToLive | None = None,
) -> TieredViews:
    """All tiers over a store.

    :param folder: of the disk tier; None to do without.
    """
    statistics = TierStatistics(clock.now_ms)
    return TieredViews(
        store,
        archive,
        clock,
        entries=ProcessMemory(memory_bytes, statistics),
        disk=None if folder is None else DiskTier(folder, disk_bytes, statistics, clock),
        times=times or TimesToLive(),
        statistics=statistics,
    )
