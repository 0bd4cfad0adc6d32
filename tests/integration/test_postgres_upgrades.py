"""Upgrades of a PostgreSQL database: by many at once, killed, failing, refused; one schema or none is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import asyncpg
import pytest

import sql
from market.errors import SchemaTooNew, StoreUnusable
from store.postgres import schema
from store.postgres.address import DatabaseUrl
from store.postgres.schema import Mode
from store.postgres.store import PostgresStore
from tests.support import servers
from tests.support.catalog import catalog_of, connected, differences, postgres_catalog
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


@contextlib.contextmanager
def upgraders(url: str, mode: Mode, count: int = PROCESSES) -> Iterator[list[Worker]]:
    """Processes that are ready to upgrade a database."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(worker("upgrade", url, mode.value)) for _ in range(count)]


def upgraded_at_once(url: str, mode: Mode) -> list[int]:
    """The versions that several processes say they applied, each by one of them."""
    with upgraders(url, mode) as workers:
        for one in workers:
            one.go()
        said = [one.rest() for one in workers]
    assert [lines[-1] for lines in said] == ["done"] * PROCESSES, said
    applied = [line.removeprefix("applied ") for lines in said for line in lines[:-1]]
    assert len(applied) == PROCESSES, said
    return sorted(version for one in applied for version in json.loads(one))


@pytest.mark.parametrize("round_", range(2))
async def test_of_four_processes_one_makes_the_schema(
    url: DatabaseUrl, postgres: PrivatePostgres, name: str, mode: Mode, upgraded: DatabaseUrl, round_: int
) -> None:
    said = await asyncio.to_thread(upgraded_at_once, postgres.url(name), mode)
    assert said == ALL
    assert differences(await catalog_of(url), await catalog_of(upgraded)) == []
    assert await rows(url) == schema.LATEST


async def test_of_four_processes_through_a_pooler_one_makes_the_schema(
    url: DatabaseUrl, postgres: PrivatePostgres, name: str, mode: Mode, upgraded: DatabaseUrl
) -> None:
    with PgBouncer(postgres) as pooler:
        said = await asyncio.to_thread(upgraded_at_once, pooler.url(name), mode)
    assert said == ALL
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
        assert await PostgresStore.upgraded(url, mode) == ALL
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
