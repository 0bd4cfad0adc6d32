"""The tiers as the settings want them: how much memory and disk, how fresh, and what is read ahead at the start."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import structlog

from chandlery.settings import Settings
from market.clock import Clock
from market.errors import ChandleryError
from market.system_event import SystemEvent
from store.archive.archive import Archive
from store.cache.statistics import TierStatistics
from store.candle_store import CandleStore
from store.tiers.disk import DiskTier
from store.tiers.frequent import FrequentSeries
from store.tiers.process_memory import ProcessMemory
from store.tiers.tiered_views import TieredViews

log = structlog.get_logger(__name__)

#: Which series are read most, in the home.
FREQUENT_NAME = "frequently_read.json"
#: Seconds between looks at the safety state where nobody reads, and between reports of statistics.
_LOOK_SECONDS = 1.0
_REPORT_SECONDS = 10.0
#: Rows of each series that are read ahead.
_AHEAD_ROWS = 1_000


def told(event: SystemEvent) -> None:
    """Log a system event, as grave as it is."""
    level = "critical" if event.severity.name == "CRITICAL" else "debug" if event.severity.name == "LOW" else "info"
    getattr(log, level)(event.name, **dict(event.details))


@contextlib.asynccontextmanager
async def opened_tiers(
    settings: Settings, store: CandleStore, archive: Archive | None, clock: Clock
) -> AsyncIterator[TieredViews]:
    """The tiers over a store, for as long as the context lasts.

    :raises BadInput: settings of the cache that cannot be.
    """
    statistics = TierStatistics(clock.now_ms)
    folder = settings.cache_folder
    disk = DiskTier(folder, settings.cache_disk_bytes, statistics, clock) if settings.cache_disk_bytes else None
    frequent = FrequentSeries(settings.home / FREQUENT_NAME, clock)
    views = TieredViews(
        store,
        archive,
        clock,
        entries=ProcessMemory(settings.cache_memory_bytes, statistics),
        disk=disk,
        times=settings.times_to_live,
        statistics=statistics,
        falls_back=settings.secondary_url is not None,
        frequent=frequent,
    )
    working = asyncio.create_task(_work(views, frequent, statistics, settings.cache_preload), name="tiers")
    try:
        yield views
    finally:
        working.cancel()
        await asyncio.wait([working])
        views.close()
        if views.control.safety.writes:
            await asyncio.to_thread(lambda: frequent.save(at_once=True))


async def _work(views: TieredViews, frequent: FrequentSeries, statistics: TierStatistics, preload: int) -> None:
    """Read ahead, then keep an eye on the safety state and tell what the tiers did."""
    await views.tidy()
    await _read_ahead(views, frequent, preload)
    reported = time.monotonic()
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        await views.look()
        if time.monotonic() - reported >= _REPORT_SECONDS:
            reported = time.monotonic()
            statistics.report(told)
            if views.control.safety.writes:
                await asyncio.to_thread(frequent.save)


async def _read_ahead(views: TieredViews, frequent: FrequentSeries, count: int) -> None:
    for series in frequent.top(count):
        try:
            await views.read_ahead(series, _AHEAD_ROWS)
        except ChandleryError as error:
            log.info("a series cannot be read ahead", series=str(series), error=str(error))
