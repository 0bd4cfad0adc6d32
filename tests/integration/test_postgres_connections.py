"""Connections to PostgreSQL: transactions, times, limits, bad URLs, and a pooler in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import asyncpg
import pytest

from market.errors import BadInput, ChandleryError, NotFound, StoreBusy, StoreUnavailable, StoreUnusable
from store.postgres.address import DatabaseUrl
from store.postgres.connection import FAR_MS, Connection, PoolRules
from store.postgres.database import Database
from tests.support.pgbouncer_server import PgBouncer
from tests.support.postgres_server import PrivatePostgres

#: 2023-11-14T22:13:20.123Z
MOMENT = 1_700_000_000_123
MADE = "CREATE TABLE notes (note text PRIMARY KEY, noted timestamptz)"
#: Impatient, so that tests of limits are short.
SHORT = PoolRules(most=3, acquire_seconds=2.0, command_seconds=2.0, lock_seconds=1.0, connect_seconds=10.0)


@pytest.fixture(scope="module")
def name(postgres: PrivatePostgres) -> Iterator[str]:
    """A database with an empty table of notes."""
    made = postgres.create_database()
    postgres.sql(made, MADE)
    yield made
    postgres.drop_database(made)


@pytest.fixture
def url(postgres: PrivatePostgres, name: str) -> DatabaseUrl:
    postgres.sql(name, "TRUNCATE notes")
    return DatabaseUrl.parse(postgres.url(name))


@pytest.fixture
async def database(url: DatabaseUrl) -> AsyncIterator[Database]:
    async with Database.opened(url) as opened:
        yield opened


def note(text: str, moment: int = MOMENT) -> Callable[[Connection], object]:
    async def work(connection: Connection) -> None:
        await connection.execute("INSERT INTO notes VALUES ($1, $2)", text, moment)

    return work


async def notes(connection: Connection) -> list[str]:
    return [row["note"] for row in await connection.fetch("SELECT note FROM notes ORDER BY note")]


async def test_what_was_written_is_read(database: Database) -> None:
    assert await database.write(note("a")) is None
    assert await database.read(notes) == ["a"]


async def test_a_write_that_fails_leaves_nothing_and_the_connection_is_good(database: Database) -> None:
    async def work(connection: Connection) -> None:
        await note("a")(connection)
        raise NotFound("symbol", "X")

    with pytest.raises(NotFound):
        await database.write(work)
    assert await database.read(notes) == []
    assert database.primary.pool.size <= PoolRules().least


async def test_a_failure_that_work_hides_is_no_success(database: Database) -> None:
    async def work(connection: Connection) -> None:
        await note("a")(connection)
        try:
            await note("a")(connection)
        except asyncpg.UniqueViolationError:
            return

    with pytest.raises(StoreUnusable, match="a statement of this transaction failed; nothing was written"):
        await database.write(work)
    assert await database.read(notes) == []


@pytest.mark.parametrize("moment", [MOMENT, 0, -1, -62_135_596_800_000, 253_402_300_799_999, FAR_MS, -FAR_MS])
async def test_times_are_milliseconds_both_ways(database: Database, moment: int) -> None:
    await database.write(note("a", moment))
    row = await database.read(lambda one: one.fetchrow("SELECT noted, ARRAY[noted] AS all FROM notes"))
    assert (row["noted"], row["all"]) == (moment, [moment])


async def test_times_beyond_the_range_are_infinity(database: Database) -> None:
    async def work(connection: Connection) -> list[asyncpg.Record]:
        return await connection.fetch(
            "SELECT $1::timestamptz = 'infinity' AS last, $2::timestamptz = '-infinity' AS first", 2**61, -(2**61)
        )

    assert [dict(row) for row in await database.read(work)] == [{"last": True, "first": True}]


async def test_sessions_are_in_utc_and_have_their_limits(database: Database) -> None:
    settings = "timezone", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"

    async def work(connection: Connection) -> list[str]:
        return [await connection.fetchval("SELECT current_setting($1)", name) for name in settings]

    for run in (database.read, database.write):
        assert await run(work) == ["UTC", "5s", "4s", "1min"]


async def test_a_read_sees_one_snapshot_and_cannot_write(database: Database) -> None:
    async def work(connection: Connection) -> tuple[list[str], list[str]]:
        before = await notes(connection)
        await database.write(note("a"))
        return before, await notes(connection)

    assert await database.read(work) == ([], [])
    with pytest.raises(StoreUnusable, match="is read-only"):
        await database.read(note("b"))


async def test_opened_for_reading_it_refuses_to_write(url: DatabaseUrl) -> None:
    async with Database.opened(url, read_only=True) as database:
        assert await database.read(notes) == []
        with pytest.raises(StoreUnusable, match=r"^postgresql://chandlery@.* was opened for reading only$"):
            await database.write(note("a"))


async def test_outside_a_transaction_there_is_no_time_limit(url: DatabaseUrl) -> None:
    async def work(connection: Connection) -> str:
        await connection.execute("SELECT pg_sleep(2.5)")
        return await connection.execute("VACUUM notes")

    async with Database.opened(url, SHORT) as database:
        assert await database.outside(work) == "VACUUM"
        with pytest.raises(StoreUnusable, match="syntax error"):
            await database.outside(lambda one: one.execute("VACUUMM"))


async def test_commits_are_durable_whatever_the_server_says(postgres: PrivatePostgres, url: DatabaseUrl) -> None:
    role = f"forgetful_{url.database}"
    postgres.sql(url.database, f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD 'x'")
    postgres.sql(url.database, f"ALTER ROLE {role} SET synchronous_commit = off")
    async with Database.opened(replace(url, user=role, password="x")) as database:
        assert await database.write(lambda one: one.fetchval("SHOW synchronous_commit")) == "on"
    postgres.sql(url.database, f"DROP ROLE {role}")


async def test_fifty_at_once_share_few_connections(url: DatabaseUrl, postgres: PrivatePostgres) -> None:
    rules = replace(SHORT, acquire_seconds=30.0, command_seconds=10.0)
    async with Database.opened(url, rules) as database:
        works = [database.write(note(f"{number:02}")) for number in range(50)]
        await asyncio.gather(*works, *(database.read(notes) for _ in range(50)))
        assert await database.read(notes) == [f"{number:02}" for number in range(50)]
        used = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query <> ''"
        assert await database.read(lambda one: one.fetchval(used)) <= 3
        assert database.primary.pool.size <= 3


async def test_a_full_pool_is_waited_for_a_while_and_says_what_to_do(url: DatabaseUrl) -> None:
    async with Database.opened(url, SHORT) as database, holding(database, 3):
        with pytest.raises(StoreBusy, match=r"all 3 connections are in use for more than 2 s; .* raise pool_max"):
            await database.read(notes)
    async with Database.opened(url, SHORT) as database:
        async with holding(database, 3):
            pass
        assert await database.read(notes) == []


@asynccontextmanager
async def holding(database: Database, connections: int) -> AsyncIterator[None]:
    """So many connections of the pool in use."""
    held, release = asyncio.Semaphore(0), asyncio.Event()

    async def work(_: Connection) -> None:
        held.release()
        await release.wait()

    tasks = [asyncio.create_task(database.read(work)) for _ in range(connections)]
    for _ in tasks:
        await held.acquire()
    try:
        yield
    finally:
        release.set()
        await asyncio.gather(*tasks)


async def test_a_cancelled_call_gives_its_place_back(url: DatabaseUrl, postgres: PrivatePostgres) -> None:
    rules = replace(SHORT, most=1, command_seconds=60.0)
    async with Database.opened(url, rules) as database:
        for run in (database.read, database.write):
            started = asyncio.Event()

            async def work(connection: Connection, started: asyncio.Event = started) -> None:
                asyncio.get_running_loop().call_soon(started.set)
                await connection.execute("SELECT pg_sleep(50)")

            task = asyncio.create_task(run(work))
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await database.read(notes) == []


async def test_a_statement_that_takes_too_long_is_stopped(url: DatabaseUrl) -> None:
    async with Database.opened(url, SHORT) as database:
        for run in (database.read, database.write):
            with pytest.raises(
                StoreBusy,
                match=r"a statement took too long and was stopped .*nothing was written, try again, or raise",
            ):
                await run(lambda one: one.execute("SELECT pg_sleep(60)"))
        assert await database.read(notes) == []


async def test_a_lock_is_waited_for_a_while(url: DatabaseUrl) -> None:
    async with Database.opened(url, SHORT) as database:
        locked, release = asyncio.Event(), asyncio.Event()

        async def holder(connection: Connection) -> None:
            await connection.execute("LOCK TABLE notes")
            locked.set()
            await release.wait()

        task = asyncio.create_task(database.write(holder))
        await locked.wait()
        with pytest.raises(StoreBusy, match="another process holds a lock for too long; nothing was written"):
            await database.write(note("a"))
        release.set()
        await task
        await database.write(note("a"))


async def test_what_others_undo_is_done_again(database: Database) -> None:
    calls = 0

    async def work(connection: Connection) -> int:
        nonlocal calls
        calls += 1
        await note("a")(connection)
        if calls < 3:
            await connection.execute("DO $$BEGIN RAISE EXCEPTION SQLSTATE '40001'; END$$")
        return calls

    assert await database.write(work) == 3
    assert await database.read(notes) == ["a"]


async def test_what_others_always_undo_is_given_up(database: Database) -> None:
    calls = 0

    async def work(connection: Connection) -> None:
        nonlocal calls
        calls += 1
        await connection.execute("DO $$BEGIN RAISE EXCEPTION SQLSTATE '40P01'; END$$")

    with pytest.raises(StoreBusy, match="others wrote the same rows again and again; nothing was written"):
        await database.write(work)
    assert calls == 5


async def test_two_writers_in_opposite_order_both_succeed(database: Database) -> None:
    await database.write(note("a"))
    await database.write(note("b"))
    both = asyncio.Barrier(2)

    def work(*order: str) -> Callable[[Connection], object]:
        first = True

        async def update(connection: Connection) -> None:
            nonlocal first
            await connection.execute("UPDATE notes SET noted = noted WHERE note = $1", order[0])
            if first:
                first = False
                await both.wait()
            await connection.execute("UPDATE notes SET noted = noted WHERE note = $1", order[1])

        return update

    await asyncio.gather(database.write(work("a", "b")), database.write(work("b", "a")))


async def test_a_connection_that_died_in_the_pool_is_replaced(
    database: Database, postgres: PrivatePostgres
) -> None:
    await database.write(note("a"))
    others = f"datname = '{database.url.database}' AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    # The loop is blocked here, so the driver learns of it only when it asks.
    postgres.sql(database.url.database, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
    assert await database.read(notes) == ["a"]
    postgres.sql(database.url.database, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
    await database.write(note("b"))
    assert await database.read(notes) == ["a", "b"]


async def test_a_connection_that_dies_at_work_is_one_clear_error(database: Database) -> None:
    async def work(connection: Connection) -> None:
        await note("a")(connection)
        await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    # A dead one of the pool would be replaced once; this one dies again.
    with pytest.raises(
        StoreUnavailable, match=r"^postgresql://\S+ does not answer \(.*\); check that the server runs"
    ):
        await database.write(work)
    assert await database.read(notes) == []


# Through PgBouncer in transaction mode, each transaction may reach another session of the server.


@pytest.fixture(scope="module")
def bouncer(postgres: PrivatePostgres) -> Iterator[PgBouncer]:
    with PgBouncer(postgres, settings={"default_pool_size": 3, "min_pool_size": 0, "reserve_pool_size": 0}) as one:
        yield one


@pytest.fixture
def pooled(bouncer: PgBouncer, url: DatabaseUrl) -> DatabaseUrl:
    return replace(url, port=bouncer.port)


async def test_it_is_noticed_and_fifty_at_once_work(pooled: DatabaseUrl, postgres: PrivatePostgres) -> None:
    rules = PoolRules(acquire_seconds=30.0)
    async with Database.opened(pooled, rules) as one, Database.opened(pooled, rules) as other:
        assert one.primary.facts is not None
        assert one.primary.facts.pooled

        async def turn(number: int) -> None:
            await one.write(note(f"{number:02}", MOMENT + number))
            # The same texts with and without arguments, again and again: prepared statements would be mixed up.
            for database in (one, other):
                row = await database.read(
                    lambda c: c.fetchrow("SELECT noted FROM notes WHERE note = $1", f"{number:02}")
                )
                assert row["noted"] == MOMENT + number
                assert await database.read(lambda c: c.fetchval("SHOW timezone")) == "UTC"

        await asyncio.gather(*(turn(number) for number in range(50)))
        assert await other.read(notes) == [f"{number:02}" for number in range(50)]
        sessions = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{pooled.database}'"
        assert int(postgres.sql("postgres", sessions)) <= 3


async def test_nothing_is_left_behind_in_a_session(pooled: DatabaseUrl) -> None:
    async with Database.opened(pooled) as database:
        await database.write(note("a"))
        # A new connection to the pooler, the same session of the server.
        connection = await asyncpg.connect(
            host=pooled.host,
            port=pooled.port,
            user=pooled.user,
            password=pooled.password,
            database=pooled.database,
            statement_cache_size=0,
        )
        for setting, value in (("timezone", "Asia/Kolkata"), ("statement_timeout", "0"), ("jit", "on")):
            assert await connection.fetchval(f"SHOW {setting}") == value
        assert await connection.fetchval("SELECT count(*) FROM pg_prepared_statements") == 0
        await connection.close()


async def test_copy_and_vacuum_work(pooled: DatabaseUrl) -> None:
    async def work(connection: Connection) -> None:
        await connection.copy_records_to_table("notes", records=[("a", MOMENT), ("b", FAR_MS)])

    async with Database.opened(pooled) as database:
        await database.write(work)
        assert await database.read(notes) == ["a", "b"]
        await database.outside(lambda one: one.execute("VACUUM notes"))


async def test_a_wrong_password_and_a_missing_database_are_named(pooled: DatabaseUrl) -> None:
    for wrong in (replace(pooled, password="wrong"), replace(pooled, database="nowhere")):
        with pytest.raises(ChandleryError) as caught:
            async with Database.opened(wrong, SHORT):
                pass
        assert isinstance(caught.value, BadInput | StoreUnavailable)
        assert "password" in str(caught.value) or "nowhere" in str(caught.value)
        assert "\n" not in str(caught.value)
