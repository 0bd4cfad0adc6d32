"""What the migrations make is what the readable files say, and every named query is understood."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from importlib.resources import files
from pathlib import Path

import asyncpg
import pytest

import sql
from store.postgres.address import DatabaseUrl
from store.postgres.schema import Mode
from store.postgres.store import PostgresStore
from store.sqlite import database as sqlite_database
from store.sqlite import schema as sqlite_schema
from tests.support import servers
from tests.support.catalog import catalog_of, connected, differences, postgres_catalog, sqlite_catalog
from tests.support.postgres_server import PrivatePostgres


@pytest.fixture(params=list(Mode), ids=lambda mode: mode.value)
def mode(request: pytest.FixtureRequest) -> Mode:
    found: Mode = request.param
    if found is Mode.TIMESCALEDB:
        servers.timescaledb()
    return found


@pytest.fixture
def name(postgres: PrivatePostgres) -> Iterator[str]:
    """An empty database."""
    made = postgres.create_database()
    yield made
    postgres.drop_database(made)


@pytest.fixture
def url(postgres: PrivatePostgres, name: str) -> DatabaseUrl:
    return DatabaseUrl.parse(postgres.url(name))


@pytest.fixture
async def upgraded(postgres: PrivatePostgres, mode: Mode) -> AsyncIterator[DatabaseUrl]:
    """A database with the schema of `mode`, and nothing in it."""

    def make(at: str) -> Awaitable[object]:
        return PostgresStore.upgraded(DatabaseUrl.parse(at), mode)

    made = await asyncio.to_thread(servers.database_from, mode.value, make)
    yield DatabaseUrl.parse(postgres.url(made))
    await asyncio.to_thread(postgres.drop_database, made)


def readable(name: str) -> str:
    """One of the files that say what the migrations make."""
    return (files("sql") / "schema" / f"{name}.sql").read_text("utf-8")


# --- the readable files ---


async def test_the_readable_schema_is_what_the_migrations_make(
    url: DatabaseUrl, upgraded: DatabaseUrl, mode: Mode
) -> None:
    async with connected(url) as connection:
        if mode is Mode.TIMESCALEDB:
            await connection.execute("CREATE EXTENSION timescaledb")
        await connection.execute(readable(mode.value))
        versions = await connection.fetch("SELECT version, name, mode FROM schema_versions ORDER BY version")
        written = await postgres_catalog(connection)
    made = await catalog_of(upgraded)
    assert differences(written, made) == []
    assert [tuple(row) for row in versions] == [
        (number, title, mode.value) for number, title, _ in sql.migrations("postgres", mode.value)
    ]
    kinds = {kind for kind, rows in made.items() if not rows}
    assert kinds <= ({"triggers", "types"} if mode is Mode.PLAIN else {"triggers", "types", "functions", "views"})
    assert (mode is Mode.TIMESCALEDB) == ("aggregates" in made)


def test_the_readable_schema_of_sqlite_is_what_its_migrations_make(tmp_path: Path) -> None:
    path = tmp_path / "made.sqlite3"
    with contextlib.closing(sqlite_database.connect(path, read_only=False)) as connection:
        sqlite_schema.upgrade(connection, path)
        made = sqlite_catalog(connection)
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(readable("sqlite"))
        written = sqlite_catalog(connection)
        assert differences(written, made) == []
        connection.execute("CREATE INDEX another ON coverage (state)")
        assert differences(sqlite_catalog(connection), made) != []


#: Small changes that nobody may make to one of the two alone.
EDITS = [
    "ALTER TABLE coverage ADD COLUMN note text",
    "ALTER TABLE quarantine ALTER COLUMN open_time SET NOT NULL",
    "ALTER TABLE series ALTER COLUMN revision SET DEFAULT 1",
    "ALTER TABLE instruments ALTER COLUMN tick_size TYPE numeric(36, 18)",
    'ALTER TABLE instruments ALTER COLUMN symbol TYPE text COLLATE "C"',
    "ALTER TABLE candle_chunks ALTER COLUMN digest SET STORAGE PLAIN",
    "ALTER TABLE coverage DROP CONSTRAINT coverage_check",
    "ALTER TABLE coverage ADD CHECK (source <> '')",
    "ALTER TABLE series DROP CONSTRAINT series_instrument_id_fkey",
    "ALTER INDEX quarantine_once RENAME TO quarantine_twice",
    "DROP INDEX quarantine_once; CREATE UNIQUE INDEX quarantine_once ON quarantine (instrument_id, timeframe)",
    "ALTER TABLE coverage SET (fillfactor = 50)",
    "ALTER TABLE quarantine ALTER COLUMN quarantine_id SET INCREMENT 2",
    "CREATE FUNCTION more() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    "CREATE VIEW more AS SELECT 1",
    "CREATE TYPE more AS ENUM ('a')",
    "CREATE TRIGGER more BEFORE UPDATE ON series "
    "FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
]
PLAIN_EDITS = [
    "CREATE OR REPLACE VIEW daily_statistics AS SELECT instrument_id, open_time AS day, open, high, low, close, "
    "volume, quote_volume, 0::numeric AS average_price, trades, taker_buy_volume, volume AS busiest_hour_volume, "
    "high / low - 1 AS widest_hour_range, 1::bigint AS traded_hours, minutes FROM candles_1d",
    "ALTER FUNCTION make_monthly_partitions(text, text, timestamptz[]) STABLE",
    "ALTER TABLE candles DETACH PARTITION candles_default",
    "SELECT make_monthly_partitions('candles', 'open_time', ARRAY['2023-01-01'::timestamptz])",
]
TIMESCALEDB_EDITS = [
    "SELECT set_chunk_time_interval('candles', INTERVAL '2 days')",
    "ALTER TABLE candles SET (timescaledb.compress_segmentby = 'instrument_id')",
    "ALTER TABLE candles SET (timescaledb.compress_orderby = 'open_time DESC')",
    "ALTER MATERIALIZED VIEW candles_1h SET (timescaledb.materialized_only = false)",
    "SELECT remove_compression_policy('candles')",
    "SELECT remove_retention_policy('trade_history')",
    "SELECT alter_job(job_id, schedule_interval => INTERVAL '7 minutes') FROM timescaledb_information.jobs "
    "WHERE hypertable_name = 'trade_history'",
    "SELECT remove_continuous_aggregate_policy('candles_1h'); SELECT add_continuous_aggregate_policy('candles_1h', "
    "INTERVAL '8 days', INTERVAL '1 hour', INTERVAL '1 hour')",
    "DROP MATERIALIZED VIEW daily_statistics",
]


async def test_a_small_edit_of_either_is_noticed(upgraded: DatabaseUrl, mode: Mode) -> None:
    async with connected(upgraded) as connection:
        before = await postgres_catalog(connection)
        for edit in EDITS + (PLAIN_EDITS if mode is Mode.PLAIN else TIMESCALEDB_EDITS):
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute(edit)
            after = await postgres_catalog(connection)
            await transaction.rollback()
            assert differences(before, after) != [], edit
        assert differences(before, await postgres_catalog(connection)) == []


# --- every named query ---


def statements(text: str) -> list[str]:
    return [one.strip() for one in re.sub(r"--.*", "", text).split(";") if one.strip()]


NAMED = [
    (file, name)
    for file in sorted(path.name.removesuffix(".sql") for path in (files("sql") / "queries").iterdir())
    if file != "sqlite"
    for name in sql.queries(file)
]
#: A word of a query that exists in one mode only; without one, the query is for both.
ONLY = {
    Mode.PLAIN: re.compile(r"_default\b|_default_partition|monthly_partitions"),
    Mode.TIMESCALEDB: re.compile(
        r"timescaledb_information|timescaledb\.|_timescaledb|\bcandles_\d+[mhd]\b|aggregates_due|"
        r"refresh_continuous_aggregate|(compression|retention)_policy|chunk_time_interval|_chunks?\("
    ),
}


def modes_of(text: str) -> list[Mode]:
    found = [mode for mode, words in ONLY.items() if words.search(text)]
    return found or list(Mode)


@pytest.mark.parametrize(("file", "name"), NAMED, ids=lambda one: one)
async def test_every_query_is_understood(prepared: dict[Mode, asyncpg.Connection], file: str, name: str) -> None:
    text = sql.queries(file)[name]
    for one in modes_of(text):
        if one not in prepared:
            servers.timescaledb()
        for statement in statements(text):
            await prepared[one].prepare(statement)


async def test_a_misspelt_column_is_noticed(prepared: dict[Mode, asyncpg.Connection]) -> None:
    text = sql.queries("postgres")["raise_state"].replace("state < $5", "stage < $5")
    with pytest.raises(asyncpg.UndefinedColumnError):
        await prepared[Mode.PLAIN].prepare(text)


@pytest.fixture
async def prepared(postgres: PrivatePostgres) -> AsyncIterator[dict[Mode, asyncpg.Connection]]:
    """A connection to a database of each mode, with the table that corrected candles wait in."""
    async with contextlib.AsyncExitStack() as stack:
        found: dict[Mode, asyncpg.Connection] = {}
        for mode in Mode:
            if mode is Mode.TIMESCALEDB and not postgres.offers_timescaledb:
                continue
            url = await asyncio.to_thread(_kept, mode)
            found[mode] = await stack.enter_async_context(connected(DatabaseUrl.parse(url)))
            transaction = found[mode].transaction()
            await transaction.start()
            stack.push_async_callback(transaction.rollback)
            await found[mode].execute(sql.queries("postgres")["make_staging"])
        yield found


_KEPT: dict[Mode, str] = {}


def _kept(mode: Mode) -> str:
    """The URL of one database of each mode for all queries; none of them is run."""
    if mode not in _KEPT:
        make: Callable[[str], Awaitable[object]] = lambda at: PostgresStore.upgraded(DatabaseUrl.parse(at), mode)  # noqa: E731
        _KEPT[mode] = servers.postgres().url(servers.database_from(mode.value, make))
    return _KEPT[mode]


@pytest.mark.parametrize("name", sorted(sql.queries("sqlite")))
def test_every_query_of_sqlite_is_understood(tmp_path: Path, name: str) -> None:
    path = tmp_path / "made.sqlite3"
    with contextlib.closing(sqlite_database.connect(path, read_only=False)) as connection:
        sqlite_schema.upgrade(connection, path)
        text = sql.queries("sqlite")[name]
        named, count = dict.fromkeys(re.findall(r":(\w+)", text)), text.count("?")
        for statement in statements(text):
            connection.execute(f"EXPLAIN {statement}", named or (None,) * count).fetchall()
