"""Filling the gaps of one series: the one operation behind first backfill, resume, reconnect and repair.

The coverage ledger says which parts of a range are unknown. Each is asked for page by page; each page is one
transaction of rows and of what was learned about their absence. Killed at any moment, the next run finds in the
ledger what is still unknown, and goes on there.

A bucket without a candle is recorded as empty after two reads that agree, with evidence and an expiry:

* in the middle: the stretch from the first to the last hole of a page is read again;
* before the first candle this exchange has at all: a search for that candle is the second read;
* a long stretch without any candle: two searches for the next candle, so that years before a listing cost a
  handful of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from exchange.page import CandlePage
from ingest.clock import ExchangeClock
from ingest.patience import PatientHistory
from ingest.report import NoProgress, Progress
from market.candle import CandleState, by_open_time, no_candles, open_times_ms
from market.clock import EARLIEST_MS, Clock, iso
from market.coverage import CoverageState, Covered, archived, gaps
from market.errors import Mismatch
from market.instrument import Instrument, Series
from market.interval import Interval, IntervalSet
from market.timeframe import DAY_MS
from store.batch import Absence, CandleBatch, Written

#: A candle counts as read again after closing when its page was read this long after its end.
VERIFIED_AFTER_MS = 60_000
#: How long "nothing there" counts: an exchange may still repair the last day, hardly the last year.
RECENT_EMPTY_MS = 3_600_000
SETTLED_EMPTY_MS = 30 * DAY_MS


class CandleStore(Protocol):
    """Where candles and the knowledge about them go."""

    async def write(self, batch: CandleBatch) -> Written:
        """Write a batch in one transaction; it is durable when this returns."""
        ...

    async def coverage(self, series: Series, interval: Interval | None = None) -> list[Covered]:
        """The ledger, sorted and disjoint, clipped to `interval`."""
        ...

    async def save_instruments(self, instruments: Sequence[Instrument], complete: bool = False) -> None:
        """Keep the exchange's description of its markets."""
        ...


@dataclass
class Filled:
    """Running account of one series."""

    written: Written = field(default_factory=Written)


