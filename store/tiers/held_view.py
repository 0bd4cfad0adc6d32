"""One series as process memory holds it; what is missing is read from farther tiers and held to the digests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import pyarrow as pa

from market.candle import no_candles, open_times_ms
from market.coverage import Covered
from market.interval import Interval
from market.timeframe import Timeframe
from store.cache.memory import MEMORY_TIER
from store.candle_store import DATABASE_TIER, SeriesFacts, StoredPage
from store.merge import chunk_start
from store.tiers.derived import DerivedCandles
from store.tiers.held_series import HeldSeries
from store.tiers.periods import Period
from store.tiers.sealed import SealedPeriods, farthest
from store.tiers.tail import Tail
from store.tiers.view import Moved, StoredView, UnknownPeriods

#: A tail is read for the newest rows up to so many; more come by whole periods.
_MOST_BY_TAIL = 5_000
#: A range that begins so many rows before the last one, or more, does not make the tail longer.
_LONGEST_BY_RANGE = 6_000
#: Rows that a tail is read for at least.
LEAST_BY_TAIL = 1_500


class Reader(Protocol):
    """What a view needs of whoever made it."""

    @property
    def sealed(self) -> SealedPeriods: ...

    @property
    def derived(self) -> DerivedCandles: ...

    async def agrees(self, held: HeldSeries, page: StoredPage, interval: Interval) -> bool: ...

    async def reach(self, held: HeldSeries, start: int) -> None: ...

    async def know_periods(self, held: HeldSeries) -> None: ...


class HeldView:
    """See :class:`store.tiers.view.SeriesView`.

    :param stored: the same series in the database.
    :param age_ms: since this was known to be what the database says.
    :param anew: whether the tail was read from the database for this view; asked at its first use.
    """

    def __init__(
        self,
        held: HeldSeries,
        stored: StoredView,
        reader: Reader,
        age_ms: int,
        anew: Callable[[], bool] = lambda: False,
    ) -> None:
        self._held = held
        self._stored = stored
        self._reader = reader
        self._age_ms = age_ms
        self._anew = anew
        self._nearest: str | None = None
        #: Whether a longer tail can be had.
        self._reachable = True

    @property
    def facts(self) -> SeriesFacts:
        """Of the revision that is held."""
        return self._held.facts

    async def coverage(self, interval: Interval) -> list[Covered]:
        """See :meth:`store.tiers.view.SeriesView.coverage`."""
        return self._held.ledger.inside(interval)

    async def page(
        self, interval: Interval, *, limit: int | None = None, newest: bool = False, as_of_ms: int | None = None
    ) -> StoredPage:
        """See :meth:`store.tiers.view.SeriesView.page`; as of an instant, from the database."""
        if as_of_ms is not None:
            return await self._stored.page(interval, limit=limit, newest=newest, as_of_ms=as_of_ms)
        try:
            if newest and limit is not None:
                table, tier = await self._newest(interval, limit)
            else:
                table, tier = await self._oldest(interval, limit)
        except UnknownPeriods:
            await self._reader.know_periods(self._held)
            table, tier = await self._direct(interval, limit, newest=newest)
        read = interval
        if limit is not None and table.num_rows >= limit:
            table = table.slice(table.num_rows - limit) if newest else table.slice(0, limit)
            times = open_times_ms(table.slice(0, 1) if newest else table.slice(limit - 1))
            if newest:
                read = Interval(int(times[0]), interval.end)
            else:
                read = Interval(interval.start, self._held.series.timeframe.next(int(times[0])))
        return StoredPage(table=table, coverage=self._held.ledger.inside(read), tier=tier, age_ms=self._age_ms)

    async def rolled(self, interval: Interval, timeframe: Timeframe, origin_ms: int) -> StoredPage:
        """See :meth:`store.tiers.view.SeriesView.rolled`."""
        try:
            table, tier = await self._reader.derived.rows(self._held, self._stored, interval, timeframe, origin_ms)
        except UnknownPeriods:
            await self._reader.know_periods(self._held)
            page = await self._stored.rolled(interval, timeframe, origin_ms)
            if not await self._reader.agrees(self._held, page, interval):
                raise Moved from None
            table, tier = page.table, page.tier
        return StoredPage(table=table, coverage=self._held.ledger.inside(interval), tier=tier, age_ms=self._age_ms)

    async def _newest(self, interval: Interval, limit: int) -> tuple[pa.Table, str]:
        """At least the last `limit` rows of `interval`, as far as there are so many."""
        held, newest = self._held, self._held.newest_period
        if newest is None:
            return no_candles(), MEMORY_TIER
        if interval.end > newest and limit <= _MOST_BY_TAIL:
            tail = held.tail
            if tail is not None:
                found = tail.rows(interval)
                if found.num_rows >= limit or tail.start <= max(interval.start, held.first):
                    return found, self._tail_tier()
            start = self._guess(interval, limit)
            if tail is None or start < tail.start:
                await self._reach(start)
        parts: list[pa.Table] = []
        tier, rows, end = MEMORY_TIER, 0, interval.end
        # From period to period backwards, until there are enough.
        for period in reversed(held.between(interval.start, interval.end)):
            wanted = Interval(max(interval.start, period.start), end)
            part, of = await self._piece(period, wanted, limit - rows)
            parts.append(part)
            tier, rows, end = farthest(tier, of), rows + part.num_rows, period.start
            if rows >= limit or end <= interval.start:
                break
        return pa.concat_tables(reversed(parts)) if parts else no_candles(), tier

    async def _oldest(self, interval: Interval, limit: int | None) -> tuple[pa.Table, str]:
        """All rows of `interval`, or at least the first `limit`."""
        tail = self._held.tail
        if tail is not None and tail.start <= interval.start:
            return tail.rows(interval), self._tail_tier()
        parts: list[pa.Table] = []
        tier, rows = MEMORY_TIER, 0
        for period in self._held.between(interval.start, interval.end):
            inside = Interval(max(interval.start, period.start), min(interval.end, period.end))
            part, of = await self._piece(period, inside)
            parts.append(part)
            tier, rows = farthest(tier, of), rows + part.num_rows
            if limit is not None and rows >= limit:
                break
        if len(parts) == 1:
            return parts[0], tier
        return pa.concat_tables(parts) if parts else no_candles(), tier

    async def _piece(self, period: Period, wanted: Interval, last: int | None = None) -> tuple[pa.Table, str]:
        """The rows of one period that open in `wanted`; at least the `last` ones of them."""
        held = self._held
        tail = held.tail
        if tail is not None and tail.start <= wanted.start:
            return tail.rows(wanted), self._tail_tier()
        if period.start == held.newest_period:
            if (
                tail is not None
                and wanted.start < tail.last - _LONGEST_BY_RANGE * held.series.timeframe.milliseconds
            ):
                return await self._with_head(period, wanted, tail)
            if held.tail_from <= wanted.start:
                await self._reach(wanted.start)
            return await self._direct(wanted, last, newest=last is not None)
        if period.start in held.unknown:
            raise UnknownPeriods
        if self._reader.sealed.peek(held.series, period) is None and self._reader.sealed.seldom(
            held.series, period, wanted
        ):
            return await self._direct(wanted, last, newest=last is not None)
        sealed, tier = await self._reader.sealed.table(held.series, period, self._stored)
        return sealed.rows(wanted), tier

    async def _with_head(self, period: Period, wanted: Interval, tail: Tail) -> tuple[pa.Table, str]:
        """Rows that begin long before the tail: what lies before it is kept as periods are, and makes room."""
        before = Interval(period.start, tail.start)
        head, tier = await self._reader.sealed.head(
            self._held, before, lambda: self._direct(before, None, newest=False)
        )
        parts = []
        if wanted.start < tail.start:
            parts.append(head.rows(Interval(wanted.start, min(wanted.end, tail.start))))
        if wanted.end > tail.start:
            parts.append(tail.rows(Interval(tail.start, wanted.end)))
        return pa.concat_tables(parts), tier

    async def _direct(self, wanted: Interval, limit: int | None, *, newest: bool) -> tuple[pa.Table, str]:
        """Straight from the database."""
        self._reader.sealed.missed()
        page = await self._stored.page(wanted, limit=limit, newest=newest)
        if not await self._reader.agrees(self._held, page, wanted):
            raise Moved
        return page.table, page.tier

    async def _reach(self, start: int) -> None:
        """Have a longer tail, if that can be kept.

        :raises Moved: the next view has it.
        """
        if self._reachable:
            await self._reader.reach(self._held, start)
        self._reachable = False

    def _tail_tier(self) -> str:
        """Where the tail, which has what was asked for, came from."""
        if self._nearest is None:
            self._nearest = DATABASE_TIER if self._anew() else MEMORY_TIER
        if self._nearest == MEMORY_TIER:
            self._reader.sealed.hit()
        else:
            self._reader.sealed.missed()
        return self._nearest

    def _guess(self, interval: Interval, limit: int) -> int:
        """The start of the chunk where a tail has to start to have `limit` rows before the end of `interval`, going
        by what is known."""
        held = self._held
        end = min(interval.end, held.facts.known.end if held.facts.known else interval.end)
        step = held.series.timeframe.seconds * 1000
        start = end - max(limit, LEAST_BY_TAIL) * step
        wanted = limit
        for period in reversed(held.between(interval.start, interval.end)):
            length = min(end, period.end) - period.start
            if period.digest.rows > wanted:
                # A little more than it takes where the candles are as dense as in the whole period.
                start = min(start, min(end, period.end) - length * wanted * 11 // (period.digest.rows * 10))
                break
            wanted -= period.digest.rows
            start = min(start, period.start)
        if held.tail is not None and held.tail.start <= start:
            # Too short still, for in that period they are not equally dense: all of it, or of the one before.
            start = max((one.start for one in held.between(held.first, held.tail.start)), default=held.first)
        return chunk_start(max(start, held.first, held.tail_from), held.series.timeframe)
