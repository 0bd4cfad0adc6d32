"""Views that read through process memory and the disk before they ask the database.

The database's revision of a series is the truth: what is held in memory is used only while that has not moved on.
Whether it has, SQLite tells in microseconds; another database is asked, for all series being read at once, when it
was last asked longer ago than a value of kind ``candle_version`` may live.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial

from market.clock import LATEST_MS, Clock
from market.errors import StoreBusy, StoreUnavailable
from market.instrument import Series
from market.interval import Interval
from store.archive.archive import Archive
from store.cache.memory import MEMORY_TIER
from store.cache.single_flight import SingleFlight
from store.cache.statistics import TierStatistics
from store.cache.time_to_live import TimesToLive
from store.candle_store import CandleStore, SeriesVersion, StoredPage
from store.control import Control
from store.merge import chunk_end, chunk_start
from store.tiers.derived import DerivedCandles
from store.tiers.disk import DiskTier
from store.tiers.encoded import EncodedAnswers
from store.tiers.frequent import FrequentSeries
from store.tiers.held_series import HeldSeries
from store.tiers.held_view import LEAST_BY_TAIL, HeldView
from store.tiers.known_series import KnownSeries, Now
from store.tiers.operating import VERSION_KIND, Operating
from store.tiers.process_memory import CANDLES_KIND, ProcessMemory
from store.tiers.sealed import SealedPeriods
from store.tiers.status import TierStatus
from store.tiers.view import Moved, ReadAhead, SeriesView, StoredView

#: Rows that one step of a tail may bring; after more, the tail is thrown away.
_MOST_NEW_ROWS = 5_000
#: Rows of a tail that is read anew.
_MOST_TAIL_ROWS = 200_000
#: Bytes that a row takes in memory at least.
_ROW_BYTES = 80
#: How often a moving series is followed before it is read past the tiers.
_TRIES = 4
#: Milliseconds for which a database may answer with an older revision than was seen (a replica that lags) before
#: that is believed (a restored backup).
_LONGEST_LAG_MS = 30_000


class TieredViews:
    """See the module. Used from one event loop.

    :param entries: process memory, shared with whoever keeps other things there.
    :param disk: None to do without.
    :param falls_back: the store answers from somewhere else by itself while its first database is away.
    """

    def __init__(
        self,
        store: CandleStore,
        archive: Archive | None,
        clock: Clock,
        *,
        entries: ProcessMemory,
        disk: DiskTier | None,
        times: TimesToLive,
        statistics: TierStatistics,
        falls_back: bool = False,
        frequent: FrequentSeries | None = None,
        on_control: Callable[[Control], None] = lambda control: None,
    ) -> None:
        self._store = store
        self._archive = archive
        self._clock = clock
        self._entries = entries
        self._disk = disk
        self._times = times
        self._statistics = statistics
        self._falls_back = falls_back
        self._frequent = frequent
        self._operating = Operating(store, clock, entries, disk, times, on_control)
        # A batch of many series is one question: nobody is turned away here.
        self._flight: SingleFlight[Series, None] = SingleFlight(most_waiting=100_000, wait_seconds=60.0)
        #: Whether what was read is kept. One at a time of a series: each would lose what the other has read.
        self._reading: SingleFlight[Series, bool] = SingleFlight(most_waiting=100_000, wait_seconds=60.0)
        self._turn = 0
        self.encoded = EncodedAnswers(entries, statistics, clock)
        self.sealed = SealedPeriods(entries, disk, statistics)
        self.derived = DerivedCandles(entries, self.sealed, statistics, self.agrees)

    async def of(self, series: Sequence[Series]) -> list[SeriesView | None]:
        """See :class:`store.tiers.view.SeriesViews`."""
        self._turn += 1
        turn = self._turn
        if self._frequent is not None:
            for one in series:
                self._frequent.count(one)
        if not self.control.safety.reads_cache:
            await self._operating.look()
        if self.control.safety.reads_cache:
            wanted = [one for one in series if not self.fresh(one)]
            away = False
            try:
                await self._refresh(wanted, turn)
            except (StoreUnavailable, StoreBusy):
                if self._falls_back:
                    return [await self._stored(one) for one in series]
                if not all(self._servable(one) for one in series):
                    raise
                away = True
            # What was learnt on the way may have switched the cache off.
            if self.control.safety.reads_cache:
                # What was fresh when this read began is an answer, whatever was written meanwhile.
                return [await self._view(one, turn if one in wanted else -1, away) for one in series]
        return [await self._stored(one) for one in series]

    async def version(self, series: Sequence[Series]) -> Hashable | None:
        """See :meth:`store.tiers.view.SeriesViews.version`."""
        found: list[tuple[int, int] | None] = []
        for view in await self.of(series):
            if view is not None and not isinstance(view, HeldView):
                return None
            found.append(None if view is None else (view.facts.revision, view.facts.origin_ms))
        return tuple(found) if self.control.safety.reads_cache else None

    def age_ms(self, series: Sequence[Series]) -> int:
        """How long ago what is held of these was last known to be so; 0 where that is known at every moment."""
        known = [
            one for one in (self._entries.get(("series", each)) for each in series) if isinstance(one, KnownSeries)
        ]
        mark = self._store.change_mark()
        return max((self._age_ms(one) for one in known if mark is None or one.mark != mark), default=0)

    def fresh(self, series: Series) -> bool:
        """Whether what is held of `series` may be served without asking the database."""
        known = self._entries.get(("series", series))
        return isinstance(known, KnownSeries) and self._is_fresh(series, known)

    async def look(self) -> None:
        """See what an operator has switched, if nobody has looked for a while."""
        await self._operating.look()

    async def tidy(self) -> None:
        """Bring the disk tier within its limit, and clear away what killed processes left."""
        if self._disk is not None and self.control.safety.writes:
            await asyncio.to_thread(self._disk.sweep)

    async def read_ahead(self, series: Series, rows: int) -> None:
        """Have the newest rows of a series in memory before somebody asks for them."""
        for _ in range(_TRIES):
            (view,) = await self.of([series])
            if view is None or view.facts.known is None:
                return
            with contextlib.suppress(Moved):
                await view.page(view.facts.known, limit=rows, newest=True)
                return

    def forget(self, series: Series | None = None) -> None:
        """Drop what process memory holds of a series, or everything; it is read again when it is asked for."""
        if series is None:
            self._entries.clear()
            return
        mine = (("series", series), ("sealed", series), ("derived", series))
        self._entries.pop_where(lambda key: isinstance(key, tuple) and key[:2] in mine)

    @property
    def control(self) -> Control:
        """What an operator has switched, as it was last seen."""
        return self._operating.control

    @property
    def times(self) -> TimesToLive:
        """How long values live; follows the operating state."""
        return self._times

    @property
    def statistics(self) -> TierStatistics:
        """What the tiers did."""
        return self._statistics

    def status(self) -> TierStatus:
        """How the tiers fare."""
        return TierStatus(
            safety=self.control.safety,
            operating=self.control.operating,
            memory_bytes=self._entries.used_bytes,
            memory_limit_bytes=self._entries.limit_bytes,
            counts=tuple(self._statistics.snapshot()),
            hit_rate=self._statistics.hit_rate(MEMORY_TIER),
        )

    @property
    def entries(self) -> ProcessMemory:
        """Process memory."""
        return self._entries

    @property
    def used_bytes(self) -> int:
        """What process memory holds."""
        return self._entries.used_bytes

    def close(self) -> None:
        """Wait for the files that are being written."""
        self.sealed.close()

    async def agrees(self, held: HeldSeries, page: StoredPage, interval: Interval) -> bool:
        """Whether a page, read of `interval`, has the rows that are held: it may be of a server that lags."""
        if page.revision is None or page.revision <= held.revision:
            return page.revision == held.revision
        delta = await self._store.delta(held.series, since=held.revision, after_ms=LATEST_MS, limit=0)
        if delta is None or delta.facts.revision < page.revision:
            return False
        timeframe = held.series.timeframe
        changed = [one.start for one in delta.chunks]
        return not any(one < interval.end and chunk_end(one, timeframe) > interval.start for one in changed)

    async def reach(self, held: HeldSeries, start: int) -> None:
        """Read the tail anew, from `start` or a little before, so that the next view has it; if that can be kept.

        :raises ReadAhead: the next view has it: this one is of another revision.
        """
        self.sealed.missed()
        start = chunk_start(start, held.series.timeframe)
        # Whoever wants more than who came first comes again.
        if await self._reading.run(held.series, partial(self._read_tail, held, start)):
            raise ReadAhead

    async def know_periods(self, held: HeldSeries) -> None:
        """Read the digests of all periods again, for the next view; if they can be kept.

        :raises ReadAhead: the next view has them.
        """
        if await self._reading.run(held.series, partial(self._read_periods, held)):
            raise ReadAhead

    async def _read_tail(self, held: HeldSeries, start: int) -> bool:
        if self._entries.frozen:
            return False
        now = self._now()
        most = min(_MOST_TAIL_ROWS, self._entries.limit_bytes // _ROW_BYTES)
        delta = await self._store.delta(held.series, since=-1, after_ms=start - 1, limit=most)
        if delta is None or delta.more or delta.facts.revision < held.revision:
            return False
        found = held.with_tail(start, delta)
        if self._keep(held.series, KnownSeries(found, *now)):
            return True
        # Too large for memory; the rest is not.
        self._keep(held.series, KnownSeries(replace(found, tail=None), *now))
        return False

    async def _read_periods(self, held: HeldSeries) -> bool:
        if self._entries.frozen:
            return False
        now = self._now()
        after = LATEST_MS if held.tail is None else held.tail.last
        delta = await self._store.delta(held.series, since=-1, after_ms=after, limit=_MOST_NEW_ROWS)
        if delta is None or delta.facts.revision < held.revision:
            return False
        found = held.known_again(delta)
        # A tail that a correction has met meanwhile is read anew when it is asked for: what is kept is whole.
        return self._keep(held.series, KnownSeries(found if found.whole else replace(found, tail=None), *now))

    async def _view(self, series: Series, turn: int, away: bool) -> SeriesView | None:
        known = self._entries.get(("series", series))
        if not isinstance(known, KnownSeries) or not (away or known.turn >= turn or self._is_fresh(series, known)):
            # It does not fit in memory, or memory is read-only.
            return await self._stored(series)
        if known.held is None:
            return None
        stored = StoredView(self._store, self._archive, series, known.held.facts)
        # While the database does not answer, a mark proves nothing.
        age = 0 if known.mark is not None and not away else self._age_ms(known)
        return HeldView(known.held, stored, self, age, known.given)

    def _age_ms(self, known: KnownSeries) -> int:
        return max(self._clock.now_ms() - known.at, 0)

    async def _stored(self, series: Series) -> StoredView | None:
        facts = await self._store.facts(series)
        return None if facts is None else StoredView(self._store, self._archive, series, facts)

    def _is_fresh(self, series: Series, known: KnownSeries) -> bool:
        mark = self._store.change_mark()
        if mark is not None or known.mark is not None:
            return mark == known.mark
        lifetime = self._times.milliseconds(VERSION_KIND, self._clock.now_ms())
        return known.writes == self._store.writes_here() and 0 <= self._clock.now_ms() - known.at < lifetime

    def _servable(self, series: Series) -> bool:
        """While the database does not answer: whether what was so a while ago may still be served."""
        known = self._entries.get(("series", series))
        lifetime = self._times.milliseconds(CANDLES_KIND, self._clock.now_ms())
        return isinstance(known, KnownSeries) and 0 <= self._clock.now_ms() - known.at < lifetime

    def _now(self) -> Now:
        """What goes with an answer that is asked for now: see :class:`KnownSeries`."""
        return self._store.change_mark(), self._clock.now_ms(), self._store.writes_here(), self._turn

    async def _refresh(self, series: Sequence[Series], turn: int) -> None:
        for _ in range(2):
            # A load that was under way when we came may have begun before what we must see: then once more.
            await asyncio.gather(*(self._flight.run(one, partial(self._learn, one)) for one in series))
            series = [one for one in series if not self._answers(one, turn)]
            if not series or self._entries.frozen:
                return

    def _answers(self, series: Series, turn: int) -> bool:
        known = self._entries.get(("series", series))
        return isinstance(known, KnownSeries) and known.turn >= turn

    async def _learn(self, series: Series) -> None:
        """Bring what is held of a series to what the database says now."""
        now = self._now()
        version = (await self._operating.versions([series])).get(series)
        if version is None:
            self._keep(series, KnownSeries(None, *now))
            return
        for _ in range(_TRIES):
            known = self._entries.get(("series", series))
            if known is None and self._entries.frozen:
                return
            after = await self._brought(series, version, known if isinstance(known, KnownSeries) else None, now)
            # A tail that was read meanwhile is not to be lost.
            if self._entries.get(("series", series)) is known:
                break
        if not self._keep(series, after) and after.held is not None and after.held.tail is not None:
            # Too large for memory; the rest is not.
            self._keep(series, replace(after, held=replace(after.held, tail=None)))

    async def _brought(
        self, series: Series, version: SeriesVersion, known: KnownSeries | None, now: Now
    ) -> KnownSeries:
        """What is known of a series, brought to this version or a later one."""
        before = None if known is None else known.held
        if known is not None and before is not None:
            if now[0] is None and version.revision < before.revision:
                behind = now[1] if known.behind_since is None else known.behind_since
                if now[1] - behind < _LONGEST_LAG_MS:
                    return KnownSeries(before, *now, behind_since=behind)
            same = (version.revision, version.origin_ms) == (before.revision, before.facts.origin_ms)
            after = before if same else await self._advanced(before)
            if after is not None:
                return KnownSeries(after, *now)
        return KnownSeries(await self._first(series), *now, anew=True)

    async def _first(self, series: Series) -> HeldSeries | None:
        """A series that nothing is held of, with its newest rows: most questions are for these."""
        facts = await self._store.facts(series)
        if facts is None or facts.known is None:
            start, limit = LATEST_MS + 1, 0
        else:
            start = chunk_start(facts.known.end - LEAST_BY_TAIL * series.timeframe.milliseconds, series.timeframe)
            limit = min(_MOST_NEW_ROWS, self._entries.limit_bytes // _ROW_BYTES)
        delta = await self._store.delta(series, since=-1, after_ms=start - 1, limit=limit)
        if delta is None:
            return None
        held = HeldSeries.read(series, delta)
        return held if delta.more or not delta.rows.num_rows else held.with_tail(start, delta)

    async def _advanced(self, held: HeldSeries) -> HeldSeries | None:
        """The same series at the newest revision; None if it has to be read anew."""
        for _ in range(_TRIES):
            after = LATEST_MS if held.tail is None else held.tail.last
            delta = await self._store.delta(held.series, since=held.revision, after_ms=after, limit=_MOST_NEW_ROWS)
            if delta is None or delta.facts.revision < held.revision:
                return None
            held = held.after(delta)
            if held.whole:
                return held
            held = held.repaired()
        return replace(held, tail=None)

    def _keep(self, series: Series, known: KnownSeries) -> bool:
        """Whether it is kept."""
        before = self._entries.get(("series", series))
        if isinstance(before, KnownSeries) and before.held is known.held:
            # Nothing to keep that was not kept: this is allowed while the cache is read-only, too.
            before.mark, before.at, before.writes, before.turn = known.mark, known.at, known.writes, known.turn
            before.behind_since = known.behind_since
            return True
        size = 200 if known.held is None else known.held.bytes
        return self._entries.put(("series", series), known, size)
