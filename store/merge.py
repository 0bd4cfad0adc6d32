"""One batch against what is stored: what is new, what is the same, what is corrected. Decided here, carried out by
each store in its own way inside one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import groupby

import numpy as np
import pyarrow as pa

from market.candle import (
    CANDLE_SCHEMA,
    Bools,
    CandleState,
    Refusal,
    by_open_time,
    check,
    open_times_ms,
    unsigned_zeros,
)
from market.candle_row import FEW_ROWS, CandleRow, all_storable, plain_rows
from market.clock import iso
from market.errors import StoreUnusable
from market.fingerprint import Digest, group_digests, row_digest, row_hashes
from market.instrument import Series
from market.interval import Interval, IntervalSet
from market.timeframe import DAY_MS, DEFAULT_ORIGIN_MS, TIMEFRAMES, Int64s, Timeframe
from store.batch import Absence, CandleBatch, Written
from store.series_key import SeriesKey

_LONGEST_MS = 366 * DAY_MS


@dataclass
class StoredChunk:
    """What the database says of one chunk; changed in place while a batch is merged."""

    digest: Digest
    #: Rows in state closed.
    unverified: int
    #: The series' revision when a reader last saw a change; None for "by this batch".
    revision: int | None = None
    #: The part of it that is in the archive alone.
    archived: Digest = field(default_factory=Digest)


def chunk_starts(open_times: Int64s, timeframe: Timeframe) -> Int64s:
    """The chunk each candle belongs to: its day, month or year by the length of the timeframe."""
    if timeframe.seconds < 3600:
        return open_times // DAY_MS * DAY_MS
    months = TIMEFRAMES["1M"].floor_all(open_times)
    if timeframe.milliseconds < DAY_MS:
        return months
    years = open_times.astype("datetime64[ms]").astype("datetime64[Y]")
    return years.astype("datetime64[ms]").astype(np.int64)


def chunk_start(open_time: int, timeframe: Timeframe) -> int:
    """:func:`chunk_starts` of one candle."""
    if timeframe.seconds < 3600:
        return open_time // DAY_MS * DAY_MS
    if timeframe.milliseconds < DAY_MS:
        return TIMEFRAMES["1M"].floor(open_time)
    year = datetime.fromtimestamp(open_time // 1000, UTC).year
    return int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) * 1000


def chunk_end(start: int, timeframe: Timeframe) -> int:
    """Where the chunk that starts at `start` ends, exclusive."""
    if timeframe.seconds < 3600:
        return start + DAY_MS
    return TIMEFRAMES["1M"].next(start, 1 if timeframe.milliseconds < DAY_MS else 12)


@dataclass
class Merge:
    """One write of one series. Make it with :meth:`of`, then :meth:`meet` the stored digests, :meth:`compare` the
    rows it asks for, and write what the fields say."""

    #: The rows that may be stored, sorted.
    table: pa.Table
    state: CandleState
    series: Series
    #: Since when the new versions are known, epoch milliseconds; two versions of a row never share it.
    learned_at: int
    refusals: tuple[Refusal, ...]
    #: Rows that are not there yet.
    fresh: list[pa.Table] = field(default_factory=list)
    #: New versions of rows that are there.
    corrections: list[pa.Table] = field(default_factory=list)
    #: Intervals whose stored rows become as final as this batch.
    raised: list[Interval] = field(default_factory=list)
    #: The chunks to save, by their start.
    chunks: dict[int, StoredChunk] = field(default_factory=dict)
    unchanged: int = 0
    outranked: int = 0
    #: The rows of `table` where they are few: live candles come one by one, and then every step below is taken in
    #: plain Python, with the same outcome. None where the steps go by columns.
    few: list[CandleRow] | None = None
    #: The stored chunks that the batch meets.
    _met: dict[int, StoredChunk] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: CandleBatch, key: SeriesKey, now_ms: int) -> Merge:
        """Check the rows of a batch; nothing is compared yet."""
        origin = key.origin_ms if key.anchored else _common_origin(batch.table, batch.series.timeframe)
        few = _few_storable(batch, origin)
        table, refusals = (batch.table, []) if few is not None else _checked(batch, origin)
        return cls(
            table=table,
            state=batch.state,
            series=batch.series,
            # Two versions of a row must never share a time, or `as_of` could not tell them apart.
            learned_at=max(now_ms, key.last_write + 1),
            refusals=(*batch.refusals, *refusals),
            few=few,
        )

    @property
    def timeframe(self) -> Timeframe:
        """The length of the candles."""
        return self.series.timeframe

    @property
    def present(self) -> IntervalSet:
        """What the rows of the batch cover."""
        if self.few is not None:
            return IntervalSet(Interval(row[0], self.timeframe.next(row[0])) for row in self.few)
        return IntervalSet.of_candles(open_times_ms(self.table), self.timeframe)

    def news(self, absences: Iterable[Absence]) -> Interval | None:
        """From the first to the last instant that the batch says anything of; None for nothing."""
        return (self.present | IntervalSet(one.interval for one in absences)).hull

    @property
    def span(self) -> Interval | None:
        """From the first chunk of the batch to just after the start of its last one; None for no rows."""
        if not self.table.num_rows:
            return None
        if self.few is not None:
            first, last = (chunk_start(row[0], self.timeframe) for row in (self.few[0], self.few[-1]))
            return Interval(first, last + 1)
        ends = chunk_starts(open_times_ms(self.table)[[0, -1]], self.timeframe)
        return Interval(int(ends[0]), int(ends[1]) + 1)

    def meet(self, stored: dict[int, StoredChunk], archived: IntervalSet | None = None) -> list[Interval]:
        """Compare chunk by chunk with the digests stored in :attr:`span`.

        :param archived: where the rows are in the archive alone; None for nowhere.
        :return: the intervals whose stored rows have to be read and given to :meth:`compare`, sorted.
        :raises StoreUnusable: rows for what is archived of a chunk, and not exactly the archived ones.
        """
        if archived:
            self._leave_archived(stored, archived)
        if not self.table.num_rows:
            return []
        times = self._times()
        mixed: list[Interval] = []
        last_mixed = -_LONGEST_MS
        for start_of_chunk, start, end, ours in self._by_chunk():
            chunk = stored.get(start_of_chunk)
            if chunk is None:
                self.fresh.append(self.table.slice(start, end - start))
                unverified = end - start if self.state < CandleState.VERIFIED else 0
                self.chunks[start_of_chunk] = StoredChunk(ours, unverified)
            elif chunk.digest == ours:
                self.unchanged += end - start
                if chunk.unverified and self.state is CandleState.VERIFIED:
                    self.chunks[start_of_chunk] = replace(chunk, unverified=0)
                    self._raise(times[start:end])
            else:
                self._met[start_of_chunk] = chunk
                span = Interval(int(times[start]), int(times[end - 1]) + 1)
                # Neighbours are read at once.
                if start_of_chunk - last_mixed <= _longest_chunk(self.timeframe):
                    span = Interval(mixed.pop().start, span.end)
                mixed.append(span)
                last_mixed = start_of_chunk
        return mixed

    def compare(self, span: Interval, stored: pa.Table, states: Int64s) -> None:
        """Compare row by row inside one interval that :meth:`meet` asked for.

        :param stored: all rows there, sorted.
        :param states: their states.
        """
        if self.few is not None and stored.num_rows <= FEW_ROWS:
            self._compare_few(span, plain_rows(stored), states.tolist())
            return
        all_times = open_times_ms(self.table)
        first, last = np.searchsorted(all_times, [span.start, span.end])
        part, times = self.table.slice(int(first), int(last - first)), all_times[first:last]
        stored_times = open_times_ms(stored)
        at = np.searchsorted(stored_times, times)
        there = np.zeros(len(times), np.bool_)
        inside = at < len(stored_times)
        there[inside] = stored_times[at[inside]] == times[inside]
        same = np.zeros(len(times), np.bool_)
        same[there] = _equal_rows(part.filter(pa.array(there)), stored.take(pa.array(at[there])))
        differs = there & ~same
        finality = np.zeros(len(times), np.int64)
        finality[there] = states[at[there]]
        outranked = differs & (finality > int(self.state))
        corrects = differs & ~outranked

        new, corrected = part.filter(pa.array(~there)), part.filter(pa.array(corrects))
        self.fresh += [new] if new.num_rows else []
        self.corrections += [corrected] if corrected.num_rows else []
        self.unchanged += int(same.sum())
        self.outranked += int(outranked.sum())
        before = self._sums(stored.take(pa.array(at[corrects])))
        for chunk_start, digest in self._sums(pa.concat_tables([new, corrected])).items():
            chunk = self._touched(chunk_start)
            chunk.digest = chunk.digest + digest - before.get(chunk_start, Digest())
            chunk.revision = None
        raises = same & (finality < int(self.state))
        if self.state < CandleState.VERIFIED:
            self._count_unverified(times[~there | corrects], 1)
        self._count_unverified(times[corrects & (finality < CandleState.VERIFIED)], -1)
        self._count_unverified(times[raises], -1)
        if raises.any():
            self._raise(times[raises])

    def _compare_few(self, span: Interval, stored: list[CandleRow], states: list[int]) -> None:
        """:meth:`compare`, row by row."""
        assert self.few is not None
        there = {row[0]: (row_digest(row), state) for row, state in zip(stored, states, strict=True)}
        fresh: list[int] = []
        corrections: list[int] = []
        raises: list[int] = []
        counted = int(self.state < CandleState.VERIFIED)
        for place, row in enumerate(self.few):
            if row[0] not in span:
                continue
            ours = row_digest(row)
            theirs, finality = there.get(row[0], (Digest(), self.state))
            if ours == theirs:
                self.unchanged += 1
                if finality < self.state:
                    raises.append(row[0])
                    self._touched(chunk_start(row[0], self.timeframe)).unverified -= 1
            elif finality > self.state:
                self.outranked += 1
            else:
                (corrections if theirs.rows else fresh).append(place)
                chunk = self._touched(chunk_start(row[0], self.timeframe))
                chunk.digest = chunk.digest + ours - theirs
                chunk.revision = None
                chunk.unverified += counted - int(bool(theirs.rows) and finality < CandleState.VERIFIED)
        # Slices cost a tenth of what pa.array and take do.
        self.fresh += [pa.concat_tables([self.table.slice(one, 1) for one in fresh])] if fresh else []
        self.corrections += (
            [pa.concat_tables([self.table.slice(one, 1) for one in corrections])] if corrections else []
        )
        if raises:
            self._raise(np.array(raises, np.int64))

    def written(self) -> Written:
        """What the batch changed."""
        return Written(
            inserted=sum(one.num_rows for one in self.fresh),
            corrected=sum(one.num_rows for one in self.corrections),
            unchanged=self.unchanged,
            outranked=self.outranked,
            refusals=self.refusals,
        )

    @property
    def changed(self) -> IntervalSet:
        """What a reader will see differently: for each chunk at most, from its first to its last such candle."""
        found: list[Interval] = []
        for table in (*self.fresh, *self.corrections):
            times = open_times_ms(table)
            chunks = chunk_starts(times, self.timeframe)
            starts = np.flatnonzero(np.concatenate(([True], chunks[1:] != chunks[:-1])))
            ends = np.concatenate((starts[1:], [len(times)])) - 1
            found += [
                Interval(first, self.timeframe.next(last))
                for first, last in zip(times[starts].tolist(), times[ends].tolist(), strict=True)
            ]
        return IntervalSet(found)

    def _leave_archived(self, stored: dict[int, StoredChunk], archived: IntervalSet) -> None:
        """Take the rows that the archive has out of the batch, as unchanged ones."""
        inside = archived.contains_all(open_times_ms(self.table))
        for chunk_start, ours in self._sums(self.table.filter(pa.array(inside))).items():
            if ours != stored[chunk_start].archived:
                # They cannot be compared row by row, and a correction could not keep the old version.
                raise StoreUnusable(
                    f"{self.series}: candles of the chunk that starts at {iso(chunk_start)} were archived and "
                    "dropped from the database, which takes nothing but exactly these for them; nothing was written"
                )
        self.unchanged += int(inside.sum())
        self.table = self.table.filter(pa.array(~inside))
        self.few = None if self.few is None else plain_rows(self.table)

    def _times(self) -> Int64s:
        if self.few is not None:
            return np.array([row[0] for row in self.few], np.int64)
        return open_times_ms(self.table)

    def _by_chunk(self) -> Iterator[tuple[int, int, int, Digest]]:
        """Of each chunk: its start, its rows from one place to before another, and their digest."""
        if self.few is not None:
            place = 0
            for start, rows in groupby(self.few, lambda row: chunk_start(row[0], self.timeframe)):
                digests = [row_digest(row) for row in rows]
                yield start, place, place + len(digests), sum(digests, Digest())
                place += len(digests)
            return
        chunks = chunk_starts(open_times_ms(self.table), self.timeframe)
        starts = np.flatnonzero(np.concatenate(([True], chunks[1:] != chunks[:-1])))
        ends = [*starts[1:].tolist(), len(chunks)]
        yield from zip(
            chunks[starts].tolist(), starts.tolist(), ends, group_digests(self.table, starts), strict=True
        )

    def _raise(self, times: Int64s) -> None:
        self.raised += IntervalSet.of_candles(times, self.timeframe)

    def _touched(self, chunk_start: int) -> StoredChunk:
        return self.chunks.setdefault(chunk_start, self._met[chunk_start])

    def _sums(self, table: pa.Table) -> dict[int, Digest]:
        """Digests of any rows by their chunks."""
        if not table.num_rows:
            return {}
        table = by_open_time(table)
        chunks = chunk_starts(open_times_ms(table), self.timeframe)
        starts = np.flatnonzero(np.concatenate(([True], chunks[1:] != chunks[:-1])))
        return dict(zip(chunks[starts].tolist(), group_digests(table, starts), strict=True))

    def _count_unverified(self, times: Int64s, each: int) -> None:
        chunks, counts = np.unique(chunk_starts(times, self.timeframe), return_counts=True)
        for chunk_start, count in zip(chunks.tolist(), counts.tolist(), strict=True):
            self._touched(chunk_start).unverified += each * count


def _longest_chunk(timeframe: Timeframe) -> int:
    """Milliseconds from the start of a chunk to the start of the next, at most."""
    if timeframe.seconds < 3600:
        return DAY_MS
    return _LONGEST_MS if timeframe.milliseconds >= DAY_MS else 31 * DAY_MS


def _few_storable(batch: CandleBatch, origin_ms: int) -> list[CandleRow] | None:
    """The rows of a small batch that may be stored just as they are; None for any other batch."""
    table = batch.table
    if table.num_rows > FEW_ROWS or not table.schema.equals(CANDLE_SCHEMA):
        return None
    rows = plain_rows(table)
    return rows if all_storable(rows, batch.series.timeframe, batch.now_ms, origin_ms) else None


def _checked(batch: CandleBatch, origin_ms: int) -> tuple[pa.Table, list[Refusal]]:
    """The rows that may be stored, sorted, and why the others may not."""
    good, refusals = check(batch.table, batch.series.timeframe, batch.now_ms, origin_ms)
    return unsigned_zeros(by_open_time(batch.table.filter(pa.array(good)))), refusals


def _common_origin(table: pa.Table, timeframe: Timeframe) -> int:
    """Where the three-day candles of a series that nothing is known of count from: where most of them open."""
    if timeframe.name != "3d":
        return DEFAULT_ORIGIN_MS
    times = open_times_ms(table)
    days = times[times % DAY_MS == 0] // DAY_MS % 3
    if not len(days):
        return DEFAULT_ORIGIN_MS
    return int(np.bincount(days).argmax()) * DAY_MS


def _equal_rows(ours: pa.Table, theirs: pa.Table) -> Bools:
    """Row by row equality over all columns, nulls equal to nulls.

    The hash of a row takes all its columns; two different rows with equal 128-bit hashes do not happen by chance.
    """
    a, b = row_hashes(ours), row_hashes(theirs)
    equal: Bools = (a[0] == b[0]) & (a[1] == b[1])
    return equal
