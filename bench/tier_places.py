"""Our stores with and without tiers, for the benchmarks of these, and the series that they hold."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from market.candle import CandleState
from market.clock import SystemClock
from market.instrument import Series
from market.timeframe import ONE_MINUTE
from store.batch import CandleBatch
from store.cache.statistics import TierStatistics
from store.cache.time_to_live import TimesToLive
from store.candle_store import CandleStore
from store.live_source import LocalMarket
from store.market_data import MarketData
from store.tiers.disk import DiskTier
from store.tiers.process_memory import ProcessMemory
from store.tiers.tiered_views import TieredViews

SERIES = Series("bench", "BTC/USDT", ONE_MINUTE)
CLOCK = SystemClock()
MIB = 1 << 20
_BATCH = 100_000


class Tiers:
    """Market data that reads through tiers of its own, and what these did."""

    def __init__(self, store: CandleStore, folder: Path | None, *, memory_bytes: int, disk_bytes: int) -> None:
        self.store = store
        self.memory_bytes = memory_bytes
        self.statistics = TierStatistics(CLOCK.now_ms)
        self.disk = None if folder is None else DiskTier(folder, disk_bytes, self.statistics, CLOCK)
        self.views = TieredViews(
            store,
            None,
            CLOCK,
            entries=ProcessMemory(memory_bytes, self.statistics),
            disk=self.disk,
            times=TimesToLive(),
            statistics=self.statistics,
        )
        self.market_data = MarketData(store, LocalMarket.empty(CLOCK), CLOCK, views=self.views)


@contextlib.contextmanager
def opened_tiers(
    store: CandleStore, folder: Path | None, *, memory_bytes: int = 256 * MIB, disk_bytes: int = 1024 * MIB
) -> Iterator[Tiers]:
    """Tiers over a store; at the end their files have been written."""
    tiers = Tiers(store, folder, memory_bytes=memory_bytes, disk_bytes=disk_bytes)
    try:
        yield tiers
    finally:
        tiers.views.close()


def untiered(store: CandleStore) -> MarketData:
    """Market data that asks the database each time."""
    return MarketData(store, LocalMarket.empty(CLOCK), CLOCK)


async def fill(store: CandleStore, table: pa.Table) -> None:
    """Put the series into a store of ours."""
    for start in range(0, table.num_rows, _BATCH):
        rows = table.slice(start, _BATCH)
        await store.write(
            CandleBatch(
                series=SERIES, source="bench", now_ms=CLOCK.now_ms(), table=rows, state=CandleState.VERIFIED
            )
        )
