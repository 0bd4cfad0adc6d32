"""A socket that stays open and says nothing: REST takes over in the configured time, and hands back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chandlery.live_feed import FeedPlan, OpenedFeed, opened_feed
from chandlery.settings import Settings
from chandlery.status_file import STATUS_NAME
from chandlery.wiring import CLOCK, Store, opened_store
from exchange.simulator.market import Market
from exchange.simulator.synthetic import SyntheticTape
from ingest.route import RouteStatus
from market.candle import COLUMNS
from market.channel import Channel, Topic
from market.coverage import CoverageState
from market.instrument import Series
from market.interval import Interval, IntervalSet
from market.order_book import BookState
from market.timeframe import MINUTE_MS, ONE_MINUTE
from store.live_market import LiveMarket
from store.trade_batch import RunState
from tests.acceptance.conftest import Command
from tests.support.simulated import simulated_exchange

SEED = 7
BEGIN_MS = 1_717_200_030_000
SYMBOLS = ("BTC/USDT", "ETH/USDT")
#: A minute of the market takes 6 s.
SPEED = 10.0
#: Seconds without data that are too many; routes are looked at each second; so long the machine may be busy.
SILENCE, CHECK, BUSY = 1.0, 1.0, 8.0
#: Seconds of silence, in which REST must take over, and bring a closed candle, before the socket is heard again. A
#: socket on which nothing at all comes for 20 s is given up.
SILENT, STREAM_SILENT = 16.0, 24.0
DEADLINE = 180.0


@dataclass
class World:
    """A feed at work on a simulated exchange, and the status command on its home."""

    home: Path
    feed: OpenedFeed
    store: Store
    memory: LiveMarket
    command: Command

    def routes(self) -> dict[str, RouteStatus]:
        """By topic."""
        return {str(one.topic): one for one in self.feed.feed.status(self.feed.writer).routes}

    def paths(self) -> dict[str, str]:
        return {topic: str(one.path) for topic, one in self.routes().items()}

    def messages(self) -> dict[str, int]:
        return {topic: one.messages for topic, one in self.routes().items()}

    def shown(self) -> dict[str, str]:
        """The path of each topic by ``chandlery status --json``."""
        done = self.command("status", "--home", self.home, "--json")
        assert done.code == 0, done.err
        return {one["topic"]: one["path"] for one in done.json["routes"]}

    async def until(self, what: str, condition: Callable[[], bool]) -> None:
        end = asyncio.get_running_loop().time() + DEADLINE
        while not condition():
            assert asyncio.get_running_loop().time() < end, f"not within {DEADLINE:g} s: {what}; {self.routes()}"
            await asyncio.sleep(0.02)

    def closed(self) -> set[int | None]:
        """The newest closed candles."""
        return {one.last_closed for one in self.feed.feed.loop.statuses.values()}

    async def silent(self, topics: set[str]) -> tuple[int, set[int | None]]:
        """Wait until all `topics` are on the path over REST.

        :return: when the last message before that came, and the closed candles of then.
        """
        counts, at, closed = self.messages(), CLOCK.now_ms(), self.closed()

        def helped() -> bool:
            nonlocal counts, at, closed
            now = self.messages()
            if any(now[topic] != counts[topic] for topic in topics):
                counts, at, closed = now, CLOCK.now_ms(), self.closed()
            paths = self.paths()
            return all(paths[topic] == "rest" for topic in topics)

        await self.until(f"{sorted(topics)} over REST", helped)
        return at, closed


@asynccontextmanager
async def world(home: Path, command: Command, *faults: dict[str, Any]) -> AsyncIterator[World]:
    settings = Settings(home=home, channels=tuple(Channel), record_trades=True, silence=SILENCE, settle_ms=500)
    running_exchange = simulated_exchange(
        seed=SEED, symbols=SYMBOLS, now_ms=BEGIN_MS, speed=SPEED, faults=faults, folder=home,
        # Its clock runs faster, and so does its minute.
        weight_limit=int(6000 * SPEED),
    )  # fmt: skip
    with running_exchange as url:
        plan = FeedPlan(exchange="binance", url=url, symbols=[*SYMBOLS], timeframe=ONE_MINUTE)
        memory = LiveMarket(CLOCK)
        async with opened_store(settings) as store, opened_feed(plan, settings, store, memory) as feed:
            running = asyncio.create_task(feed.run(home / STATUS_NAME))
            one = World(home, feed, store, memory, command)
            try:
                await one.until("routes", lambda: running.done() or len(one.routes()) == 8)
                await one.until("streams", lambda: running.done() or set(one.paths().values()) == {"stream"})
                yield one
            finally:
                running.cancel()
                (ended,) = await asyncio.gather(running, return_exceptions=True)
                assert isinstance(ended, asyncio.CancelledError), ended


ALL = {
    str(Topic(channel, symbol, ONE_MINUTE if channel is Channel.CANDLES else None))
    for channel in Channel
    for symbol in SYMBOLS
}


async def check_everything(one: World) -> None:
    """Every trade and candle up to now is stored once, as the market had it, whatever the streams left out."""
    await one.feed.writer.durable()
    for symbol in SYMBOLS:
        market = Market(SyntheticTape(SEED, symbol))
        stored = await one.store.trades("binance", symbol, 0, 1 << 52)
        true = market.trades(stored[0].event_time, stored[-1].event_time + 1)
        wanted = [
            (trade.id, trade.price, trade.quantity, trade.time, not trade.buyer_is_maker)
            for trade in true
            if int(stored[0].id) <= trade.id <= int(stored[-1].id)
        ]
        found = [(trade.id, trade.price, trade.quantity, trade.event_time, trade.taker_buys) for trade in stored]
        assert found == wanted
        assert [run.state for run in await one.store.trade_runs("binance", symbol)] == [RunState.PRESENT]
        series = Series("binance", symbol, ONE_MINUTE)
        (last,) = [status.last_closed for status in one.feed.feed.loop.statuses.values() if status.series == series]
        assert last is not None
        kept = await one.store.read(series, BEGIN_MS, last + MINUTE_MS)
        minutes = market.minutes(last + 10 * MINUTE_MS, BEGIN_MS, last + MINUTE_MS)
        assert minutes.num_rows >= 1
        assert kept.select(COLUMNS).to_pylist() == minutes.select(COLUMNS).to_pylist()
        whole = Interval(BEGIN_MS // MINUTE_MS * MINUTE_MS + MINUTE_MS, last + MINUTE_MS)
        present = await one.store.coverage(series, whole)
        assert IntervalSet(each.interval for each in present if each.state is CoverageState.PRESENT) == IntervalSet(
            [whole]
        )


async def test_rest_takes_over_from_a_silent_socket_and_hands_back(tmp_path: Path, chandlery: Command) -> None:
    silence = {"stream": "*", "from": 300, "count": 1, "do": "silence", "seconds": SILENT}
    async with world(tmp_path, chandlery, silence) as one:
        await one.until("the command shows streams", lambda: one.shown() == dict.fromkeys(ALL, "stream"))
        began, closed = await one.silent(ALL)
        routes = one.routes()
        late = max(route.since for route in routes.values()) - began
        assert late <= (SILENCE + CHECK + BUSY) * 1000
        assert all(route.reason for route in routes.values())
        counts = one.messages()
        newest = {symbol: await one.store.newest_trade("binance", symbol) for symbol in SYMBOLS}
        await one.until("the command shows REST", lambda: one.shown() == dict.fromkeys(ALL, "rest"))
        # Everything goes on.
        asked = CLOCK.now_ms()

        def fresh() -> bool:
            tickers = [one.memory.tickers.get("binance", symbol) for symbol in SYMBOLS]
            books = [one.memory.order_books.get("binance", symbol, 20) for symbol in SYMBOLS]
            return (
                all(ticker is not None and ticker.received_at > asked for ticker in tickers)
                and all(book is not None and book.book.received_at > began for book in books)
                and len(one.closed()) == 1
                and one.closed() != closed
            )

        await one.until("tickers, books and a closed candle over REST", fresh)
        for symbol in SYMBOLS:
            now, before = await one.store.newest_trade("binance", symbol), newest[symbol]
            assert now is not None
            assert before is None or int(now.id) > int(before.id)
        # All of that while the sockets were silent.
        assert one.messages() == counts
        assert set(one.paths().values()) == {"rest"}
        await one.until("streams again", lambda: set(one.paths().values()) == {"stream"})
        await one.until("the command shows streams", lambda: one.shown() == dict.fromkeys(ALL, "stream"))
        status = one.feed.feed.status(one.feed.writer)
        # The connection itself was kept.
        assert [(one.reconnects, one.replaced) for one in status.connections] == [(0, 0)]
        assert all(book.state is BookState.LIVE for _, book in status.books)
        await check_everything(one)


async def test_single_silent_streams_are_helped_out(tmp_path: Path, chandlery: Command) -> None:
    trades, book = "trades BTC/USDT", "order_books ETH/USDT"
    lasting = {"count": 1, "do": "silence", "scope": "stream", "seconds": STREAM_SILENT}
    faults: list[dict[str, Any]] = [
        {"stream": "btcusdt@trade", "from": 40, **lasting},
        {"stream": "ethusdt@depth@100ms", "from": 90, **lasting},
    ]
    async with world(tmp_path, chandlery, *faults) as one:
        began, _ = await one.silent({book})
        assert one.routes()[book].since - began <= (SILENCE + CHECK + BUSY) * 1000

        def served() -> bool:
            found = one.memory.order_books.get("binance", "ETH/USDT", 20)
            return found is not None and found.book.received_at > began

        await one.until("a book over REST", served)
        await one.silent({trades, book})
        # Trades come in bursts: the stream counts as silent after twenty times its usual pause, if that is longer.
        assert "silent for" in str(one.routes()[trades].reason)
        others = dict.fromkeys(ALL - {trades, book}, "stream")
        await one.until("the command shows it", lambda: one.shown() == {**others, trades: "rest", book: "rest"})
        counts = one.messages()
        refilled = one.routes()[trades].refilled
        await one.until("trades over REST", lambda: one.routes()[trades].refilled > refilled)
        assert (one.messages()[trades], one.messages()[book]) == (counts[trades], counts[book])
        await one.until("streams again", lambda: one.shown() == dict.fromkeys(ALL, "stream"))
        status = one.feed.feed.status(one.feed.writer)
        assert [(one.reconnects, one.replaced) for one in status.connections] == [(0, 0)]
        await check_everything(one)
