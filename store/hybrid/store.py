"""Two candle stores as one: writes go to both, the primary decides, reads come from the primary.

While the primary is away, the secondary answers, and the answer says so. While the secondary is away, everything
goes on without it, and it is brought up to the primary afterwards (see :mod:`store.hybrid.catch_up`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import pyarrow as pa
import structlog

from market.candle import Refusal
from market.clock import Clock
from market.coverage import Covered
from market.errors import ChandleryError
from market.instrument import Instrument, Series
from market.interval import Interval
from market.timeframe import Timeframe
from store.answer import SeriesInfo
from store.batch import CandleBatch, Written
from store.candle_store import CandleStore, Chunk, SeriesFacts, StoredPage
from store.consistency import differences
from store.control import Control
from store.difference import Difference, InstrumentDifference, instrument_differences
from store.hybrid.agreement import Agreement, HybridStatus
from store.hybrid.catch_up import CatchUp, CatchUpRules
from store.hybrid.live import PrimaryOnly
from store.hybrid.side import AWAY, UNABLE, Place, Side
from store.hybrid.versions import PrimaryVersions

_T = TypeVar("_T")

log = structlog.get_logger(__name__)


class HybridStore(PrimaryOnly, PrimaryVersions):
    """A primary and a secondary store. Open with :meth:`opened`."""

    def __init__(self, primary: Side, secondary: Side, clock: Clock, rules: CatchUpRules) -> None:
        self._primary = primary
        self._secondary = secondary
        self._agreement = Agreement(clock)
        self._catch_up = CatchUp(primary, secondary, self._agreement, clock, rules)
        self._fallen_back = False

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(
        cls,
        primary: Place,
        secondary: Place,
        clock: Clock,
        *,
        read_only: bool = False,
        rules: CatchUpRules | None = None,
    ) -> AsyncIterator[HybridStore]:
        """Open both, keep the secondary up to the primary, close at the end.

        Either may be away: then it is opened when it is back.

        :param read_only: both were asked for reading only, so nothing is copied.
        :raises BadInput: one of the two says that the user must change something.
        :raises StoreUnavailable: both are away.
        """
        async with Side.opened(primary, clock, AWAY) as first, Side.opened(secondary, clock, UNABLE) as second:
            if second.outage is not None:
                await first.store()
            store = cls(first, second, clock, rules or CatchUpRules())
            if read_only:
                yield store
                return
            catching_up = asyncio.create_task(store._catch_up.run(), name="hybrid catch-up")
            catching_up.add_done_callback(_say_if_it_failed)
            try:
                yield store
            finally:
                catching_up.cancel()
                await asyncio.wait([catching_up])
                if not catching_up.cancelled():
                    catching_up.result()

    @property
    def status(self) -> HybridStatus:
        """What this process knows of the two stores."""
        return HybridStatus(
            primary_outage=self._primary.outage,
            secondary_outage=self._secondary.outage,
            behind=self._agreement.behind,
            differing=self._agreement.differing,
            compared_at=self._agreement.compared_at,
        )

    @property
    def location(self) -> str:
        """Both places."""
        return f"{self._primary.location} (secondary: {self._secondary.location})"

    async def catch_up(self) -> None:
        """Compare everything now, and bring the secondary up to the primary; the background task does so by itself.

        :raises ChandleryError: one of the stores is away.
        """
        await self._catch_up.round(everything=True)

    async def write(self, batch: CandleBatch) -> Written:
        """Write to the primary, whose word counts, then to the secondary, which may fail.

        :raises StoreBusy: as the primary says; whether it wrote or not, the secondary will hold the same.
        """
        series = batch.series
        async with self._agreement.lock(series):
            # Until both have it, and however this ends.
            self._agreement.doubt(series)
            written = await self._primary.use(lambda store: store.write(batch))
            if not self._agreement.is_behind(series):
                await self._mirror(batch, written)
        return written

    async def write_all(self, batches: Sequence[CandleBatch]) -> list[Written]:
        """Write to the primary in one transaction, then to the secondary in one; each batch as by :meth:`write`.

        :raises StoreBusy: as the primary says; whether it wrote or not, the secondary will hold the same.
        """
        async with contextlib.AsyncExitStack() as stack:
            # In one order, so that two who write the same do not wait for each other in a circle.
            for series in sorted({batch.series for batch in batches}, key=str):
                await stack.enter_async_context(self._agreement.lock(series))
                self._agreement.doubt(series)
            written = await self._primary.use(lambda store: store.write_all(batches))
            both = zip(batches, written, strict=True)
            current = [pair for pair in both if not self._agreement.is_behind(pair[0].series)]
            if current:
                await self._mirror_all(*zip(*current, strict=True))
        return written

    async def _mirror(self, batch: CandleBatch, written: Written) -> None:
        with self._mirroring([batch.series]) as alike:
            if self._secondary.outage is None:
                copied = await self._secondary.use(lambda store: store.write(batch))
                if _changed(copied) == _changed(written):
                    alike.add(batch.series)

    async def _mirror_all(self, batches: Sequence[CandleBatch], written: Sequence[Written]) -> None:
        series = {batch.series for batch in batches}
        with self._mirroring(series) as alike:
            if self._secondary.outage is None:
                copied = await self._secondary.use(lambda store: store.write_all(batches))
                alike |= series - {
                    batch.series
                    for batch, ours, theirs in zip(batches, written, copied, strict=True)
                    if _changed(ours) != _changed(theirs)
                }

    @contextlib.contextmanager
    def _mirroring(self, series: Iterable[Series]) -> Iterator[set[Series]]:
        """What happens to series that are written to the secondary: those not found alike are behind it."""
        alike: set[Series] = set()
        try:
            yield alike
        except UNABLE:
            self._catch_up.say_behind()
        finally:
            # An error that nobody expected, or a cancellation, leaves it behind, too.
            for one in series:
                if one in alike:
                    self._agreement.mirrored(one)
                else:
                    self._agreement.fell_behind(one)
            if not alike.issuperset(series):
                self._catch_up.wake()

    async def save_instruments(self, instruments: Sequence[Instrument], complete: bool = False) -> None:
        """Keep what an exchange says of its markets, in both stores, each since when it was told."""
        self._agreement.instruments_doubtful = True
        await self._primary.use(lambda store: store.save_instruments(instruments, complete))
        try:
            if self._secondary.outage is None:
                await self._secondary.use(lambda store: store.save_instruments(instruments, complete))
        except UNABLE:
            self._catch_up.say_behind()
            self._catch_up.wake()

    async def page(
        self,
        series: Series,
        interval: Interval,
        *,
        limit: int | None = None,
        newest: bool = False,
        as_of_ms: int | None = None,
    ) -> StoredPage:
        """Candles and the ledger beside them, from one snapshot of one store; its tier says which."""
        return await self._paged(
            series, lambda store: store.page(series, interval, limit=limit, newest=newest, as_of_ms=as_of_ms)
        )

    async def rolled(self, series: Series, interval: Interval, timeframe: Timeframe, origin_ms: int) -> StoredPage:
        """Larger candles made of stored ones, and the ledger of these; its tier says from which store."""
        return await self._paged(series, lambda store: store.rolled(series, interval, timeframe, origin_ms))

    async def read(
        self,
        series: Series,
        start_ms: int,
        end_ms: int,
        *,
        limit: int | None = None,
        newest: bool = False,
        as_of_ms: int | None = None,
    ) -> pa.Table:
        """Stored candles with ``start_ms <= open_time < end_ms``, sorted, in the candle schema."""
        return await self._read(
            lambda store: store.read(series, start_ms, end_ms, limit=limit, newest=newest, as_of_ms=as_of_ms)
        )

    async def schema_version(self) -> int:
        """The version of the primary's schema."""
        return await self._read(lambda store: store.schema_version())

    async def facts(self, series: Series) -> SeriesFacts | None:
        """What a reader must know of a series first; None where it is not stored."""
        return await self._read(lambda store: store.facts(series))

    async def control(self) -> Control:
        """What an operator has switched; by the secondary, which follows, while the primary is away."""
        return await self._read(lambda store: store.control())

    async def coverage(self, series: Series, interval: Interval | None = None) -> list[Covered]:
        """The ledger, sorted and disjoint; clipped to `interval` where one is given."""
        return await self._read(lambda store: store.coverage(series, interval))

    async def chunks(self, series: Series) -> list[Chunk]:
        """The digests of all chunks of a series, oldest first."""
        return await self._read(lambda store: store.chunks(series))

    async def series(self) -> list[SeriesInfo]:
        """Every series with its metadata, by exchange, symbol and timeframe."""
        return await self._read(lambda store: store.series())

    async def instruments(self, exchange: str | None = None, as_of_ms: int | None = None) -> list[Instrument]:
        """Known instruments, by exchange and symbol; or what the store that answers had been told by then."""
        return await self._read(lambda store: store.instruments(exchange, as_of_ms))

    async def quarantined(self, series: Series, limit: int = 100) -> list[Refusal]:
        """The newest refused rows of a series."""
        return await self._read(lambda store: store.quarantined(series, limit))

    async def count(self) -> tuple[int, int]:
        """How many series, and candles in all of them."""
        return await self._read(lambda store: store.count())

    async def size(self) -> tuple[int, int]:
        """Bytes used, and bytes free inside them, of the primary."""
        return await self._read(lambda store: store.size())

    async def integrity(self) -> list[str]:
        """What the two databases themselves find wrong, or that one is away; empty when both are sound."""
        found = []
        for name, side in (("primary", self._primary), ("secondary", self._secondary)):
            try:
                lines = await side.use(lambda store: store.integrity())
            except UNABLE as error:
                lines = [f"does not answer: {error}"]
            found += [f"{name} ({side.location}): {line}" for line in lines]
        return found

    async def secondary_series(self) -> list[SeriesInfo]:
        """Every series of the secondary.

        :raises ChandleryError: it is away.
        """
        return await self._secondary.use(lambda store: store.series())

    async def differences(self, series: Series) -> AsyncIterator[Difference]:
        """Everything in which the two stores differ over one series, found by reading all of both.

        :raises ChandleryError: one of the stores is away.
        """
        async for one in differences(await self._primary.store(), await self._secondary.store(), series):
            yield one

    async def instrument_differences(self) -> list[InstrumentDifference]:
        """The instruments that the two stores do not describe alike.

        :raises ChandleryError: one of the stores is away.
        """
        ours = await self._primary.use(lambda store: store.instruments())
        return instrument_differences(ours, await self._secondary.use(lambda store: store.instruments()))

    async def _paged(self, series: Series, work: Callable[[CandleStore], Awaitable[StoredPage]]) -> StoredPage:
        async def named(store: CandleStore) -> StoredPage:
            page = await work(store)
            tier, age_ms = self._agreement.tier(series)
            # Its revisions are not those of the primary.
            return replace(page, tier=tier, age_ms=age_ms, revision=None)

        return await self._read(work, named)

    async def _read(
        self,
        work: Callable[[CandleStore], Awaitable[_T]],
        fallback: Callable[[CandleStore], Awaitable[_T]] | None = None,
    ) -> _T:
        """From the primary; while that is away from the secondary, by `fallback` where that is another call."""
        try:
            answer = await self._primary.use(work)
        except AWAY as error:
            try:
                answer = await self._secondary.use(fallback or work)
            except UNABLE:
                raise error from None
            if not self._fallen_back:
                self._fallen_back = True
                log.warning(
                    "the primary store is away; the secondary answers",
                    primary=self._primary.location,
                    error=str(error),
                    behind=len(self._agreement.behind),
                )
            return answer
        if self._fallen_back:
            self._fallen_back = False
            log.warning("the primary store answers again", primary=self._primary.location)
        return answer


def _changed(written: Written) -> tuple[int, int]:
    return written.inserted, written.corrected


def _say_if_it_failed(task: asyncio.Task[None]) -> None:
    """A mistake of ours must not wait for the end of the process to be seen."""
    if not task.cancelled() and (error := task.exception()) is not None:
        expected = isinstance(error, ChandleryError)
        log.error(
            "the secondary store is no longer kept up", error=str(error), exc_info=None if expected else error
        )
