"""Whole periods of closed candles: from process memory, from the disk, or once from the database and then kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from market.candle import open_times_ms
from market.fingerprint import digest
from market.instrument import Series
from market.interval import Interval
from market.timeframe import Int64s
from store.archived_page import ARCHIVE_TIER
from store.cache.memory import MEMORY_TIER
from store.cache.shared_values import ROUTER_TIER
from store.cache.single_flight import SingleFlight
from store.cache.statistics import TierStatistics
from store.candle_store import DATABASE_TIER
from store.tiers.disk import DISK_TIER, ChunkName, DiskTier
from store.tiers.held_series import HeldSeries
from store.tiers.periods import Period, opening_in
from store.tiers.process_memory import CANDLES_KIND, ProcessMemory
from store.tiers.view import Moved, SeriesView

#: From near to far.
_DISTANCE = (MEMORY_TIER, ROUTER_TIER, DISK_TIER, DATABASE_TIER, ARCHIVE_TIER)
#: Tables that may wait to be written to the disk tier. Rule: when more come, the new ones are not written.
_MOST_WAITING = 8
#: Periods of which a small part was read once. Rule: the oldest are forgotten.
_MOST_TOUCHED = 10_000


def farthest(*tiers: str) -> str:
    """The tier that is farthest from process memory; one of an unknown name is farther than all."""
    return max(tiers, key=lambda one: _DISTANCE.index(one) if one in _DISTANCE else len(_DISTANCE))


@dataclass(frozen=True)
class SealedTable:
    """The rows of one period, as its digest says they are."""

    period: Period
    table: pa.Table
    #: Open times of the rows.
    times: Int64s

    @classmethod
    def of(cls, period: Period, table: pa.Table) -> SealedTable:
        """From a table of one piece."""
        return cls(period, table, open_times_ms(table))

    @property
    def bytes(self) -> int:
        """What it takes in memory, or of the mapped file."""
        return int(self.table.nbytes) + 1000

    def rows(self, interval: Interval) -> pa.Table:
        """Those that open in `interval`."""
        return opening_in(self.table, self.times, interval)


@dataclass(frozen=True)
class HeadTable:
    """The rows of the newest period that open before the tail, as of a revision."""

    interval: Interval
    revision: int
    table: pa.Table
    #: Open times of the rows.
    times: Int64s

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return int(self.table.nbytes) + 1000

    def rows(self, interval: Interval) -> pa.Table:
        """Those that open in `interval`."""
        return opening_in(self.table, self.times, interval)

    def holds(self, held: HeldSeries, wanted: Interval) -> bool:
        """Whether it has what the series has in `wanted`, at the revision that is held."""
        if self.interval.start != wanted.start or self.interval.end < wanted.end or self.revision > held.revision:
            return False
        changed = held.changed_since(self.revision)
        return changed is None or changed >= self.interval.end


class SealedPeriods:
    """Tables of periods, each held to the digest that names it. Used from one event loop."""

    def __init__(
        self,
        entries: ProcessMemory,
        disk: DiskTier | None,
        statistics: TierStatistics,
    ) -> None:
        self._entries = entries
        self._disk = disk
        self._statistics = statistics
        self._flight: SingleFlight[object, tuple[SealedTable, str]] = SingleFlight()
        self._heads: SingleFlight[object, tuple[HeadTable, str]] = SingleFlight()
        self._touched: dict[object, None] = {}
        self._waiting = 0
        # One at a time: writing must not take the processor from those who read.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="disk-tier")

    def hit(self) -> None:
        """A tail had what was asked for."""
        self._statistics.hit(MEMORY_TIER, CANDLES_KIND)

    def missed(self) -> None:
        """Neither a tail nor a period was there, and none is to be kept."""
        self._statistics.miss(MEMORY_TIER, CANDLES_KIND)

    def close(self) -> None:
        """Wait for the files that are being written."""
        self._writer.shutdown()

    def peek(self, series: Series, period: Period) -> SealedTable | None:
        """The period's table if process memory has it."""
        found = self._entries.get(("sealed", series, period.start))
        return found if isinstance(found, SealedTable) and found.period == period else None

    def seldom(self, series: Series, period: Period, wanted: Interval) -> bool:
        """Whether so little is wanted of a period that was never asked for that it is not worth keeping it."""
        if wanted.duration * 8 > period.end - period.start or period.digest.rows < 1000:
            return False
        key = (series, period.start)
        if key in self._touched:
            return False
        while len(self._touched) >= _MOST_TOUCHED:
            self._touched.pop(next(iter(self._touched)))
        self._touched[key] = None
        return True

    async def table(self, series: Series, period: Period, stored: SeriesView) -> tuple[SealedTable, str]:
        """The period's table and the tier that gave it.

        :param stored: where to read it from if neither memory nor disk have it.
        :raises Moved: the database has something else there by now.
        """
        held = self.peek(series, period)
        if held is not None:
            self._statistics.hit(MEMORY_TIER, CANDLES_KIND)
            return held, MEMORY_TIER
        self._statistics.miss(MEMORY_TIER, CANDLES_KIND)
        return await self._flight.run((series, period), lambda: self._loaded(series, period, stored))

    async def _loaded(self, series: Series, period: Period, stored: SeriesView) -> tuple[SealedTable, str]:
        name = ChunkName(series, "stored", period.start, period.revision, period.digest)
        table = await self.from_disk(name)
        tier = DISK_TIER
        if table is None:
            page = await stored.page(period.interval)
            tier = ARCHIVE_TIER if page.tier == ARCHIVE_TIER else DATABASE_TIER
            table = page.table.combine_chunks()
            if await asyncio.to_thread(digest, table) != period.digest:
                raise Moved
            self.to_disk(name, table)
        sealed = SealedTable.of(period, table)
        self._entries.put(("sealed", series, period.start), sealed, sealed.bytes)
        return sealed, tier

    async def head(
        self, held: HeldSeries, wanted: Interval, read: Callable[[], Awaitable[tuple[pa.Table, str]]]
    ) -> tuple[HeadTable, str]:
        """The rows of `wanted`, from the beginning of the newest period to the tail, and the tier that gave them.

        :param read: reads them; what it gives is what the series has at the revision that is held.
        :raises Moved: the database has something else there by now.
        """
        key = ("sealed", held.series, "head")
        found = self._entries.get(key)
        if isinstance(found, HeadTable) and found.holds(held, wanted):
            self.hit()
            return found, MEMORY_TIER

        async def load() -> tuple[HeadTable, str]:
            table, tier = await read()
            table = table.combine_chunks()
            head = HeadTable(wanted, held.revision, table, open_times_ms(table))
            before = self._entries.get(key)
            if not isinstance(before, HeadTable) or before.revision <= head.revision:
                self._entries.put(key, head, head.bytes)
            return head, tier

        return await self._heads.run((held.series, held.revision, wanted), load)

    async def from_disk(self, name: ChunkName) -> pa.Table | None:
        """A table of the disk tier, or None."""
        if self._disk is None:
            return None
        return await asyncio.to_thread(self._disk.get, name)

    def to_disk(self, name: ChunkName, table: pa.Table) -> None:
        """Write a table to the disk tier, soon."""
        if self._disk is None or self._waiting >= _MOST_WAITING:
            return
        self._waiting += 1
        loop = asyncio.get_running_loop()
        written = loop.run_in_executor(self._writer, self._disk.put, name, table)
        written.add_done_callback(self._written)

    def _written(self, done: asyncio.Future[bool]) -> None:
        self._waiting -= 1
        if not done.cancelled():
            done.exception()
