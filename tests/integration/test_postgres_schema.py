"""What the migrations make is what the readable files say; upgrades are safe, whoever dies meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import sql
from market.errors import SchemaTooNew, StoreUnusable
from store.postgres import schema
from store.postgres.address import DatabaseUrl
from store.postgres.schema import Mode
from store.postgres.store import PostgresStore
from store.sqlite import database as sqlite_database
from store.sqlite import schema as sqlite_schema
from tests.support import servers
from tests.support.catalog import Catalog, postgres_catalog, sqlite_catalog
from tests.support.notes import eventually
from tests.support.pgbouncer_server import PgBouncer
from tests.support.postgres_server import MAINTENANCE, PrivatePostgres
from tests.support.workers import Worker, worker

PROCESSES = 4
#: Every version there is.
ALL = list(range(1, schema.LATEST + 1))


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


@contextlib.asynccontextmanager
async def connected(url: DatabaseUrl) -> AsyncIterator[asyncpg.Connection]:
    """A plain connection: what the schema says must not depend on ours."""
    connection = await asyncpg.connect(
        host=url.host, port=url.port, user=url.user, password=url.password, database=url.database
    )
    try:
        yield connection
    finally:
        await connection.close()


async def catalog_of(url: DatabaseUrl) -> Catalog:
    async with connected(url) as connection:
        return await postgres_catalog(connection)


def readable(name: str) -> str:
    """One of the files that say what the migrations make."""
    return (files("sql") / "schema" / f"{name}.sql").read_text("utf-8")


def differences(one: Catalog, other: Catalog) -> list[tuple[Any, ...]]:
    return [
        (kind, row) for kind in one.keys() | other.keys() for row in {*one.get(kind, ())} ^ {*other.get(kind, ())}
    ]


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


# --- upgrading ---


@contextlib.contextmanager
def upgraders(url: str, mode: Mode, count: int = PROCESSES) -> Iterator[list[Worker]]:
    """Processes that are ready to upgrade a database."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(worker("upgrade", url, mode.value)) for _ in range(count)]


def upgraded_at_once(url: str, mode: Mode) -> list[str]:
    with upgraders(url, mode) as workers:
        for one in workers:
            one.go()
        said = [one.rest() for one in workers]
    assert [lines[-1] for lines in said] == ["done"] * PROCESSES, said
    return sorted(line for lines in said for line in lines[:-1])


@pytest.mark.parametrize("round_", range(2))
async def test_of_four_processes_one_makes_the_schema(
    url: DatabaseUrl, postgres: PrivatePostgres, name: str, mode: Mode, upgraded: DatabaseUrl, round_: int
) -> None:
    said = await asyncio.to_thread(upgraded_at_once, postgres.url(name), mode)
    assert said == [f"applied {ALL}"] + ["applied []"] * (PROCESSES - 1)
    assert differences(await catalog_of(url), await catalog_of(upgraded)) == []
    assert await rows(url) == schema.LATEST


async def test_of_four_processes_through_a_pooler_one_makes_the_schema(
    url: DatabaseUrl, postgres: PrivatePostgres, name: str, mode: Mode, upgraded: DatabaseUrl
) -> None:
    with PgBouncer(postgres) as pooler:
        said = await asyncio.to_thread(upgraded_at_once, pooler.url(name), mode)
    assert said == [f"applied {ALL}"] + ["applied []"] * (PROCESSES - 1)
    assert differences(await catalog_of(url), await catalog_of(upgraded)) == []


async def rows(url: DatabaseUrl) -> int:
    async with connected(url) as connection:
        return int(await connection.fetchval("SELECT count(*) FROM schema_versions"))


#: A statement of the migration, and how far it is: run by the server when that statement has made its object.
STOPS = ["schema_versions", "instruments", "trade_history", "system_metrics_by_name"]
#: Holds up the migration where it has made {stop}, until somebody lets go of the lock 4711.
WAIT = "PERFORM pg_advisory_lock(4711)"
FAIL = "RAISE EXCEPTION 'the disk is on fire' USING ERRCODE = 'io_error'"


def trap(stop: str, what: str) -> str:
    return f"""
    CREATE FUNCTION pg_temp_trap() RETURNS event_trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands() WHERE object_identity LIKE '%.{stop}') THEN
            {what};
        END IF;
    END $$;
    CREATE EVENT TRIGGER trap ON ddl_command_end EXECUTE FUNCTION pg_temp_trap();
    """


