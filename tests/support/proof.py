"""Proving a store: what its own bookkeeping says against what its tables hold.

An SQLite store from outside, any store through what all stores offer.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from market.candle import CANDLE_SCHEMA, COLUMNS, INSTANT, candles, open_times_ms
from market.coverage import CoverageState
from market.fingerprint import digest
from market.interval import Interval, IntervalSet
from market.timeframe import Timeframe
from store.merge import chunk_starts


def prove(path: Path) -> int:
    """Assert that the file is sound and that digests, counts and ledger agree with the rows.

    :return: rows of all series.
    """
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
        series = connection.execute("SELECT instrument_id, timeframe FROM series").fetchall()
        known = "(SELECT instrument_id, timeframe FROM series)"
        stray = f"SELECT count(*) FROM {{}} WHERE (instrument_id, timeframe) NOT IN {known}"
        for table in ("candles", "candle_chunks", "candle_corrections", "coverage", "quarantine"):
            assert connection.execute(stray.format(table)).fetchone() == (0,), table
        return sum(_prove_series(connection, *key) for key in series)
    finally:
        connection.close()


def _prove_series(connection: sqlite3.Connection, instrument_id: int, seconds: int) -> int:
    key = (instrument_id, seconds)
    where = "WHERE instrument_id = ? AND timeframe = ?"
    timeframe = Timeframe.of_seconds(seconds)
    rows = connection.execute(f"SELECT {', '.join(COLUMNS)}, state FROM candles {where} ORDER BY open_time", key)
    columns = list(zip(*rows.fetchall(), strict=True))
    kept = connection.execute(
        f"SELECT chunk_start, row_count, unverified, digest FROM candle_chunks {where} ORDER BY chunk_start", key
    ).fetchall()
    ledger = connection.execute(
        f"SELECT interval_start, interval_end, state FROM coverage {where} ORDER BY interval_start", key
    ).fetchall()
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(ledger)), "ledger overlaps"
    present = IntervalSet(Interval(start, end) for start, end, state in ledger if state == "present")
    if not columns:
        assert not kept
        assert not present
        return 0
    table = _table(columns[:-1])
    times, states = np.array(columns[0], np.int64), np.array(columns[-1])
    assert present == IntervalSet.of_candles(times, timeframe), "the ledger differs from the rows"
    chunks: dict[int, list[int]] = defaultdict(list)
    for row, start in enumerate(chunk_starts(times, timeframe).tolist()):
        chunks[start].append(row)
    expected = []
    for start, members in sorted(chunks.items()):
        part = table.take(pa.array(members))
        expected.append((start, len(members), int((states[members] < 2).sum()), digest(part).hex))
    assert kept == expected, "chunks differ from the rows"
    return len(times)


async def prove_store(store: Any) -> int:
    """Assert that digests, counts and ledger agree with the rows, in one series after the other.

    :return: rows of all series.
    """
    whole = 0
    for info in await store.series():
        timeframe = info.series.timeframe
        table = await store.read(info.series, -(2**60), 2**60)
        times = open_times_ms(table)
        ledger = await store.coverage(info.series)
        assert all(one.interval.end <= next_.interval.start for one, next_ in itertools.pairwise(ledger))
        present = IntervalSet(one.interval for one in ledger if one.state is CoverageState.PRESENT)
        assert present == IntervalSet.of_candles(times, timeframe), "the ledger differs from the rows"
        rows: dict[int, list[int]] = defaultdict(list)
        for row, start in enumerate(chunk_starts(times, timeframe).tolist()):
            rows[start].append(row)
        expected = [(start, digest(table.take(pa.array(members)))) for start, members in sorted(rows.items())]
        assert [(one.start, one.digest) for one in await store.chunks(info.series)] == expected
        bounds = (int(times[0]), int(times[-1])) if len(times) else (None, None)
        assert (info.rows, info.first_open, info.last_open) == (len(times), *bounds)
        whole += len(times)
    assert (await store.count())[1] == whole
    return whole


def _table(columns: list[tuple[object, ...]]) -> pa.Table:
    return candles(
        {
            field.name: pa.array(column, pa.int64()).cast(INSTANT) if field.type == INSTANT else column
            for field, column in zip(CANDLE_SCHEMA, columns, strict=True)
        }
    )
