"""The SQLite store beside raw sqlite3 and a memory-mapped Arrow file: load, re-write, latest, range.

python -m bench.store [--json] [--candles N] [--rounds N]
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa

from bench.market import START, walk
from bench.paired import Measured, paired, run
from market.candle import INSTANT, CandleState
from market.clock import SystemClock
from market.instrument import Series
from market.timeframe import ONE_MINUTE
from store.batch import CandleBatch
from store.live_source import LocalMarket
from store.market_data import MarketData
from store.sqlite.store import SqliteStore

SERIES = Series("bench", "BTC/USDT", ONE_MINUTE)
CLOCK = SystemClock()
BATCH = 100_000
_COLUMNS = "t, o, h, l, c, v, qv, n, tb, tq, e"
_RAW_TABLE = """
CREATE TABLE c (s INTEGER, t INTEGER, o REAL, h REAL, l REAL, c REAL, v REAL, qv REAL, n INTEGER, tb REAL, tq REAL,
                e INTEGER, PRIMARY KEY (s, t)) WITHOUT ROWID
"""
_RAW_INSERT = "INSERT INTO c VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_RAW_MERGE = _RAW_INSERT + (
    " ON CONFLICT DO UPDATE SET o = excluded.o, h = excluded.h, l = excluded.l, c = excluded.c, v = excluded.v,"
    " qv = excluded.qv, n = excluded.n, tb = excluded.tb, tq = excluded.tq, e = excluded.e"
)


class Bench:
    """The two contenders on one folder."""

    def __init__(self, folder: Path, table: pa.Table) -> None:
        self.folder = folder
        self.table = table
        self.runner = asyncio.Runner()
        self.rows = list(zip(*[_plain(column) for column in table.columns], strict=True))

    def ours(self, name: str) -> Path:
        return self.folder / name / "market_data.sqlite3"

    def load_ours(self) -> None:
        """A new database, all rows with all checks, in batches."""
        shutil.rmtree(self.folder / "load", ignore_errors=True)
        self.runner.run(self._write("load", self.table))

    def rewrite_ours(self) -> None:
        self.runner.run(self._write("kept", self.table.slice(0, BATCH)))

    async def _write(self, name: str, table: pa.Table) -> None:
        async with SqliteStore.opened(self.ours(name), CLOCK) as store:
            for start in range(0, table.num_rows, BATCH):
                await store.write(
                    CandleBatch(
                        series=SERIES,
                        source="bench",
                        now_ms=CLOCK.now_ms(),
                        table=table.slice(start, BATCH),
                        state=CandleState.VERIFIED,
                    )
                )

    def raw(self, name: str) -> sqlite3.Connection:
        connection = sqlite3.connect(self.folder / name, isolation_level=None)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "cache_size = -65536"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    def load_raw(self) -> None:
        """The bare table, the same rows as ready tuples, in the same batches."""
        for path in self.folder.glob("raw-load*"):
            path.unlink()
        connection = self.raw("raw-load")
        connection.execute(_RAW_TABLE)
        for start in range(0, len(self.rows), BATCH):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(_RAW_INSERT, self.rows[start : start + BATCH])
            connection.execute("COMMIT")
        connection.close()

    def rewrite_raw(self) -> None:
        connection = self.raw("raw-load")
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(_RAW_MERGE, self.rows[:BATCH])
        connection.execute("COMMIT")
        connection.close()


def _plain(column: pa.ChunkedArray) -> list[Any]:
    values: list[Any] = (column.cast(pa.int64()) if column.type == INSTANT else column).to_pylist()
    return values


def measure(count: int, rounds: int) -> list[Measured]:
    """All four, on one made-up series."""
    table = walk(count)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), table)
        found = [
            paired(
                "sqlite: load with all checks",
                count,
                bench.load_ours,
                "sqlite3 executemany of ready tuples",
                bench.load_raw,
                rounds=rounds,
                budget=0.7,
            )
        ]
        bench.runner.run(bench._write("kept", table))
        found.append(
            paired(
                "sqlite: write identical rows again",
                BATCH,
                bench.rewrite_ours,
                "sqlite3 upsert",
                bench.rewrite_raw,
                rounds=rounds,
                budget=2.0,
            )
        )
        found += _reads(bench, rounds)
        bench.runner.close()
    return found


def _reads(bench: Bench, rounds: int) -> list[Measured]:
    connection = bench.raw("raw-load")
    opened = SqliteStore.opened(bench.ours("kept"), CLOCK)
    store = bench.runner.run(opened.__aenter__())
    market_data = MarketData(store, LocalMarket.empty(CLOCK), CLOCK)
    mapped = bench.folder / "range.arrow"
    with pa.ipc.new_file(mapped, bench.table.schema) as writer:
        writer.write_table(bench.table)
    end = START + bench.table.num_rows * ONE_MINUTE.milliseconds
    start = end - BATCH * ONE_MINUTE.milliseconds

    def ours(limit: int) -> object:
        return bench.runner.run(market_data.candles(SERIES, limit=limit))

    def raw(limit: int) -> object:
        return connection.execute(
            f"SELECT {_COLUMNS} FROM c WHERE s = 1 AND t < ? ORDER BY t DESC LIMIT ?", (end, limit)
        ).fetchall()

    def arrow() -> object:
        with pa.memory_map(str(mapped)) as source:
            table = pa.ipc.open_file(source).read_all()
            return table.slice(table.num_rows - BATCH).column("close").to_numpy().sum()

    found = [
        paired(
            "sqlite: latest 1,000", 1000, lambda: ours(1000), "sqlite3 rows", lambda: raw(1000), rounds=rounds * 10
        ),
        paired(
            "sqlite: range of 100,000",
            BATCH,
            lambda: bench.runner.run(market_data.candles(SERIES, start_ms=start, end_ms=end)),
            "sqlite3 rows",
            lambda: raw(BATCH),
            rounds=rounds,
        ),
        paired(
            "sqlite: range of 100,000",
            BATCH,
            lambda: bench.runner.run(market_data.candles(SERIES, start_ms=start, end_ms=end)),
            "memory-mapped Arrow, one column summed",
            arrow,
            rounds=rounds,
        ),
    ]
    bench.runner.run(opened.__aexit__(None, None, None))
    connection.close()
    return found


if __name__ == "__main__":
    run(measure, __doc__)
