"""``kill -9`` of PostgreSQL under a live feed: everything gets there in order and once, the journal is empty."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from chandlery.live_feed import OpenedFeed
from chandlery.settings import Settings
from chandlery.wiring import opened_store
from ingest.writer_status import WriterState
from market.channel import Channel
from store.postgres.mode import Mode
from tests.support import market_kept
from tests.support.live_load import Account, Load, Watch, fed, reached
from tests.support.market_kept import BEGIN_MS, EXCHANGE, SYMBOLS
from tests.support.postgres_server import MAINTENANCE, PrivatePostgres
from tests.support.simulated import simulated_exchange

pytestmark = pytest.mark.crash

KILLS = int(os.environ.get("CHANDLERY_TEST_DATABASE_KILLS", "4"))
NAME = "market"
SPEED = 40
#: Trades a second besides those of the simulated exchange, and of how many instruments: so many that the journal
#: soon has more records than are brought to the database at once.
RATE, LOADED = 5_000, 100
#: Bytes by which the process may grow meanwhile.
GROWTH = 200 << 20
FAULTS = [
    {"stream": "*", "every": 7.0, "do": "disconnect"},
    {"stream": "*@trade", "every": 0.5, "do": "lose", "n": 3},
    {"stream": "*@trade", "every": 0.4, "do": "duplicate", "n": 3},
    {"path": "/api/v3/historicalTrades", "every": 1.5, "do": "partial"},
]
log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def server(postgres: PrivatePostgres) -> Iterator[PrivatePostgres]:
    """A server to be killed; after `postgres`, which skips where there can be none."""
    with PrivatePostgres() as server:
        server.sql(MAINTENANCE, f"CREATE DATABASE {NAME}")
        yield server


async def kill_again_and_again(
    server: PrivatePostgres, feed: OpenedFeed, watch: Watch, load: Load, rng: random.Random
) -> None:
    """Kill the server at random moments; every third time while the journal is being brought to it."""

    def writer_is(state: WriterState) -> bool:
        return watch.writer.state is state

    async def some_more(seconds: float) -> None:
        goal = load.each + seconds * RATE / LOADED
        await reached(lambda: load.each >= goal, 60, "some more trades")

    for kill in range(KILLS):
        if kill % 3 == 2:
            await reached(lambda: writer_is(WriterState.REPLAYING), 30, "the journal is replayed")
        else:
            await reached(lambda: writer_is(WriterState.DIRECT), 60, "the writer writes directly")
            await some_more(rng.uniform(0, 1))
        await asyncio.to_thread(server.kill)
        await reached(lambda: writer_is(WriterState.SPILLING), 30, "the writer spills")
        await some_more(rng.uniform(0, 1))
        if kill % 3 == 1:
            await reached(lambda: watch.writer.journal_records > 2_000, 30, "the journal is long")
        assert feed.feed.status(feed.writer).as_json()["writer"]["state"] == "spilling"
        assert feed.writer.status().journal_records > 0
        await asyncio.to_thread(server.start)


async def test_a_database_that_is_killed_gets_everything_once(server: PrivatePostgres, tmp_path: Path) -> None:
    rng = random.Random(7)
    settings = Settings(
        home=tmp_path,
        database_url=server.url(NAME),
        database_mode=Mode.PLAIN,
        database_timeout=1.0,
        channels=(Channel.CANDLES, Channel.TRADES),
        record_trades=True,
        silence=2.0,
    )
    account = Account()
    running = simulated_exchange(
        seed=market_kept.SEED,
        symbols=SYMBOLS,
        now_ms=BEGIN_MS,
        speed=SPEED,
        faults=FAULTS,
        folder=tmp_path,
        weight_limit=6000 * SPEED,
    )
    with running as url:
        async with fed(url, settings, SYMBOLS, account) as (feed, watch):
            load = Load(feed, watch, RATE, LOADED)
            loading = asyncio.create_task(load.run())
            await reached(lambda: account.rows > RATE, 60, "rows are written")
            await kill_again_and_again(server, feed, watch, load, rng)
            load.stop()
            await loading
            cut = await market_kept.exchange_time(url)
            async with opened_store(settings, read_only=True) as store:
                await market_kept.all_kept(store, SYMBOLS, cut)
            await reached(lambda: watch.writer.state is WriterState.DIRECT, 60, "the journal is empty")
    async with opened_store(settings, read_only=True) as store:
        missing, doubled = await market_kept.check_told(store, account.told)
        rows = await market_kept.check_kept(store, SYMBOLS, cut)
        runs = {symbol: await store.trade_runs(EXCHANGE, symbol) for symbol in load.symbols}
    journal = market_kept.journal_files(tmp_path)
    log.info(
        "database killed %d times; acknowledged %d rows, missing %d, doubled %d, equal to the exchange's %d; "
        "%d trades of load for each of %d symbols; most rows waiting %d; journal at most %d bytes, at the end %s; "
        "memory grew by %.1f MB; states %s",
        KILLS, account.rows, missing, doubled, rows, load.each, LOADED, watch.most_waiting,
        watch.most_journal_bytes, journal, (watch.most_memory - watch.memory) / 1e6, dict(watch.states),
    )  # fmt: skip
    assert (missing, doubled, journal, account.overtaken) == (0, 0, [], [])
    for symbol, found in runs.items():
        assert [(one.first_id, one.last_id) for one in found] == [(0, load.each - 1)], symbol
        assert account.durable[symbol] == load.each
    assert stored_load(server) == "|".join(str(load.each * LOADED) for _ in range(2))
    assert set(watch.states) == {WriterState.DIRECT, WriterState.SPILLING, WriterState.REPLAYING}
    assert watch.most_memory - watch.memory < GROWTH


def stored_load(server: PrivatePostgres) -> str:
    """Rows of the loaded instruments, and how many of them differ in instrument and id."""
    return server.sql(
        NAME,
        "SELECT count(*), count(DISTINCT (instrument_id, trade_id)) FROM trade_history "
        "JOIN instruments USING (instrument_id) WHERE symbol LIKE 'LOAD%'",
    )
