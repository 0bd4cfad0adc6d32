"""Recorded sessions of Binance through the whole chain: over real sockets into the feed, its books and the store.

What the exchange said, the recording has; so whatever the feed made of it is held against the recorded messages
themselves. The sessions of Coinbase, OKX and Bybit are in ``tests/integration/test_other_streams.py``.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from chandlery import live_feed
from chandlery.live_feed import FeedPlan, OpenedFeed, opened_feed
from chandlery.settings import Settings
from chandlery.wiring import CLOCK, Store, opened_store
from exchange.binance.history import BinanceHistory
from exchange.binance.streams import VENUES, BinanceStreams, Venue
from exchange.stream import StreamClient
from ingest import route as routes
from ingest.book_rules import BookRules
from ingest.feed_rules import FeedRules
from market.book_message import BookSnapshot
from market.candle_update import CandleUpdate, candle_rows
from market.channel import Channel, Topic
from market.errors import ExchangeUnavailable
from market.instrument import Series
from market.order_book import BookState
from market.timeframe import MINUTE_MS, ONE_MINUTE
from store.live_market import LiveMarket
from store.trade_batch import RunState
from tests.integration.test_recorded_books import FOUR_SYMBOLS, SPOT, TEN_SYMBOLS, USDM, Rebuilt, comparable
from tests.support.recorded_feed import Overheard, Recording
from tests.support.simulated import simulated_exchange

pytestmark = pytest.mark.recorded

DEADLINE = 300.0
FOREVER = 1 << 52
#: Later than any session: REST is not asked for candles, of which it would know what the streams have said.
LATER = 1_790_000_000_000
#: Whoever reads a recorded book to its last level sees more than one who stops where the snapshot was cut; see
#: ``tests/integration/test_recorded_books.py``.
WHOLE_BOOKS = BookRules(levels=5000)
#: Changes after which the exchange did not say what its best prices were: why is told at the same place.
NEVER_SENT = {50093478174, 50093480542}
PRICES = ["open_time", "open", "high", "low", "close", "volume"]


@dataclass
class Outcome:
    """What a feed left behind."""

    overheard: Overheard
    status: dict[str, Any]
    store: Store
    #: Unified symbol to the exchange's.
    symbols: dict[str, str]

    async def check_trades(self, recording: Recording) -> None:
        """Every recorded trade is stored once, and the ledger says so."""
        assert {name for name, trades in recording.trades.items() if trades} <= set(self.symbols.values())
        for symbol, exchange_symbol in self.symbols.items():
            wanted = recording.trades[exchange_symbol]
            stored = await self.store.trades(self.overheard.exchange, symbol, 0, FOREVER)
            found = [(one.id, one.price, one.quantity, one.event_time, one.taker_buys) for one in stored]
            assert found == wanted, symbol
            runs = await self.store.trade_runs(self.overheard.exchange, symbol)
            whole = [(wanted[0][0], wanted[-1][0], RunState.PRESENT)] if wanted else []
            assert [(one.first_id, one.last_id, one.state) for one in runs] == whole, symbol

    def points(self, recording: Recording, symbol: str) -> list[tuple[int, bool]]:
        """The number of each served book that can be held against recorded best prices, and whether it has them."""
        book: Any = None
        rebuilt = Rebuilt(book, [], bests=self.overheard.bests[symbol])
        rebuilt.tickers = [*recording.tickers[self.symbols[symbol]]]
        return comparable(rebuilt)


async def reached(what: Callable[[], str], condition: Callable[[], Awaitable[bool]]) -> None:
    end = asyncio.get_running_loop().time() + DEADLINE
    while not await condition():
        assert asyncio.get_running_loop().time() < end, f"not within {DEADLINE:g} s: {what()}"
        await asyncio.sleep(0.05)


@asynccontextmanager
async def fed(
    monkeypatch: pytest.MonkeyPatch,
    home: Path,
    session: Path,
    *,
    exchange: str = "binance",
    venue: Venue = VENUES["binance"],
    books: BookRules | None = None,
    faults: tuple[dict[str, Any], ...] = (),
    enough: Callable[[Overheard, OpenedFeed], bool],
) -> AsyncIterator[Outcome]:
    """A whole feed of all channels, until the session has been played and `enough` holds."""
    settings = Settings(home=home, channels=tuple(Channel), record_trades=True)
    memory = LiveMarket(CLOCK)
    made: list[Overheard] = []
    rules_of, book_of = live_feed._rules, BinanceHistory.order_book

    def streams(exchange: str, url: str | None, symbols: Mapping[str, str]) -> StreamClient:
        client = BinanceStreams(exchange, symbols, url, venue=venue)
        made.append(Overheard(client, memory, 0 if books is None else len(symbols)))
        return made[0]

    async def order_book(self: BinanceHistory, symbol: str, levels: int = 1000) -> BookSnapshot:
        # Before it is connected the route looks over REST. The recorder did not.
        if books is not None and levels < books.levels:
            raise ExchangeUnavailable("the recorded answer is for the stream to begin with")
        await made[0].connected.wait()
        answer = await book_of(self, symbol, levels)
        made[0].answered()
        return answer

    def rules(plan: FeedPlan, settings: Settings) -> FeedRules:
        return replace(rules_of(plan, settings), books=books or BookRules())

    monkeypatch.setattr(live_feed, "streams_of", streams)
    monkeypatch.setattr(live_feed, "_rules", rules)
    monkeypatch.setattr(BinanceHistory, "order_book", order_book)
    with simulated_exchange(replay=session, speed=math.inf, resume=True, faults=faults, folder=home) as url:
        async with httpx.AsyncClient(base_url=url) as client, opened_store(settings) as store:
            symbols = await traded(client, futures=venue.futures)
            plan = FeedPlan(
                exchange=exchange, url=url, symbols=[*symbols], timeframe=ONE_MINUTE, since_ms=LATER
            )  # fmt: skip
            async with opened_feed(plan, settings, store, memory) as feed:
                running = asyncio.create_task(feed.run(home / "status.json"))

                async def over() -> bool:
                    if running.done():
                        running.result()
                    try:
                        clock = (await client.get("/simulator/clock")).json()
                    except httpx.TransportError:
                        # The server ends idle connections, and we may be late to see it.
                        return False
                    return clock["position"] == clock["lines"] and enough(made[0], feed)

                try:
                    await reached(lambda: str(feed.feed.status(feed.writer).as_json()), over)
                    await feed.writer.durable()
                    status = feed.feed.status(feed.writer).as_json()
                finally:
                    running.cancel()
                    await asyncio.gather(running, return_exceptions=True)
            yield Outcome(made[0], status, store, symbols)


async def traded(client: httpx.AsyncClient, *, futures: bool) -> dict[str, str]:
    """Unified symbols of what a session has, and the exchange's."""
    info = (await client.get("/fapi/v1/exchangeInfo" if futures else "/api/v3/exchangeInfo")).json()
    after = ":USDT" if futures else ""
    return {f"{one['baseAsset']}/{one['quoteAsset']}{after}": one["symbol"] for one in info["symbols"]}


