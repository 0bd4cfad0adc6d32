"""The one interface through which candles are read, whoever asks and wherever they are kept.

A read goes down the tiers and the answer says which one gave it. Today there are three: router memory (the forming
candle), the database, and the archive for what the database has dropped; process memory and the disk cache take
their place in :meth:`MarketData._stored`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from market.candle import no_candles, open_times_ms
from market.clock import LATEST_MS, Clock, iso
from market.coverage import CoverageState, Covered, gaps, known
from market.errors import BadInput, NotFound
from market.fingerprint import dataset_fingerprint, digest
from market.instrument import Instrument, Series
from market.interval import Interval, IntervalSet
from market.rollup import roll_up
from market.timeframe import ONE_MINUTE, Int64s
from store.answer import CandleAnswer, SeriesInfo
from store.archive.archive import Archive
from store.archived_page import unread_buckets, with_archived, with_buckets
from store.candle_store import DATABASE_TIER, CandleStore, StoredPage
from store.derived import counted, prefer, rolled_page, windows
from store.ledger import clip, learn, outside
from store.live import LiveCandles


@dataclass(frozen=True, kw_only=True)
class StoreHealth:
    """Whether the store answers, and what is in it."""

    ok: bool
    #: In words: ``ok`` or what is wrong.
    detail: str
    schema_version: int
    series: int
    rows: int
    size_bytes: int


@dataclass(frozen=True)
class _Kept:
    """How a series can be answered."""

    #: Stored in its own timeframe.
    native: bool
    #: Minutes of the same instrument are stored, and this timeframe can be made of them.
    derivable: bool
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


class MarketData:
    """Candles and what is known of them.

    :param live: the forming candles that ingest keeps in this process; empty where it runs elsewhere.
    :param archive: where candles are that the database has dropped; without it, asking for these is an error.
    """

    def __init__(self, store: CandleStore, live: LiveCandles, clock: Clock, archive: Archive | None = None) -> None:
        self._store = store
        self._archive = archive
        self._live = live
        self._clock = clock

    async def candles(
        self,
        series: Series,
        *,
        start_ms: int | None = None,
        end_ms: int | None = None,
        limit: int | None = None,
        as_of_ms: int | None = None,
        include_forming: bool = False,
    ) -> CandleAnswer:
        """Closed candles with ``start <= open_time < end``, sorted.

        Larger timeframes come from stored minutes; a bucket that lacks minutes is answered with the exchange's
        own candle where that is stored, else it says how many are missing. A bucket is served as closed once the
        ledger knows its minutes up to its end.

        :param limit: with a start, the first rows (`next_start` says where to go on); without, the newest ones.
        :param as_of_ms: the candles as they were known then.
        :param include_forming: add the forming candle, marked in a column ``closed``.
        :raises NotFound: naming ``exchange``, ``symbol`` or ``timeframe``.
        :raises BadInput: an empty range, a limit below 1, or an `as_of` before the range moved to the archive.
        :raises StoreUnusable: the archive, which alone has a part of the range, lacks it or was not given.
        """
        if limit is not None and limit < 1:
            raise BadInput("limit", limit, "a whole number above 0")
        kept = await self._kept(series)
        whole = kept.known
        start = start_ms
        if start is None:
            # The bucket that the first known instant lies in, though it may lack its beginning.
            start = series.timeframe.floor(whole.start, kept.origin_ms) if whole else 0
        end = end_ms if end_ms is not None else max(whole.end if whole else 0, start + 1)
        if start >= end:
            if start_ms is not None:
                raise BadInput("end", iso(end), f"an instant after start ({iso(start)}); ranges are [start, end)")
            start = end - 1
        asked = Interval(start, end)
        page = await self._closed(series, kept, asked, limit, start_ms is None, as_of_ms)
        answered = _answered(page, asked, limit, start_ms is None)
        inside = clip(page.coverage, answered)
        if kept.derivable:
            inside = await self._ledger(series, kept, answered)
            if as_of_ms is not None:
                complete = page.table.filter(pa.array(page.missing == 0))
                inside = _as_known(inside, complete, series, as_of_ms)
        table = page.table.append_column("missing", pa.array(page.missing, pa.int32()))
        if include_forming:
            # Without an end, the forming candle follows the last closed one; the answer's interval stays closed.
            room = asked if end_ms is not None else Interval(start, LATEST_MS)
            heard = self._forming(series, kept, room, page, as_of_ms)
            table = table.append_column("closed", pa.array(np.ones(table.num_rows, np.bool_)))
            if heard is not None:
                table = pa.concat_tables([table, await self._formed(series, kept, heard)])
        return CandleAnswer(
            series=series,
            interval=answered,
            table=table,
            coverage=tuple(inside),
            gaps=_gaps(answered, inside, self._at(as_of_ms)),
            fingerprint=dataset_fingerprint([(series, digest(page.table))]),
            next_start=page.next_start,
            tier=page.tier,
            age_ms=page.age_ms,
            derived_from=ONE_MINUTE.name if kept.derivable else None,
        )

    async def batch(
        self,
        series: Sequence[Series],
        *,
        start_ms: int | None = None,
        end_ms: int | None = None,
        limit: int | None = None,
        as_of_ms: int | None = None,
        include_forming: bool = False,
    ) -> list[CandleAnswer]:
        """:meth:`candles` of many series, in their order."""
        return [
            await self.candles(
                one,
                start_ms=start_ms,
                end_ms=end_ms,
                limit=limit,
                as_of_ms=as_of_ms,
                include_forming=include_forming,
            )
            for one in series
        ]

    async def series(self) -> list[SeriesInfo]:
        """Every stored series with its metadata."""
        return await self._store.series()

    async def coverage(self, series: Series, interval: Interval | None = None) -> tuple[Interval, list[Covered]]:
        """The ledger of a series; without an interval, from the first to the last known instant.

        For a timeframe that is derived, the ledger of its minutes.
        """
        kept = await self._kept(series)
        whole = interval or kept.known
        if whole is None:
            raise NotFound("symbol", series.symbol, hint="a series with candles; this one has none yet")
        return whole, await self._ledger(series, kept, whole)

    async def gaps(self, series: Series, interval: Interval | None = None) -> tuple[Interval, IntervalSet]:
        """What a backfill of `interval` would have to fetch."""
        whole, ledger = await self.coverage(series, interval)
        return whole, _gaps(whole, ledger, self._clock.now_ms())

    async def instruments(self, exchange: str | None = None) -> list[Instrument]:
        """Known instruments."""
        return await self._store.instruments(exchange)

    async def health(self) -> StoreHealth:
        """What is in the store; a store that does not answer raises."""
        series, rows = await self._store.count()
        size, _ = await self._store.size()
        return StoreHealth(
            ok=True,
            detail="ok",
            schema_version=await self._store.schema_version(),
            series=series,
            rows=rows,
            size_bytes=size,
        )

    async def _kept(self, series: Series) -> _Kept:
        native = await self._store.facts(series)
        base = await self._store.facts(series.at(ONE_MINUTE)) if series.timeframe.derives_from(ONE_MINUTE) else None
        facts = [one for one in (native, base) if one is not None]
        if facts:
            bounds = [one.known for one in facts if one.known is not None]
            hull = Interval(min(one.start for one in bounds), max(one.end for one in bounds)) if bounds else None
            return _Kept(native is not None, base is not None, facts[0].origin_ms, hull)
        stored = [one.series for one in await self._store.series()]
        exchanges = sorted({one.exchange for one in stored})
        if series.exchange not in exchanges:
            raise NotFound("exchange", series.exchange, exchanges)
        symbols = sorted({one.symbol for one in stored if one.exchange == series.exchange})
        if series.symbol not in symbols:
            raise NotFound("symbol", series.symbol, symbols)
        timeframes = sorted(
            one.timeframe for one in stored if (one.exchange, one.symbol) == (series.exchange, series.symbol)
        )
        raise NotFound("timeframe", series.timeframe.name, timeframes)

    async def _ledger(self, series: Series, kept: _Kept, interval: Interval) -> list[Covered]:
        """What is known of `interval`; for a derived timeframe, of its minutes first."""
        ledger = await self._store.coverage(series.at(ONE_MINUTE) if kept.derivable else series, interval)
        if not (kept.derivable and kept.native):
            return ledger
        minutes = IntervalSet(one.interval for one in ledger)
        own = outside(await self._store.coverage(series, interval), minutes)
        return sorted([*ledger, *own], key=lambda one: one.interval)

    async def _closed(
        self,
        series: Series,
        kept: _Kept,
        asked: Interval,
        limit: int | None,
        newest: bool,
        as_of_ms: int | None,
    ) -> _Page:
        """Closed candles of `asked`, and one row more than `limit` looked for, to know where to go on."""
        more = None if limit is None else limit + 1
        if not kept.derivable:
            page = await self._stored(series, asked, more, newest, as_of_ms)
            missing = np.zeros(page.table.num_rows, np.int64)
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
            pages.append(await self._derived(series, kept, run, as_of_ms))
            rows += pages[-1].table.num_rows
            if more is not None and rows >= more:
                break
        return _cut(_concat(pages[::-1] if newest else pages), limit, newest)

    async def _derived(self, series: Series, kept: _Kept, run: Interval, as_of_ms: int | None) -> _Page:
        rolled = await self._rolled(series, kept, run, as_of_ms)
        there = known(rolled.coverage, self._at(as_of_ms))
        derived = counted(rolled.table, there, ONE_MINUTE, series.timeframe)
        if not kept.native:
            return _Page(derived.table, derived.missing, [], None, rolled.tier, rolled.age_ms)
        native = await self._stored(series, run, None, False, as_of_ms)
        table, missing = prefer(derived, native.table)
        return _Page(table, missing, [], None, *_farthest([rolled, native]))

    async def _rolled(self, series: Series, kept: _Kept, run: Interval, as_of_ms: int | None) -> StoredPage:
        """Candles made of minutes, and the ledger of the minutes; a store may keep such candles ready."""
        minutes = series.at(ONE_MINUTE)
        timeframe = series.timeframe
        if as_of_ms is None:
            page = await self._store.rolled(minutes, run, timeframe, kept.origin_ms)
            buckets = unread_buckets(page, run, timeframe, kept.origin_ms)
            if not buckets:
                return page
            bases = [await self._stored(minutes, one, None, False, None) for one in buckets]
            return with_buckets(
                page, buckets, pa.concat_tables([one.table for one in bases]), timeframe, kept.origin_ms
            )
        base = await self._stored(minutes, run, None, False, as_of_ms)
        as_known = _as_known(base.coverage, base.table, minutes, as_of_ms)
        return rolled_page(replace(base, coverage=as_known), timeframe, kept.origin_ms)

    async def _stored(
        self, series: Series, interval: Interval, limit: int | None, newest: bool, as_of_ms: int | None
    ) -> StoredPage:
        """Closed candles in their own timeframe, from the first tier that has them."""
        page = await self._store.page(series, interval, limit=limit, newest=newest, as_of_ms=as_of_ms)
        if not page.unread:
            return page
        return await with_archived(self._archive, series, interval, page, limit, newest, as_of_ms)

    def _at(self, as_of_ms: int | None) -> int:
        return self._clock.now_ms() if as_of_ms is None else as_of_ms

    def _forming(
        self, series: Series, kept: _Kept, room: Interval, page: _Page, as_of_ms: int | None
    ) -> pa.Table | None:
        """What router memory holds of the bucket after the closed ones: its own candle, or its newest minute's."""
        held = self._live.get(series)
        if held is None and kept.derivable:
            held = self._live.get(series.at(ONE_MINUTE))
        if held is None or page.next_start is not None or (as_of_ms is not None and held[1] > as_of_ms):
            return None
        opened = series.timeframe.floor(int(open_times_ms(held[0])[0]), kept.origin_ms)
        closed = kept.known is not None and series.timeframe.next(opened) <= kept.known.end
        return held[0] if opened in room and not closed else None

    async def _formed(self, series: Series, kept: _Kept, row: pa.Table) -> pa.Table:
        """The forming candle, with the minutes of its bucket that are stored already."""
        heard = int(open_times_ms(row)[0])
        opened = series.timeframe.floor(heard, kept.origin_ms)
        parts, missing = [row], 0
        if opened < heard:
            earlier = await self._stored(series.at(ONE_MINUTE), Interval(opened, heard), None, False, None)
            parts.insert(0, earlier.table)
            there = known(earlier.coverage, self._clock.now_ms()).duration
            missing = (heard - opened - there) // ONE_MINUTE.milliseconds
        forming = roll_up(pa.concat_tables(parts), series.timeframe, kept.origin_ms).table
        forming = forming.append_column("missing", pa.array([missing], pa.int32()))
        return forming.append_column("closed", pa.array([False]))


def _gaps(interval: Interval, ledger: Sequence[Covered], at_ms: int) -> IntervalSet:
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
    """Tier and age of the page that is farthest from the database."""
    farthest = max(pages, key=lambda one: (one.tier != DATABASE_TIER, one.age_ms))
    return farthest.tier, farthest.age_ms


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
