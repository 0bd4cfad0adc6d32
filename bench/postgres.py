"""The PostgreSQL store beside raw asyncpg, with and without TimescaleDB: load, re-write, latest, cold range.

Starts a private server with its durability on. The baseline has the bare table (no ledger, digests or checks) in
monthly partitions made before; on TimescaleDB in chunks of a day. Its tuples are ready; ours come as columns.

python -m bench.postgres [--json] [--candles N] [--rounds N]
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import asyncpg
import pyarrow as pa
import structlog
import uvloop

from bench.market import START, walk
from bench.paired import Measured, paired, run
from market.candle import INSTANT, CandleState
from market.clock import SystemClock
from market.instrument import Series
from market.timeframe import ONE_MINUTE
from store.batch import CandleBatch
from store.live_source import LocalMarket
from store.market_data import MarketData
from store.postgres.address import DatabaseUrl
from store.postgres.mode import Mode
from store.postgres.store import PostgresStore
from tests.support.postgres_server import PrivatePostgres

_T = TypeVar("_T")

SERIES = Series("bench", "BTC/USDT", ONE_MINUTE)
CLOCK = SystemClock()
BATCH = 100_000
_NAMES = ["s", "t", "o", "h", "l", "c", "v", "qv", "n", "tb", "tq", "e"]
_COLUMNS = ", ".join(_NAMES)
_RAW_TABLE = """
CREATE TABLE raw (s int, t timestamptz, o float8, h float8, l float8, c float8, v float8, qv float8, n bigint,
                  tb float8, tq float8, e timestamptz, PRIMARY KEY (s, t))
"""
_PARTITIONED = _RAW_TABLE.rstrip() + " PARTITION BY RANGE (t)"
_PARTITIONS = """
DO $$ BEGIN FOR month IN 0..59 LOOP
    EXECUTE format('CREATE TABLE raw_%s PARTITION OF raw FOR VALUES FROM (%L) TO (%L)', month,
                   TIMESTAMPTZ '2022-01-01Z' + month * INTERVAL '1 month',
                   TIMESTAMPTZ '2022-01-01Z' + (month + 1) * INTERVAL '1 month');
END LOOP; END $$
"""
_RAW_MERGE = f"""
INSERT INTO raw SELECT * FROM staged ON CONFLICT (s, t) DO UPDATE SET
{", ".join(f"{name} = excluded.{name}" for name in _NAMES[2:])}
WHERE ({", ".join(f"raw.{name}" for name in _NAMES[2:])})
      IS DISTINCT FROM ({", ".join(f"excluded.{name}" for name in _NAMES[2:])})
