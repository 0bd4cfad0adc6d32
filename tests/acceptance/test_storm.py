"""A storm: twenty symbols, an hour of market, a fault of every kind every few seconds. Nothing is lost or twice."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from chandlery.live_feed import FeedPlan, OpenedFeed, opened_feed
from chandlery.settings import Settings
from chandlery.wiring import CLOCK, Store, opened_store
from exchange.binance.wire import OrderBook
from exchange.simulator.market import Market
from market.candle import COLUMNS
from market.channel import Channel
from market.coverage import CoverageState
from market.instrument import Series
from market.interval import Interval, IntervalSet
from market.timeframe import MINUTE_MS, ONE_MINUTE
from store.live_market import LiveMarket
from store.trade_batch import RunState
from tests.support import storm
from tests.support.simulated import simulated_exchange

#: Real seconds that an hour of the market takes; an hour for those who have the time. In less than a minute a slow
#: machine could not keep up with twenty symbols, and the exchange would cut it off again and again.
SECONDS = float(os.environ.get("CHANDLERY_TEST_STORM_SECONDS", "60"))
SPEED = 3600 / SECONDS
#: Real seconds in which everything must have been repaired after the storm.
CALM_SECONDS = 300.0
EXCHANGE = "binance"


class Books:
    """Looks at every order book that is served, again and again."""

    def __init__(self, memory: LiveMarket) -> None:
        self._memory = memory
        self.seen: dict[tuple[str, int], Any] = {}
        self.refused = 0

    async def look(self) -> None:
        while True:
            for symbol in storm.SYMBOLS:
                served = self._memory.order_books.get(EXCHANGE, symbol, 20)
                if served is None:
                    self.refused += 1
                else:
                    self.seen[symbol, served.book.last_id] = served.book
            await asyncio.sleep(0.2)

    async def every_symbol(self) -> bool:
        """Whether a book of each symbol has been seen."""
        return len({symbol for symbol, _ in self.seen}) == len(storm.SYMBOLS)

    def check(self, markets: dict[str, Market]) -> None:
        """Every served book is the exchange's of that moment, to the last level."""
        for (symbol, last_id), book in self.seen.items():
            true = book_at(markets[symbol], last_id)
            assert true.last_update_id == last_id, (symbol, last_id)
            assert (tuple(book.bids), tuple(book.asks)) == (true.bids, true.asks), (symbol, last_id)


def book_at(market: Market, last_id: int) -> OrderBook:
    """The exchange's book as of a number, or as of the next one before."""
    earliest, latest = storm.BEGIN_MS - MINUTE_MS, storm.BEGIN_MS + 48 * 60 * MINUTE_MS
    while latest - earliest > 100:
        middle = (earliest + latest) // 2
        if market.book.snapshot(middle, 1).last_update_id <= last_id:
            earliest = middle
        else:
            latest = middle
    before, after = (market.book.snapshot(at, 20) for at in (earliest, latest))
    return after if after.last_update_id <= last_id else before


async def exchange_time(url: str) -> int:
    async with httpx.AsyncClient(base_url=url) as client:
        for _ in range(200):
            try:
                answer = await client.get("/simulator/clock")
                return int(answer.json()["now_ms"])
            except (httpx.HTTPError, ValueError):
                await asyncio.sleep(0.05)
    raise AssertionError("the simulated exchange does not tell its time")


async def reached(what: str, condition: Callable[[], Any], seconds: float) -> None:
    end = asyncio.get_running_loop().time() + seconds
    while not await condition():
        assert asyncio.get_running_loop().time() < end, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.1)


