"""A PostgreSQL that dies, fills up or falls silent: clear errors, nothing half-written, and it comes back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from market.errors import ChandleryError, StoreBusy, StoreUnavailable, StoreUnusable
from store.postgres.address import DatabaseUrl
from store.postgres.connection import Connection
from store.postgres.database import Database
from tests.support.cutting_proxy import CuttingProxy
from tests.support.notes import IMPATIENT, QUICK, RULES, TABLE, eventually, note, notes, port, writable
from tests.support.postgres_server import MAINTENANCE, PrivatePostgres, StreamingReplica
from tests.support.small_disk import SmallDiskPostgres

NAME = "market"


@pytest.fixture(scope="module")
def primary(postgres: PrivatePostgres) -> Iterator[PrivatePostgres]:
    """A server to be killed; after `postgres`, which skips where there can be none."""
    with PrivatePostgres(settings=QUICK) as server:
        server.sql(MAINTENANCE, f"CREATE DATABASE {NAME}")
        server.sql(NAME, TABLE)
        yield server


@pytest.fixture
def url(primary: PrivatePostgres) -> DatabaseUrl:
    primary.start()
    primary.sql(NAME, "TRUNCATE notes")
    return DatabaseUrl.parse(primary.url(NAME))


@pytest.fixture
def urls(replicas: list[StreamingReplica]) -> list[DatabaseUrl]:
    return [DatabaseUrl.parse(replica.url(NAME), "replica_urls") for replica in replicas]


async def test_killed_it_comes_back_by_itself(url: DatabaseUrl, primary: PrivatePostgres) -> None:
    async with Database.opened(url, RULES) as database:
        await asyncio.gather(*(database.write(note(f"{number}")) for number in range(8)))
        primary.kill()
        for call in (database.write(note("x")), database.read(notes), database.outside(port)):
            with pytest.raises(StoreUnavailable, match=rf"^{url.shown} does not answer .*try again$"):
                await call
        primary.start()
        assert await writable(database, "8")
        assert await database.read(notes) == [f"{number}" for number in range(9)]


async def test_restarted_it_is_not_even_noticed(url: DatabaseUrl, primary: PrivatePostgres) -> None:
    async with Database.opened(url, RULES) as database:
        await asyncio.gather(*(database.write(note(f"{number}")) for number in range(8)))
        primary.restart()
        await asyncio.gather(*(database.write(note(f"{number}")) for number in range(8, 16)))
        assert len(await database.read(notes)) == 16


async def test_set_to_read_only_it_says_so(url: DatabaseUrl, primary: PrivatePostgres) -> None:
    async with Database.opened(url, RULES) as database:
        primary.reload("default_transaction_read_only", "on")
        try:
            with pytest.raises(StoreUnusable, match=rf"{url.shown} is read-only, .* nothing was written"):
                await database.write(note("a"))
            assert await database.read(notes) == []
        finally:
            connection = "SET default_transaction_read_only = off; "
            primary.sql(MAINTENANCE, f"{connection}ALTER SYSTEM RESET default_transaction_read_only")
            primary.sql(MAINTENANCE, "SELECT pg_reload_conf()")

        async def written() -> bool:
            with contextlib.suppress(StoreUnusable):
                await database.write(note("a"))
                return True
            return False

        await eventually(written, "writes go on")


async def test_too_many_connections_say_what_to_raise(url: DatabaseUrl, primary: PrivatePostgres) -> None:
    primary.sql(NAME, "CREATE ROLE crowded LOGIN PASSWORD 'x' CONNECTION LIMIT 2; GRANT SELECT ON notes TO crowded")
    crowded = replace(url, user="crowded", password="x")
    async with Database.opened(crowded, RULES) as one:
        together = asyncio.Barrier(2)

        async def work(_: Connection) -> None:
            await together.wait()

        await asyncio.gather(one.read(work), one.read(work))
        with pytest.raises(StoreBusy, match=r"takes no more connections .* raise the server's max_connections"):
            async with Database.opened(crowded, RULES):
                pass
        assert await one.read(notes) == []
    primary.sql(NAME, "DROP OWNED BY crowded; DROP ROLE crowded")


@pytest.fixture
async def proxy(primary: PrivatePostgres) -> AsyncIterator[CuttingProxy]:
    async with CuttingProxy.opened(primary.port) as proxy:
        yield proxy


async def test_lost_before_commit_nothing_is_written_or_all_is_done_again(
    url: DatabaseUrl, proxy: CuttingProxy
) -> None:
    async with Database.opened(replace(url, port=proxy.port), RULES) as database:
        proxy.cut_before = b"INSERT"
        await database.write(note("a"))
        assert proxy.cut_before is None
        assert await database.read(notes) == ["a"]


@pytest.mark.parametrize("heard", [False, True])
async def test_lost_at_commit_the_outcome_is_not_known_and_writing_again_is_safe(
    url: DatabaseUrl, proxy: CuttingProxy, heard: bool
) -> None:
    async with Database.opened(replace(url, port=proxy.port), RULES) as database:
        if heard:
            proxy.cut_after = b"COMMIT\0"
        else:
            proxy.cut_before = b"COMMIT\0"
        said = "was lost while it committed: whether this batch was written is not known; writing the same again"
        with pytest.raises(StoreUnavailable, match=said):
            await database.write(note("a"))
        assert await database.read(notes) == (["a"] if heard else [])
        await database.write(note("a"))
        assert await database.read(notes) == ["a"]


async def test_a_server_that_falls_silent_is_not_waited_for_for_ever(url: DatabaseUrl, proxy: CuttingProxy) -> None:
    async with Database.opened(replace(url, port=proxy.port), IMPATIENT) as database:
        await database.write(note("a"))
        proxy.vanish()
        for run in (database.write, database.read):
            with pytest.raises(StoreUnavailable, match="does not answer in time"):
                async with asyncio.timeout(60.0):
                    await run(notes)
            # The others are lost too: each would take as long to find out.
            assert database.primary.pool.idle == 0
        proxy.come_back()
        assert await writable(database, "b")
        assert await database.read(notes) == ["a", "b"]


async def test_a_server_that_falls_silent_at_work_is_given_up(url: DatabaseUrl, proxy: CuttingProxy) -> None:
    async def work(connection: Connection) -> None:
        await note("half")(connection)
        proxy.vanish()
        await notes(connection)

    async with Database.opened(replace(url, port=proxy.port), IMPATIENT) as database:
        with pytest.raises(StoreUnavailable, match="does not answer in time"):
            async with asyncio.timeout(60.0):
                await database.write(work)
        proxy.come_back()
        assert await writable(database, "a")
        assert await database.read(notes) == ["a"]


async def test_silent_at_the_start(url: DatabaseUrl, proxy: CuttingProxy) -> None:
    proxy.vanish()
    with pytest.raises(StoreUnavailable, match="does not answer in time"):
        async with Database.opened(replace(url, port=proxy.port), IMPATIENT):
            pass


async def fails(database: Database, rows: int) -> ChandleryError:
    async def work(connection: Connection) -> None:
        await connection.execute("INSERT INTO notes VALUES ('half')")
        await connection.execute(
            f"INSERT INTO notes SELECT repeat('x', 1000) || n FROM generate_series(1, {rows}) n"
        )

    with pytest.raises(ChandleryError) as caught:
        await database.write(work)
    return caught.value


async def test_nothing_is_half_written(postgres: PrivatePostgres) -> None:
    with SmallDiskPostgres() as server:
        server.sql(MAINTENANCE, "CREATE TABLE notes (note text)")
        url = DatabaseUrl.parse(server.url(MAINTENANCE))
        async with Database.opened(url, replace(RULES, command_seconds=60.0)) as database:
            server.fill(left=2_000_000)
            error = await fails(database, 20_000)
            assert isinstance(error, StoreUnusable)
            assert str(error).startswith(f"no space left on the server of {url.shown} (")
            assert str(error).endswith("; nothing was written")
            assert await database.read(notes) == []
            server.clear()
            await database.write(note("a"))
            assert await database.read(notes) == ["a"]


async def test_a_server_that_stops_for_it_comes_back(postgres: PrivatePostgres) -> None:
    with SmallDiskPostgres(log_inside=True) as server:
        server.sql(MAINTENANCE, "CREATE TABLE notes (note text)")
        url = DatabaseUrl.parse(server.url(MAINTENANCE))
        async with Database.opened(url, replace(RULES, command_seconds=60.0)) as database:
            server.fill()
            error = await fails(database, 50_000)
            assert isinstance(error, StoreUnavailable | StoreUnusable), error
            server.clear()
            server.kill()
            server.start()
            assert await database.read(notes) == []
            assert await writable(database, "a")