"""


class Bench:
    """The two contenders on one server."""

    def __init__(self, server: PrivatePostgres, mode: Mode, table: pa.Table) -> None:
        self.server = server
        self.mode = mode
        self.table = table
        # As our commands run; the baseline too.
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.rows = list(zip(*[_plain(column) for column in table.columns], strict=True))
        self.kept = self._database()
        self.fresh = ""
        self.raw_kept = self._raw_database()
        self.raw_fresh = ""

    def run(self, work: Awaitable[_T]) -> _T:
        async def waited() -> _T:
            return await work

        return self.runner.run(waited())

    def _database(self) -> str:
        return self.server.database_from(
            self.mode.value, lambda url: PostgresStore.upgraded(DatabaseUrl.parse(url), self.mode)
        )

    def _raw_database(self) -> str:
        name = self.server.create_database()
        if self.mode is Mode.PLAIN:
            self.server.sql(name, _PARTITIONED)
            self.server.sql(name, _PARTITIONS)
        else:
            self.server.sql(name, _RAW_TABLE)
            self.server.sql(name, "CREATE EXTENSION timescaledb")
            self.server.sql(
                name,
                "SELECT create_hypertable('raw', by_range('t', INTERVAL '1 day'), create_default_indexes => false)",
            )
        return name

    def renew(self) -> None:
        """New databases to load into, outside the time that is measured."""
        for name in (self.fresh, self.raw_fresh):
            if name:
                self.server.drop_database(name)
        self.fresh, self.raw_fresh = self._database(), self._raw_database()

    def load_ours(self) -> None:
        """All rows with all checks, in batches; each is committed."""
        self.run(self._write(self.fresh, self.table))

    def rewrite_ours(self) -> None:
        self.run(self._write(self.kept, self.table.slice(0, BATCH)))

    async def _write(self, name: str, table: pa.Table) -> None:
        # The aggregates are refreshed afterwards, by whoever has the time: not part of a load.
        async with PostgresStore.opened(DatabaseUrl.parse(self.server.url(name)), CLOCK, refresh=False) as store:
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

    def load_raw(self) -> None:
        self.run(self._raw(self.raw_fresh, self._copy_raw))

    def rewrite_raw(self) -> None:
        async def merge(connection: Any) -> None:
            async with connection.transaction():
                await connection.execute("CREATE TEMP TABLE staged (LIKE raw) ON COMMIT DROP")
                await connection.copy_records_to_table("staged", records=self.rows[:BATCH])
                await connection.execute(_RAW_MERGE)

        self.run(self._raw(self.raw_kept, merge))

    async def _copy_raw(self, connection: Any) -> None:
        for start in range(0, len(self.rows), BATCH):
            await connection.copy_records_to_table("raw", records=self.rows[start : start + BATCH])

    async def _raw(self, name: str, work: Callable[[Any], Awaitable[_T]]) -> _T:
        connection = await asyncpg.connect(self.server.url(name))
        try:
            return await work(connection)
        finally:
            await connection.close()


def _plain(column: pa.ChunkedArray) -> list[Any]:
    if column.type == INSTANT:
        times = column.cast(pa.int64()).to_pylist()
        return [None if one is None else datetime.fromtimestamp(one / 1000, UTC) for one in times]
    values: list[Any] = column.to_pylist()
    return values


def _with_key(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [(1, *row) for row in rows]


def measure(count: int, rounds: int) -> list[Measured]:
    """All four in both modes, on one made-up series."""
    # What is said belongs to the results alone.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    table = walk(count)
    found: list[Measured] = []
    with PrivatePostgres(durable=True, settings={"shared_buffers": "1GB", "max_wal_size": "8GB"}) as server:
        modes = [Mode.PLAIN, Mode.TIMESCALEDB] if server.offers_timescaledb else [Mode.PLAIN]
        for mode in modes:
            bench = Bench(server, mode, table)
            bench.rows = _with_key(bench.rows)
            found += _writes(bench, count, rounds)
            found += _reads(bench, rounds)
            bench.runner.close()
    return found


def _writes(bench: Bench, count: int, rounds: int) -> list[Measured]:
    mode = bench.mode.value
    # One warm-up and `rounds` of each, all into new databases.
    load = paired(
        f"{mode}: load with all checks",
        count,
        bench.load_ours,
        "asyncpg COPY of ready tuples",
        bench.load_raw,
        rounds=rounds,
        before=bench.renew,
        budget=0.8,
    )
    bench.run(bench._write(bench.kept, bench.table))
    bench.run(bench._raw(bench.raw_kept, bench._copy_raw))
    rewrite = paired(
        f"{mode}: write identical rows again",
        min(BATCH, count),
        bench.rewrite_ours,
        "COPY into staging, merge where distinct",
        bench.rewrite_raw,
        rounds=rounds,
        budget=2.0,
    )
    return [load, rewrite]


def _reads(bench: Bench, rounds: int) -> list[Measured]:
    url = DatabaseUrl.parse(bench.server.url(bench.kept))
    opened = PostgresStore.opened(url, CLOCK, read_only=True)
    store = bench.run(opened.__aenter__())
    market_data = MarketData(store, LocalMarket.empty(CLOCK), CLOCK)
    connection = bench.run(asyncpg.connect(bench.server.url(bench.raw_kept)))
    end = START + bench.table.num_rows * ONE_MINUTE.milliseconds
    size = min(BATCH, bench.table.num_rows)
    start = end - size * ONE_MINUTE.milliseconds
    mode = bench.mode.value

    def raw(limit: int) -> object:
        query = f"SELECT {_COLUMNS} FROM raw WHERE s = 1 AND t >= $1 AND t < $2 ORDER BY t DESC LIMIT $3"
        bounds = [datetime.fromtimestamp(one / 1000, UTC) for one in (start, end)]
        return bench.run(connection.fetch(query, *bounds, limit))

    found = [
        paired(
            f"{mode}: latest 1,000",
            1000,
            lambda: bench.run(market_data.candles(SERIES, limit=1000)),
            "asyncpg fetch",
            lambda: raw(1000),
            rounds=rounds * 10,
        ),
        paired(
            f"{mode}: cold range of {size:,}",
            size,
            lambda: bench.run(store.read(SERIES, start, end)),
            "asyncpg fetch",
            lambda: raw(size),
            rounds=rounds * 2,
            budget=1 / 0.35,
        ),
        paired(
            f"{mode}: cold range of {size:,}, whole answer",
            size,
            lambda: bench.run(market_data.candles(SERIES, start_ms=start, end_ms=end)),
            "asyncpg fetch",
            lambda: raw(size),
            rounds=rounds * 2,
        ),
    ]
    bench.run(connection.close())
    bench.run(opened.__aexit__(None, None, None))
    return found


if __name__ == "__main__":
    run(measure, __doc__)
