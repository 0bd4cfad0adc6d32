"""One batch of candles into the tables: what is new, what is the same, what is corrected."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from market.candle import Bools, CandleState, by_open_time, check, open_times_ms
from market.fingerprint import Digest, digest, group_digests, row_hashes
from market.interval import IntervalSet
from market.timeframe import DAY_MS, DEFAULT_ORIGIN_MS, TIMEFRAMES, Int64s, Timeframe
from store.batch import CandleBatch, Written
from store.ledger import learn
from store.sqlite.coverage import read_coverage, replace_coverage
from store.sqlite.rows import QUERIES, SeriesKey, fetched, to_parameters


@dataclass
class _Chunk:
    """What the database says of one chunk; changed in place while a batch is merged."""

    digest: Digest
    unverified: int
    #: The series' revision when a reader last saw a change; None for "by this batch".
    revision: int | None = None


def chunk_starts(open_times: Int64s, timeframe: Timeframe) -> Int64s:
    """The chunk each candle belongs to: its day, month or year by the length of the timeframe."""
    if timeframe.seconds < 3600:
        return open_times // DAY_MS * DAY_MS
    months = TIMEFRAMES["1M"].floor_all(open_times)
    if timeframe.milliseconds < DAY_MS:
        return months
    years = open_times.astype("datetime64[ms]").astype("datetime64[Y]")
    return years.astype("datetime64[ms]").astype(np.int64)


class Merge:
    """One write of one series, inside a transaction that the caller holds."""

    def __init__(self, connection: sqlite3.Connection, key: SeriesKey, batch: CandleBatch, now_ms: int) -> None:
        self._connection = connection
        self._key = key
        self._batch = batch
        # Two versions of a row must never share a time, or `as_of` could not tell them apart.
        self._learned_at = max(now_ms, key.last_write + 1)
        self._inserted = self._corrected = self._unchanged = self._outranked = 0
        self._touched: dict[int, _Chunk] = {}

    def run(self) -> Written:
        """Merge the batch. Nothing is written where nothing changes."""
        batch = self._batch
        origin = self._key.origin_ms if self._key.anchored else _common_origin(batch.table, batch.series.timeframe)
        good, refusals = check(batch.table, batch.series.timeframe, batch.now_ms, origin)
        table = by_open_time(batch.table.filter(pa.array(good)))
        if table.num_rows:
            self._merge_rows(table)
        ledger_changed = self._merge_coverage(table)
        if self._inserted or self._corrected or ledger_changed:
            self._connection.execute(QUERIES["touch_series"], self._key.names | {"now": self._learned_at})
        self._save_chunks()
        refused = (*batch.refusals, *refusals)
        self._connection.executemany(
            QUERIES["insert_quarantine"],
            [
                (
                    self._key.instrument_id,
                    self._key.timeframe,
                    one.open_time,
                    one.reason,
                    one.raw,
                    batch.source,
                    self._learned_at,
                )
                for one in refused
            ],
        )
        return Written(
            inserted=self._inserted,
            corrected=self._corrected,
            unchanged=self._unchanged,
            outranked=self._outranked,
            refusals=refused,
        )

    def _merge_rows(self, table: pa.Table) -> None:
        times = open_times_ms(table)
        chunks = chunk_starts(times, self._batch.series.timeframe)
        starts = np.flatnonzero(np.concatenate(([True], chunks[1:] != chunks[:-1])))
        digests = group_digests(table, starts)
        stored = {
            row[0]: _Chunk(Digest.of_hex(row[1], row[3]), row[2], row[4])
            for row in self._connection.execute(
                QUERIES["read_chunks"],
                self._key.names | {"start": int(chunks[0]), "end": int(chunks[-1]) + 1},
            )
        }
        ends = np.concatenate((starts[1:], [table.num_rows]))
        fresh: list[pa.Table] = []
        for start, end, ours in zip(starts, ends, digests, strict=True):
            chunk_start = int(chunks[start])
            part = table.slice(int(start), int(end - start))
            chunk = stored.get(chunk_start)
            if chunk is None:
                fresh.append(part)
                unverified = part.num_rows if self._batch.state < CandleState.VERIFIED else 0
                self._touched[chunk_start] = _Chunk(ours, unverified)
                self._inserted += part.num_rows
            elif chunk.digest == ours:
                self._unchanged += part.num_rows
                self._raise_state(chunk_start, chunk, times[start:end])
            else:
                self._merge_chunk(chunk_start, chunk, part)
        if fresh:
            self._insert(pa.concat_tables(fresh))

    def _insert(self, table: pa.Table) -> None:
        state, learned_at = self._batch.state, self._learned_at
        whole = table.num_rows // 16 * 16
        sixteens = to_parameters(table.slice(0, whole), self._key, state, learned_at, rows=16)
        self._connection.executemany(QUERIES["insert_sixteen_candles"], sixteens)
        ones = to_parameters(table.slice(whole), self._key, state, learned_at, rows=1)
        self._connection.executemany(QUERIES["insert_candle"], ones)

    def _raise_state(self, chunk_start: int, chunk: _Chunk, times: Int64s) -> None:
        """The same candles again, more final than before: no reader sees a change."""
        if not chunk.unverified or self._batch.state < CandleState.VERIFIED or not len(times):
            return
        raised = 0
        for run in IntervalSet.of_candles(times, self._batch.series.timeframe):
            raised += self._connection.execute(
                QUERIES["raise_state"],
                self._key.names | {"state": int(self._batch.state), "start": run.start, "end": run.end},
            ).rowcount
        if raised:
            chunk.unverified -= raised
            self._touched[chunk_start] = chunk

    def _merge_chunk(self, chunk_start: int, chunk: _Chunk, part: pa.Table) -> None:
        """Compare row by row: some rows of this chunk are stored already, or differ."""
        times = open_times_ms(part)
        span = self._key.names | {"start": int(times[0]), "end": int(times[-1]) + 1}
        stored = fetched(self._connection.execute(QUERIES["read_candles"], span | {"limit": -1}))
        states = np.array([row[1] for row in self._connection.execute(QUERIES["read_states"], span)], np.int64)
        stored_times = open_times_ms(stored)
        at = np.searchsorted(stored_times, times)
        there = np.zeros(len(times), np.bool_)
        inside = at < len(stored_times)
        there[inside] = stored_times[at[inside]] == times[inside]
        same = np.zeros(len(times), np.bool_)
        same[there] = _equal_rows(part.filter(pa.array(there)), stored.take(pa.array(at[there])))
        differs = there & ~same
        outranked = np.zeros(len(times), np.bool_)
        outranked[there] = states[at[there]] > int(self._batch.state)
        outranked &= differs
        corrects = differs & ~outranked

        fresh = part.filter(pa.array(~there | corrects))
        old = stored.take(pa.array(at[corrects]))
        for time in times[corrects]:
            one = self._key.names | {"open_time": int(time)}
            self._connection.execute(
                QUERIES["keep_correction"], one | {"now": self._learned_at, "source": self._batch.source}
            )
            self._connection.execute(QUERIES["delete_candle"], one)
        if fresh.num_rows:
            self._insert(fresh)
            chunk.digest = chunk.digest + digest(fresh) - digest(old)
            less_final = CandleState.VERIFIED.value > int(self._batch.state)
            was_less_final = int((states[at[corrects]] < CandleState.VERIFIED).sum())
            chunk.unverified += (fresh.num_rows if less_final else 0) - was_less_final
            chunk.revision = None
            self._touched[chunk_start] = chunk
        self._inserted += int((~there).sum())
        self._corrected += int(corrects.sum())
        self._unchanged += int(same.sum())
        self._outranked += int(outranked.sum())
        self._raise_state(chunk_start, chunk, times[same])

    def _merge_coverage(self, table: pa.Table) -> bool:
        timeframe = self._batch.series.timeframe
        present = IntervalSet.of_candles(open_times_ms(table), timeframe)
        news = present | IntervalSet(one.interval for one in self._batch.absences)
        if news.hull is None:
            return False
        known = read_coverage(self._connection, self._key, news.hull.start, news.hull.end)
        after = learn(known, present, self._batch.absences, self._batch.source, self._learned_at)
        return replace_coverage(self._connection, self._key, known, after)

    def _save_chunks(self) -> None:
        now = self._key.revision + 1
        self._connection.executemany(
            QUERIES["save_chunk"],
            [
                (
                    self._key.instrument_id,
                    self._key.timeframe,
                    start,
                    chunk.digest.rows,
                    chunk.unverified,
                    chunk.digest.hex,
                    now if chunk.revision is None else chunk.revision,
                )
                for start, chunk in self._touched.items()
            ],
        )


def _common_origin(table: pa.Table, timeframe: Timeframe) -> int:
    """Where the three-day candles of a series that nothing is known of count from: where most of them open."""
    times = open_times_ms(table)
    days = times[times % DAY_MS == 0] // DAY_MS % 3
    if timeframe.name != "3d" or not len(days):
        return DEFAULT_ORIGIN_MS
    return int(np.bincount(days).argmax()) * DAY_MS


def _equal_rows(ours: pa.Table, theirs: pa.Table) -> Bools:
    """Row by row equality over all columns, nulls equal to nulls.

    The hash of a row takes all its columns; two different rows with equal 128-bit hashes do not happen by chance.
    """
    a, b = row_hashes(ours), row_hashes(theirs)
    equal: Bools = (a[0] == b[0]) & (a[1] == b[1])
    return equal
