"""Replicas: the least busy one is asked, own writes are seen, and whoever dies, reads go on."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from market.errors import BadInput, StoreUnavailable, StoreUnusable
from store.postgres.address import DatabaseUrl
from store.postgres.connection import Connection
from store.postgres.database import Database
from tests.support.cutting_proxy import CuttingProxy
from tests.support.notes import IMPATIENT, QUICK, RULES, TABLE, eventually, note, notes, port, writable
from tests.support.postgres_server import MAINTENANCE, PrivatePostgres, StreamingReplica

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


@pytest.fixture(scope="module")
def both(primary: PrivatePostgres) -> Iterator[tuple[StreamingReplica, StreamingReplica]]:
    with StreamingReplica(primary, QUICK) as one, StreamingReplica(primary, QUICK) as other:
        yield one, other


@pytest.fixture
def replicas(both: tuple[StreamingReplica, StreamingReplica], url: DatabaseUrl) -> list[StreamingReplica]:
    """Two running replicas that have everything."""
    for replica in both:
        replica.start()
        replica.resume_replay()
        replica.caught_up()
    return list(both)


@pytest.fixture
async def database(url: DatabaseUrl, urls: list[DatabaseUrl]) -> AsyncIterator[Database]:
    async with Database.opened(url, RULES, replicas=urls) as opened:
        yield opened


async def test_the_least_busy_one_is_asked(database: Database, replicas: list[StreamingReplica]) -> None:
    together = asyncio.Barrier(8)

    async def work(connection: Connection) -> int:
        found = await port(connection)
        await together.wait()
        return found

    asked = Counter(await asyncio.gather(*(database.read(work) for _ in range(8))))
    assert asked == {replica.port: 4 for replica in replicas}


async def test_they_cannot_write(database: Database) -> None:
    with pytest.raises(StoreUnusable, match="is read-only"):
        await database.read(note("a"))


async def test_own_writes_are_always_seen(
    database: Database, primary: PrivatePostgres, replicas: list[StreamingReplica]
) -> None:
    for number in range(100):
        await database.write(note(f"{number:02}"))
        assert len(await database.read(notes)) == number + 1
    replicas[0].pause_replay()
    await database.write(note("paused"))
    for _ in range(4):
        assert "paused" in await database.read(notes)
        assert await database.read(port) != replicas[0].port
    replicas[1].pause_replay()
    await database.write(note("both paused"))
    assert "both paused" in await database.read(notes)
    assert await database.read(port) == primary.port
    for replica in replicas:
        replica.resume_replay()

    async def back() -> bool:
        return await database.read(port) != primary.port

    await eventually(back, "replicas are asked again")
    assert "both paused" in await database.read(notes)


async def test_one_that_stands_still_is_left_when_the_primary_moves_on(
    url: DatabaseUrl, urls: list[DatabaseUrl], primary: PrivatePostgres, replicas: list[StreamingReplica]
) -> None:
    rules = replace(RULES, replica_lag_seconds=2.0)
    async with Database.opened(url, rules, replicas=urls[:1]) as reader, Database.opened(url) as writer:
        assert await reader.read(port) == replicas[0].port
        replicas[0].pause_replay()
        assert await reader.read(port) == replicas[0].port
        await writer.write(note("a"))

        async def seen() -> bool:
            return await reader.read(notes) == ["a"]

        await eventually(seen, "what another process wrote is seen")
        assert await reader.read(port) == primary.port
        replicas[0].resume_replay()

        async def back() -> bool:
            return await reader.read(port) == replicas[0].port

        await eventually(back, "the replica is asked again")


async def test_reads_go_on_when_they_are_killed_one_after_the_other(
    database: Database, primary: PrivatePostgres, replicas: list[StreamingReplica]
) -> None:
    await database.write(note("a"))
    asked: Counter[int] = Counter()
    stop = asyncio.Event()

    async def reader() -> None:
        while not stop.is_set():
            assert await database.read(notes) == ["a"]
            asked[await database.read(port)] += 1

    readers = [asyncio.create_task(reader()) for _ in range(4)]
    await asyncio.to_thread(replicas[0].kill)
    await asyncio.to_thread(replicas[1].kill)
    asked.clear()

    async def primary_serves() -> bool:
        return asked[primary.port] > 20 and len(asked) == 1

    await eventually(primary_serves, "the primary serves alone")
    await asyncio.to_thread(replicas[1].start)

    async def used_again() -> bool:
        return asked[replicas[1].port] > 20

    await eventually(used_again, "a replica that is back is asked")
    stop.set()
    await asyncio.gather(*readers)


async def test_a_dead_one_does_not_prevent_the_start(
    url: DatabaseUrl, urls: list[DatabaseUrl], replicas: list[StreamingReplica]
) -> None:
    replicas[0].kill()
    async with Database.opened(url, RULES, replicas=urls) as database:
        assert await database.read(port) == replicas[1].port
        await asyncio.to_thread(replicas[0].start)

        async def used() -> bool:
            return await database.read(port) == replicas[0].port

        await eventually(used, "the replica is asked once it is there")


async def test_another_server_is_no_replica(url: DatabaseUrl, postgres: PrivatePostgres) -> None:
    other = DatabaseUrl.parse(postgres.url(MAINTENANCE), "replica_urls")
    with pytest.raises(BadInput, match=r"replica_urls: .* expected a replica of postgresql://"):
        async with Database.opened(url, replicas=[other]):
            pass


async def test_one_that_was_promoted_is_not_asked_any_more(url: DatabaseUrl, primary: PrivatePostgres) -> None:
    with StreamingReplica(primary, QUICK) as third:
        third.caught_up()
        its = DatabaseUrl.parse(third.url(NAME), "replica_urls")
        async with Database.opened(url, RULES, replicas=[its]) as database:
            assert await database.read(port) == third.port
            third.sql(MAINTENANCE, "SELECT pg_promote()")

            async def left() -> bool:
                return await database.read(port) == primary.port

            await eventually(left, "the promoted one is left alone")


async def test_a_standby_is_no_primary(urls: list[DatabaseUrl]) -> None:
    standby = replace(urls[0], setting="database_url")
    with pytest.raises(StoreUnusable, match=r"is a standby .*; database_url must name the primary"):
        async with Database.opened(standby):
            pass
    async with Database.opened(standby, read_only=True) as database:
        assert await database.read(notes) == []


async def test_killed_under_load_what_was_acknowledged_is_there(
    database: Database, primary: PrivatePostgres
) -> None:
    acknowledged: list[str] = []
    refused = kills = 0
    alive = True
    stop = asyncio.Event()

    async def writer(name: str) -> None:
        nonlocal refused
        number = 0
        while not stop.is_set():
            try:
                await database.write(note(f"{name} {number:04}"))
            except StoreUnavailable:
                refused += 1
                await asyncio.sleep(0.02)
            else:
                acknowledged.append(f"{name} {number:04}")
                number += 1

    async def reader() -> None:
        while not stop.is_set():
            before = len(acknowledged) if alive else 0, kills
            found = await database.read(notes)
            # While the primary is dead, a replica may lack what only the primary had.
            assert before[1] != kills or len(found) >= before[0]

    tasks = [asyncio.create_task(writer(name)) for name in "abc"] + [asyncio.create_task(reader())]

    async def so_many(least: int) -> bool:
        return len(acknowledged) >= least

    for _ in range(2):
        least = len(acknowledged) + 50
        await eventually(lambda least=least: so_many(least), "writes go on")  # type: ignore[misc]
        seen = refused
        alive, kills = False, kills + 1
        await asyncio.to_thread(primary.kill)

        async def noticed(seen: int = seen) -> bool:
            return refused > seen

        await eventually(noticed, "writes fail clearly")
        await asyncio.to_thread(primary.start)
        alive = True
    least = len(acknowledged) + 50
    await eventually(lambda: so_many(least), "writes go on")
    stop.set()
    await asyncio.gather(*tasks)
    assert set(acknowledged) <= set(await database.read(notes))


async def test_reads_go_on_from_replicas(
    database: Database, primary: PrivatePostgres, replicas: list[StreamingReplica]
) -> None:
    await database.write(note("a"))
    for replica in replicas:
        replica.caught_up()
        replica.pause_replay()
    # Nobody but the primary ever had this one.
    await database.write(note("lost from sight"))
    primary.kill()
    with pytest.raises(StoreUnavailable):
        await database.write(note("b"))
    for _ in range(20):
        assert await database.read(notes) == ["a"]
    for replica in replicas:
        replica.resume_replay()
    primary.start()
    assert await writable(database, "b")
    assert await database.read(notes) == ["a", "b", "lost from sight"]


async def test_dead_at_the_start_it_is_waited_for_where_replicas_answer(
    url: DatabaseUrl, urls: list[DatabaseUrl], primary: PrivatePostgres
) -> None:
    primary.kill()
    with pytest.raises(StoreUnavailable, match=url.shown):
        async with Database.opened(url, RULES):
            pass
    async with Database.opened(url, RULES, replicas=urls) as database:
        assert await database.read(notes) == []
        with pytest.raises(StoreUnavailable):
            await database.write(note("a"))
        await asyncio.to_thread(primary.start)
        assert await writable(database, "a")
        assert await database.read(notes) == ["a"]


async def test_a_read_that_loses_its_server_is_done_on_the_next(
    url: DatabaseUrl, urls: list[DatabaseUrl], primary: PrivatePostgres, replicas: list[StreamingReplica]
) -> None:
    async with CuttingProxy.opened(replicas[0].port) as proxy:
        near = replace(urls[0], port=proxy.port)
        rules = replace(IMPATIENT, watch_seconds=60.0)
        async with Database.opened(url, rules, replicas=[near]) as database:
            assert await database.read(port) == replicas[0].port
            proxy.vanish()
            assert await database.read(port) == primary.port
            # It is left alone for a while: to ask it would take as long as its silence is borne.
            started = asyncio.get_running_loop().time()
            assert await database.read(port) == primary.port
            assert asyncio.get_running_loop().time() - started < rules.command_seconds
