"""Bringing the secondary up to the primary, in the background.

There is no journal of what it missed: digests and ledgers of both stores say what differs, after an outage, a kill
or a restored backup alike. What differs is copied from the primary, chunk by chunk, as verified candles, so that it
replaces whatever the secondary has; then it is compared again. Copying twice, or by two processes at once, changes
nothing, and whoever copies last compares last.

Not copied: the history behind ``as_of`` (the secondary learns a candle when it is copied) and quarantined rows.
Candles that only the secondary has are never deleted; ``chandlery check`` lists them. An absence that expired on
the primary does not replace one that holds on the secondary; the next look at the exchange brings both in line.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import structlog

from market.candle import CandleState, open_times_ms
from market.clock import LATEST_MS, Clock
from market.coverage import CoverageState, Covered
from market.errors import StoreUnusable
from market.instrument import Series
from market.interval import Interval, IntervalSet
from store.batch import Absence, CandleBatch, Written
from store.candle_store import CandleStore, StoredPage
from store.consistency import ledger_pieces, pieces
from store.difference import (
    ChunkDifference,
    LedgerDifference,
    chunk_differences,
    chunk_interval,
    ledger_differences,
)
from store.hybrid.agreement import Agreement, Item
from store.hybrid.side import UNABLE, Side

log = structlog.get_logger(__name__)

#: Differences of one series in memory at a time.
_ITEMS_AT_ONCE = 10_000
#: What a ledger says where there is no candle.
_ABSENT = (CoverageState.EMPTY, CoverageState.EXCHANGE_OUTAGE, CoverageState.OWN_OUTAGE)
#: The source of candles of which the primary's ledger does not say who brought them.
_NO_SOURCE = "primary"


@dataclass(frozen=True, kw_only=True)
class CatchUpRules:
    """How fast the secondary is brought up to the primary."""

    #: Buckets copied at a time.
    rows_at_once: int = 20_000
    #: The part of its time that copying may take; the rest is left to those who fetch and serve.
    share: float = 0.5
    #: Seconds until the first look at a secondary that is away, and the longest time between two.
    first_pause_s: float = 1.0
    longest_pause_s: float = 60.0
    #: Seconds until what was written is compared, and until everything is.
    compare_every_s: float = 300.0
    compare_all_every_s: float = 900.0


@dataclass(frozen=True)
class _Lag:
    """What the secondary lacks of a series."""

    #: What copying may change.
    new: frozenset[Item]
    #: What it did not change before, or never does.
    settled: frozenset[Item]
    #: False if there is more.
    whole: bool


class CatchUp:
    """The work of bringing the secondary up to the primary. Run :meth:`run` as a task."""

    def __init__(
        self, primary: Side, secondary: Side, agreement: Agreement, clock: Clock, rules: CatchUpRules
    ) -> None:
        self._primary = primary
        self._secondary = secondary
        self._agreement = agreement
        self._clock = clock
        self._rules = rules
        self._woken = asyncio.Event()
        self._rounds = asyncio.Lock()
        #: Monotonic seconds; None for at once.
        self._all_compared: float | None = None
        #: Revisions at which a series was found equal.
        self._proven: dict[Series, tuple[int, int]] = {}
        self._said_behind = False

    def wake(self) -> None:
        """Something fell behind."""
        self._woken.set()

    def say_behind(self, error: str | None = None) -> None:
        """Say once, until all is current again, that the secondary does not follow."""
        if not self._said_behind:
            self._said_behind = True
            if error is None and self._secondary.outage is not None:
                error = self._secondary.outage.error
            log.warning(
                "the secondary store is behind; it will catch up by itself",
                secondary=self._secondary.location,
                error=error,
            )

    async def run(self) -> None:
        """Until cancelled: compare and copy, then rest until something falls behind or it is time."""
        pause = self._rules.first_pause_s
        while True:
            self._woken.clear()
            try:
                await self.round()
            except UNABLE as error:
                # Its side has kept what it said. Writes do not wake us before the pause is over.
                if not isinstance(error, StoreUnusable):
                    # Who knows what other processes wrote meanwhile.
                    self._all_compared = None
                if self._secondary.outage is not None:
                    self.say_behind()
                await asyncio.sleep(pause)
                pause = min(pause * 2, self._rules.longest_pause_s)
            else:
                pause = self._rules.first_pause_s
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._rules.compare_every_s):
                        await self._woken.wait()

    async def round(self, *, everything: bool = False) -> None:
        """Bring every series that may be behind up to the primary.

        :param everything: compare all series, however long ago they were compared.
        :raises ChandleryError: one of the stores is away.
        """
        async with self._rounds:
            await self._round(everything)

    async def _round(self, everything: bool) -> None:
        await self._follow_control()
        due = (
            everything
            or self._all_compared is None
            or (time.monotonic() - self._all_compared >= self._rules.compare_all_every_s)
        )
        if due or self._agreement.instruments_doubtful:
            # First: three-day candles count from the listing.
            await self._copy_instruments()
        if due:
            await self._doubt_all(everything)
        refused: StoreUnusable | None = None
        for series in self._agreement.doubtful:
            started = time.monotonic()
            try:
                await self._settle(series)
            except StoreUnusable as error:
                # It may refuse this one only (it has archived the range), so the others get their turn.
                refused = error
            await self._leave_room(started)
        if refused is not None:
            self.say_behind(str(refused))
            await self._secondary.use(lambda store: store.schema_version())
            raise refused
        if due:
            self._all_compared = time.monotonic()
            self._agreement.compared_at = self._clock.now_ms()
        if self._said_behind and not self._agreement.behind:
            self._said_behind = False
            log.warning("the secondary store is current again", secondary=self._secondary.location)

    async def _follow_control(self) -> None:
        """Switch the secondary as the primary is.

        :raises StoreReadOnly: so that nothing may be copied.
        """
        theirs = await self._secondary.use(lambda store: store.control())
        ours = await self._primary.use(lambda store: store.control())
        if (theirs.safety, theirs.operating, theirs.reason) != (ours.safety, ours.operating, ours.reason):
            await self._secondary.use(
                lambda store: store.set_control(safety=ours.safety, operating=ours.operating, reason=ours.reason)
            )
        ours.check_writable()

    async def _doubt_all(self, everything: bool) -> None:
        """Doubt every series of the primary that changed on either side since it was found equal."""
        theirs = {one.series: one.revision for one in await self._secondary.use(lambda store: store.series())}
        for one in await self._primary.use(lambda store: store.series()):
            if everything or self._proven.get(one.series) != (one.revision, theirs.get(one.series)):
                self._agreement.doubt(one.series)
            elif not self._agreement.is_behind(one.series):
                self._agreement.mirrored(one.series)

    async def _copy_instruments(self) -> None:
        self._agreement.instruments_doubtful = False
        try:
            theirs = await self._secondary.use(lambda store: store.instruments())
            lacking = [
                one for one in await self._primary.use(lambda store: store.instruments()) if one not in theirs
            ]
            if lacking:
                await self._secondary.use(lambda store: store.save_instruments(lacking))
        except BaseException:
            self._agreement.instruments_doubtful = True
            raise

    async def _settle(self, series: Series) -> None:
        """Compare and copy until nothing is left that copying changes."""
        settled, attempted = self._agreement.settled(series), frozenset[Item]()
        while True:
            async with self._agreement.lock(series):
                # A secondary that was away when the primary was switched does not know yet.
                (await self._primary.use(lambda store: store.control())).check_writable()
                revisions = await self._revisions(series)
                lag = await self._lag(series, settled)
                # What an attempt left exactly as it was, another one will not change either.
                settled |= lag.new & attempted
                attempted = lag.new - settled
                if not attempted and lag.whole:
                    self._end(series, revisions, lag.settled | (lag.new & settled))
                    return
                self._agreement.fell_behind(series)
                few = self._few(series, attempted)
                if few:
                    # Nobody writes meanwhile, so that a series that is written all the time is settled, too.
                    await self._copy(series, attempted, paced=False)
            if not few:
                self.say_behind()
                await self._copy(series, attempted, paced=True)

    def _end(self, series: Series, revisions: tuple[int, int] | None, left: frozenset[Item]) -> None:
        if not left:
            self._agreement.agreed(series)
            if revisions is not None:
                self._proven[series] = revisions
        elif self._agreement.settled_for(series, left):
            log.warning(
                "the secondary store differs in what copying does not change; chandlery check lists it",
                series=str(series),
                places=len(left),
            )

    async def _revisions(self, series: Series) -> tuple[int, int] | None:
        """Of both stores; a series that only the primary knows is made known to the secondary."""
        ours = await self._primary.use(lambda store: store.facts(series))
        theirs = await self._secondary.use(lambda store: store.facts(series))
        if ours is None:
            return None
        if theirs is None:
            nothing = CandleBatch(series=series, source=_NO_SOURCE, now_ms=LATEST_MS)
            await self._secondary.use(lambda store: store.write(nothing))
            return ours.revision, 0
        return ours.revision, theirs.revision

    async def _lag(self, series: Series, settled: frozenset[Item]) -> _Lag:
        """What differs, as far as digests and ledgers say."""
        new: set[Item] = set()
        known: set[Item] = set()
        ours = await self._primary.use(lambda store: store.chunks(series))
        theirs = await self._secondary.use(lambda store: store.chunks(series))
        for chunk in chunk_differences(ours, theirs):
            (known if chunk.primary is None or chunk in settled else new).add(chunk)
        facts = [await side.use(lambda store: store.facts(series)) for side in (self._primary, self._secondary)]
        for span in ledger_pieces(facts, series.timeframe):
            read = partial(_coverage, series, span)
            for entry in ledger_differences(await self._primary.use(read), await self._secondary.use(read)):
                (known if entry.primary is None or entry in settled else new).add(entry)
            if len(new) > _ITEMS_AT_ONCE:
                return _Lag(frozenset(new), frozenset(known), whole=False)
        return _Lag(frozenset(new), frozenset(known), whole=True)

    def _few(self, series: Series, items: Iterable[Item]) -> bool:
        whole = sum(one.duration for one in _spans(series, items))
        return whole <= self._rules.rows_at_once * series.timeframe.milliseconds

    async def _copy(self, series: Series, items: Iterable[Item], *, paced: bool) -> None:
        """Candles first, then absences: a candle beats an absence whatever the order.

        :raises StoreUnusable: the secondary refused a part; the others were copied.
        """
        items = list(items)
        refused: StoreUnusable | None = None
        for span in _parts(series, items, self._rules.rows_at_once):
            started = time.monotonic()
            page = await self._primary.use(partial(_page, series, span))
            for batch in _by_source(series, page):
                try:
                    await self._secondary.use(partial(_write, batch))
                except StoreUnusable as error:
                    refused = error
            if paced:
                await self._leave_room(started)
        for batch in _absences(series, items):
            await self._secondary.use(partial(_write, batch))
        if refused is not None:
            raise refused

    async def _leave_room(self, started: float) -> None:
        """Rest in proportion to the time since `started`, monotonic seconds."""
        await asyncio.sleep((time.monotonic() - started) * (1 - self._rules.share) / self._rules.share)


async def _coverage(series: Series, span: Interval, store: CandleStore) -> list[Covered]:
    return await store.coverage(series, span)


async def _page(series: Series, span: Interval, store: CandleStore) -> StoredPage:
    return await store.page(series, span)


async def _write(batch: CandleBatch, store: CandleStore) -> Written:
    return await store.write(batch)


def _spans(series: Series, items: Iterable[Item]) -> IntervalSet:
    """Where candles have to be copied."""
    found: list[Interval] = []
    for item in items:
        if isinstance(item, ChunkDifference):
            found.append(chunk_interval(item.start, series.timeframe))
        elif item.primary is not None and item.primary.state not in _ABSENT:
            found.append(item.interval)
    return IntervalSet(found)


def _parts(series: Series, items: Iterable[Item], buckets: int) -> Iterator[Interval]:
    for run in _spans(series, items):
        yield from pieces(run, series.timeframe, buckets)


def _by_source(series: Series, page: StoredPage) -> Iterator[CandleBatch]:
    """The candles of a page as batches, each with the source that the ledger names for them."""
    if not page.table.num_rows:
        return
    present = [one for one in page.coverage if one.state not in _ABSENT]
    times = open_times_ms(page.table)
    names = sorted({one.source for one in present})
    # The last entry stands for "in none".
    starts = np.array([*(one.interval.start for one in present), np.iinfo(np.int64).max])
    ends = np.array([*(one.interval.end for one in present), 0])
    codes = np.array([*(names.index(one.source) for one in present), len(names)])
    at = np.searchsorted(starts, times, side="right") - 1
    source = np.where(times < ends[at], codes[at], len(names))
    for code, name in enumerate([*names, _NO_SOURCE]):
        rows = page.table.filter(pa.array(source == code))
        if rows.num_rows:
            yield CandleBatch(series=series, source=name, now_ms=LATEST_MS, table=rows, state=CandleState.VERIFIED)


def _absences(series: Series, items: Iterable[Item]) -> Iterator[CandleBatch]:
    """What the primary's ledger says of absences, as batches by source."""
    found: dict[str, list[Absence]] = {}
    for item in items:
        if not isinstance(item, LedgerDifference) or item.primary is None:
            continue
        entry = item.primary
        if not entry.state.has_candles:
            found.setdefault(entry.source, []).append(
                Absence(
                    interval=item.interval,
                    state=entry.state,
                    evidence=entry.evidence or "",
                    expires_at=entry.expires_at,
                )
            )
    for source, absences in found.items():
        yield CandleBatch(
            series=series,
            source=source,
            now_ms=LATEST_MS,
            state=CandleState.VERIFIED,
            absences=tuple(sorted(absences, key=lambda one: one.interval)),
        )
