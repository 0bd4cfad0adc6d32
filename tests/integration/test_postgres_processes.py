"""Several processes on one PostgreSQL store at once, and what they leave when they, or the server, are killed."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import asyncpg
import pyarrow as pa
import pytest

from market.clock import SystemClock
from market.errors import StoreBusy
from market.instrument import Series
from market.interval import Interval
from market.timeframe import ONE_MINUTE
from store.batch import Written
from store.postgres.address import DatabaseUrl
from store.postgres.connection import PoolRules
from store.postgres.mode import Mode
from store.postgres.store import PostgresStore
from tests.support import servers
from tests.support.made_candles import BTC, ETH, START, at, batch, made
from tests.support.notes import eventually
from tests.support.pgbouncer_server import PgBouncer
from tests.support.postgres_server import MAINTENANCE, PrivatePostgres
from tests.support.proof import prove_store
from tests.support.workers import Worker, worker

WHOLE = (START, at(10**6))
CLOCK = SystemClock()
STEP = 1500


@dataclass
class Place:
    """An empty database and how to open it."""

    server: PrivatePostgres
    name: str
    url: str

    def opened(self, **how: object) -> contextlib.AbstractAsyncContextManager[PostgresStore]:
        return PostgresStore.opened(DatabaseUrl.parse(self.url), CLOCK, **how)  # type: ignore[arg-type]

    async def prove(self) -> int:
        async with self.opened(refresh=False) as store:
            assert await store.integrity() == []
            return await prove_store(store)

    async def left_alone(self) -> None:
        """Wait until the server has noticed that those who were killed are gone, and has ended what they began."""

        def alone() -> bool:
            there = f"FROM pg_stat_activity WHERE datname = '{self.name}' AND client_port IS NOT NULL"
            return self.server.sql(MAINTENANCE, f"SELECT count(*) {there}") == "0"

        async def look() -> bool:
            return await asyncio.to_thread(alone)

        await eventually(look, "nobody else is connected")


@pytest.fixture(params=list(Mode), ids=lambda mode: mode.value)
def mode(request: pytest.FixtureRequest) -> Mode:
    found: Mode = request.param
    if found is Mode.TIMESCALEDB:
        servers.timescaledb()
    return found


@pytest.fixture
def place(postgres: PrivatePostgres, mode: Mode) -> Iterator[Place]:
    name = servers.database_from(mode.value, lambda at: PostgresStore.upgraded(DatabaseUrl.parse(at), mode))
    yield Place(postgres, name, postgres.url(name))
    postgres.drop_database(name)


@pytest.fixture
async def connection(place: Place) -> AsyncIterator[asyncpg.Connection]:
    """Somebody else in the database."""
    url = DatabaseUrl.parse(place.url)
    opened = await asyncpg.connect(
        host=url.host, port=url.port, user=url.user, password=url.password, database=url.database
    )
    yield opened
    await opened.close()


def work_at_once(jobs: list[tuple[object, ...]]) -> list[list[str]]:
    """A process for each job, all let go at the same moment; what they said."""
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(worker(*job)) for job in jobs]
        for one in workers:
            one.go()
        said = [one.rest() for one in workers]
    assert [lines[-1] for lines in said] == ["done"] * len(jobs), said
    assert not [line for lines in said for line in lines if line.startswith("failed")], said
    return said


@pytest.mark.parametrize("pooled", [False, True], ids=["direct", "pooled"])
async def test_writers_of_one_and_of_other_series_lose_nothing(place: Place, pooled: bool) -> None:
    with PgBouncer(place.server) if pooled else contextlib.nullcontext() as pooler:
        url = pooler.url(place.name) if pooler is not None else place.url
        # Two write the same minutes, one overlaps them with another version, one has a series of its own.
        jobs: list[tuple[object, ...]] = [
            ("write", url, BTC.symbol, 0, 4000, 200, 0),
            ("write", url, BTC.symbol, 0, 4000, 260, 0),
            ("write", url, BTC.symbol, 3000, 6000, 340, 1),
            ("write", url, ETH.symbol, 0, 3000, 180, 2),
        ]
        await asyncio.to_thread(work_at_once, jobs)
    assert await place.prove() == 9000
    async with place.opened(read_only=True) as store:
        btc = await store.read(BTC, *WHOLE)
        assert btc.slice(0, 3000) == made(range(3000))
        assert btc.slice(4000) == made(range(4000, 6000), version=1)
        for row, old, new in zip(
            btc.slice(3000, 1000).to_pylist(),
            made(range(3000, 4000)).to_pylist(),
            made(range(3000, 4000), version=1).to_pylist(),
            strict=True,
        ):
            assert row in (old, new)
        assert await store.read(ETH, *WHOLE) == made(range(3000), version=2)


async def test_four_processes_begin_the_same_series_and_many_of_their_own(place: Place) -> None:
    # Each names instruments that nobody knew a moment before, one of them the same as the others.
    jobs = [
        ("write_many", place.url, ",".join(["NEW/USDT", *(f"N{process}X{one}/USDT" for one in range(5))]), 400)
        for process in range(4)
    ]
    await asyncio.to_thread(work_at_once, [tuple(job) for job in jobs])
    assert await place.prove() == 21 * 400
    async with place.opened(read_only=True) as store:
        assert len(await store.series()) == len(await store.instruments()) == 21
        assert await store.read(Series("binance", "NEW/USDT", ONE_MINUTE), *WHOLE) == made(range(400))


async def test_readers_see_whole_batches_only(place: Place) -> None:
    async with place.opened(refresh=False) as store:
        await store.write(batch(made(range(3000))))
    versions = [made(range(3000), version) for version in range(20)]
    seen: set[int] = set()
    with worker("rewrite", place.url, 3000, 20) as writer:
        async with place.opened(read_only=True) as store:
            writer.go()
            while (said := await asyncio.to_thread(writer.hear)) != "done":
                assert said.startswith("written"), said
                page, known = await asyncio.gather(store.page(BTC, Interval(*WHOLE)), store.facts(BTC))
                seen.add(versions.index(page.table))
                assert known is not None
                assert [one.interval for one in page.coverage] == [known.known]
    assert len(seen) > 2
    assert await place.prove() == 3000


async def test_a_writer_that_waits_too_long_writes_nothing(place: Place, connection: asyncpg.Connection) -> None:
    async with place.opened(refresh=False) as store:
        await store.write(batch(made([0])))
    async with place.opened(refresh=False, rules=PoolRules(lock_seconds=0.2)) as store:
        async with connection.transaction():
            await connection.execute("SELECT * FROM series FOR UPDATE")
            with pytest.raises(StoreBusy, match="another process holds a lock for too long; nothing was written"):
                await store.write(batch(made([1])))
            # Reading, and writing to another series, go on meanwhile.
            assert await store.read(BTC, *WHOLE) == made([0])
            assert await store.write(batch(made([0]), series=ETH)) == Written(inserted=1)
        assert await store.write(batch(made([1]))) == Written(inserted=1)
    assert await place.prove() == 3


async def test_writing_the_same_again_leaves_the_rows_alone(place: Place, connection: asyncpg.Connection) -> None:
    tables = ("candles", "candle_chunks", "coverage", "candle_corrections", "quarantine")

    async def rows() -> list[tuple[object, ...]]:
        return [
            tuple(row)
            for table in tables
            for row in await connection.fetch(f"SELECT tableoid, ctid, xmin::text, xmax::text FROM {table}")
        ]

    async with place.opened(refresh=False) as store:
        await store.write(batch(made(range(3000))))
        before, facts = await rows(), await store.facts(BTC)
        assert len(before) > 3000
        assert await store.write(batch(made(range(3000)))) == Written(unchanged=3000)
        assert await store.facts(BTC) == facts
        assert await rows() == before
        assert await store.write(batch(made([5], version=1))) == Written(corrected=1)
        assert await rows() != before


async def test_many_tasks_of_one_process_share_the_writer(place: Place) -> None:
    async with place.opened(refresh=False) as store:
        tasks = [store.write(batch(made(range(start, start + 50)))) for start in range(0, 1000, 25)]
        written = await asyncio.gather(*tasks)
        assert sum(one.inserted for one in written) == 1025
        reads = await asyncio.gather(*(store.read(BTC, *WHOLE) for _ in range(20)))
        assert all(one == made(range(1025)) for one in reads)
    assert await place.prove() == 1025


# --- kill -9 ---


def heard_until(one: Worker, rng: random.Random, kill: Callable[[], object]) -> int:
    """Let it write a few batches, then kill it, or its server, inside the next one; how many it was sure of."""
    one.go()
    count = rng.randrange(1, 5)
    for _ in range(count):
        assert one.hear().startswith("written")
    until = time.perf_counter() + rng.uniform(0, 0.08)
    while time.perf_counter() < until:
        pass
    kill()
    return count + len([line for line in one.rest() if line.startswith("written")])


def possible(before: pa.Table, version: int, count: int) -> list[pa.Table]:
    """What was acknowledged is there; the batch under way is there whole or not at all."""
    return [
        pa.concat_tables([made(range(written * STEP), version), before.slice(written * STEP)])
        for written in (count, count + 1)
    ]


@pytest.mark.crash
async def test_a_killed_writer_leaves_whole_batches(place: Place) -> None:
    rng = random.Random(11)
    before = made([])
    for version in range(4):
        # Each run begins again, so that it rewrites what is there as another version, then goes on behind it.
        with worker("write", place.url, BTC.symbol, 0, 100_000, STEP, version) as writer:
            count = await asyncio.to_thread(heard_until, writer, rng, writer.process.kill)
            assert writer.process.returncode == -signal.SIGKILL
        await place.left_alone()
        await place.prove()
        async with place.opened(read_only=True) as store:
            table = await store.read(BTC, *WHOLE)
        assert table in possible(before, version, count)
        before = table
    assert await place.prove() == before.num_rows > 3 * STEP


@pytest.mark.crash
async def test_a_writer_goes_on_when_another_one_is_killed(place: Place) -> None:
    rng = random.Random(12)
    with worker("write", place.url, ETH.symbol, 0, 40_000, 700, 0) as staying:
        staying.go()
        assert await asyncio.to_thread(staying.hear) == "written 0"
        for version in range(3):
            with worker("write", place.url, BTC.symbol, 0, 100_000, STEP, version) as writer:
                await asyncio.to_thread(heard_until, writer, rng, writer.process.kill)
        assert (await asyncio.to_thread(staying.rest))[-1] == "done"
    await place.left_alone()
    await place.prove()
    async with place.opened(read_only=True) as store:
        assert await store.read(ETH, *WHOLE) == made(range(40_000))


@pytest.fixture(scope="module")
def durable() -> Iterator[PrivatePostgres]:
    """A server to be killed, set as one that must survive a power cut."""
    servers.postgres()
    with PrivatePostgres(durable=True) as server:
        yield server


@pytest.mark.crash
async def test_a_killed_server_has_whole_batches(durable: PrivatePostgres, mode: Mode) -> None:
    rng = random.Random(13)
    await asyncio.to_thread(durable.start)
    name = await asyncio.to_thread(durable.create_database)
    place = Place(durable, name, durable.url(name))
    await PostgresStore.upgraded(DatabaseUrl.parse(place.url), mode)
    before = made([])
    for version in range(4):
        with worker("write", place.url, BTC.symbol, 0, 100_000, STEP, version) as writer:
            count = await asyncio.to_thread(heard_until, writer, rng, durable.kill)
            assert writer.process.returncode == 0
        await asyncio.to_thread(durable.start)
        await place.prove()
        async with place.opened(read_only=True) as store:
            table = await store.read(BTC, *WHOLE)
        assert table in possible(before, version, count)
        before = table
    # It goes on as if nothing had been.
    async with place.opened() as store:
        assert await store.write(batch(made(range(STEP), 9))) == Written(corrected=STEP)
    assert await place.prove() == before.num_rows
