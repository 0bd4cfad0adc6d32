"""OKX's messages: what each becomes, what is refused, and the checksum of a book."""

from __future__ import annotations

import json
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange.okx.wire import ADDED_TRADES, is_business, read, request, wire_name
from exchange.reading import LONGEST_RAW, Answer, AnswerKind
from exchange.stream import RefusedMessage
from market.book_checksum import okx_checksum
from market.book_message import BookChange, BookSnapshot
from market.candle_update import CandleUpdate
from market.channel import Channel, Topic
from market.errors import BadInput
from market.ticker import Ticker
from market.timeframe import TIMEFRAMES
from market.trade import Trade

TRADES = Topic(Channel.TRADES, "BTC/USDT")
CANDLES = Topic(Channel.CANDLES, "BTC/USDT", TIMEFRAMES["1m"])
SWAP_CANDLES = Topic(Channel.CANDLES, "BTC/USDT:USDT", TIMEFRAMES["1m"])
TICKERS = Topic(Channel.TICKERS, "BTC/USDT")
BOOKS = Topic(Channel.ORDER_BOOKS, "BTC/USDT")
TOPICS = {
    ("trades", "BTC-USDT"): TRADES,
    ("trades-all", "BTC-USDT"): TRADES,
    ("candle1m", "BTC-USDT"): CANDLES,
    ("candle1m", "BTC-USDT-SWAP"): SWAP_CANDLES,
    ("tickers", "BTC-USDT"): TICKERS,
    ("books", "BTC-USDT"): BOOKS,
}
TRADE = {"instId": "BTC-USDT", "tradeId": "7", "px": "30250.2", "sz": "0.5", "side": "buy", "ts": "1652459225151"}


def message(channel: str, *rows: object, **more: object) -> bytes:
    instrument = more.pop("instId", "BTC-USDT")
    return json.dumps({"arg": {"channel": channel, "instId": instrument}, **more, "data": rows}).encode()


def one(raw: bytes) -> object:
    (found,) = read(raw, TOPICS, 99)
    return found


def reason(raw: bytes) -> str:
    found = one(raw)
    assert isinstance(found, RefusedMessage)
    assert found.exchange == "okx"
    assert found.received_at == 99
    return found.reason


def test_a_trade_has_the_takers_side() -> None:
    sold = {**TRADE, "tradeId": "8", "side": "sell", "count": "3"}
    assert read(message("trades", TRADE, sold), TOPICS, 99) == [
        (TRADES, Trade(7, 30250.2, 0.5, 1652459225151, True, 99)),
        (TRADES, Trade(8, 30250.2, 0.5, 1652459225151, False, 99, 3)),
    ]


def test_one_bad_trade_does_not_cost_its_neighbours() -> None:
    raw = message("trades", TRADE, {**TRADE, "tradeId": "8", "px": "-1"}, {**TRADE, "tradeId": "9"})
    first, bad, last = read(raw, TOPICS, 99)
    assert (first[1].id, last[1].id) == (7, 9)
    assert isinstance(bad, RefusedMessage)
    assert bad.topic == TRADES
    assert bad.reason == "data[0].px: '-1' is not accepted; expected float > 0.0"
    assert json.loads(bad.raw)["data"] == [{**TRADE, "tradeId": "8", "px": "-1"}]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"px": "nan"}, "data[0].px: 'nan'"),
        ({"px": "inf"}, "data[0].px: 'inf'"),
        ({"px": "0"}, "data[0].px: '0'"),
        ({"px": "1e30"}, "data[0].px: '1e30'"),
        ({"px": None}, "data[0].px: None"),
        ({"px": "30,5"}, "data[0].px: '30,5'"),
        ({"sz": "-0.5"}, "data[0].sz: '-0.5'"),
        ({"side": "hold"}, "data[0].side: 'hold'"),
        ({"ts": "soon"}, "data[0].ts: 'soon'"),
        ({"ts": "-4"}, "data[0].ts: '-4'"),
        ({"tradeId": "x9"}, "data[0].tradeId: 'x9'"),
        ({"tradeId": "99999999999999999999"}, "data[0].tradeId: '99999999999999999999'"),
    ],
)
def test_a_bad_field_is_named_with_its_value(change: dict[str, object], field: str) -> None:
    assert reason(message("trades", {**TRADE, **change})).startswith(field)