@pytest.mark.crash
async def test_a_storm_of_faults_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, channels=tuple(Channel), record_trades=True, silence=1.0, settle_ms=2000)
    plan = FeedPlan(exchange=EXCHANGE, url=None, symbols=list(storm.SYMBOLS), timeframe=ONE_MINUTE)
    running = simulated_exchange(
        seed=storm.SEED,
        symbols=storm.SYMBOLS,
        now_ms=storm.BEGIN_MS,
        speed=SPEED,
        faults=storm.faults(SECONDS),
        folder=tmp_path,
        # Its clock runs faster, and so does its minute.
        weight_limit=int(6000 * SPEED),
    )
    with running as url:
        memory = LiveMarket(CLOCK)
        books = Books(memory)
        async with opened_store(settings) as store:
            plan = FeedPlan(exchange=EXCHANGE, url=url, symbols=plan.symbols, timeframe=ONE_MINUTE)
            async with opened_feed(plan, settings, store, memory) as feed:
                tasks = [
                    asyncio.create_task(feed.run(tmp_path / "status.json")),
                    asyncio.create_task(books.look()),
                ]
                try:
                    await _through(url, feed, store, tasks[0])
                    cut = await exchange_time(url)
                    await _kept(store, cut, tasks[0])
                    await reached("a book of every symbol", books.every_symbol, CALM_SECONDS)
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
                status = feed.feed.status(feed.writer).as_json()
            await _check(store, cut)
        async with httpx.AsyncClient(base_url=url) as client:
            hits = (await client.get("/simulator/faults")).json()
    assert sum(hits.values()) > 20, hits
    books.check(storm.markets())
    assert books.refused
    assert all(one["different"] == 0 for one in status["built_candles"].values())
    assert sum(one["equal"] for one in status["built_candles"].values()) > 0


async def _through(url: str, feed: OpenedFeed, store: Store, running: asyncio.Task[None]) -> None:
    """Until the hour is over."""

    async def over() -> bool:
        if running.done():
            running.result()
        return await exchange_time(url) >= storm.BEGIN_MS + 60 * MINUTE_MS

    await reached("the end of the hour", over, 3 * SECONDS + 30)


async def _kept(store: Store, cut: int, running: asyncio.Task[None]) -> None:
    """Until every trade and candle up to `cut` is stored."""
    markets = storm.markets()

    async def all_there() -> bool:
        if running.done():
            running.result()
        for symbol, market in markets.items():
            last = max(trade.id for trade in market.trades(cut - 10 * MINUTE_MS, cut))
            newest = await store.newest_trade(EXCHANGE, symbol)
            if newest is None or int(newest.id) < last:
                return False
            series = Series(EXCHANGE, symbol, ONE_MINUTE)
            wanted = Interval(storm.BEGIN_MS + MINUTE_MS, cut // MINUTE_MS * MINUTE_MS - 2 * MINUTE_MS)
            known = IntervalSet(one.interval for one in await store.coverage(series, wanted))
            if IntervalSet([wanted]) - known:
                return False
        return True

    await reached("everything is repaired", all_there, CALM_SECONDS)


async def _check(store: Store, cut: int) -> None:
    """Hold what was kept against the market itself."""
    for symbol, market in storm.markets().items():
        stored = [one for one in await store.trades(EXCHANGE, symbol, 0, cut)]
        assert stored, symbol
        true = [one for one in market.trades(stored[0].event_time, cut) if one.id >= int(stored[0].id)]
        ours = [(one.id, one.price, one.quantity, one.event_time, one.taker_buys) for one in stored]
        assert ours == [(one.id, one.price, one.quantity, one.time, not one.buyer_is_maker) for one in true], symbol
        runs = await store.trade_runs(EXCHANGE, symbol)
        assert [one.state for one in runs] == [RunState.PRESENT], symbol
        await _check_candles(store, symbol, market, cut)


async def _check_candles(store: Store, symbol: str, market: Market, cut: int) -> None:
    series = Series(EXCHANGE, symbol, ONE_MINUTE)
    wanted = Interval(storm.BEGIN_MS + MINUTE_MS, cut // MINUTE_MS * MINUTE_MS - 2 * MINUTE_MS)
    true = market.minutes(cut + MINUTE_MS, wanted.start, wanted.end)
    kept = await store.read(series, wanted.start, wanted.end)
    assert kept.select(COLUMNS).to_pylist() == true.select(COLUMNS).to_pylist(), symbol
    holes = IntervalSet([wanted]) - IntervalSet.of_candles(
        true.column("open_time").cast("int64").to_numpy(), ONE_MINUTE
    )
    covered = await store.coverage(series, wanted)
    empty = IntervalSet(one.interval for one in covered if one.state is CoverageState.EMPTY)
    assert empty == holes, symbol
    present = IntervalSet(one.interval for one in covered if one.state is CoverageState.PRESENT)
    assert present == IntervalSet([wanted]) - holes, symbol
