"""One read of candles: which views answer it, closed candles, what they lack, and the forming one after them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from market.candle import no_candles, open_times_ms
from market.clock import LATEST_MS, Clock, iso
from market.coverage import CoverageState, Covered, gaps, known
from market.errors import BadInput
from market.instrument import Series
from market.interval import Interval, IntervalSet
from market.rollup import roll_up
from market.timeframe import ONE_MINUTE, Int64s
from store.answer import CandleAnswer
from store.candle_store import DATABASE_TIER, StoredPage
from store.derived import counted, prefer, rolled_page, windows
from store.ledger import clip, learn, outside
from store.tiers.sealed import farthest
from store.tiers.view import SeriesView

#: The forming candle of a series (one row) and when it was received, or None.
Forming = Callable[[Series], Awaitable[tuple[pa.Table, int] | None]]


@dataclass(frozen=True, kw_only=True)
class CandleRequest:
    """What is asked of one series; see :meth:`store.market_data.MarketData.candles`."""

    start_ms: int | None = None
    end_ms: int | None = None
    limit: int | None = None
    as_of_ms: int | None = None
    include_forming: bool = False


@dataclass(frozen=True)
class Kept:
    """How a series can be answered."""

    #: Where it is stored in its own timeframe.
    native: SeriesView | None
    #: Where minutes of the same instrument are stored, and this timeframe can be made of them.
    minutes: SeriesView | None
    origin_ms: int
    #: From the first to the last instant anything is known of.
    known: Interval | None


@dataclass(frozen=True)
class _Page:
    """Closed candles of one read."""

    table: pa.Table
    missing: Int64s
    #: The ledger beside the rows, from the same snapshot; empty for derived candles.
    coverage: list[Covered]
    #: Where the next page starts; None at the end.
    next_start: int | None
    #: Which store gave it, and how long ago that agreed with the database.
    tier: str = DATABASE_TIER
    age_ms: int = 0


class CandleRead:
    """One read of one series, through views of one moment each."""

    def __init__(self, series: Series, kept: Kept, clock: Clock, forming: Forming) -> None:
        self._series = series
        self._kept = kept
        self._clock = clock
        self._heard = forming

    @property
    def known(self) -> Interval | None:
        """From the first to the last instant anything is known of."""
        return self._kept.known

    async def answer(self, query: CandleRequest) -> CandleAnswer:
        """What was asked for.

        :raises Moved: a view has changed: read again from new ones.
        """
        series, kept = self._series, self._kept
        limit, as_of_ms, newest = query.limit, query.as_of_ms, query.start_ms is None
        asked = self._asked(query)
        page = await self._closed(asked, limit, newest, as_of_ms)
        answered = _answered(page, asked, limit, newest)
        inside = clip(page.coverage, answered)
        if kept.minutes is not None:
            inside = await self.ledger(answered)
            if as_of_ms is not None:
                complete = page.table.filter(pa.array(page.missing == 0))
                inside = _as_known(inside, complete, series, as_of_ms)
        # Made by numpy: Arrow's own change of width takes five times as long.
        table = page.table.append_column("missing", pa.array(page.missing.astype(np.int32)))
        if query.include_forming:
            # Without an end, the forming candle follows the last closed one; the answer's interval stays closed.
            room = asked if query.end_ms is not None else Interval(asked.start, LATEST_MS)
            heard = await self._forming(room, page, as_of_ms)
            table = table.append_column("closed", pa.array(np.ones(table.num_rows, np.bool_)))
            if heard is not None:
                table = pa.concat_tables([table, await self._formed(heard)])
        return CandleAnswer(
            series=series,
            interval=answered,
            table=table,
            coverage=tuple(inside),
            gaps=open_gaps(answered, inside, self._at(as_of_ms)),
            next_start=page.next_start,
            tier=page.tier,
            age_ms=page.age_ms,
            derived_from=None if kept.minutes is None else ONE_MINUTE.name,
        )

    async def ledger(self, interval: Interval) -> list[Covered]:
        """What is known of `interval`; for a derived timeframe, of its minutes first."""
        kept = self._kept
        first = kept.minutes or kept.native
        assert first is not None
        ledger = await first.coverage(interval)
        if kept.minutes is None or kept.native is None:
            return ledger
        minutes = IntervalSet(one.interval for one in ledger)
        own = outside(await kept.native.coverage(interval), minutes)
        return sorted([*ledger, *own], key=lambda one: one.interval)

    def _asked(self, query: CandleRequest) -> Interval:
        """The interval with its defaults filled in."""
        whole, start = self._kept.known, query.start_ms
        if start is None:
            # The bucket that the first known instant lies in, though it may lack its beginning.
            start = self._series.timeframe.floor(whole.start, self._kept.origin_ms) if whole else 0
        end = query.end_ms if query.end_ms is not None else max(whole.end if whole else 0, start + 1)
        if start >= end:
            if query.start_ms is not None:
                raise BadInput("end", iso(end), f"an instant after start ({iso(start)}); ranges are [start, end)")
            start = end - 1
        return Interval(start, end)

    async def _closed(self, asked: Interval, limit: int | None, newest: bool, as_of_ms: int | None) -> _Page:
        """Closed candles of `asked`, and one row more than `limit` looked for, to know where to go on."""
        series, kept = self._series, self._kept
        more = None if limit is None else limit + 1
        if kept.minutes is None:
            assert kept.native is not None
            page = await kept.native.page(asked, limit=more, newest=newest, as_of_ms=as_of_ms)
            # One zero, however many rows.
            missing = np.broadcast_to(np.int64(0), page.table.num_rows)
            coverage = page.coverage
            if as_of_ms is not None:
                coverage = _as_known(coverage, page.table, series, as_of_ms)
            return _cut(_Page(page.table, missing, coverage, None, page.tier, page.age_ms), limit, newest)
        pages: list[_Page] = []
        rows = 0
        # Windows without trades give no candle, so `limit` rows may need more than `limit` windows.
        if kept.known is None:
            return _concat(pages)
        for run in windows(series.timeframe, ONE_MINUTE, kept.origin_ms, kept.known, asked, more, newest):
            pages.append(await self._derived(kept.minutes, run, as_of_ms))
            rows += pages[-1].table.num_rows
            if more is not None and rows >= more:
                break
        return _cut(_concat(pages[::-1] if newest else pages), limit, newest)

    async def _derived(self, minutes: SeriesView, run: Interval, as_of_ms: int | None) -> _Page:
        timeframe = self._series.timeframe
        rolled = await self._rolled(minutes, run, as_of_ms)
        there = known(rolled.coverage, self._at(as_of_ms))
        derived = counted(rolled.table, there, ONE_MINUTE, timeframe)
        if self._kept.native is None:
            return _Page(derived.table, derived.missing, [], None, rolled.tier, rolled.age_ms)
        native = await self._kept.native.page(run, as_of_ms=as_of_ms)
        table, missing = prefer(derived, native.table)
        return _Page(table, missing, [], None, *_farthest([rolled, native]))

    async def _rolled(self, minutes: SeriesView, run: Interval, as_of_ms: int | None) -> StoredPage:
        """Candles made of minutes, and the ledger of the minutes."""
        timeframe, origin_ms = self._series.timeframe, self._kept.origin_ms
        if as_of_ms is None:
            return await minutes.rolled(run, timeframe, origin_ms)
        base = await minutes.page(run, as_of_ms=as_of_ms)
        as_known = _as_known(base.coverage, base.table, self._series.at(ONE_MINUTE), as_of_ms)
        return rolled_page(replace(base, coverage=as_known), timeframe, origin_ms)

    def _at(self, as_of_ms: int | None) -> int:
        return self._clock.now_ms() if as_of_ms is None else as_of_ms

    async def _forming(self, room: Interval, page: _Page, as_of_ms: int | None) -> pa.Table | None:
        """What router memory holds of the bucket after the closed ones: its own candle, or its newest minute's."""
        series, kept = self._series, self._kept
        held = await self._heard(series)
        if held is None and kept.minutes is not None:
            held = await self._heard(series.at(ONE_MINUTE))
        if held is None or page.next_start is not None or (as_of_ms is not None and held[1] > as_of_ms):
            return None
        opened = series.timeframe.floor(int(open_times_ms(held[0])[0]), kept.origin_ms)
        closed = kept.known is not None and series.timeframe.next(opened) <= kept.known.end
        return held[0] if opened in room and not closed else None

    async def _formed(self, row: pa.Table) -> pa.Table:
        """The forming candle, with the minutes of its bucket that are stored already."""
        timeframe, origin_ms = self._series.timeframe, self._kept.origin_ms
        heard = int(open_times_ms(row)[0])
        opened = timeframe.floor(heard, origin_ms)
        parts, missing = [row], 0
        if opened < heard:
            there = 0
            if self._kept.minutes is not None:
                earlier = await self._kept.minutes.page(Interval(opened, heard))
                parts.insert(0, earlier.table)
                there = known(earlier.coverage, self._clock.now_ms()).duration
            missing = (heard - opened - there) // ONE_MINUTE.milliseconds
        forming = roll_up(pa.concat_tables(parts), timeframe, origin_ms).table
        forming = forming.append_column("missing", pa.array([missing], pa.int32()))
        return forming.append_column("closed", pa.array([False]))


