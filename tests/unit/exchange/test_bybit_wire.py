"""Bybit's messages, of today and of the retired protocol: what each becomes, and what is refused."""

from __future__ import annotations

import json
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange.bybit import wire, wire_v2
from exchange.bybit.streams import market_kind
from exchange.reading import LONGEST_RAW, Answer, AnswerKind
from exchange.stream import RefusedMessage
from market.book_message import BookChange, BookSnapshot
from market.candle_update import CandleUpdate
from market.channel import Channel, Topic
from market.errors import BadInput
from market.ticker import Ticker
from market.timeframe import TIMEFRAMES
from market.trade import Trade

TRADES = Topic(Channel.TRADES, "BTC/USDT")
CANDLES = Topic(Channel.CANDLES, "BTC/USDT", TIMEFRAMES["5m"])
TICKERS = Topic(Channel.TICKERS, "BTC/USDT")
BOOKS = Topic(Channel.ORDER_BOOKS, "BTC/USDT")
TOPICS = {
    name: topic
    for topic in (TRADES, CANDLES, TICKERS, BOOKS)
    for name in wire.wire_names(topic, "BTCUSDT", spot=True)
}
OLD_TOPICS = {wire_v2.wire_name(topic, "BTCUSDT"): topic for topic in (TRADES, BOOKS)}
TRADE = {"T": 1672304486865, "s": "BTCUSDT", "S": "Buy", "v": "0.001", "p": "16578.50", "i": "20f43950-d8dd"}
OLD_TRADE = {
    "symbol": "BTCUSDT", "price": "1053.90", "size": 0.14, "trade_time_ms": "1618677785116", "side": "Buy",
    "trade_id": "01cacfe9",
}  # fmt: skip


def one(message: object, protocol: ModuleType = wire) -> object:
    topics = TOPICS if protocol is wire else OLD_TOPICS
    (found,) = protocol.read(json.dumps(message).encode(), topics, 99)
    return found


def test_names_on_the_wire() -> None:
    assert set(TOPICS) == {
        "publicTrade.BTCUSDT", "kline.5.BTCUSDT", "tickers.BTCUSDT", "orderbook.1.BTCUSDT", "orderbook.200.BTCUSDT",
    }  # fmt: skip
    assert wire.wire_names(TICKERS, "BTCUSDT", spot=False) == ["tickers.BTCUSDT"]
    with pytest.raises(BadInput, match="timeframe: '3d'"):
        wire.wire_names(Topic(Channel.CANDLES, "BTC/USDT", TIMEFRAMES["3d"]), "BTCUSDT", spot=True)
    assert set(OLD_TOPICS) == {"trade.BTCUSDT", "orderBookL2_25.BTCUSDT"}
    with pytest.raises(BadInput, match="channels: 'tickers'"):
        wire_v2.wire_name(TICKERS, "BTCUSDT")


@pytest.mark.parametrize(
    ("symbol", "kind"),
    [
        ("BTC/USDT", "spot"),
        ("BTC/USDT:USDT", "linear"),
        ("BTC/USD:BTC", "inverse"),
        ("BTC/USDT:USDT-250328", "linear"),
    ],
)
def test_the_kind_of_a_market_is_in_its_symbol(symbol: str, kind: str) -> None:
    assert market_kind(symbol) == kind


def test_options_are_refused() -> None:
    with pytest.raises(BadInput, match="options are not streamed"):
        market_kind("BTC/USDT:USDT-250328-100000-C")


def test_trades_have_the_takers_side() -> None:
    rows = [TRADE, {**TRADE, "S": "Sell", "i": "x"}]
    raw = json.dumps({"topic": "publicTrade.BTCUSDT", "type": "snapshot", "ts": 1, "data": rows}).encode()
    assert wire.read(raw, TOPICS, 99) == [
        (TRADES, Trade("20f43950-d8dd", 16578.5, 0.001, 1672304486865, True, 99)),
        (TRADES, Trade("x", 16578.5, 0.001, 1672304486865, False, 99)),
    ]
    found = one({"topic": "trade.BTCUSDT", "data": [OLD_TRADE]}, wire_v2)
    assert found == (TRADES, Trade("01cacfe9", 1053.9, 0.14, 1618677785116, True, 99))


