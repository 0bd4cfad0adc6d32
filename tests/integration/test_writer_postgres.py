"""The writer on a PostgreSQL that is killed and started again under load: everything arrives, in order, once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.waiting import WaitingRules
from ingest.writer import Writer, WriterRules
from ingest.writer_status import WriterState
from market.clock import SystemClock
from store.postgres.address import DatabaseUrl
from store.postgres.mode import Mode
from store.postgres.store import PostgresStore
from tests.support.failing_store import until
from tests.support.made_candles import BTC, START, at, batch, made
from tests.support.notes import IMPATIENT, RULES
from tests.support.postgres_server import MAINTENANCE, PrivatePostgres
from tests.support.scripted_writes import trade
from tests.support.stored_trades import ALWAYS, LONG_AGO, put_trades

NAME = "market"
CLOCK = SystemClock()
SYMBOLS = ("BTC/USDT", "ETH/USDT", "SOL/USDT")
QUICK = WriterRules(waiting=WaitingRules(trades_every=0.01), first_pause=0.02, longest_pause=0.1)


@pytest.fixture(scope="module")
def server(postgres: PrivatePostgres) -> Iterator[PrivatePostgres]:
    """A server to be killed; after `postgres`, which skips where there can be none."""
    with PrivatePostgres() as server:
        server.sql(MAINTENANCE, f"CREATE DATABASE {NAME}")
        yield server


#: Seconds between two rounds of the load.
_PAUSE = 0.02


class Load:
    """Streams that never stop: trades of some symbols, and one candle that is corrected again and again.

    They bring some thousand rows a second, and not as many as can be taken: what comes faster than a database
    writes is never behind it.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._stopped = False
        self.rounds = 0

    async def run(self) -> None:
        while not self._stopped:
            first = self.rounds * 40
            self._writer.candles(batch(made([1], self.rounds)), CLOCK.now_ms())
            await asyncio.gather(*(put_trades(self._writer, first, 40, symbol) for symbol in SYMBOLS))
            self.rounds += 1
            await asyncio.sleep(_PAUSE)

    async def some_rounds(self, count: int = 5) -> None:
        """Let it go on for a while."""
        goal = self.rounds + count
        await until(lambda: self.rounds >= goal)

    def stop(self) -> None:
        self._stopped = True


async def test_killed_under_load_it_gets_everything_in_order_and_once(
    server: PrivatePostgres, tmp_path: Path
) -> None:
    url = DatabaseUrl.parse(server.url(NAME))
    async with (
        PostgresStore.opened(url, CLOCK, rules=IMPATIENT, mode=Mode.PLAIN, refresh=False) as store,
        Writer.opened(store, tmp_path / "journal", CLOCK, rules=QUICK) as writer,
        asyncio.TaskGroup() as group,
    ):
        load = Load(writer)
        group.create_task(load.run())
        for _ in range(2):
            await load.some_rounds()
            await until(lambda: writer.status().state is WriterState.DIRECT)
            await asyncio.to_thread(server.kill)
            await until(lambda: writer.status().state is WriterState.SPILLING)
            # Nobody who is waited for waits for the database.
            await load.some_rounds(20)
            assert writer.status().journal_records > 0
            await asyncio.to_thread(server.start)
            await until(lambda: writer.status().state is WriterState.DIRECT)
            assert writer.status().journal_records == 0
        await load.some_rounds()
        load.stop()
    async with PostgresStore.opened(url, CLOCK, rules=RULES, refresh=False) as store:
        for symbol in SYMBOLS:
            trades = await store.trades("binance", symbol, LONG_AGO, ALWAYS)
            assert [one.id for one in trades] == list(range(load.rounds * 40))
            assert trades == [trade(int(one.id), one.received_at) for one in trades]
        assert await store.read(BTC, START, at(10)) == made([1], load.rounds - 1)
    assert list((tmp_path / "journal").glob("*.journal")) == []
    assert list((tmp_path / "journal").glob("*.refused")) == []