def open_gaps(interval: Interval, ledger: Sequence[Covered], at_ms: int) -> IntervalSet:
    """The parts of `interval` that nothing is known of."""
    # The future is not missing. What the ledger knows may lie ahead of our clock (a simulated exchange).
    horizon = max([at_ms, *(one.interval.end for one in ledger)])
    return gaps(interval, ledger, at_ms).clip(0, horizon)


def _concat(pages: list[_Page]) -> _Page:
    if not pages:
        return _Page(no_candles(), np.empty(0, np.int64), [], None)
    return _Page(
        pa.concat_tables([one.table for one in pages]),
        np.concatenate([one.missing for one in pages]),
        [],
        None,
        *_farthest(pages),
    )


def _farthest(pages: Sequence[StoredPage | _Page]) -> tuple[str, int]:
    """The farthest tier of several, and the greatest age."""
    return farthest(*(one.tier for one in pages)), max(one.age_ms for one in pages)


def _cut(page: _Page, limit: int | None, newest: bool) -> _Page:
    """The first (or last) `limit` rows."""
    if limit is None or page.table.num_rows <= limit:
        return page
    if newest:
        return replace(page, table=page.table.slice(page.table.num_rows - limit), missing=page.missing[-limit:])
    next_start = int(open_times_ms(page.table)[limit])
    return replace(page, table=page.table.slice(0, limit), missing=page.missing[:limit], next_start=next_start)


def _answered(page: _Page, asked: Interval, limit: int | None, newest: bool) -> Interval:
    """The part of the asked interval that the page speaks for: a limit cuts it."""
    if page.next_start is not None:
        return Interval(asked.start, page.next_start)
    if newest and limit is not None and page.table.num_rows == limit:
        return Interval(int(open_times_ms(page.table)[0]), asked.end)
    return asked


def _as_known(ledger: Sequence[Covered], table: pa.Table, series: Series, as_of_ms: int) -> list[Covered]:
    """The ledger as of then: what the rows of then cover, and the absences learned by then.

    An entry of present candles grows in place, so its own time does not say what was there when.
    """
    present = IntervalSet.of_candles(open_times_ms(table), series.timeframe)
    absences = [one for one in ledger if one.state is not CoverageState.PRESENT and one.learned_at <= as_of_ms]
    return learn(absences, present, (), "as of then", as_of_ms)