class GapFiller:
    """Fills the gaps of one series from one exchange.

    :param clock: exchange time; the caller has read it just now.
    :param local: our own clock, for expiries.
    :param settle_ms: how long after its end a candle may still change and is left alone.
    """

    def __init__(
        self,
        history: PatientHistory,
        store: CandleStore,
        clock: ExchangeClock,
        local: Clock,
        instrument: Instrument,
        *,
        settle_ms: int,
        progress: Progress | None = None,
    ) -> None:
        self._history = history
        self._store = store
        self._clock = clock
        self._local = local
        self._origin_ms = instrument.origin_ms
        self._settle_ms = settle_ms
        self._progress = progress or NoProgress()

    def closed(self, series: Series, wanted: Interval) -> Interval | None:
        """The buckets that open in `wanted` and have ended and settled, whole; None where there is none."""
        timeframe = series.timeframe
        settled = self._clock.now_ms() - self._settle_ms
        start = timeframe.ceil(wanted.start, self._origin_ms)
        end = min(timeframe.ceil(wanted.end, self._origin_ms), timeframe.floor(settled, self._origin_ms))
        return Interval(start, end) if start < end else None

    async def fill(
        self, series: Series, closed: Interval, filled: Filled | None = None, *, again: bool = False
    ) -> Filled:
        """Fill the gaps of `series` in `closed`, which :meth:`closed` gave.

        :param filled: the account to add to; it is right up to the last commit even if this raises.
        :param again: read what is known too: candles that the exchange has changed since become corrections. Not
            what is in the archive alone.
        :raises Mismatch: if the exchange's answers do not advance.
        """
        account = filled or Filled()
        known = await self._store.coverage(series, closed)
        # The database takes no corrections of what it has handed to the archive.
        everything = IntervalSet([closed]) - archived(known)
        unknown = everything if again else gaps(closed, known, self._local.now_ms())
        self._progress.planned(series, sum(self.buckets(series, gap) for gap in unknown))
        for gap in unknown:
            await self._fill_gap(series, gap, account)
        return account

    async def _fill_gap(self, series: Series, gap: Interval, account: Filled) -> None:
        cursor = gap.start
        while cursor < gap.end:
            cursor = await self._step(series, Interval(cursor, gap.end), account)

    async def _step(self, series: Series, left: Interval, account: Filled) -> int:
        """Settle the beginning of `left` and return where to go on; always later than its start."""
        asked_at = self._clock.now_ms()
        page = await self._page(series, left)
        reached = min(page.reaches, left.end)
        rows = page.table
        if not rows.num_rows and left.start < reached < left.end:
            following = await self._history.first_open(series.symbol, series.timeframe, reached, left.end)
            reached = left.end if following is None else max(reached, min(following, left.end))
        floor = series.timeframe.floor
        ends = (series.timeframe.next(floor(int(last), self._origin_ms)) for last in open_times_ms(rows)[-1:])
        stop = max([reached, *ends])
        if stop <= left.start:
            raise Mismatch(
                f"{series}: the answer of {series.exchange} does not advance: asked for candles from "
                f"{iso(left.start)}, got none and no word that there are none"
            )
        absences: tuple[Absence, ...] = ()
        if reached > left.start and (holes := self._holes(series, Interval(left.start, reached), rows)):
            rows, absences, stop = await self._verify(series, holes, rows, stop)
        written = await self._write(series, rows, absences, asked_at)
        account.written += written
        settled = Interval(left.start, min(stop, left.end))
        self._progress.advanced(series, self.buckets(series, settled), written.written)
        return stop

    async def _page(self, series: Series, asked: Interval) -> CandlePage:
        """One page, with the rows outside `asked` (a forming candle among them) cut off.

        It reaches to the start of a bucket, also where a row that is not aligned says otherwise.
        """
        page = await self._history.candles(series.symbol, series.timeframe, asked.start, asked.end)
        times = open_times_ms(page.table)
        inside = (times >= asked.start) & (times < asked.end)
        reaches = page.reaches
        if reaches < asked.end:
            reaches = max(asked.start, series.timeframe.floor(reaches, self._origin_ms))
        return CandlePage(table=page.table.filter(pa.array(inside)), reaches=reaches)

    def _holes(self, series: Series, span: Interval, rows: pa.Table) -> IntervalSet:
        """The buckets of `span` in which no row opens.

        A row that is not aligned will be refused, but the exchange has a candle there: its bucket is not empty.
        """
        buckets = series.timeframe.floor_all(open_times_ms(rows), self._origin_ms)
        return IntervalSet([span]) - IntervalSet.of_candles(np.unique(buckets), series.timeframe)

    async def _verify(
        self, series: Series, holes: IntervalSet, rows: pa.Table, stop: int
    ) -> tuple[pa.Table, tuple[Absence, ...], int]:
        """Read `holes` a second time.

        :return: the rows with what the second read found, the confirmed absences, and where to go on: `stop`,
            or where the second read ended if it contradicts the first and ends sooner.
        """
        confirmed: list[Absence] = []
        if before := await self._before_listing(series, holes):
            confirmed.append(before)
            holes -= IntervalSet([before.interval])
        hull = holes.hull
        if hull is None:
            return rows, tuple(confirmed), stop
        found, reached = await self._read_again(series, hull)
        if hull.start < reached < hull.end:
            stop = reached
        holes = holes.clip(hull.start, reached)
        if found.num_rows:
            holes &= self._holes(series, hull, found)
            merged = _joined(rows, found)
            if merged.num_rows > rows.num_rows:
                merged, holes = await self._read_before(series, hull.start, holes, merged)
            rows = merged
        evidence = (
            f"two reads of {series.exchange} agree: no candle in the range; the second read at "
            f"{iso(self._clock.now_ms())} exchange time"
        )
        confirmed.extend(self._absence(hole, evidence) for hole in holes)
        return rows, tuple(confirmed), stop

    async def _read_before(
        self, series: Series, start: int, holes: IntervalSet, rows: pa.Table
    ) -> tuple[pa.Table, IntervalSet]:
        """Read the hole before the first row alone, until nothing more is found in it.

        The second read found what the first had not. An exchange whose page is smaller than its client believes
        may give the last rows of a window: what was cut off in front shows only to who asks for that part alone.

        :return: the rows with what was found, and the holes without it.
        """
        while (first := next(iter(holes), None)) is not None and first.start == start:
            found, _ = await self._read_again(series, first)
            if not found.num_rows:
                break
            rows = _joined(rows, found)
            holes = (holes - IntervalSet([first])) | self._holes(series, first, found)
        return rows, holes

    async def _read_again(self, series: Series, hull: Interval) -> tuple[pa.Table, int]:
        """A second read of `hull` up to its first page with rows: these rows, and how far it is conclusive."""
        cursor = hull.start
        while cursor < hull.end:
            page = await self._page(series, Interval(cursor, hull.end))
            if page.table.num_rows:
                return page.table, max(cursor, min(page.reaches, hull.end))
            if page.reaches <= cursor:
                break
            cursor = min(page.reaches, hull.end)
            if cursor < hull.end:
                # A search instead of one request for each empty page.
                following = await self._history.first_open(series.symbol, series.timeframe, cursor, hull.end)
                cursor = hull.end if following is None else max(cursor, min(following, hull.end))
        return no_candles(), cursor

    async def _before_listing(self, series: Series, holes: IntervalSet) -> Absence | None:
        """The first hole, if it lies before the first candle that the exchange has of this series."""
        first_hole = next(iter(holes))
        earlier = await self._store.coverage(series, Interval(EARLIEST_MS, first_hole.start + 1))
        if any(one.state.has_candles for one in earlier):
            return None
        closed = self._clock.now_ms() - self._settle_ms
        first = await self._history.first_open(series.symbol, series.timeframe, EARLIEST_MS, closed)
        if first is None or first < first_hole.end:
            return None
        return self._absence(
            first_hole,
            f"before the first candle of {series.symbol} on {series.exchange}, which opens at {iso(first)}",
        )

    def _absence(self, hole: Interval, evidence: str) -> Absence:
        recent = hole.end > self._clock.now_ms() - DAY_MS
        return Absence(
            interval=hole,
            state=CoverageState.EMPTY,
            evidence=evidence,
            expires_at=self._local.now_ms() + (RECENT_EMPTY_MS if recent else SETTLED_EMPTY_MS),
        )

    async def _write(self, series: Series, rows: pa.Table, absences: tuple[Absence, ...], now: int) -> Written:
        """Commit one page; candles that closed only just now go into a batch of their own.

        :param now: exchange time when the page was asked for; a wait since then makes no candle more final.
        """
        old = series.timeframe.next_all(open_times_ms(rows)) <= now - VERIFIED_AFTER_MS
        source = f"{series.exchange} rest"
        written = Written()
        parts = (
            (CandleState.VERIFIED, rows.filter(pa.array(old))),
            (CandleState.CLOSED, rows.filter(pa.array(~old))),
        )
        for state, table in parts:
            batch = CandleBatch(
                series=series, source=source, now_ms=now, table=table, state=state, absences=absences
            )
            if table.num_rows or absences:
                written += await self._store.write(batch)
            absences = ()
        return written

    def buckets(self, series: Series, interval: Interval) -> int:
        """How many buckets of `series` open in `interval`."""
        return series.timeframe.count(interval.start, interval.end, self._origin_ms)


def _joined(rows: pa.Table, found: pa.Table) -> pa.Table:
    """`rows`, and of `found` what opens at other times, sorted."""
    known = pc.is_in(found.column("open_time"), value_set=rows.column("open_time").combine_chunks())
    return by_open_time(pa.concat_tables([rows, found.filter(pc.invert(known))]))