async def answered_yes(connection: asyncpg.Connection, question: str) -> None:
    """Ask until the answer is true."""

    async def ask() -> bool:
        return bool(await connection.fetchval(question))

    await eventually(ask, question)


async def remove_trap(connection: asyncpg.Connection) -> None:
    await connection.execute("DROP EVENT TRIGGER trap; DROP FUNCTION pg_temp_trap")


@pytest.mark.parametrize("stop", STOPS)
async def test_a_migration_that_fails_leaves_nothing(
    url: DatabaseUrl, upgraded: DatabaseUrl, mode: Mode, stop: str
) -> None:
    async with connected(url) as connection:
        if mode is Mode.TIMESCALEDB:
            await connection.execute("CREATE EXTENSION timescaledb")
        await connection.execute(trap(stop, FAIL))
        before = await postgres_catalog(connection)
        with pytest.raises(StoreUnusable, match="the disk is on fire"):
            await PostgresStore.upgraded(url, mode)
        assert differences(before, await postgres_catalog(connection)) == []
        await remove_trap(connection)
        assert await PostgresStore.upgraded(url, mode) == [1]
        assert differences(await postgres_catalog(connection), await catalog_of(upgraded)) == []


@pytest.mark.crash
@pytest.mark.parametrize("stop", ["schema_versions", "system_metrics_by_name"])
async def test_after_a_killed_upgrade_the_next_one_completes(
    url: DatabaseUrl, postgres: PrivatePostgres, name: str, upgraded: DatabaseUrl, mode: Mode, stop: str
) -> None:
    async with connected(url) as connection:
        await connection.execute(trap(stop, WAIT))
        await connection.execute("SELECT pg_advisory_lock(4711)")
        with upgraders(postgres.url(name), mode, 2) as (killed, waiting):
            killed.go()
            await answered_yes(connection, "SELECT count(*) = 1 FROM pg_locks WHERE NOT granted AND objid = 4711")
            waiting.go()
            await answered_yes(
                connection, "SELECT count(*) = 2 FROM pg_locks WHERE NOT granted AND locktype = 'advisory'"
            )
            killed.process.kill()
            await connection.execute("SELECT pg_advisory_unlock(4711)")
            # The server finds out that nobody listens any more, takes everything back and lets the other one in.
            assert (await asyncio.to_thread(waiting.rest))[0] == f"applied {ALL}"
        await remove_trap(connection)
        assert differences(await postgres_catalog(connection), await catalog_of(upgraded)) == []


@pytest.mark.crash
async def test_after_a_killed_server_the_next_upgrade_completes(
    postgres: PrivatePostgres, upgraded: DatabaseUrl, mode: Mode
) -> None:
    with PrivatePostgres(durable=True) as server:
        name = server.create_database()
        url = DatabaseUrl.parse(server.url(name))
        server.sql(name, trap("trade_history", WAIT))
        async with connected(url) as holder:
            await holder.execute("SELECT pg_advisory_lock(4711)")
            with upgraders(server.url(name), mode, 1) as (one,):
                one.go()
                await answered_yes(holder, "SELECT count(*) = 1 FROM pg_locks WHERE NOT granted AND objid = 4711")
                await asyncio.to_thread(server.kill)
                assert (await asyncio.to_thread(one.rest))[0].startswith("failed StoreUnavailable")
        await asyncio.to_thread(server.start)
        server.sql(name, "DROP EVENT TRIGGER trap; DROP FUNCTION pg_temp_trap")
        assert await PostgresStore.upgraded(url, mode) == ALL
        assert differences(await catalog_of(url), await catalog_of(upgraded)) == []


