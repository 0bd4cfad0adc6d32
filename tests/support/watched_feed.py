"""A live feed of a simulated exchange, everything that its readers were shown, and what they should have been."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from chandlery.live_feed import FeedPlan, OpenedFeed, opened_feed
from chandlery.settings import Settings
from chandlery.status_file import STATUS_NAME
from chandlery.wiring import CLOCK, Store, opened_store
from exchange.binance.wire import OrderBook
from exchange.simulator.market import Market
from exchange.simulator.synthetic import SyntheticTape
from ingest.feed_status import FeedStatus
from market.book_message import BookSnapshot
from market.candle import COLUMNS, open_times_ms
from market.candle_update import CandleUpdate
from market.channel import Channel
from market.instrument import Series
from market.interval import Interval, IntervalSet
from market.ticker import Ticker
from market.timeframe import DAY_MS, MINUTE_MS, ONE_MINUTE
from market.trade import Trade
from store.bus.bus import BusRules
from store.bus.memory import MemoryBus
from store.bus.message import MarketBatch, MarketMessage
from store.live_market import LiveMarket
from store.trade_batch import RunState
from tests.support.notes import eventually
from tests.support.simulated import simulated_exchange

EXCHANGE = "binance"
SEED = 11
SPEED = 60.0
BTC, ETH = "BTC/USDT", "ETH/USDT"


@dataclass
class Heard:
    """What readers of this process were shown."""

    bus: MemoryBus = field(default_factory=lambda: MemoryBus(BusRules()))
    published: list[tuple[str, MarketMessage]] = field(default_factory=list)
    books: dict[tuple[str, int], BookSnapshot] = field(default_factory=dict)
    tickers: set[tuple[str, Ticker]] = field(default_factory=set)
    forming: dict[tuple[str, int], list[float]] = field(default_factory=dict)

    async def subscribe(self) -> None:
        async with self.bus.subscribe("market_data.#") as messages:
            async for message in messages:
                batch = MarketBatch.unpacked(message.payload)
                self.published += [(batch.symbol, one) for one in batch.messages]

    async def look(self, memory: LiveMarket) -> None:
        while True:
            for symbol in (BTC, ETH):
                book = memory.order_books.get(EXCHANGE, symbol, 20)
                if book is not None:
                    self.books[symbol, book.book.last_id] = book.book
                if (ticker := memory.tickers.get(EXCHANGE, symbol)) is not None:
                    self.tickers.add((symbol, ticker))
                if (held := memory.candles.get(Series(EXCHANGE, symbol, ONE_MINUTE))) is not None:
                    row = held[0].to_pylist()[0]
                    opened = int(open_times_ms(held[0])[0])
                    self.forming[symbol, opened] = [row[name] for name in ("open", "high", "low", "close")]
            await asyncio.sleep(0.02)


@dataclass(frozen=True)
class Running:
    """A feed of the simulated exchange at work."""

    url: str
    begin: int
    opened: OpenedFeed
    store: Store
    memory: LiveMarket
    heard: Heard
    home: Path

    def status(self) -> FeedStatus:
        return self.opened.feed.status(self.opened.writer)

    async def json(self, path: str) -> Any:
        async with httpx.AsyncClient(base_url=self.url) as client:
            return (await client.get(path)).json()

    async def now(self) -> int:
        """The exchange's time."""
        return int((await self.json("/simulator/clock"))["now_ms"])


@contextmanager
def exchange(folder: Path, faults: list[dict[str, Any]], **more: Any) -> Iterator[tuple[str, int]]:
    """A simulated exchange that begins now, so that the future is the future; its address, and when it began."""
    begin = time.time_ns() // 1_000_000 // MINUTE_MS * MINUTE_MS
    limit = int(6000 * SPEED)
    delisted = {symbol: begin + after for symbol, after in more.pop("delisted", {}).items()}
    with simulated_exchange(
        seed=SEED, symbols=(BTC, ETH), now_ms=begin, speed=SPEED, faults=faults, folder=folder, weight_limit=limit,
        delisted=delisted,
    ) as url:  # fmt: skip
        yield url, begin