def test_a_book_and_its_change() -> None:
    data = {"s": "BTCUSDT", "b": [["2", "1"]], "a": [["3", "0"]], "u": 12, "seq": 130020}
    message = {"topic": "orderbook.200.BTCUSDT", "type": "snapshot", "ts": 7, "data": data, "cts": 6}
    assert one(message) == (BOOKS, BookSnapshot(12, [(2.0, 1.0)], [(3.0, 0.0)], 7, 99))
    change = BookChange(12, 12, None, [(2.0, 1.0)], [(3.0, 0.0)], 7, 99)
    assert one({**message, "type": "delta"}) == (BOOKS, change)


def test_a_ticker_says_what_changed() -> None:
    contract = {"symbol": "BTCUSDT", "lastPrice": "3", "bid1Price": "2.9", "bid1Size": "7", "ask1Price": ""}
    message = {"topic": "tickers.BTCUSDT", "type": "delta", "ts": 7, "data": contract}
    assert one(message) == (TICKERS, Ticker(99, 7, bid=2.9, bid_quantity=7.0, last=3.0))
    day = {
        "prevPrice24h": "2", "highPrice24h": "4", "lowPrice24h": "1", "volume24h": "100", "turnover24h": "300",
    }  # fmt: skip
    expected = Ticker(99, 7, open=2.0, high=4.0, low=1.0, volume=100.0, quote_volume=300.0)
    assert one({**message, "data": day}) == (TICKERS, expected)


def test_the_best_prices_of_spot_come_from_a_book_of_one_level() -> None:
    data = {"s": "BTCUSDT", "b": [["2", "0"], ["2.1", "5"]], "a": [], "u": 12, "seq": 1}
    message = {"topic": "orderbook.1.BTCUSDT", "type": "delta", "ts": 7, "data": data}
    assert one(message) == (TICKERS, Ticker(99, 7, bid=2.1, bid_quantity=5.0))


def test_a_candle() -> None:
    row = {
        "start": 1672324800000, "end": 1672325099999, "interval": "5", "open": "16649.5", "close": "16677",
        "high": "16678", "low": "16608", "volume": "2.081", "turnover": "34666.4005", "confirm": True,
        "timestamp": 1672324988882,
    }  # fmt: skip
    message = {"topic": "kline.5.BTCUSDT", "type": "snapshot", "ts": 1672324988883, "data": [row]}
    numbers = (1672324800000, 16649.5, 16678.0, 16608.0, 16677.0, 2.081, 34666.4005)
    candle = CandleUpdate(*numbers, None, None, None, None, True, 1672324988883, 99)
    assert one(message) == (CANDLES, candle)


def test_answers() -> None:
    assert one({"success": True, "ret_msg": "", "conn_id": "0b", "req_id": "1", "op": "subscribe"}) == Answer(
        AnswerKind.SUBSCRIBED, frozenset({"1"})
    )
    assert one({"success": True, "ret_msg": "pong", "conn_id": "0b", "op": "ping"}).kind is AnswerKind.PONG
    assert one({"req_id": "", "op": "pong", "args": ["1675418560633"]}).kind is AnswerKind.PONG
    refused = one({"success": False, "ret_msg": "Invalid symbol", "req_id": "2", "op": "subscribe"})
    assert refused == Answer(AnswerKind.REFUSED, frozenset({"2"}), "Invalid symbol")
    old = {"success": True, "ret_msg": "", "request": {"op": "subscribe", "args": ["trade.BTCUSDT"]}}
    assert one(old, wire_v2) == Answer(AnswerKind.SUBSCRIBED, frozenset({"trade.BTCUSDT"}))
    assert one({**old, "success": False, "ret_msg": "no"}, wire_v2).kind is AnswerKind.REFUSED


def old_level(price: str, side: str, size: float | None = None) -> dict[str, object]:
    level: dict[str, object] = {"price": price, "symbol": "BTCUSDT", "id": price.replace(".", ""), "side": side}
    return level if size is None else {**level, "size": size}


def test_an_old_book_is_sorted_best_first() -> None:
    levels = [old_level("1.0", "Buy", 1), old_level("1.5", "Buy", 2), old_level("3.0", "Sell", 4)]
    expected = (BOOKS, BookSnapshot(8, [(1.5, 2.0), (1.0, 1.0)], [(3.0, 4.0)], 1618677786389, 99))
    message = {"topic": "orderBookL2_25.BTCUSDT", "type": "snapshot", "data": {"order_book": levels}}
    numbers = {"cross_seq": "8", "timestamp_e6": "1618677786389362"}
    assert one({**message, **numbers}, wire_v2) == expected
    inverse = {**message, "data": levels, "cross_seq": 8, "timestamp_e6": 1618677786389362}
    assert one(inverse, wire_v2) == expected


