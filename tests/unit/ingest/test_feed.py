"""A whole feed on scripted streams and a scripted exchange: what it says of itself, and where it is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import orjson
import pytest
from structlog.testing import capture_logs

from exchange.budget import BudgetStatus, Purpose
from exchange.trade_page import TradePage
from ingest.book_rules import BookStatus
from ingest.built_candles import Agreement
from ingest.feed import Feed
from ingest.feed_rules import FeedRules
from ingest.feed_status import FeedStatus
from ingest.lag import Lag
from ingest.live import LiveRules, LiveStatus
from ingest.route import Path as DataPath
from ingest.route import RouteStatus
from ingest.router import ConnectionStatus
from ingest.writer import Writer
from ingest.writer_status import WriterStatus
from market.book_message import BookChain, BookChange, BookSnapshot, BookStart
from market.candle import no_candles
from market.channel import Channel, Topic
from market.errors import BadInput, NotFound, StoreUnavailable
from market.instrument import Instrument
from market.ticker import Ticker
from market.timeframe import MINUTE_MS, ONE_MINUTE
from market.trade import Trade
from store.batch import CandleBatch, Written
from store.bus.bus import BusRules
from store.bus.memory import MemoryBus
from store.live_market import LiveMarket
from store.trade_batch import TradesWritten
from tests.conftest import ManualClock
from tests.support.notes import eventually
from tests.unit.ingest.scripted import START, MemoryStore, ScriptedHistory, minutes
from tests.unit.ingest.test_router import Client, Wire

BTC = "BTC/USDT"
NOW = START + 100 * MINUTE_MS
SPENT = BudgetStatus(
    name="api.example weight",
    limit=6000.0,
    window_ms=60_000,
    used=12.0,
    allowed=dict.fromkeys(Purpose, 100.0),
    share=0.5,
    waiting=dict.fromkeys(Purpose, 0),
    held_until=None,
    banned_until=None,
)


class History(ScriptedHistory):
    """The same, with a market as it is now."""

    def __init__(self) -> None:
        super().__init__(minutes(*range(100)))
        self.now = NOW
        #: Of each question for trades, the last one known.
        self.after: list[Trade | None] = []

    async def trades_after(self, symbol: str, last: Trade | None, *, limit: int = 1000) -> TradePage:
        self.after.append(last)
        self._ask("trades", 0, 0)
        return TradePage(trades=[], complete=True, missing=False)

    async def order_book(self, symbol: str, levels: int = 1000) -> BookSnapshot:
        self._ask("order_book", 0, 0)
        return BookSnapshot(10, [(99.0, 1.0)], [(101.0, 1.0)], None, NOW)

    async def ticker(self, symbol: str) -> Ticker:
        self._ask("ticker", 0, 0)
        return Ticker(START, last=100.0)


class Store(MemoryStore):
    """The same, for everything that a feed keeps."""

    async def write_all(self, batches: Sequence[CandleBatch]) -> list[Written]:
        return [await self.write(batch) for batch in batches]

    async def read(self, series: Any, start_ms: int, end_ms: int) -> Any:
        return no_candles()

    async def save_instruments(self, instruments: Sequence[Instrument], complete: bool = False) -> None:
        self.instruments = list(instruments)

    async def write_trades(self, batches: Any) -> TradesWritten:
        return TradesWritten()

    async def drop_trades(self, before_ms: int) -> None:
        pass

    async def newest_trade(self, exchange: str, symbol: str) -> Trade | None:
        return None

    async def trade_runs(self, exchange: str, symbol: str) -> list[Any]:
        return []

    async def refuse_messages(self, refused: Any) -> None:
        pass

    async def record_settle(self, exchange: str, timeframe: Any, counts: Any) -> None:
        pass

    async def settle_checks(self, exchange: str | None = None) -> list[Any]:
        return []


class TradesKept(Store):
    """The same with a memory for trades, which are refused so many times."""

    def __init__(self) -> None:
        super().__init__()
        self.refusals = 0
        self.kept: list[Trade] = []

    async def write_trades(self, batches: Any) -> TradesWritten:
        if self.refusals:
            self.refusals -= 1
            raise StoreUnavailable("away")
        self.kept += [trade for batch in batches for trade in batch.trades]
        return TradesWritten()

    async def newest_trade(self, exchange: str, symbol: str) -> Trade | None:
        return self.kept[-1] if self.kept else None


class Bench:
    """A feed at work."""

    def __init__(self, channels: frozenset[Channel] = frozenset(Channel), store: type[Store] = Store) -> None:
        self.history, self.store, self.clock = History(), store(), ManualClock(NOW)
        self.client = Client(
            book_start=BookStart.REST, book_chain=BookChain.FIRST_ID, dense_trade_ids=True, says_closed=True
        )
        self.told: list[LiveStatus] = []
        self.bus = MemoryBus(BusRules())
        self.feed = Feed(
            self.history,
            self._streams,
            self.store,  # type: ignore[arg-type]
            LiveMarket(self.clock),
            self.clock,
            [BTC, BTC],
            ONE_MINUTE,
            rules=FeedRules(channels=channels, record_trades=True, live=LiveRules(first_wait=0.01)),
            bus=self.bus,
            on_status=self.told.append,
            limits=lambda: [SPENT],
            sleep=self._sleep,
        )

    def _streams(self, symbols: Mapping[str, str]) -> Client:
        assert symbols == {BTC: "BTC"}
        return self.client

    async def _sleep(self, seconds: float) -> None:
        """A hundred times as fast; a night takes for ever."""
        await asyncio.sleep(seconds / 100 if seconds < 1000 else 1000)

    @asynccontextmanager
    async def running(self, folder: Path) -> AsyncIterator[Writer]:
        async with Writer.opened(self.store, folder, self.clock, on_crowded=self.feed.crowded) as writer:
            task = asyncio.create_task(self.feed.run(writer))
            try:
                await self.until(lambda: task.done() or self.client.open, "a connection")
                if task.done():
                    task.result()
                yield writer
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    @property
    def wire(self) -> Wire:
        return self.client.open[0]

    async def until(self, condition: Any, what: str) -> None:
        async def holds() -> bool:
            return bool(condition())

        await eventually(holds, what)

    def route(self, writer: Writer, channel: Channel) -> RouteStatus:
        (found,) = [one for one in self.feed.status(writer).routes if one.topic.channel is channel]
        return found


def names(kind: Any) -> set[str]:
    return {one.name for one in fields(kind)}


def change(first: int, last: int) -> BookChange:
    return BookChange(first, last, None, [(99.0, float(last))], [], None, NOW)


async def test_everything_that_is_known_of_a_feed_is_said_in_json(tmp_path: Path) -> None:
    bench = Bench()
    async with bench.running(tmp_path) as writer:
        trades, books = Topic(Channel.TRADES, BTC), Topic(Channel.ORDER_BOOKS, BTC)
        bench.wire.send(trades, Trade(1, 100.0, 1.0, START, True, START))
        bench.wire.send(books, change(11, 11))
        bench.wire.refuse("p: is missing", trades)
        await bench.until(lambda: bench.feed.status(writer).series, "a round of the live loop")
        status = bench.feed.status(writer)
        said = orjson.loads(orjson.dumps(status.as_json()))
    assert names(FeedStatus) - {"books", "built", "settle_checked", "settle_drifted", "settle_delays"} <= set(said)
    assert set(said["settle"]) == {"checked", "drifted", "delays_ms"}
    for key, kind, more in (
        ("series", LiveStatus, set()),
        ("routes", RouteStatus, set()),
        ("order_books", BookStatus, {"symbol"}),
        ("connections", ConnectionStatus, set()),
        ("limits", BudgetStatus, set()),
    ):
        assert said[key], key
        for one in said[key]:
            assert set(one) == names(kind) | more, key
    assert set(said["writer"]) == names(WriterStatus)
    assert set(said["writer"]["lag"]) == names(Lag)
    assert set(said["built_candles"][BTC]) == names(Agreement)
    assert [one["topic"] for one in said["routes"]] == [
        "candles BTC/USDT 1m",
        "order_books BTC/USDT",
        "tickers BTC/USDT",
        "trades BTC/USDT",
    ]
    assert said["series"][0]["series"] == "scripted BTC/USDT 1m"
    assert sum(said["paths"].values()) == 4
    assert said["writer"]["refused_messages"] == 1
    # Numbers only: a bus and a database have addresses with passwords in them.
    assert set(said["bus"]) == {"published", "dropped"}
    assert all(isinstance(one, int) for one in said["bus"].values())


async def test_a_feed_that_has_not_begun_says_so(tmp_path: Path) -> None:
    bench = Bench()
    async with Writer.opened(bench.store, tmp_path, bench.clock) as writer:
        said = orjson.loads(orjson.dumps(bench.feed.status(writer).as_json()))
    empty = ("series", "routes", "order_books", "connections", "built_candles", "paths")
    assert all(not said[name] for name in empty)


async def test_trades_go_on_after_those_that_an_earlier_process_left_in_the_journal(tmp_path: Path) -> None:
    bench = Bench(frozenset({Channel.TRADES}), TradesKept)
    store, left = bench.store, Trade(5, 100.0, 1.0, NOW - 1000, True, NOW - 1000)
    assert isinstance(store, TradesKept)
    store.refusals = 1_000
    async with Writer.opened(store, tmp_path, bench.clock) as writer:
        writer.trade_sink("scripted", BTC, True)(left)
    # The store is still away when the next process starts, for a moment.
    store.refusals = 1
    async with bench.running(tmp_path):
        await bench.until(lambda: bench.history.after, "a question for the trades since")
        assert store.kept == [left]
    assert bench.history.after[0] == left


async def test_changes_of_an_order_books_state_are_logged_and_counted(tmp_path: Path) -> None:
    bench, topic = Bench(), Topic(Channel.ORDER_BOOKS, BTC)
    with capture_logs() as logs:
        async with bench.running(tmp_path) as writer:
            bench.wire.send(topic, change(11, 11))
            book = bench.feed.status(writer).books
            await bench.until(lambda: bench.feed.status(writer).books[0][1].state == "live", "a book")
            assert book[0][1].resyncs == 0
            bench.wire.send(topic, change(20, 20))
            (_, after) = bench.feed.status(writer).books[0]
            assert (after.resyncs, bench.route(writer, Channel.ORDER_BOOKS).refills) == (1, 1)
    marks = [one for one in logs if one["event"] == "order book"]
    assert [(one["state"], one["resyncs"]) for one in marks[:3]] == [("syncing", 0), ("live", 0), ("stale", 1)]
    assert {one["topic"] for one in marks} == {"order_books BTC/USDT"}
    assert "hole" in marks[2]["reason"]


async def test_candles_that_rest_refuses_are_refused_and_told(tmp_path: Path) -> None:
    bench = Bench(frozenset({Channel.CANDLES}))
    refusing = False

    def before(question: str) -> None:
        if refusing and question in ("candles", "first_open"):
            raise NotFound("symbol", BTC, hint="a symbol that is traded")

    bench.history.before = before
    async with bench.running(tmp_path) as writer:
        await bench.until(lambda: bench.told and bench.told[-1].last_closed, "candles")
        refusing = True
        bench.history.now += 120_000
        bench.clock.advance(120_000)
        bench.client.failing = 10**6
        bench.wire.cut()
        await bench.until(lambda: bench.route(writer, Channel.CANDLES).path is DataPath.REFUSED, "refused")
        assert "a symbol that is traded" in (bench.route(writer, Channel.CANDLES).reason or "")
        assert bench.told[-1].refused
        refusing = False
        bench.clock.advance(120_000)
        await bench.until(lambda: bench.route(writer, Channel.CANDLES).path is DataPath.REST, "answered")
        assert not bench.told[-1].refused


async def test_a_channel_that_is_not_streamed_is_bad_input(tmp_path: Path) -> None:
    bench = Bench(frozenset({Channel.TICKERS}))
    bench.client.rules = type(bench.client.rules)(channels=frozenset({Channel.TRADES}))
    with pytest.raises(BadInput, match="channels: 'tickers' is not accepted; expected some of trades"):
        async with bench.running(tmp_path):
            pass