async def test_a_later_migration_that_fails_leaves_the_earlier_version(
    upgraded: DatabaseUrl, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sql.migrations("postgres", mode.value)
    later = (
        schema.LATEST + 1,
        "later",
        "CREATE TABLE later (a integer); ALTER TABLE coverage DROP COLUMN nonsense",
    )
    before = await catalog_of(upgraded)
    with monkeypatch.context() as patched:
        patched.setattr(schema, "LATEST", schema.LATEST + 1)
        patched.setattr(sql, "migrations", lambda *_: [*first, later])
        with pytest.raises(StoreUnusable, match="nonsense"):
            await PostgresStore.upgraded(upgraded)
        assert differences(before, await catalog_of(upgraded)) == []
        patched.setattr(sql, "migrations", lambda *_: [*first, (*later[:2], "CREATE TABLE later (a integer)")])
        assert await PostgresStore.upgraded(upgraded) == [schema.LATEST]
        assert await PostgresStore.upgraded(upgraded) == []
    with pytest.raises(SchemaTooNew):
        await PostgresStore.upgraded(upgraded)


@pytest.mark.parametrize("read_only", [False, True])
async def test_a_newer_schema_is_refused_and_left_alone(
    upgraded: DatabaseUrl, mode: Mode, clock: Any, read_only: bool
) -> None:
    async with connected(upgraded) as connection:
        await connection.execute(
            "INSERT INTO schema_versions VALUES (99, 'future', (SELECT mode FROM schema_versions LIMIT 1), now())"
        )
        before = await postgres_catalog(connection), await connection.fetch("TABLE schema_versions")
        for opening in (
            PostgresStore.opened(upgraded, clock, read_only=read_only).__aenter__,
            lambda: PostgresStore.upgraded(upgraded),
        ):
            with pytest.raises(SchemaTooNew, match="has schema version 99, this release knows") as caught:
                await opening()
            assert upgraded.password is not None
            assert upgraded.password not in str(caught.value)
        assert (await postgres_catalog(connection), await connection.fetch("TABLE schema_versions")) == before


#: What other programs may have made, under names that are ours.
STRANGERS = [
    "CREATE TABLE candles (a integer)",
    "CREATE TABLE series (id text PRIMARY KEY, title text)",
    "CREATE VIEW instruments AS SELECT 1 AS a",
    "CREATE TABLE coverage (); CREATE TABLE other ()",
    "CREATE TABLE candle_chunks (a integer)",
    "CREATE TABLE trade_history (id integer)",
    "CREATE TABLE quarantine (id integer)",
    "CREATE TABLE candles_1h (open_time timestamptz)",
    "CREATE TABLE schema_versions (id integer PRIMARY KEY, description text)",
    "CREATE TABLE schema_versions (version text PRIMARY KEY, mode text); "
    "INSERT INTO schema_versions VALUES ('a', 'b')",
]


@pytest.mark.parametrize("stranger", STRANGERS)
async def test_another_programs_database_is_refused_and_left_alone(
    url: DatabaseUrl, mode: Mode, clock: Any, stranger: str
) -> None:
    async with connected(url) as connection:
        await connection.execute(stranger)
        if mode is Mode.TIMESCALEDB:
            await connection.execute("CREATE EXTENSION timescaledb")
        before = await postgres_catalog(connection)
        for read_only in (False, True):
            with pytest.raises(StoreUnusable, match=r"tables of another program|already exists|version 0"):
                await PostgresStore.opened(url, clock, read_only, mode=None if read_only else mode).__aenter__()
        with pytest.raises(StoreUnusable):
            await PostgresStore.upgraded(url, mode)
        assert differences(before, await postgres_catalog(connection)) == []


async def test_reading_makes_nothing(url: DatabaseUrl, clock: Any) -> None:
    before = await catalog_of(url)
    with pytest.raises(StoreUnusable, match=r"has schema version 0.*run `chandlery db upgrade` first"):
        await PostgresStore.opened(url, clock, read_only=True).__aenter__()
    assert await catalog_of(url) == before


async def test_tables_that_are_not_in_the_way_are_left_alone(url: DatabaseUrl, mode: Mode) -> None:
    async with connected(url) as connection:
        await connection.execute("CREATE TABLE of_others (a integer); INSERT INTO of_others VALUES (1)")
        assert await PostgresStore.upgraded(url, mode) == ALL
        assert await connection.fetchval("SELECT a FROM of_others") == 1


async def test_the_schema_may_stand_anywhere_on_the_search_path(
    url: DatabaseUrl, postgres: PrivatePostgres, mode: Mode
) -> None:
    # Our names in a schema that is not on the path are no concern of ours.
    name = url.database
    postgres.sql(name, "CREATE SCHEMA market; CREATE TABLE public.candles (a integer)")
    postgres.sql(MAINTENANCE, f"ALTER DATABASE {name} SET search_path = market")
    assert await PostgresStore.upgraded(url, mode) == ALL
    assert await PostgresStore.upgraded(url, mode) == []
    assert postgres.sql(name, "SELECT count(*) FROM public.candles") == "0"
    assert postgres.sql(name, "SELECT count(*) FROM market.candles") == "0"
