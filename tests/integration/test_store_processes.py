"""Several processes on one SQLite store at the same moment."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from market.clock import SystemClock
from market.errors import StoreBusy, StoreUnusable
from store.batch import Written
from store.sqlite import database, schema
from store.sqlite.store import DATABASE_NAME, SqliteStore
from tests.support.made_candles import BTC, ETH, START, at, batch, made
from tests.support.proof import prove
from tests.support.workers import worker

WHOLE = (START, at(100_000))


def test_four_processes_open_a_new_database_at_once(tmp_path: Path) -> None:
    for number in range(3):
        path = tmp_path / str(number) / DATABASE_NAME
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(worker("open", path)) for _ in range(4)]
            for one in workers:
                one.go()
            said = [one.rest() for one in workers]
        assert said == [[f"version {schema.LATEST}", "done"]] * 4
        prove(path)


def test_threads_that_open_a_new_database_at_once_do_not_get_in_each_others_way(tmp_path: Path) -> None:
    # Closer together than processes can be: SQLite answers "locked" at once where two change the journal mode.
    def open_it(path: Path, barrier: threading.Barrier) -> int:
        barrier.wait()
        with database.translated(path), contextlib.closing(database.connect(path, read_only=False)) as connection:
            schema.upgrade(connection, path)
            return schema.version(connection)

    with ThreadPoolExecutor(6) as threads:
        for number in range(30):
            barrier = threading.Barrier(6)
            path = tmp_path / f"{number}.sqlite3"
            opened = [threads.submit(open_it, path, barrier) for _ in range(6)]
            assert [one.result() for one in opened] == [schema.LATEST] * 6


async def test_writers_of_one_and_of_other_series_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / DATABASE_NAME
    # Two write the same minutes, one overlaps them with another version, one has a series of its own.
    jobs = [
        ("write", path, BTC.symbol, 0, 4000, 100, 0),
        ("write", path, BTC.symbol, 0, 4000, 130, 0),
        ("write", path, BTC.symbol, 3000, 6000, 170, 1),
        ("write", path, ETH.symbol, 0, 3000, 90, 2),
    ]
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(worker(*job)) for job in jobs]
        for one in workers:
            one.go()
        said = [one.rest() for one in workers]
    assert [lines[-1] for lines in said] == ["done"] * 4
    assert not [line for lines in said for line in lines if line.startswith("failed")]
    assert prove(path) == 9000
    async with SqliteStore.opened(path, SystemClock(), read_only=True) as store:
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


async def test_readers_see_whole_batches_only(tmp_path: Path) -> None:
    path = tmp_path / DATABASE_NAME
    async with SqliteStore.opened(path, SystemClock()) as store:
        await store.write(batch(made(range(3000))))
    versions = [made(range(3000), version) for version in range(25)]
    seen: set[int] = set()
    with worker("rewrite", path, 3000, 25) as writer:
        async with SqliteStore.opened(path, SystemClock(), read_only=True) as store:
            writer.go()
            while (said := writer.hear()) != "done":
                assert said.startswith("written"), said
                table = await store.read(BTC, *WHOLE)
                seen.add(versions.index(table))
    assert len(seen) > 2
    prove(path)


async def test_a_writer_that_waits_too_long_writes_nothing(
    tmp_path: Path, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 50)
    path = tmp_path / DATABASE_NAME
    async with SqliteStore.opened(path, clock) as store:
        await store.write(batch(made([0])))
        other = sqlite3.connect(path, isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(
                StoreBusy, match=r"locked by another process for more than 0.05 s; nothing was written"
            ):
                await store.write(batch(made([1])))
            # Reading goes on meanwhile.
            assert await store.read(BTC, *WHOLE) == made([0])
            other.execute("ROLLBACK")
        finally:
            other.close()
        assert await store.read(BTC, *WHOLE) == made([0])
        assert await store.write(batch(made([1]))) == Written(inserted=1)
    prove(path)


async def test_writing_the_same_again_leaves_the_file_alone(tmp_path: Path, clock: Any) -> None:
    path = tmp_path / DATABASE_NAME
    async with SqliteStore.opened(path, clock) as store:
        await store.write(batch(made(range(3000))))
    before = path.read_bytes()
    clock.advance(1000)
    async with SqliteStore.opened(path, clock) as store:
        watcher = sqlite3.connect(path)
        try:
            version = watcher.execute("PRAGMA data_version").fetchone()
            assert await store.write(batch(made(range(3000)))) == Written(unchanged=3000)
            assert watcher.execute("PRAGMA data_version").fetchone() == version
        finally:
            watcher.close()
    assert path.read_bytes() == before


async def test_many_tasks_of_one_process_share_the_writer(tmp_path: Path, clock: Any) -> None:
    path = tmp_path / DATABASE_NAME
    async with SqliteStore.opened(path, clock) as store:
        tasks = [store.write(batch(made(range(start, start + 50)))) for start in range(0, 1000, 25)]
        written = await asyncio.gather(*tasks)
        assert sum(one.inserted for one in written) == 1025
        reads = await asyncio.gather(*(store.read(BTC, *WHOLE) for _ in range(20)))
        assert all(one == made(range(1025)) for one in reads)
    assert prove(path) == 1025


async def test_a_reader_may_not_write(tmp_path: Path, clock: Any) -> None:
    path = tmp_path / DATABASE_NAME
    async with SqliteStore.opened(path, clock) as store:
        await store.write(batch(made([0])))
    async with SqliteStore.opened(path, clock, read_only=True) as store:
        with pytest.raises(StoreUnusable, match="opened for reading only"):
            await store.write(batch(made([1])))
        assert await store.read(BTC, *WHOLE) == made([0])
