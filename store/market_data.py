"""The one interface through which candles are read, whoever asks and wherever they are kept.

A read goes down the tiers and the answer says which one gave it: process memory, router memory (forming candles),
disk, the database, and the archive for what the database has dropped. It goes through views
(:mod:`store.tiers.view`), each of which shows one series as of one moment.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from market.clock import Clock
from market.coverage import Covered
from market.errors import BadInput, NotFound, StoreBusy
from market.instrument import Instrument, Series
from market.interval import Interval, IntervalSet
from market.timeframe import ONE_MINUTE
from store.answer import CandleAnswer, SeriesInfo
from store.archive.archive import Archive
from store.cache.shared_values import SharedAway
from store.candle_read import CandleRead, CandleRequest, Kept, open_gaps
from store.candle_store import DATABASE_TIER, CandleStore
from store.live_source import Forming, LiveSource
from store.market_now import MarketNow
from store.tiers.encoded import Encoded
from store.tiers.sealed import farthest
from store.tiers.status import TierStatus
from store.tiers.tiered_views import TieredViews
from store.tiers.view import Moved, ReadAhead, SeriesViews, StoredViews
from store.trade_store import TradeStore

_T = TypeVar("_T")

#: How often a read begins anew because a series has changed meanwhile, or more of it had to be read first.
_TRIES = 16
#: How often it may find that something has changed between two steps. Each time costs what it has read.
_MOST_MOVES = 4


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


class MarketData(MarketNow):
    """Candles and what is known of them, and what is live now.

    :param live: what ingest holds: in this process, or in Redis.
    :param views: what candles are read through; None reads the database each time.
    :param recorded: the store of trades, where they are recorded.
    :param archive: where candles are that the database has dropped; without it, asking for these is an error.
    """

    def __init__(
        self,
        store: CandleStore,
        live: LiveSource,
        clock: Clock,
        archive: Archive | None = None,
        views: TieredViews | None = None,
        recorded: TradeStore | None = None,
    ) -> None:
        super().__init__(live, recorded, clock)
        self._store = store
        self._straight = StoredViews(store, archive)
        self._views: SeriesViews = views or self._straight
        self._tiers = views

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
        query = CandleRequest(
            start_ms=start_ms, end_ms=end_ms, limit=limit, as_of_ms=as_of_ms, include_forming=include_forming
        )
        answer, anew = await self._read(series, lambda read: read.answer(query))
        # What had to be read from the database first came from there, whatever holds it now.
        return replace(answer, tier=farthest(answer.tier, DATABASE_TIER)) if anew else answer

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
        if self._tiers is not None:
            # Whether they have changed is one question for all of them.
            await self._tiers.of([one for each in series for one in _read_for(each)])
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

    async def encoded(
        self, question: Hashable, series: Sequence[Series], make: Callable[[], Awaitable[Encoded[_T]]]
    ) -> tuple[_T, int | None]:
        """An answer in any form, made once and given again for as long as it is the answer; see
        :class:`store.tiers.encoded.EncodedAnswers`.

        :param question: everything that the answer depends on besides the stored candles and ledgers of `series`.
        :return: the answer, and how old it is if it was there already, milliseconds; None if it was made now.
        """
        if self._tiers is None:
            return (await make()).value, None
        tiers, read = self._tiers, [one for each in series for one in _read_for(each)]
        value, again = await tiers.encoded.get(question, lambda: tiers.version(read), make)
        return value, tiers.age_ms(read) if again else None

    async def series(self) -> list[SeriesInfo]:
        """Every stored series with its metadata."""
        return await self._store.series()

    async def coverage(self, series: Series, interval: Interval | None = None) -> tuple[Interval, list[Covered]]:
        """The ledger of a series; without an interval, from the first to the last known instant.

        For a timeframe that is derived, the ledger of its minutes.
        """

        async def read(one: CandleRead) -> tuple[Interval, list[Covered]]:
            whole = interval or one.known
            if whole is None:
                raise NotFound("symbol", series.symbol, hint="a series with candles; this one has none yet")
            return whole, await one.ledger(whole)

        found, _ = await self._read(series, read)
        return found

    async def gaps(self, series: Series, interval: Interval | None = None) -> tuple[Interval, IntervalSet]:
        """What a backfill of `interval` would have to fetch."""
        whole, ledger = await self.coverage(series, interval)
        return whole, open_gaps(whole, ledger, self._clock.now_ms())

    async def instruments(self, exchange: str | None = None) -> list[Instrument]:
        """Known instruments."""
        return await self._store.instruments(exchange)

    def tiers(self) -> TierStatus | None:
        """How the tiers fare; None where the database is read each time."""
        return None if self._tiers is None else self._tiers.status()

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

    async def _read(self, series: Series, work: Callable[[CandleRead], Awaitable[_T]]) -> tuple[_T, bool]:
        """Read through the tiers; past them, if the series changes faster than it can be read.

        :return: what `work` gave, and whether it had to begin anew.
        :raises StoreBusy: one moment it is stored, the next it is not.
        """
        moves = 0
        for count in range(_TRIES):
            try:
                return await work(await self._opened(series, self._views)), count > 0
            except ReadAhead:
                continue
            except Moved:
                moves += 1
                if moves >= _MOST_MOVES:
                    break
        try:
            return await work(await self._opened(series, self._straight)), False
        except Moved:
            raise StoreBusy(f"{series} was found and lost again while it was read; try again") from None

    async def _opened(self, series: Series, views: SeriesViews) -> CandleRead:
        found = await views.of(_read_for(series))
        native, minutes = found[0], found[1] if len(found) > 1 else None
        facts = [one.facts for one in (native, minutes) if one is not None]
        if not facts:
            raise await self._unknown(series)
        bounds = [one.known for one in facts if one.known is not None]
        hull = Interval(min(one.start for one in bounds), max(one.end for one in bounds)) if bounds else None
        kept = Kept(native, minutes, facts[0].origin_ms, hull)
        return CandleRead(series, kept, self._clock, self._heard)

    async def _heard(self, series: Series) -> Forming | None:
        try:
            return await self._live.forming(series)
        except SharedAway:
            # What has closed is answered without what has not.
            return None

    async def _unknown(self, series: Series) -> NotFound:
        """What to say of a series that is not stored.

        :raises Moved: by now it is.
        """
        stored = [one.series for one in await self._store.series()]
        if series in stored or (series.timeframe.derives_from(ONE_MINUTE) and series.at(ONE_MINUTE) in stored):
            # Written since it was looked for.
            raise Moved
        exchanges = sorted({one.exchange for one in stored})
        if series.exchange not in exchanges:
            return NotFound("exchange", series.exchange, exchanges)
        symbols = sorted({one.symbol for one in stored if one.exchange == series.exchange})
        if series.symbol not in symbols:
            return NotFound("symbol", series.symbol, symbols)
        timeframes = sorted(
            one.timeframe for one in stored if (one.exchange, one.symbol) == (series.exchange, series.symbol)
        )
        return NotFound("timeframe", series.timeframe.name, timeframes)


def _read_for(series: Series) -> list[Series]:
    """The stored series that answer for one: itself, and its minutes where it can be made of them."""
    return [series, series.at(ONE_MINUTE)] if series.timeframe.derives_from(ONE_MINUTE) else [series]
