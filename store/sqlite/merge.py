"""Carrying out a merge on SQLite, inside a transaction that the caller holds."""

from __future__ import annotations

import sqlite3

import numpy as np
import pyarrow as pa

from market.candle import open_times_ms
from market.candle_row import plain_rows
from market.fingerprint import Digest
from store.batch import CandleBatch, Written
from store.ledger import learn
from store.merge import Merge, StoredChunk
from store.series_key import SeriesKey
from store.sqlite.coverage import read_coverage, replace_coverage
from store.sqlite.rows import QUERIES, fetched, named, to_parameters


def write_batch(connection: sqlite3.Connection, key: SeriesKey, batch: CandleBatch, now_ms: int) -> Written:
    """Merge the batch. Nothing is written where nothing changes."""
    merge = Merge.of(batch, key, now_ms)
    for span in merge.meet(_stored_chunks(connection, key, merge)):
        asked = named(key) | {"start": span.start, "end": span.end}
        stored = fetched(connection.execute(QUERIES["read_candles"], asked | {"limit": -1}))
        states = [row[1] for row in connection.execute(QUERIES["read_states"], asked)] if stored.num_rows else []
        merge.compare(span, stored, np.array(states, np.int64))
    _replace(connection, key, merge, batch.source)
    if merge.fresh or merge.corrections:
        _insert(connection, key, merge, pa.concat_tables([*merge.fresh, *merge.corrections]))
    for run in merge.raised:
        raised = {"state": int(merge.state), "start": run.start, "end": run.end}
        connection.execute(QUERIES["raise_state"], named(key) | raised)
    ledger_changed = _merge_coverage(connection, key, merge, batch)
    if merge.fresh or merge.corrections or ledger_changed:
        connection.execute(QUERIES["touch_series"], named(key) | {"now": merge.learned_at})
    _save_chunks(connection, key, merge)
    if merge.refusals:
        connection.executemany(
            QUERIES["insert_quarantine"],
            [
                (
                    key.instrument_id,
                    key.timeframe,
                    one.open_time,
                    one.reason,
                    one.raw,
                    batch.source,
                    merge.learned_at,
                )
                for one in merge.refusals
            ],
        )
    return merge.written()


def _stored_chunks(connection: sqlite3.Connection, key: SeriesKey, merge: Merge) -> dict[int, StoredChunk]:
    span = merge.span
    if span is None:
        return {}
    rows = connection.execute(QUERIES["read_chunks"], named(key) | {"start": span.start, "end": span.end})
    return {row[0]: StoredChunk(Digest.of_hex(row[1], row[3]), row[2], row[4]) for row in rows}


def _replace(connection: sqlite3.Connection, key: SeriesKey, merge: Merge, source: str) -> None:
    """Keep the versions about to be replaced, and make room for the new ones."""
    for table in merge.corrections:
        for time in open_times_ms(table).tolist():
            one = named(key) | {"open_time": time}
            connection.execute(QUERIES["keep_correction"], one | {"now": merge.learned_at, "source": source})
            connection.execute(QUERIES["delete_candle"], one)


def _insert(connection: sqlite3.Connection, key: SeriesKey, merge: Merge, table: pa.Table) -> None:
    whole = table.num_rows // 16 * 16
    if whole:
        sixteens = to_parameters(table.slice(0, whole), key, merge.state, merge.learned_at, rows=16)
        connection.executemany(QUERIES["insert_sixteen_candles"], sixteens)
    ends = (key.instrument_id, key.timeframe), (int(merge.state), merge.learned_at)
    # As many as the batch has: these are all of its rows.
    rows = merge.few if merge.few and len(merge.few) == table.num_rows else plain_rows(table.slice(whole))
    ones = [(*ends[0], *row, *ends[1]) for row in rows]
    connection.executemany(QUERIES["insert_candle"], ones)


def _merge_coverage(connection: sqlite3.Connection, key: SeriesKey, merge: Merge, batch: CandleBatch) -> bool:
    hull = merge.news(batch.absences)
    if hull is None:
        return False
    known = read_coverage(connection, key, hull.start, hull.end)
    after = learn(known, merge.present, batch.absences, batch.source, merge.learned_at)
    return replace_coverage(connection, key, known, after)


def _save_chunks(connection: sqlite3.Connection, key: SeriesKey, merge: Merge) -> None:
    connection.executemany(
        QUERIES["save_chunk"],
        [
            (
                key.instrument_id,
                key.timeframe,
                start,
                chunk.digest.rows,
                chunk.unverified,
                chunk.digest.hex,
                key.revision + 1 if chunk.revision is None else chunk.revision,
            )
            for start, chunk in merge.chunks.items()
        ],
    )
