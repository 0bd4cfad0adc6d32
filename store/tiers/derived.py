"""Larger candles made of stored ones, kept so that only what is new is made: a tail of the newest ones and whole
periods of older ones."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from market.candle import no_candles, open_times_ms
from market.fingerprint import Digest
from market.interval import Interval
from market.rollup import roll_up
from market.timeframe import TIMEFRAMES, Int64s, Timeframe
from store.cache.memory import MEMORY_TIER
from store.cache.statistics import TierStatistics
from store.candle_store import StoredPage
from store.tiers.disk import DISK_TIER, ChunkName
from store.tiers.held_series import HeldSeries
from store.tiers.periods import Period, opening_in, period_of
from store.tiers.process_memory import CANDLES_KIND, ProcessMemory
from store.tiers.sealed import SealedPeriods, SealedTable, farthest
from store.tiers.tail import copied
from store.tiers.view import Moved, StoredView, UnknownPeriods

#: Buckets before the newest period that a tail may be lengthened by at once, backwards.
_LONGEST_REACH = 4_000
#: Base candles that the store is asked to make larger ones of at once, about.
_MOST_AT_ONCE = 100_000
#: A tail of more buckets is cut, and so many are left of it.
_LONG_TAIL = 20_000
_SHORT_TAIL = 5_000
#: Pieces that a table may consist of before it is put together.
_MOST_PIECES = 32
#: More rows than these are rolled up on a thread.
_LARGE = 5_000
_HALF_DAY = TIMEFRAMES["12h"]


@dataclass(frozen=True)
class _DerivedTail:
    """Every bucket of ``[start, end)``, as of a revision of what they are made of. Immutable."""

    start: int
    end: int
    revision: int
    table: pa.Table
    times: Int64s

    @property
    def bytes(self) -> int:
        return int(self.table.nbytes) + self.times.nbytes + 1000

    def rows(self, interval: Interval) -> pa.Table:
        return opening_in(self.table, self.times, interval)

    def since(self, start: int) -> _DerivedTail:
        """Without the buckets before `start`; copied, so that they can be freed."""
        first = int(np.searchsorted(self.times, start))
        table = copied(self.table.slice(first))
        return replace(self, start=start, table=table, times=self.times[first:].copy())

    def until(self, end: int) -> _DerivedTail:
        """Without the buckets from `end` on."""
        if end >= self.end:
            return self
        count = int(np.searchsorted(self.times, end))
        return replace(self, end=end, table=self.table.slice(0, count), times=self.times[:count])

    def with_end(self, end: int, rows: pa.Table) -> _DerivedTail:
        """With the buckets from its end to `end`."""
        return self._joined(self.start, end, [self.table, rows])

    def with_start(self, start: int, rows: pa.Table) -> _DerivedTail:
        """With the buckets from `start` to its start."""
        return self._joined(start, self.end, [rows, self.table])

    def _joined(self, start: int, end: int, parts: list[pa.Table]) -> _DerivedTail:
        table = pa.concat_tables(parts)
        if table.num_rows and table.column(0).num_chunks > _MOST_PIECES:
            table = table.combine_chunks()
        times = np.concatenate([open_times_ms(one) for one in parts])
        return replace(self, start=start, end=end, table=table, times=times)


class DerivedCandles:
    """Larger candles of all series. Used from one event loop.

    Whether buckets lack base candles is not kept here: the ledger says so at every read.

    :param agrees: whether a page, read of an interval, has the rows that are held of that.
    """

    def __init__(
        self,
        entries: ProcessMemory,
        sealed: SealedPeriods,
        statistics: TierStatistics,
        agrees: Callable[[HeldSeries, StoredPage, Interval], Awaitable[bool]],
    ) -> None:
        self.entries = entries
        self.sealed = sealed
        self.statistics = statistics
        self.agrees = agrees

    async def rows(
        self, held: HeldSeries, stored: StoredView, wanted: Interval, timeframe: Timeframe, origin_ms: int
    ) -> tuple[pa.Table, str]:
        """The buckets of `wanted`, and the farthest tier that was asked.

        :param wanted: whole, closed buckets.
        :raises Moved: the base candles have changed meanwhile.
        """
        work = _Making(self, held, stored, timeframe, origin_ms)
        key = ("derived", held.series, timeframe, origin_ms)
        found = self.entries.get(key)
        tail = work.current(found if isinstance(found, _DerivedTail) else None)
        if tail is not None and tail.start <= wanted.start and wanted.end <= tail.end:
            self.statistics.hit(MEMORY_TIER, CANDLES_KIND)
            if tail is not found:
                self.entries.put(key, tail, tail.bytes)
            return tail.rows(wanted), MEMORY_TIER
        border = work.border(tail, wanted)
        parts: list[pa.Table] = []
        if wanted.start < border:
            parts.append(await work.older(Interval(wanted.start, min(border, wanted.end))))
        if wanted.end > border:
            newest = Interval(max(wanted.start, border), wanted.end)
            tail = await work.reached(tail, newest)
            parts.append(tail.rows(newest))
            found = self.entries.get(key)
            if not isinstance(found, _DerivedTail) or found.revision <= tail.revision:
                tail = work.shortened(tail)
                self.entries.put(key, tail, tail.bytes)
        return pa.concat_tables(parts), work.tier


class _Making:
    """One read of larger candles: what is there is used, the rest is made."""

    def __init__(
        self, owner: DerivedCandles, held: HeldSeries, stored: StoredView, timeframe: Timeframe, origin_ms: int
    ) -> None:
        self._owner = owner
        self._held = held
        self._stored = stored
        self._timeframe = timeframe
        self._origin_ms = origin_ms
        #: The farthest tier that was asked.
        self.tier = MEMORY_TIER

    def current(self, tail: _DerivedTail | None) -> _DerivedTail | None:
        """What is left of a tail now that the base candles are at the revision of this view."""
        if tail is None or tail.revision > self._held.revision:
            return None
        changed = self._held.changed_since(tail.revision)
        if changed is not None:
            if changed < tail.start:
                return None
            tail = tail.until(self._timeframe.floor(changed, self._origin_ms))
        if tail.end <= tail.start:
            return None
        return tail if tail.revision == self._held.revision else replace(tail, revision=self._held.revision)

    def border(self, tail: _DerivedTail | None, wanted: Interval) -> int:
        """Where whole periods of older buckets end and the tail begins."""
        newest = self._held.newest_period
        if newest is None:
            return wanted.start
        last = self._held.facts.known.end - 1 if self._held.facts.known else newest
        sealed = self._timeframe.ceil(min(newest, self._group(last).start), self._origin_ms)
        if wanted.end <= sealed:
            return wanted.end
        anchor = wanted.end if tail is None else tail.start
        reach = self._timeframe.next(self._timeframe.floor(anchor, self._origin_ms), -_LONGEST_REACH)
        return wanted.start if wanted.start >= min(sealed, reach) else sealed

    async def reached(self, tail: _DerivedTail | None, wanted: Interval) -> _DerivedTail:
        """The tail, lengthened at both ends until it has all of `wanted`."""
        if tail is None or tail.end < wanted.start:
            rows = await self._made(wanted)
            return _DerivedTail(wanted.start, wanted.end, self._held.revision, rows, open_times_ms(rows))
        if wanted.end > tail.end:
            tail = tail.with_end(wanted.end, await self._made(Interval(tail.end, wanted.end)))
        if wanted.start < tail.start:
            tail = tail.with_start(wanted.start, await self._made(Interval(wanted.start, tail.start)))
        return tail

    def shortened(self, tail: _DerivedTail) -> _DerivedTail:
        """Without a beginning that makes it too long."""
        return tail.since(int(tail.times[-_SHORT_TAIL])) if len(tail.times) > _LONG_TAIL else tail

    async def older(self, wanted: Interval) -> pa.Table:
        """Buckets of whole periods that are not the newest."""
        parts: list[pa.Table] = []
        group = self._group(wanted.start)
        at = wanted.start
        while at < wanted.end:
            # Buckets belong to the period that they open in.
            first = self._timeframe.ceil(group.start, self._origin_ms)
            end = self._timeframe.ceil(group.end, self._origin_ms)
            if end > at:
                part = Interval(at, min(end, wanted.end))
                parts.append(await self._of_group(group, Interval(first, end), part))
                at = part.end
            group = self._group(group.end)
        return pa.concat_tables(parts)

    async def _of_group(self, group: Period, whole: Interval, wanted: Interval) -> pa.Table:
        base = self._held.between(whole.start, whole.end)
        if any(one.start in self._held.unknown for one in base):
            raise UnknownPeriods
        rows = sum((one.digest for one in base), Digest())
        if not rows.rows:
            return no_candles()
        revision = max(one.revision for one in base)
        name = ChunkName(self._held.series.at(self._timeframe), "derived", group.start, revision, rows)
        key = ("derived", self._held.series, self._timeframe, self._origin_ms, group.start)
        made = replace(group, revision=revision, digest=rows)
        held = self._owner.entries.get(key)
        if isinstance(held, SealedTable) and held.period == made:
            self._owner.statistics.hit(MEMORY_TIER, CANDLES_KIND)
            return held.rows(wanted)
        self._owner.statistics.miss(MEMORY_TIER, CANDLES_KIND)
        if self._owner.sealed.seldom(name.series, made, wanted):
            return await self._made(wanted)
        # Three-day buckets depend on where they count from, which the name does not say.
        named = self._timeframe.name != "3d"
        table = await self._owner.sealed.from_disk(name) if named else None
        if table is None:
            table = (await self._made(whole)).combine_chunks()
            if named:
                self._owner.sealed.to_disk(name, table)
        else:
            self._farther(DISK_TIER)
        sealed = SealedTable.of(made, table)
        self._owner.entries.put(key, sealed, sealed.bytes)
        return sealed.rows(wanted)

    async def _made(self, wanted: Interval) -> pa.Table:
        """Buckets made of base candles: of those in memory, else by the store."""
        base = self._in_memory(wanted)
        if base is not None:
            if base.num_rows > _LARGE:
                return (await asyncio.to_thread(roll_up, base, self._timeframe, self._origin_ms)).table
            return roll_up(base, self._timeframe, self._origin_ms).table
        parts: list[pa.Table] = []
        most = max(1, _MOST_AT_ONCE * self._held.series.timeframe.seconds // self._timeframe.seconds)
        at = wanted.start
        while at < wanted.end:
            part = Interval(at, min(self._timeframe.next(at, most), wanted.end))
            page = await self._stored.rolled(part, self._timeframe, self._origin_ms)
            if not await self._owner.agrees(self._held, page, part):
                raise Moved
            self._farther(page.tier)
            parts.append(page.table)
            at = part.end
        return pa.concat_tables(parts)

    def _in_memory(self, wanted: Interval) -> pa.Table | None:
        tail = self._held.tail
        if tail is not None and tail.start <= wanted.start:
            return tail.rows(wanted)
        border = wanted.end if tail is None else min(tail.start, wanted.end)
        parts: list[pa.Table] = []
        for one in self._held.between(wanted.start, border):
            found = self._owner.sealed.peek(self._held.series, one)
            if found is None or one.start in self._held.unknown:
                return None
            parts.append(found.rows(Interval(max(wanted.start, one.start), min(border, one.end))))
        if tail is not None and tail.start < wanted.end:
            parts.append(tail.rows(wanted))
        return pa.concat_tables(parts) if parts else no_candles()

    def _group(self, instant: int) -> Period:
        """The period whose buckets are kept together: a year at most, since all that it is made of may be read."""
        return period_of(instant, min(self._timeframe, _HALF_DAY))

    def _farther(self, tier: str) -> None:
        self.tier = farthest(self.tier, tier)
