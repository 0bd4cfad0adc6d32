"""The safety state on PostgreSQL: writers under way are waited for, nobody else is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from market.clock import to_ms
from market.coverage import CoverageState
from market.errors import StoreBusy, StoreReadOnly
from store.archive.archive import Archive
from store.control import SafetyState
from store.postgres.connection import Connection
from store.postgres.maintenance_rules import MaintenanceRules
from store.postgres.mode import Mode
from store.postgres.rows import QUERIES
from store.postgres.store import PostgresStore
from tests.support.candle_stores import postgres
from tests.support.failing_store import until
from tests.support.made_candles import BTC, START, at, batch, made
from tests.support.made_trades import counted

WHOLE = (START, at(1_000_000))
RULES = MaintenanceRules()


@pytest.fixture(params=list(Mode), ids=lambda mode: mode.value)
async def store(request: pytest.FixtureRequest, clock: Any) -> AsyncIterator[PostgresStore]:
    async with postgres(request.param, clock) as opened:
        yield opened


class Writer:
    """A transaction of data that ends when it is told to."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store
        self.began, self.end = asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        async def work(connection: Connection) -> None:
            await connection.execute("INSERT INTO settle_checks VALUES ('binance', 60, 0, 0, 0, NULL, now())")
            self.began.set()
            await self.end.wait()

        await self._store._database.write_data(work)


async def test_a_write_under_way_is_waited_for_and_no_other_begins(store: PostgresStore) -> None:
    await store.write(batch(made([0])))
    writer = Writer(store)
    async with asyncio.TaskGroup() as group:
        group.create_task(writer.run())
        await writer.began.wait()
        switching = group.create_task(store.set_control(safety=SafetyState.FAIL))
        await until(lambda: _refused(store))
        # Others do not stand in line behind the one who switches.
        started = time.monotonic()
        with pytest.raises(StoreReadOnly):
            await store.write_trades([counted([1])])
        assert time.monotonic() - started < store._database.primary.rules.lock_seconds
        assert not switching.done()
        writer.end.set()
        assert (await switching).safety is SafetyState.FAIL


async def _refused(store: PostgresStore) -> bool:
    try:
        await store.write(batch(made([0])))
    except StoreReadOnly:
        return True
    return False


async def test_a_write_that_does_not_end_is_named(store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(QUERIES, "have_patience_for_writers", "SET LOCAL lock_timeout = '100ms'")
    writer = Writer(store)
    async with asyncio.TaskGroup() as group:
        group.create_task(writer.run())
        await writer.began.wait()
        with pytest.raises(StoreBusy, match="the safety state is fail now, but a write that began before has not"):
            await store.set_control(safety=SafetyState.FAIL)
        assert (await store.control()).safety is SafetyState.FAIL
        with pytest.raises(StoreReadOnly):
            await store.write(batch(made([0])))
        # To allow it again, nobody is waited for.
        await store.set_control(safety=SafetyState.NORMAL)
        await store.write(batch(made([0])))
        writer.end.set()


async def test_it_is_opened_and_closed_without_a_word(store: PostgresStore, clock: Any) -> None:
    await store.write(batch(made([0])))
    await store.set_control(safety=SafetyState.FAIL)
    # Months without a partition.
    clock.advance(400 * 86_400_000)
    with capture_logs() as said:
        async with PostgresStore.opened(store._database.url, clock) as other:
            with pytest.raises(StoreReadOnly):
                await other.write(batch(made([1])))
            assert await other.read(BTC, *WHOLE) == made([0])
    assert [one for one in said if one["log_level"] not in ("debug", "info")] == []


async def test_maintenance_and_retention_drop_nothing(store: PostgresStore, tmp_path: Path, clock: Any) -> None:
    month = to_ms("2023-02-01")
    days = (0, 14, 30, 31, 33)
    await store.write(batch(made([day * 1440 + hour * 60 for day in days for hour in range(24)])))
    await store.maintenance(RULES).run()
    archive = Archive(tmp_path / "archive")
    await archive.build(store, BTC)
    await store.set_control(safety=SafetyState.FAIL, reason="look first")
    before = await store.coverage(BTC), await store.read(BTC, *WHOLE), (await store.versions([BTC]))[0]
    for work in (store.retention(archive, RULES).drop(month), store.maintenance(RULES).run()):
        with pytest.raises(StoreReadOnly, match="look first"):
            await work
    assert (await store.coverage(BTC), await store.read(BTC, *WHOLE), (await store.versions([BTC]))[0]) == before
    await store.set_control(safety=SafetyState.NORMAL)
    dropped = await store.retention(archive, RULES).drop(month)
    assert (dropped.obstacles, dropped.candles) == ((), 3 * 24)
    # Rows keep their digests, but the ledger says where they are: readers must look again.
    revision = before[2][BTC].revision
    assert (await store.versions([BTC]))[0][BTC].revision == revision + 1
    delta = await store.delta(BTC, since=revision, after_ms=at(33 * 1440), limit=100)
    assert delta is not None
    assert delta.chunks == []
    assert delta.coverage[0].state is CoverageState.ARCHIVED
    everything = await store.delta(BTC, since=-1, after_ms=0, limit=10_000)
    assert everything is not None
    assert [one.archived == one.digest for one in everything.chunks] == [True] * 3 + [False] * 2
    assert everything.rows.num_rows == 2 * 24
