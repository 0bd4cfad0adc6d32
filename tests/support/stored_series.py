"""A stored series as plain dictionaries, which changes as a store changes it, and a store that answers from it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from market.candle import by_open_time, open_times_ms
from market.coverage import CoverageState, Covered
from market.fingerprint import Digest, group_digests
from market.instrument import Series
from market.interval import Interval, IntervalSet
from market.timeframe import DEFAULT_ORIGIN_MS, Int64s, Timeframe
from store.answer import SeriesInfo
from store.archived_page import ARCHIVE_TIER
from store.batch import Absence
from store.candle_store import DATABASE_TIER, Chunk, SeriesDelta, SeriesFacts, SeriesVersion, StoredPage
from store.control import Control
from store.derived import rolled_page
from store.ledger import clip, learn
from store.merge import chunk_start, chunk_starts
from tests.support.made_candles import made_at


@dataclass(frozen=True)
class Stored:
    """As of one revision. Immutable."""

    series: Series
    revision: int = 0
    #: Version of the candle at each open time.
    rows: dict[int, int] = field(default_factory=dict)
    #: Revision at which each chunk changed last.
    chunks: dict[int, int] = field(default_factory=dict)
    ledger: tuple[Covered, ...] = ()
    #: Candles that open before are in the archive alone.
    archived_to: int = 0
    origin_ms: int = DEFAULT_ORIGIN_MS

    def written(self, times: Iterable[int], version: int, absent: Sequence[Interval] = ()) -> Stored:
        """With candles in this version; those in the archive are left as they are."""
        timeframe = self.series.timeframe
        new = [one for one in times if one >= self.archived_to and self.rows.get(one) != version]
        present = IntervalSet(Interval(one, timeframe.next(one)) for one in new)
        gone = [Absence(interval=one, state=CoverageState.EMPTY, evidence="asked twice") for one in absent]
        ledger = tuple(learn(self.ledger, present, gone, "test", self.revision + 1))
        if not new and ledger == self.ledger:
            return self
        changed = dict.fromkeys((chunk_start(one, timeframe) for one in new), self.revision + 1)
        return replace(
            self,
            revision=self.revision + 1,
            rows={**self.rows, **dict.fromkeys(new, version)},
            chunks={**self.chunks, **changed},
            ledger=ledger,
        )

    def dropped(self, before: int) -> Stored:
        """With everything before moved to the archive: the series' revision says so, and no chunk's does."""
        if before <= self.archived_to or not any(self.archived_to <= one < before for one in self.rows):
            return self
        return replace(self, revision=self.revision + 1, archived_to=before)

    @cached_property
    def _all(self) -> tuple[pa.Table, Int64s]:
        versions = sorted({*self.rows.values()} | {0})
        parts = [made_at([one for one, of in self.rows.items() if of == each], each) for each in versions]
        table = by_open_time(pa.concat_tables(parts)).combine_chunks()
        return table, open_times_ms(table)

    def table(self, start: int, end: int) -> pa.Table:
        """All candles that open in the range, wherever they are."""
        table, times = self._all
        first, last = np.searchsorted(times, [start, end])
        return table.slice(first, last - first)

    @property
    def known(self) -> Interval | None:
        return Interval(self.ledger[0].interval.start, self.ledger[-1].interval.end) if self.ledger else None

    @property
    def facts(self) -> SeriesFacts:
        return SeriesFacts(revision=self.revision, origin_ms=self.origin_ms, known=self.known)

    def told(self, since: int = -1) -> list[Chunk]:
        """The chunks that changed after a revision."""
        whole, archived = self._digests(2**62), self._digests(self.archived_to)
        return [
            Chunk(start=start, digest=whole[start], revision=revision, archived=archived.get(start, Digest()))
            for start, revision in sorted(self.chunks.items())
            if revision > since
        ]

    def _digests(self, before: int) -> dict[int, Digest]:
        table = self.table(0, before)
        if not table.num_rows:
            return {}
        chunks = chunk_starts(open_times_ms(table), self.series.timeframe)
        starts, firsts = np.unique(chunks, return_index=True)
        return dict(zip(starts.tolist(), group_digests(table, firsts), strict=True))

    def delta(self, since: int, after_ms: int, limit: int) -> SeriesDelta:
        """As a store gives it."""
        rows = self.table(max(after_ms + 1, self.archived_to), 2**62)
        return SeriesDelta(
            facts=self.facts,
            coverage=list(self.ledger),
            chunks=self.told(since),
            rows=rows.slice(0, limit),
            more=rows.num_rows > limit,
        )

    def page(self, interval: Interval, limit: int | None, newest: bool) -> StoredPage:
        """As a store that has its archive at hand gives it."""
        table = self.table(interval.start, interval.end)
        if limit is not None and table.num_rows >= limit:
            table = table.slice(table.num_rows - limit) if newest else table.slice(0, limit)
        tier = ARCHIVE_TIER if any(interval.start <= one < self.archived_to for one in self.rows) else DATABASE_TIER
        return StoredPage(table=table, coverage=clip(self.ledger, interval), tier=tier, revision=self.revision)


class OneSeriesStore:
    """A store of one series, which counts what it is asked. Cast it to what it stands for."""

    def __init__(self, series: Series) -> None:
        self.now = Stored(series)
        #: What pages are read from, where that is a server that lags.
        self.lagging: Stored | None = None
        self.control = Control()
        self.error: Exception | None = None
        #: None: it cannot be told.
        self.mark: int | None = None
        self.hidden = False
        self.calls: Counter[str] = Counter()
        #: Answers to these calls are held back until the event is set.
        self.held_back: dict[str, asyncio.Event] = {}

    def change_mark(self) -> int | None:
        return self.mark

    def writes_here(self) -> int:
        return 0

    async def versions(self, series: Sequence[Series]) -> tuple[dict[Series, SeriesVersion], Control]:
        await self._asked("versions")
        version = SeriesVersion(revision=self.now.revision, origin_ms=self.now.origin_ms)
        there = self.now.series in series and self.now.revision > 0 and not self.hidden
        return ({self.now.series: version} if there else {}), self.control

    async def delta(self, series: Series, *, since: int, after_ms: int, limit: int) -> SeriesDelta | None:
        found = self.now.delta(since, after_ms, limit) if series == self.now.series and self.now.revision else None
        await self._asked("delta")
        return found

    async def facts(self, series: Series) -> SeriesFacts | None:
        await self._asked("facts")
        return self.now.facts if series == self.now.series and self.now.revision and not self.hidden else None

    async def coverage(self, series: Series, interval: Interval) -> list[Covered]:
        await self._asked("coverage")
        return clip(self.now.ledger, interval)

    async def page(
        self, series: Series, interval: Interval, *, limit: int | None = None, newest: bool = False, **named: Any
    ) -> StoredPage:
        await self._asked("page")
        return (self.lagging or self.now).page(interval, limit, newest)

    async def rolled(self, series: Series, interval: Interval, timeframe: Timeframe, origin_ms: int) -> StoredPage:
        await self._asked("rolled")
        return rolled_page((self.lagging or self.now).page(interval, None, False), timeframe, origin_ms)

    async def series(self) -> list[SeriesInfo]:
        await self._asked("series")
        return [
            SeriesInfo(
                series=self.now.series, rows=len(self.now.rows), first_open=None, last_open=None, last_write=None,
                revision=self.now.revision, sources=(), corrections=0, quarantined=0, missing=0, verified_empty=0,
            )
        ]  # fmt: skip

    async def _asked(self, name: str) -> None:
        self.calls[name] += 1
        if name in self.held_back:
            await self.held_back[name].wait()
        if self.error is not None:
            raise self.error
