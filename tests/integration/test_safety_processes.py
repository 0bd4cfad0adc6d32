"""The safety state and the mark of changes between processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from market.clock import SystemClock
from market.errors import StoreReadOnly
from store.control import SafetyState
from store.sqlite.change_mark import ChangeMark
from store.sqlite.database import BUSY_TIMEOUT_MS
from store.sqlite.store import DATABASE_NAME, SqliteStore
from tests.support.made_candles import BTC, ETH, START, at, batch, made
from tests.support.pgbouncer_server import PgBouncer
from tests.support.postgres_server import PrivatePostgres
from tests.support.proof import prove
from tests.support.store_worker import opened
from tests.support.workers import worker

WHOLE = (START, at(10_000_000))


@pytest.fixture(params=["sqlite", "postgresql", "pgbouncer"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where a store is, as the processes are told."""
    if request.param == "sqlite":
        yield str(tmp_path / DATABASE_NAME)
        return
    server: PrivatePostgres = request.getfixturevalue("postgres")
    name = server.create_database()
    if request.param == "postgresql":
        yield server.url(name)
    else:
        with PgBouncer(server) as pooler:
            yield pooler.url(name)
    server.drop_database(name)


async def test_no_process_writes_once_it_was_switched(place: str) -> None:
    async with opened(place) as store:
        await store.write(batch(made([0]), series=ETH))
        with (
            worker("write", place, BTC.symbol, 0, 1_000_000, 5, 0) as one,
            worker("write", place, "SOL/USDT", 0, 1_000_000, 5, 0) as other,
        ):
            for process in (one, other):
                process.go()
                assert process.hear() == "written 0"
                assert process.hear() == "written 5"
            await store.set_control(safety=SafetyState.LOCKDOWN, reason="two of them write")
            counted = await store.count()
            for process in (one, other):
                *_, failed, done = process.rest()
                assert failed.startswith("failed StoreReadOnly the safety state is lockdown (two of them write)")
                assert done == "done"
            assert await store.count() == counted
            rows = await store.read(BTC, *WHOLE)
        await store.set_control(safety=SafetyState.NORMAL)
        with worker("write", place, BTC.symbol, 0, rows.num_rows + 5, 100, 0) as again:
            again.go()
            assert again.rest()[-1] == "done"
        assert (await store.read(BTC, *WHOLE)).num_rows == rows.num_rows + 5
    if "://" not in place:
        prove(Path(place))


async def test_who_opens_it_then_may_look(place: str) -> None:
    async with opened(place) as store:
        await store.write(batch(made([0])))
        await store.set_control(safety=SafetyState.FAIL)
    async with opened(place) as store:
        assert (await store.control()).safety is SafetyState.FAIL
        assert await store.read(BTC, *WHOLE) == made([0])
        with pytest.raises(StoreReadOnly):
            await store.write(batch(made([0])))


async def test_a_commit_of_another_process_changes_the_mark(tmp_path: Path) -> None:
    path = tmp_path / DATABASE_NAME
    async with SqliteStore.opened(path, SystemClock()) as store:
        marks = [store.change_mark()]
        with worker("write", path, BTC.symbol, 0, 15, 5, 0) as other:
            assert store.change_mark() == marks[0]
            other.go()
            for number in range(3):
                # It says so after the commit.
                assert other.hear() == f"written {number * 5}"
            marks.append(store.change_mark())
            assert marks[1] != marks[0]
            assert other.rest() == ["done"]
        # Closing a file is no commit, but may count as one.
        marks.append(store.change_mark())
        assert store.change_mark() == marks[2]


async def test_another_file_of_the_same_name_changes_the_mark(tmp_path: Path, clock: Any) -> None:
    path, copy = tmp_path / DATABASE_NAME, tmp_path / "copy.sqlite3"
    async with SqliteStore.opened(path, clock) as store:
        await store.write(batch(made([0])))
    shutil.copy(path, copy)
    mark = ChangeMark(path)
    seen = [mark.now()]
    os.replace(copy, path)
    seen.append(mark.now())
    path.unlink()
    assert mark.now() is None
    async with SqliteStore.opened(path, clock):
        seen.append(mark.now())
        assert mark.now() == seen[-1]
    mark.close()
    assert None not in seen
    assert len(set(seen)) == 3


async def test_the_mark_counts_commits_and_waits_for_no_writer(tmp_path: Path, clock: Any) -> None:
    path = tmp_path / DATABASE_NAME
    async with SqliteStore.opened(path, clock) as store:
        await store.write(batch(made([0])))
        mark = store.change_mark()
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE series SET last_write = 5")
        assert store.change_mark() == mark
        other.execute("COMMIT")
        assert store.change_mark() != mark
        other.close()


async def test_the_mark_waits_for_nobody_who_keeps_the_file_to_himself(tmp_path: Path, clock: Any) -> None:
    path = tmp_path / DATABASE_NAME
    async with SqliteStore.opened(path, clock) as store:
        await store.write(batch(made([0])))
    with contextlib.closing(ChangeMark(path)) as mark:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("UPDATE series SET last_write = 5")
        started = time.monotonic()
        assert mark.now() is None
        assert time.monotonic() - started < BUSY_TIMEOUT_MS / 1000
        other.close()
        assert mark.now() is not None


async def test_where_nothing_can_be_read_there_is_no_mark(tmp_path: Path) -> None:
    path = tmp_path / DATABASE_NAME
    mark = ChangeMark(path)
    assert mark.now() is None
    path.write_bytes(b"this is no database, whatever it is called" * 100)
    assert mark.now() is None
    path.unlink()
    path.mkdir()
    assert mark.now() is None
    mark.close()