def test_an_old_change_deletes_before_it_inserts() -> None:
    data = {
        "delete": [old_level("1.5", "Buy"), old_level("3.0", "Sell")],
        "update": [old_level("1.0", "Buy", 5)],
        "insert": [old_level("1.5", "Buy", 6)],
    }
    message = {"topic": "orderBookL2_25.BTCUSDT", "type": "delta", "data": data}
    assert one({**message, "cross_seq": "9", "timestamp_e6": "1618677786389362"}, wire_v2) == (
        BOOKS,
        BookChange(9, 9, None, [(1.5, 0.0), (1.0, 5.0), (1.5, 6.0)], [(3.0, 0.0)], 1618677786389, 99),
    )


def bad(topic: str, data: object, **more: object) -> dict[str, object]:
    return {"topic": topic, "type": "delta", "ts": 7, "data": data, **more}


@pytest.mark.parametrize(
    ("protocol", "message", "reason"),
    [
        (wire, bad("publicTrade.BTCUSDT", [{**TRADE, "p": "-1"}]), "data[0].p: '-1'"),
        (wire, bad("publicTrade.BTCUSDT", [{**TRADE, "S": "buy"}]), "data[0].S: 'buy'"),
        (wire, bad("publicTrade.BTCUSDT", [{**TRADE, "i": 7}]), "data[0].i: 7"),
        (wire, bad("publicTrade.BTCUSDT", 3), "data: 3"),
        (wire, bad("orderbook.200.BTCUSDT", {"b": [["1", "x"]], "a": [], "u": 1}), "data.b[0][1]: 'x'"),
        (wire, bad("orderbook.200.BTCUSDT", {"b": [], "a": []}), "data.u: is missing"),
        (wire, bad("orderbook.200.BTCUSDT", {"b": [], "a": [], "u": 1}, type=""), "type: ''"),
        (wire, bad("orderbook.200.BTCUSDT", {}, type="later"), "type: 'later'"),
        (wire, bad("tickers.BTCUSDT", {"lastPrice": "nan"}), "data.lastPrice: 'nan'"),
        (wire, bad("kline.5.BTCUSDT", [{"start": 5}]), "data[0].open: is missing"),
        (wire, bad("tickers.ETHUSDT", {}), "topic: 'tickers.ETHUSDT'"),
        (wire, {"a": 1}, "message: "),
        (wire_v2, bad("trade.BTCUSDT", [{**OLD_TRADE, "size": -1}]), "data[0].size: -1"),
        (wire_v2, bad("orderBookL2_25.BTCUSDT", {}, cross_seq="x"), "cross_seq: 'x'"),
        (wire_v2, bad("orderBookL2_25.BTCUSDT", {"delete": [{"side": "Buy"}]}), "data.delete[0].price: is missing"),
        (wire_v2, bad("orderBookL2_25.BTCUSDT", {}, type=""), "type: ''"),
        (wire_v2, {"a": 1}, "message: "),
    ],
)
def test_what_cannot_be_used_is_named(protocol: ModuleType, message: object, reason: str) -> None:
    found = one(message, protocol)
    assert isinstance(found, RefusedMessage)
    assert found.reason.startswith(reason)
    assert json.loads(found.raw) == message


def test_one_bad_trade_does_not_cost_its_neighbours() -> None:
    for protocol, topics, message in (
        (wire, TOPICS, bad("publicTrade.BTCUSDT", [TRADE, {**TRADE, "v": "none"}, TRADE])),
        (wire_v2, OLD_TOPICS, bad("trade.BTCUSDT", [OLD_TRADE, {**OLD_TRADE, "size": 0}, OLD_TRADE])),
    ):
        found = protocol.read(json.dumps(message).encode(), topics, 99)
        assert [isinstance(one, RefusedMessage) for one in found] == [False, True, False]


@given(st.binary(max_size=60))
def test_no_bytes_raise(raw: bytes) -> None:
    for protocol in (wire, wire_v2):
        (found,) = protocol.read(raw, TOPICS, 99)
        assert isinstance(found, RefusedMessage | Answer)


def test_absurd_bytes_are_refused_and_cut() -> None:
    for raw in (
        b"[" * 100_000,
        b'{"topic":' + b"[" * 100_000,
        b'{"topic":"tickers.BTCUSDT","data":' + b"[" * 100_000,
    ):
        (found,) = wire.read(raw, TOPICS, 99)
        assert isinstance(found, RefusedMessage)
        assert len(found.raw) <= LONGEST_RAW