def test_a_missing_field_is_named() -> None:
    assert reason(message("trades", {key: TRADE[key] for key in TRADE if key != "sz"})) == "data[0].sz: is missing"


def test_unknown_fields_are_ignored() -> None:
    assert one(message("trades", {**TRADE, "seqId": 5, "new": {"a": [1]}}, added=True))[1].id == 7


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"garbage",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"arg":{"channel":"trades","instId":"BTC-USDT"}}',
        b'{"arg":{"channel":"trades","instId":"BTC-USDT"},"data":{}}',
        b'{"arg":7,"data":[]}',
        b'{"arg":{"channel":"trades","instId":"DOGE-USDT"},"data":[]}',
        b"\xff\xfe",
        b'{"arg":{"channel":"\xff"}}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        message("books", {"asks": [["1", "2"]], "bids": [], "ts": "5"}),
        message("books", {"asks": [["x", "2"]], "bids": [], "ts": "5"}, action="update"),
        message("books", {"asks": [["1"]], "bids": [], "ts": "5"}, action="update"),
        message("books", {"asks": [[]], "bids": [], "ts": "5"}, action="update"),
        message("candle1m", ["1597026383085", "1"]),
    ],
)
def test_what_cannot_be_read_is_refused_and_kept(raw: bytes) -> None:
    (found,) = read(raw, TOPICS, 99)
    assert isinstance(found, RefusedMessage)
    assert found.raw == raw[:LONGEST_RAW].decode("utf-8", "replace")
    assert found.reason


@given(st.binary(max_size=60))
def test_no_bytes_raise(raw: bytes) -> None:
    for found in read(raw, TOPICS, 99):
        assert isinstance(found, RefusedMessage | Answer)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=5), st.lists, max_leaves=8))
def test_no_rows_raise(row: object) -> None:
    for channel in ("trades", "tickers", "books", "candle1m"):
        for found in read(message(channel, row, action="update"), TOPICS, 99):
            assert isinstance(found, RefusedMessage)


def test_a_refused_level_is_named() -> None:
    book = {"asks": [["1", "2", "0", "1"], ["2", "-3", "0", "1"]], "bids": [], "ts": "5"}
    assert reason(message("books", book, action="update")).startswith("data[0].asks[1]: ['2', '-3', '0', '1']")


def test_a_snapshot_and_a_change_with_numbers() -> None:
    book = {
        "asks": [["2.50", "1", "0", "1"]],
        "bids": [["2", "0", "0", "0"]],
        "ts": "5",
        "seqId": 10,
        "prevSeqId": -1,
    }
    snapshot = one(message("books", {**book, "checksum": 0}, action="snapshot"))
    assert snapshot == (BOOKS, BookSnapshot(10, [(2.0, 0.0)], [(2.5, 1.0)], 5, 99))
    change = one(message("books", {**book, "seqId": 12, "prevSeqId": 10, "checksum": 0}, action="update"))
    assert change == (BOOKS, BookChange(12, 12, 10, [(2.0, 0.0)], [(2.5, 1.0)], 5, 99))


def test_texts_come_with_a_checksum() -> None:
    book = {"asks": [["2.50", "1.0", "0", "1"]], "bids": [["2", "00", "0", "0"]], "ts": "5", "checksum": -7}
    _, change = one(message("books", book, action="update"))
    assert (change.checksum, change.bid_texts, change.ask_texts) == (-7, [("2", "00")], [("2.50", "1.0")])
    assert change.previous_id is None


def test_a_ticker_of_spot_and_of_a_contract() -> None:
    row = {
        "instType": "SPOT", "last": "3", "askPx": "3.1", "askSz": "7", "bidPx": "", "bidSz": "", "open24h": "2",
        "high24h": "4", "low24h": "1", "volCcy24h": "300", "vol24h": "100", "ts": "5",
    }  # fmt: skip
    expected = Ticker(99, 5, None, None, 3.1, 7.0, 3.0, 2.0, 4.0, 1.0, 100.0, 300.0)
    assert one(message("tickers", row)) == (TICKERS, expected)
    contract = one(message("tickers", {**row, "instType": "SWAP"}))
    assert (contract[1].volume, contract[1].quote_volume) == (300.0, None)