@asynccontextmanager
async def running(url: str, begin: int, home: Path, heard: Heard) -> AsyncIterator[Running]:
    # No stream is silenced here, and what a busy machine is late with shall not count as silence.
    settings = Settings(home=home, channels=tuple(Channel), record_trades=True, silence=10.0, settle_ms=2000)
    plan = FeedPlan(exchange=EXCHANGE, url=url, symbols=[BTC, ETH], timeframe=ONE_MINUTE, since_ms=begin)
    memory = LiveMarket(CLOCK)
    async with opened_store(settings) as store, opened_feed(plan, settings, store, memory) as feed:
        works = (feed.run(home / STATUS_NAME), heard.look(memory), heard.subscribe())
        tasks = [asyncio.create_task(work) for work in works]
        try:
            yield Running(url, begin, feed, store, memory, heard, home)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def kept(feed: Running, symbols: tuple[str, ...], cut: int) -> None:
    """Until every trade and candle before `cut` is stored; then hold them against the exchange's."""
    wanted = Interval(feed.begin + MINUTE_MS, cut // MINUTE_MS * MINUTE_MS - MINUTE_MS)

    async def all_there() -> bool:
        for symbol in symbols:
            newest = await feed.store.newest_trade(EXCHANGE, symbol)
            last = max(one.id for one in truth(symbol).trades(cut - 5 * MINUTE_MS, cut))
            covered = await feed.store.coverage(Series(EXCHANGE, symbol, ONE_MINUTE), wanted)
            missing = IntervalSet([wanted]) - IntervalSet(one.interval for one in covered)
            if newest is None or int(newest.id) < last or missing:
                return False
        return True

    await eventually(all_there, "everything is repaired")
    for symbol in symbols:
        stored = await feed.store.trades(EXCHANGE, symbol, 0, cut)
        market = truth(symbol)
        true = [one for one in market.trades(stored[0].event_time, cut) if one.id >= int(stored[0].id)]
        ours = [(one.id, one.price, one.quantity, one.event_time, one.taker_buys) for one in stored]
        assert ours == [(one.id, one.price, one.quantity, one.time, not one.buyer_is_maker) for one in true]
        runs = await feed.store.trade_runs(EXCHANGE, symbol)
        assert [one.state for one in runs] == [RunState.PRESENT]
        candles = await feed.store.read(Series(EXCHANGE, symbol, ONE_MINUTE), wanted.start, wanted.end)
        expected = market.minutes(cut + MINUTE_MS, wanted.start, wanted.end)
        assert candles.select(COLUMNS).to_pylist() == expected.select(COLUMNS).to_pylist()


def truth(symbol: str) -> Market:
    """What the exchange trades."""
    return Market(SyntheticTape(SEED, symbol))


def true_book(market: Market, last_id: int, begin: int, end: int) -> OrderBook:
    """The exchange's book as of a number."""
    while end - begin > 100:
        middle = (begin + end) // 2
        if market.book.snapshot(middle, 1).last_update_id <= last_id:
            begin = middle
        else:
            end = middle
    before, after = (market.book.snapshot(at, 20) for at in (begin, end))
    return after if after.last_update_id <= last_id else before


def check_shown(feed: Running, end: int) -> None:
    """Nothing that readers were shown is anything but the exchange's own."""
    for symbol in (BTC, ETH):
        market = truth(symbol)
        books = {last_id: book for (one, last_id), book in feed.heard.books.items() if one == symbol}
        told = [one for name, one in feed.heard.published if name == symbol]
        books |= {one.last_id: one for one in told if isinstance(one, BookSnapshot)}
        assert len(books) > 20
        for last_id, book in books.items():
            true = true_book(market, last_id, feed.begin - MINUTE_MS, end)
            assert (last_id, tuple(map(tuple, book.bids)), tuple(map(tuple, book.asks))) == (
                true.last_update_id, true.bids, true.asks,
            )  # fmt: skip
        trades = {one.id: one for one in told if isinstance(one, Trade)}
        trades |= {one.id: one for one in feed.memory.trades.get(EXCHANGE, symbol, 20_000)}
        hour = market.trades(feed.begin - 60 * MINUTE_MS, end)
        known = {one.id: (one.price, one.quantity, one.time) for one in hour}
        assert {id_: (one.price, one.quantity, one.event_time) for id_, one in trades.items()} == {
            id_: known[id_] for id_ in trades
        }
        low, high = _range(market, feed.begin, end)
        candles = [(one.open_time, [one.open, one.high, one.low, one.close]) for one in told if _is_candle(one)]
        candles += [(opened, prices) for (one, opened), prices in feed.heard.forming.items() if one == symbol]
        assert candles
        assert all(feed.begin - DAY_MS <= opened <= end for opened, _ in candles)
        assert all(low <= price <= high for _, prices in candles for price in prices)
        tickers = [ticker for one, ticker in feed.heard.tickers if one == symbol]
        tickers += [one for one in told if isinstance(one, Ticker)]
        assert len(tickers) > 20
        for ticker in tickers:
            assert (ticker.event_time or 0) <= end
            assert all(low / 2 < one < high * 2 for one in (ticker.bid, ticker.ask, ticker.last) if one is not None)


def _is_candle(one: MarketMessage) -> bool:
    return isinstance(one, CandleUpdate)


def _range(market: Market, begin: int, end: int) -> tuple[float, float]:
    """Lowest and highest price."""
    minutes = market.minutes(end, begin - MINUTE_MS, end)
    return min(minutes["low"].to_pylist()), max(minutes["high"].to_pylist())
