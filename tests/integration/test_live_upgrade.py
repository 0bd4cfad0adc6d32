"""Databases of the first version are brought to this one with all that they hold, and work on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import sql
from market.errors import StoreUnusable
from market.instrument import Instrument
from store.control import Control
from store.postgres import schema as postgres_schema
from store.postgres.address import DatabaseUrl
from store.postgres.database import Database
from store.postgres.mode import Mode
from store.postgres.store import PostgresStore
from store.sqlite import database as sqlite_database
from store.sqlite import schema as sqlite_schema
from store.sqlite import store as sqlite_store
from store.sqlite.store import SqliteStore
from store.trade_batch import TradeRun, TradesWritten
from tests.support import servers
from tests.support.catalog import catalog_of, connected, differences
from tests.support.made_candles import BTC, START, at, batch, made
from tests.support.made_trades import EXCHANGE, SYMBOL, counted, time_of, trade
from tests.support.pgbouncer_server import PgBouncer
from tests.support.postgres_server import PrivatePostgres

ETH = Instrument(exchange="binance", symbol="ETH/USDT", exchange_symbol="ETHUSDT", base="ETH", quote="USDT")


@contextlib.contextmanager
def first_version() -> Iterator[None]:
    """The release that knew one migration."""
    everything = sql.migrations
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sqlite_schema, "MIGRATIONS", sqlite_schema.MIGRATIONS[:1])
        patched.setattr(sqlite_schema, "LATEST", 1)
        patched.setattr(postgres_schema, "LATEST", 1)
        patched.setattr(sql, "migrations", lambda *which: everything(*which)[:1])
        # It had no state that could forbid writing.
        patched.setattr(sqlite_store, "data_transaction", sqlite_database.transaction)
        patched.setattr(Database, "write_data", Database.write)
        yield


async def check(store: Any, now: int) -> None:
    """What was there still is, and what is new can be used."""
    assert await store.schema_version() == sqlite_schema.LATEST
    assert await store.control() == Control()
    assert await store.read(BTC, START, at(100)) == made(range(10))
    assert [one.symbol for one in await store.instruments()] == ["BTC/USDT", "ETH/USDT"]
    assert await store.instruments(as_of_ms=now) == [ETH]
    assert await store.instruments(as_of_ms=START - 1) == []
    assert (await store.write(batch(made(range(5, 12))))).inserted == 2
    changed = replace(ETH, active=False)
    await store.save_instruments([changed])
    assert await store.instruments(as_of_ms=now) == [changed]
    assert await store.instruments(as_of_ms=START) == [ETH]
    await store.write_trades([counted(range(100, 110))])
    assert await store.trade_runs(EXCHANGE, SYMBOL) == [
        TradeRun(first_id=100, last_id=109, first_time=time_of(100), last_time=time_of(109))
    ]


async def test_a_file_is_brought_up_when_it_is_opened_for_writing(tmp_path: Path, clock: Any) -> None:
    path = tmp_path / "market_data.sqlite3"
    with first_version():
        async with SqliteStore.opened(path, clock) as store:
            await store.write(batch(made(range(10))))
            # As the first version did: the newest description alone.
            await store._database.write(
                lambda connection: connection.execute(
                    "INSERT INTO instruments (exchange, symbol, exchange_symbol, base, quote, kind, active, "
                    "seen_at) VALUES ('binance', 'ETH/USDT', 'ETHUSDT', 'ETH', 'USDT', 'spot', 1, ?)",
                    (START,),
                )
            )
            assert await store.schema_version() == 1
    with pytest.raises(StoreUnusable, match="has schema version 1, reading needs 3; run `chandlery db upgrade`"):
        await SqliteStore.opened(path, clock, read_only=True).__aenter__()
    async with SqliteStore.opened(path, clock) as store:
        await check(store, clock.now_ms())
    assert await SqliteStore.upgraded(path) == []


@pytest.fixture(params=list(Mode), ids=lambda mode: mode.value)
def mode(request: pytest.FixtureRequest) -> Mode:
    found: Mode = request.param
    if found is Mode.TIMESCALEDB:
        servers.timescaledb()
    return found


@pytest.fixture
async def first(postgres: PrivatePostgres, mode: Mode, clock: Any) -> AsyncIterator[DatabaseUrl]:
    """A database as the first version left it, with candles, an instrument and trades, compressed where that is."""
    name = await asyncio.to_thread(postgres.create_database)
    url = DatabaseUrl.parse(postgres.url(name))
    with first_version():
        assert await PostgresStore.upgraded(url, mode) == [1]
        async with PostgresStore.opened(url, clock, refresh=False) as store:
            await store.write(batch(made(range(10))))
    async with connected(url) as connection:
        if mode is Mode.TIMESCALEDB:
            # The policies would drop trades this old meanwhile.
            await connection.execute("SELECT _timescaledb_functions.stop_background_workers()")
        await connection.execute(
            f"""
            SET timezone = 'UTC';
            INSERT INTO instruments (exchange, symbol, exchange_symbol, base, quote, kind, active, seen_at)
            VALUES ('binance', 'ETH/USDT', 'ETHUSDT', 'ETH', 'USDT', 'spot', true, to_timestamp({START} / 1000));
            INSERT INTO trade_history
            SELECT 1, t, 'old-' || extract(epoch FROM t)::bigint, 100.5, 0.25, 'sell', t
            FROM generate_series('2023-01-01'::timestamptz, '2023-01-03', '10 minutes') t;
            """
        )
        if mode is Mode.TIMESCALEDB:
            await connection.fetch("SELECT compress_chunk(c) FROM show_chunks('trade_history') c")
    yield url
    await asyncio.to_thread(postgres.drop_database, name)


async def test_a_database_is_brought_up(
    postgres: PrivatePostgres, first: DatabaseUrl, mode: Mode, clock: Any
) -> None:
    with pytest.raises(StoreUnusable, match="has schema version 1, reading needs 3"):
        await PostgresStore.opened(first, clock, read_only=True).__aenter__()
    assert await PostgresStore.upgraded(first) == [2, 3]
    assert await PostgresStore.upgraded(first) == []
    fresh = await asyncio.to_thread(postgres.create_database)
    await PostgresStore.upgraded(DatabaseUrl.parse(postgres.url(fresh)), mode)
    other = await catalog_of(DatabaseUrl.parse(postgres.url(fresh)))
    await asyncio.to_thread(postgres.drop_database, fresh)
    if mode is Mode.TIMESCALEDB:
        # Months and chunks aside, it is as if it had been made today.
        assert differences(await catalog_of(first), other) == []
    async with PostgresStore.opened(first, clock, refresh=False) as store:
        old = await store.trades("binance", "BTC/USDT", START, 2**52)
        assert len(old) == 2 * 144 + 1
        assert old[1] == trade(0)._replace(
            id=f"old-{START // 1000 + 600}",
            price=100.5,
            quantity=0.25,
            event_time=START + 600_000,
            taker_buys=False,
            received_at=START + 600_000,
            trades=1,
        )
        await check(store, clock.now_ms())
        # Those trades are in no ledger: one that comes again is not stored twice, and does not stop the others.
        again = replace(counted([]), trades=[*old[:3], trade(7, id="new")], dense=False)
        assert await store.write_trades([again]) == TradesWritten(inserted=1, known=3)
        assert len(await store.trades("binance", "BTC/USDT", START, 2**52)) == 2 * 144 + 1 + 10 + 1


async def test_a_hole_is_filled_in_what_was_compressed(first: DatabaseUrl, mode: Mode, clock: Any) -> None:
    async with PostgresStore.opened(first, clock, refresh=False) as store:
        await store.write_trades([counted([*range(0, 3000), *range(4000, 5000)])])
        if mode is Mode.TIMESCALEDB:
            async with connected(first) as connection:
                chunks = await connection.fetch(
                    "SELECT compress_chunk(c, true) FROM show_chunks('trade_history') c"
                )
                assert len(chunks) > 40
        assert await store.write_trades([counted(range(2900, 4100))]) == TradesWritten(inserted=1000, known=200)
        assert [run.last_id for run in await store.trade_runs(EXCHANGE, SYMBOL)] == [4999]
        found = await store.trades(EXCHANGE, SYMBOL, 0, 2**52)
        assert [one for one in found if isinstance(one.id, int)] == [trade(one) for one in range(5000)]


async def test_trades_go_through_a_pooler(postgres: PrivatePostgres, first: DatabaseUrl, clock: Any) -> None:
    await PostgresStore.upgraded(first)
    with PgBouncer(postgres) as pooler:
        url = DatabaseUrl.parse(pooler.url(first.database))
        async with PostgresStore.opened(url, clock, refresh=False) as store:
            await asyncio.gather(
                *(store.write_trades([counted(range(turn, turn + 50))]) for turn in range(0, 200, 10))
            )
            assert [(run.first_id, run.last_id) for run in await store.trade_runs(EXCHANGE, SYMBOL)] == [(0, 239)]


async def test_trades_of_a_month_get_a_partition(first: DatabaseUrl, mode: Mode, clock: Any) -> None:
    if mode is Mode.TIMESCALEDB:
        pytest.skip("partitions are kept by plain PostgreSQL")
    async with PostgresStore.opened(first, clock, refresh=False) as store:
        await store.write_trades([counted(range(100))])
    async with connected(first) as connection:
        where = "SELECT DISTINCT tableoid::regclass::text FROM trade_history WHERE instrument_id = 1"
        assert await connection.fetchval(where) == "trade_history_2023_01"