def without_candles(venue: Venue) -> Venue:
    """As if the exchange had no candle streams: the candles that are stored are built from trades."""
    rules = replace(venue.rules, channels=venue.rules.channels - {Channel.CANDLES})
    return replace(venue, rules=rules)


def all_heard(recording: Recording) -> Callable[[Overheard, OpenedFeed], bool]:
    return lambda overheard, _: overheard.count() + len(overheard.refused) >= recording.messages


@pytest.fixture(scope="module")
def spot(recorded: Path) -> Recording:
    return Recording.read(recorded / SPOT)


@pytest.fixture(scope="module")
def minutes(recorded_candles: Callable[[str, str], pa.Table]) -> list[dict[str, Any]]:
    """The exchange's candles of the ten whole minutes of the spot session."""
    candles = recorded_candles("binance_spot_BTCUSDT_1m_ohlcv_2024-07-26", "1m").select(PRICES)
    start = 1_723_161_300_000
    times = candles.column("open_time").cast("int64").to_numpy()
    rows: list[dict[str, Any]] = candles.filter((times >= start) & (times < start + 10 * MINUTE_MS)).to_pylist()
    assert len(rows) == 10
    return rows


async def test_a_spot_session_is_stored_whole_and_its_book_is_right(
    recorded: Path, spot: Recording, minutes: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {name: len(one) for name, one in spot.trades.items()} == {"BTCUSDT": 19_904}
    whole = fed(
        monkeypatch, tmp_path, recorded / SPOT,
        venue=without_candles(VENUES["binance"]), books=WHOLE_BOOKS, enough=all_heard(spot),
    )  # fmt: skip
    async with whole as outcome:
        await outcome.check_trades(spot)
        built = await outcome.store.read(Series("binance", "BTC/USDT", ONE_MINUTE), 0, LATER)
    assert built.select(PRICES).to_pylist() == minutes
    assert outcome.status["built_candles"] == {
        "BTC/USDT": {"built": 10, "equal": 0, "different": 0, "incomplete": 1}
    }
    assert outcome.overheard.refused == []
    assert outcome.status["writer"]["refused_messages"] == 0
    (route,) = [one for one in outcome.status["routes"] if one["topic"] == "trades BTC/USDT"]
    assert (route["path"], route["messages"], route["repeated"], route["lost"]) == ("stream", 19_904, 0, 0)
    # The book: 6,495 changes, of which the first two were in the snapshot already; no break.
    changes = outcome.overheard.heard[Topic(Channel.ORDER_BOOKS, "BTC/USDT")]
    assert [(one.first_id, one.last_id, one.previous_id) for one in changes] == spot.changes["BTCUSDT"]
    assert len(changes) == 6495
    assert [(one["state"], one["resyncs"]) for one in outcome.status["order_books"]] == [(BookState.LIVE, 0)]
    # The tickers that came through the same socket are the recorded ones, which have numbers.
    tickers = outcome.overheard.heard[Topic(Channel.TICKERS, "BTC/USDT")]
    assert [(one.bid, one.ask) for one in tickers] == [(bid, ask) for _, bid, ask in spot.tickers["BTCUSDT"]]
    points = outcome.points(spot, "BTC/USDT")
    # Changes that come while the snapshot is on its way are replayed at once, which may hide a point.
    assert (len(points), sum(equal for _, equal in points)) in ((5737, 5735), (5736, 5734))
    assert {id_ for id_, equal in points if not equal} == NEVER_SENT


async def test_planned_faults_cost_no_trade(
    recorded: Path, spot: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections cut in the middle, trades and changes of the book lost, repeated and out of order."""
    faults: list[dict[str, Any]] = [
        {"stream": "*@trade", "from": 8_000, "count": 1, "do": "disconnect", "n": 700},
        {"stream": "*@trade", "from": 14_000, "count": 1, "do": "close", "code": 1012},
        {"stream": "*@trade", "from": 2_000, "count": 60, "do": "lose"},
        {"stream": "*@trade", "from": 5_000, "count": 500, "do": "duplicate", "n": 3},
        {"stream": "*@trade", "from": 11_000, "count": 200, "do": "reorder", "n": 4},
        {"stream": "*@trade", "from": 12_000, "count": 20, "do": "garbage", "instead": True},
        {"stream": "*@depth@100ms", "from": 1_500, "count": 2, "do": "lose"},
        {"stream": "*@depth@100ms", "from": 5_000, "count": 300, "do": "duplicate", "n": 2},
    ]
    last = spot.trades["BTCUSDT"][-1][0]

    def enough(overheard: Overheard, feed: OpenedFeed) -> bool:
        (route,) = [one for one in feed.feed.status(feed.writer).routes if one.topic.channel is Channel.TRADES]
        heard = overheard.heard[Topic(Channel.TRADES, "BTC/USDT")]
        return route.path is routes.Path.STREAM and bool(heard) and heard[-1].id == last

    played = fed(
        monkeypatch, tmp_path, recorded / SPOT,
        books=WHOLE_BOOKS, faults=(*faults,), enough=enough,
    )  # fmt: skip
    async with played as outcome:
        await outcome.check_trades(spot)
    trades = outcome.overheard.heard[Topic(Channel.TRADES, "BTC/USDT")]
    assert len({one.id for one in trades}) < len(spot.trades["BTCUSDT"])
    (route,) = [one for one in outcome.status["routes"] if one["topic"] == "trades BTC/USDT"]
    assert route["refilled"] >= 80
    assert route["repeated"] >= 500
    assert outcome.status["writer"]["refused_messages"] == len(outcome.overheard.refused) >= 1
    (connection,) = outcome.status["connections"]
    assert connection["reconnects"] == 2
    # Whatever was served was right, whenever it was served.
    (book,) = outcome.status["order_books"]
    assert (book["state"], book["resyncs"] >= 2) == (BookState.LIVE, True)
    points = outcome.points(spot, "BTC/USDT")
    assert len(points) > 2000
    assert {id_ for id_, equal in points if not equal} <= NEVER_SENT
    assert outcome.status["built_candles"]["BTC/USDT"]["built"] == 10


async def test_the_chain_of_a_usd_m_session_holds(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Recording.read(recorded / USDM)
    # When it was recorded everything came from one address, and single trades were asked for.
    venue = replace(VENUES["binanceusdm"], addresses={"": "wss://fstream.binance.com/stream"}, trades="trade")
    played = fed(
        monkeypatch, tmp_path, recorded / USDM,
        exchange="binanceusdm", venue=venue, books=WHOLE_BOOKS, enough=all_heard(session),
    )  # fmt: skip
    async with played as outcome:
        assert sum(len(one) for one in session.trades.values()) == 21_313
        await outcome.check_trades(session)
    assert outcome.overheard.refused == []
    changes = outcome.overheard.heard[Topic(Channel.ORDER_BOOKS, "BTC/USDT:USDT")]
    assert [(one.first_id, one.last_id, one.previous_id) for one in changes] == session.changes["BTCUSDT"]
    assert len(changes) == 6551
    assert all(after.previous_id == before.last_id for before, after in pairwise(changes))
    assert [(one["state"], one["resyncs"]) for one in outcome.status["order_books"]] == [(BookState.LIVE, 0)]
    points = outcome.points(session, "BTC/USDT:USDT")
    # One of 5,703 may be hidden in the playing of what was kept.
    assert 5702 <= len(points) <= 5703
    assert all(equal for _, equal in points)


@pytest.mark.parametrize("name, symbols, points, closed", [(TEN_SYMBOLS, 10, 2344, 0), (FOUR_SYMBOLS, 4, 200, 2)])
async def test_many_symbols_on_one_connection(
    name: str, symbols: int, points: int, closed: int,
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    session = Recording.read(recorded / name)
    played = fed(
        monkeypatch, tmp_path, recorded / name,
        venue=replace(VENUES["binance"], trades="aggTrade"), books=WHOLE_BOOKS, enough=all_heard(session),
    )  # fmt: skip
    async with played as outcome:
        assert len(outcome.symbols) == symbols
        await outcome.check_trades(session)
        stored = {
            exchange_symbol: await outcome.store.read(Series("binance", symbol, ONE_MINUTE), 0, LATER)
            for symbol, exchange_symbol in outcome.symbols.items()
        }
    assert outcome.overheard.refused == []
    assert sum(len(one) for one in session.candles.values()) == closed
    assert {name: table.to_pylist() for name, table in stored.items() if table.num_rows} == {
        name: candle_rows([update_of(one) for one in klines]).to_pylist()
        for name, klines in session.candles.items()
    }
    books = outcome.status["order_books"]
    assert [(one["state"], one["resyncs"]) for one in books] == [(BookState.LIVE, 0)] * symbols
    compared = [one for symbol in outcome.symbols for one in outcome.points(session, symbol)]
    # Nothing more is read until the snapshots are there: a few more can be seen than by playing what was kept.
    assert points <= len(compared) <= points + symbols
    assert all(equal for _, equal in compared)
    assert all(one["different"] == 0 for one in outcome.status["built_candles"].values())


def update_of(kline: dict[str, Any]) -> CandleUpdate:
    """A recorded closed candle."""
    prices = [float(kline[name]) for name in ("o", "h", "l", "c", "v", "q")]
    bought = [float(kline[name]) for name in ("V", "Q")]
    return CandleUpdate(kline["t"], *prices, kline["n"], *bought, None, True, kline["T"] + 1, 0)
