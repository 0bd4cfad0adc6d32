"""Order book and ticker streams of the simulated exchange, without a socket: what they say is what REST says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from exchange.binance.events import (
    encode_book_ticker,
    encode_day_ticker,
    encode_depth_event,
    encode_mini_ticker,
    encode_partial_depth,
)
from exchange.binance.wire import encode_depth
from exchange.simulator.exchange import Exchange, ListedMarket
from exchange.simulator.market import Market
from exchange.simulator.subscription import Subscription, subscription
from exchange.simulator.synthetic import LISTED_MS, SyntheticTape
from exchange.simulator.ticker import best_prices, day_statistics
from market.timeframe import DAY_MS
from tests.conftest import ManualClock

NOW = LISTED_MS + 500 * DAY_MS + 12_345_678
Subscribe = Callable[[str], Subscription]


@pytest.fixture(scope="module")
def market() -> Market:
    return Market(SyntheticTape(5, "ETH/USDT"))


@pytest.fixture
def time() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def subscribe(market: Market, time: ManualClock) -> Subscribe:
    exchange = Exchange(time, {"ETHUSDT": ListedMarket(open=lambda: market, listed_ms=LISTED_MS)})

    def start(name: str) -> Subscription:
        found = subscription(exchange, f"ethusdt@{name}")
        assert found is not None
        return found

    return start


def applied(book: dict[str, Any], message: dict[str, Any]) -> None:
    """Apply a depth message to an answer of GET /api/v3/depth, text by text."""
    for side, key in (("bids", "b"), ("asks", "a")):
        levels = dict(book[side])
        for price, quantity in message[key]:
            if quantity == "0.00000000":
                levels.pop(price, None)
            else:
                levels[price] = quantity
        book[side] = sorted(([*one] for one in levels.items()), key=lambda one: float(one[0]), reverse=key == "b")
    book["lastUpdateId"] = message["u"]


@pytest.mark.parametrize("name, looks", [("depth@100ms", 50), ("depth@100ms", 3000), ("depth", 700), ("depth", 60)])
def test_depth_messages_keep_a_rest_book_up_to_date(
    market: Market, time: ManualClock, subscribe: Subscribe, name: str, looks: int
) -> None:
    interval = 100 if name.endswith("100ms") else 1000
    stream = subscribe(name)
    book: dict[str, Any] | None = None
    last = None
    messages = 0
    for _ in range(50):
        time.advance(looks)
        for message in stream.messages(time.now_ms()):
            messages += 1
            assert set(message) == {"e", "E", "s", "U", "u", "b", "a"}
            assert (message["e"], message["s"]) == ("depthUpdate", "ETHUSDT")
            assert message["b"] or message["a"]
            assert message["E"] % 100 == 0
            assert time.now_ms() - message["E"] < interval + 100
            assert message["U"] <= message["u"]
            assert last is None or message["U"] == last + 1
            last = message["u"]
            if book is None:
                # As a client does: the snapshot is newer than the first message that was buffered.
                book = encode_depth(market.book.snapshot(time.now_ms() + 1500, 5000))
            elif message["u"] > book["lastUpdateId"]:
                applied(book, message)
                expected = encode_depth(market.book.snapshot(message["E"], 150))
                assert {"bids": book["bids"][:150], "asks": book["asks"][:150]} == {
                    side: expected[side] for side in ("bids", "asks")
                }
    assert messages > 50 * looks / max(interval, looks) * 0.6


def test_a_stream_of_changes_begins_at_the_subscription(
    market: Market, time: ManualClock, subscribe: Subscribe
) -> None:
    before = market.book.state(NOW).last_id
    stream = subscribe("depth@100ms")
    time.advance(5000)
    (message,) = stream.messages(time.now_ms())
    assert message["U"] == before + 1
    assert list(stream.messages(time.now_ms())) == []


@pytest.mark.parametrize("name, levels", [("depth5", 5), ("depth10@100ms", 10), ("depth20@1000ms", 20)])
def test_best_levels_are_those_of_the_book(
    market: Market, time: ManualClock, subscribe: Subscribe, name: str, levels: int
) -> None:
    stream = subscribe(name)
    interval = 100 if name.endswith("@100ms") else 1000
    ids = []
    for _ in range(60):
        time.advance(100)
        for message in stream.messages(time.now_ms()):
            at = time.now_ms() - time.now_ms() % interval
            assert message == encode_depth(market.book.snapshot(at, levels))
            assert len(message["bids"]) == levels
            ids.append(message["lastUpdateId"])
    assert ids == sorted(set(ids))
    assert 60 * 100 / interval * 0.7 < len(ids) <= 60 * 100 / interval + 1


def test_best_prices_are_sent_when_they_change(market: Market, time: ManualClock, subscribe: Subscribe) -> None:
    stream = subscribe("bookTicker")
    known: list[dict[str, Any]] = []
    for _ in range(300):
        time.advance(50)
        new = list(stream.messages(time.now_ms()))
        known += new
        rest = best_prices(market, time.now_ms())
        assert known[-1]["s"] == rest["symbol"]
        names = zip("bBaA", ("bidPrice", "bidQty", "askPrice", "askQty"), strict=True)
        assert all(known[-1][key] == rest[name] for key, name in names)
        assert known[-1]["u"] <= market.book.state(time.now_ms()).last_id
    assert set(known[0]) == {"u", "s", "b", "B", "a", "A"}
    assert [one["u"] for one in known] == sorted({one["u"] for one in known})
    assert 10 < len(known) < 150


@pytest.mark.parametrize("name", ["ticker", "miniTicker"])
def test_statistics_come_each_second(market: Market, time: ManualClock, subscribe: Subscribe, name: str) -> None:
    stream = subscribe(name)
    messages = []
    for _ in range(40):
        time.advance(100)
        messages += list(stream.messages(time.now_ms()))
    assert [one["E"] for one in messages] == [NOW - NOW % 1000 + 1000 * at for at in (1, 2, 3, 4)]
    rest = day_statistics(market, messages[-1]["E"])
    assert (messages[-1]["c"], messages[-1]["o"], messages[-1]["v"]) == (
        *(rest["lastPrice"], rest["openPrice"], rest["volume"]),
    )


def test_messages_have_the_fields_that_are_documented() -> None:
    depth = encode_depth_event(
        "BNBBTC", 1672515782136, first_id=157, last_id=160, bids=[(0.0024, 10.0)], asks=[(0.0026, 0.0)]
    )
    assert depth == {
        "e": "depthUpdate",
        "E": 1672515782136,
        "s": "BNBBTC",
        "U": 157,
        "u": 160,
        "b": [["0.00240000", "10.00000000"]],
        "a": [["0.00260000", "0.00000000"]],
    }
    assert encode_partial_depth(160, [(0.0024, 10.0)], []) == {
        "lastUpdateId": 160,
        "bids": [["0.00240000", "10.00000000"]],
        "asks": [],
    }
    assert encode_book_ticker("BNBUSDT", 400900217, (25.3519, 31.21), (25.3652, 40.66)) == {
        "u": 400900217,
        "s": "BNBUSDT",
        "b": "25.35190000",
        "B": "31.21000000",
        "a": "25.36520000",
        "A": "40.66000000",
    }
    statistics = day_statistics(Market(SyntheticTape(5, "SOL/USDT")), NOW)
    day, mini = encode_day_ticker(statistics, NOW), encode_mini_ticker(statistics, NOW)
    assert list(day) == list("eEspPwxcQbBaAohlvqOCFLn")
    assert list(mini) == list("eEscohlvq")
    assert (day["e"], mini["e"]) == ("24hrTicker", "24hrMiniTicker")
    assert mini.items() - {("e", "24hrMiniTicker")} < day.items()
    assert (day["C"] - day["O"], day["L"] - day["F"] + 1) == (DAY_MS, day["n"])