def test_a_bad_number_in_a_ticker_is_named() -> None:
    assert reason(message("tickers", {"ts": "5", "last": "nan"})).startswith("data[0].last: 'nan'")


def test_a_candle_has_its_volume_in_base() -> None:
    row = ["1597026360000", "8533.02", "8553.74", "8527.17", "8548.26", "45247", "52.5", "449000.5", "1"]
    numbers = (1597026360000, 8533.02, 8553.74, 8527.17, 8548.26)
    spot = CandleUpdate(*numbers, 45247.0, 449000.5, None, None, None, None, True, 99, 99)
    assert one(message("candle1m", row)) == (CANDLES, spot)
    forming = one(message("candle1m", [*row[:-1], "0"], instId="BTC-USDT-SWAP"))
    assert forming == (SWAP_CANDLES, spot._replace(volume=52.5, closed=False))


def test_answers() -> None:
    assert one(b"pong") == Answer(AnswerKind.PONG)
    subscribed = one(b'{"event":"subscribe","arg":{"channel":"books","instId":"BTC-USDT"},"connId":"a4d3ae55"}')
    assert subscribed == Answer(AnswerKind.SUBSCRIBED, frozenset({("books", "BTC-USDT")}))
    refused = one(b'{"event":"error","code":"60018","msg":"Wrong URL or channel","connId":"a4d3ae55"}')
    assert refused == Answer(AnswerKind.REFUSED, frozenset(), "Wrong URL or channel (code 60018)")
    assert one(b'{"event":"error","code":"60014","msg":"Requests too frequent"}').kind is AnswerKind.BUSY
    assert one(b'{"event":"notice","code":"64008","msg":"closing soon"}').text == "notice closing soon"


def test_names_on_the_wire() -> None:
    assert wire_name(BOOKS, "BTC-USDT") == ("books", "BTC-USDT")
    assert wire_name(TRADES, "BTC-USDT") == ("trades-all", "BTC-USDT")
    assert wire_name(TRADES, "BTC-USDT", trades=ADDED_TRADES) == ("trades", "BTC-USDT")
    assert wire_name(CANDLES, "BTC-USDT") == ("candle1m", "BTC-USDT")
    day = Topic(Channel.CANDLES, "BTC/USDT", TIMEFRAMES["1d"])
    assert wire_name(day, "BTC-USDT") == ("candle1Dutc", "BTC-USDT")
    assert [is_business((one, "")) for one in ("trades", "trades-all", "books", "candle1m")] == [0, 1, 0, 1]
    with pytest.raises(BadInput, match="timeframe: '8h'"):
        wire_name(Topic(Channel.CANDLES, "BTC/USDT", TIMEFRAMES["8h"]), "BTC-USDT")
    assert json.loads(request("subscribe", [("books", "BTC-USDT")])) == {
        "op": "subscribe",
        "args": [{"channel": "books", "instId": "BTC-USDT"}],
    }


def test_the_checksum_is_of_the_text_of_the_best_levels() -> None:
    """The example of OKX's documentation, and one where a side runs out."""
    bids, asks = [("3366.1", "7"), ("3366", "6")], [("3366.8", "9"), ("3368", "8")]
    text = b"3366.1:7:3366.8:9:3366:6:3368:8"
    assert okx_checksum(bids, asks) == signed(crc32(text)) == -1881014294
    assert okx_checksum(bids[:1], [*asks, ("3372", "8")]) == signed(crc32(b"3366.1:7:3366.8:9:3368:8:3372:8"))
    deep = [(str(1000 - at), "1.50") for at in range(30)]
    assert okx_checksum(deep, asks) == okx_checksum(deep[:25], asks) != okx_checksum(deep[:24], asks)


def signed(unsigned: int) -> int:
    return unsigned - (1 << 32) if unsigned >= 1 << 31 else unsigned
