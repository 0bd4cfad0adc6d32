"""Live rows while nothing may be written: they wait in the journal, and all of them arrive, in order, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ingest.waiting import WaitingRules
from ingest.writer import Writer, WriterRules
from ingest.writer_status import WriterState
from market.clock import SystemClock
from store.control import SafetyState
from tests.support.candle_stores import STORES
from tests.support.failing_store import until
from tests.support.made_candles import BTC, START, at, batch, made
from tests.support.scripted_writes import trade
from tests.support.stored_trades import ALWAYS, LONG_AGO, put_trades

CLOCK = SystemClock()
QUICK = WriterRules(waiting=WaitingRules(trades_every=0.01), first_pause=0.02, longest_pause=0.1)


@pytest.fixture(params=["sqlite", "postgresql", "hybrid"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    async with STORES[request.param](tmp_path, CLOCK) as opened:
        yield opened


class Load:
    """Trades without end, and candles of which the newest is corrected each time."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._stopped = False
        self.rounds = 0

    async def run(self) -> None:
        while not self._stopped:
            self._writer.candles(batch(made([self.rounds])), CLOCK.now_ms())
            self._writer.candles(batch(made([self.rounds], version=1)), CLOCK.now_ms())
            await put_trades(self._writer, self.rounds * 20, 20)
            self.rounds += 1

    async def some_rounds(self) -> None:
        goal = self.rounds + 5
        await until(lambda: self.rounds >= goal)

    def stop(self) -> None:
        self._stopped = True


async def test_what_comes_meanwhile_is_journaled_and_arrives(store: Any, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    async with Writer.opened(store, journal, CLOCK, rules=QUICK) as writer, asyncio.TaskGroup() as group:
        load = Load(writer)
        group.create_task(load.run())
        for state in (SafetyState.FAIL, SafetyState.LOCKDOWN):
            await load.some_rounds()
            await until(lambda: writer.status().state is WriterState.DIRECT)
            await store.set_control(safety=state, reason="look first")
            before = await store.read(BTC, START, at(100_000)), (await store.versions([BTC]))[0]
            await load.some_rounds()
            status = writer.status()
            assert status.state is WriterState.SPILLING
            assert "look first" in (status.error or "")
            assert status.journal_records > 0
            assert (await store.read(BTC, START, at(100_000)), (await store.versions([BTC]))[0]) == before
            await store.set_control(safety=SafetyState.NORMAL)
            await until(lambda: writer.status().state is WriterState.DIRECT)
        await load.some_rounds()
        load.stop()
    trades = await store.trades("binance", "BTC/USDT", LONG_AGO, ALWAYS)
    assert trades == [trade(number, one.received_at) for number, one in enumerate(trades)]
    assert len(trades) == load.rounds * 20
    assert await store.read(BTC, START, at(100_000)) == made(range(load.rounds), version=1)
    # Each first version was there before the second: none overtook the other, none came twice.
    (info,) = await store.series()
    assert info.corrections == load.rounds
    assert list(journal.glob("*.journal")) == []


async def test_what_a_stopped_writer_leaves_is_written_by_the_next(store: Any, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    await store.set_control(safety=SafetyState.FAIL)
    async with Writer.opened(store, journal, CLOCK, rules=QUICK) as writer:
        writer.candles(batch(made(range(5))), CLOCK.now_ms())
        await put_trades(writer, 0, 10)
    assert await store.count() == (0, 0)
    await store.set_control(safety=SafetyState.NORMAL)
    async with Writer.opened(store, journal, CLOCK, rules=QUICK) as writer:
        await until(lambda: writer.status().state is WriterState.DIRECT)
    assert await store.read(BTC, START, at(100)) == made(range(5))
    assert len(await store.trades("binance", "BTC/USDT", LONG_AGO, ALWAYS)) == 10
