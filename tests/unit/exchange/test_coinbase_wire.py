"""Coinbase's messages: what each becomes, and what is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange.coinbase.wire import read, request, wire_name
from exchange.reading import LONGEST_RAW, Answer, AnswerKind
from exchange.stream import RefusedMessage
from market.book_message import BookChange, BookSnapshot
from market.channel import Channel, Topic
from market.errors import BadInput
from market.ticker import Ticker
from market.timeframe import TIMEFRAMES
from market.trade import Trade

TRADES = Topic(Channel.TRADES, "SKL/BTC")
TICKERS = Topic(Channel.TICKERS, "SKL/BTC")
BOOKS = Topic(Channel.ORDER_BOOKS, "SKL/BTC")
TOPICS = {wire_name(topic, "SKL-BTC"): topic for topic in (TRADES, TICKERS, BOOKS)}
MATCH = {
    "type": "match", "trade_id": 280232, "side": "sell", "size": "985", "price": "0.00001305",
    "product_id": "SKL-BTC", "sequence": 177100030, "time": "2021-04-17T16:43:37.089723Z",
}  # fmt: skip
UPDATE = {
    "type": "l2update", "product_id": "SKL-BTC", "time": "2021-04-17T16:43:37.075687Z",
    "changes": [["sell", "0.00001306", "660.5"], ["buy", "0.00001304", "0.00000000"]],
}  # fmt: skip


def one(message: object) -> object:
    (found,) = read(json.dumps(message).encode(), TOPICS, 99)
    return found


def test_a_match_has_the_makers_side() -> None:
    assert one(MATCH) == (TRADES, Trade(280232, 0.00001305, 985.0, 1618677817089, True, 99))
    bought = one({**MATCH, "type": "last_match", "side": "buy"})
    assert bought == (TRADES, Trade(280232, 0.00001305, 985.0, 1618677817089, False, 99))


def test_times_are_cut_to_milliseconds() -> None:
    for text, expected in (("37.089000Z", 89), ("37.089999Z", 89), ("37.1Z", 100), ("37Z", 0)):
        _, trade = one({**MATCH, "time": f"2021-04-17T16:43:{text}"})
        assert trade.event_time == 1618677817000 + expected


def test_a_change_and_a_snapshot_of_a_book() -> None:
    assert one(UPDATE) == (
        BOOKS,
        BookChange(0, 0, None, [(0.00001304, 0.0)], [(0.00001306, 660.5)], 1618677817075, 99),
    )
    snapshot = {"type": "snapshot", "product_id": "SKL-BTC", "asks": [["2", "1"]], "bids": [["1.5", "3"]]}
    assert one(snapshot) == (BOOKS, BookSnapshot(0, [(1.5, 3.0)], [(2.0, 1.0)], None, 99))


def test_a_ticker() -> None:
    ticker = {
        "type": "ticker", "product_id": "SKL-BTC", "price": "3", "open_24h": "2", "volume_24h": "100",
        "low_24h": "1", "high_24h": "4", "best_bid": "2.9", "best_ask": "0", "best_bid_size": "7",
        "time": "2021-04-17T16:43:30.244075Z",
    }  # fmt: skip
    expected = Ticker(99, 1618677810244, 2.9, 7.0, None, None, 3.0, 2.0, 4.0, 1.0, 100.0)
    assert one(ticker) == (TICKERS, expected)


def test_answers() -> None:
    channels = [{"name": "level2_50", "product_ids": ["SKL-BTC"], "account_ids": None}, {"name": "matches"}]
    assert one({"type": "subscriptions", "channels": channels}) == Answer(
        AnswerKind.SUBSCRIBED, frozenset({("level2_batch", "SKL-BTC")})
    )
    refused = one({"type": "error", "message": "Failed to subscribe", "reason": "ABC-DEF is not a valid product"})
    assert refused == Answer(AnswerKind.REFUSED, text="Failed to subscribe: ABC-DEF is not a valid product")
    assert one({"type": "heartbeat", "sequence": 90, "last_trade_id": 20}).kind is AnswerKind.NOTICE


@pytest.mark.parametrize(
    ("message", "topic", "reason"),
    [
        ({**MATCH, "price": "-1"}, TRADES, "price: '-1' is not accepted; expected float > 0.0"),
        ({**MATCH, "price": "NaN"}, TRADES, "price: 'NaN'"),
        ({**MATCH, "size": "0"}, TRADES, "size: '0'"),
        ({**MATCH, "side": "hold"}, TRADES, "side: 'hold'"),
        ({**MATCH, "time": "2021-04-17T16:43:37.089723"}, TRADES, "time: '2021-04-17T16:43:37.089723'"),
        ({**MATCH, "time": "yesterday"}, TRADES, "time: 'yesterday'"),
        ({key: MATCH[key] for key in MATCH if key != "trade_id"}, TRADES, "trade_id: is missing"),
        ({**MATCH, "product_id": "ABC-DEF"}, None, "product_id: 'matches ABC-DEF'"),
        ({**UPDATE, "changes": [["sell", "1", "2"], ["sell", "0", "2"]]}, BOOKS, "changes[1][1]: '0'"),
        ({**UPDATE, "changes": [["side", "1", "2"]]}, BOOKS, "changes[0][0]: 'side'"),
        ({**UPDATE, "changes": [["sell", "1"]]}, BOOKS, "changes[0]: ['sell', '1']"),
        ({**MATCH, "type": "open"}, None, "type: 'open'"),
        ({"product_id": "SKL-BTC"}, None, "type: is missing"),
        ([], None, "message: []"),
    ],
)
def test_what_cannot_be_used_is_named(message: object, topic: Topic | None, reason: str) -> None:
    found = one(message)
    assert isinstance(found, RefusedMessage)
    assert found.topic == topic
    assert found.reason.startswith(reason)
    assert json.loads(found.raw) == message


@given(st.binary(max_size=60))
def test_no_bytes_raise(raw: bytes) -> None:
    (found,) = read(raw, TOPICS, 99)
    assert isinstance(found, RefusedMessage)


@pytest.mark.parametrize("raw", [b"[" * 100_000, b'{"type":"match","product_id":' + b"[" * 100_000, b"\xff"])
def test_absurd_bytes_are_refused_and_cut(raw: bytes) -> None:
    (found,) = read(raw, TOPICS, 99)
    assert isinstance(found, RefusedMessage)
    assert len(found.raw) <= LONGEST_RAW


def test_names_on_the_wire() -> None:
    assert set(TOPICS) == {("matches", "SKL-BTC"), ("ticker", "SKL-BTC"), ("level2_batch", "SKL-BTC")}
    with pytest.raises(BadInput, match="channels: 'candles'"):
        wire_name(Topic(Channel.CANDLES, "SKL/BTC", TIMEFRAMES["1m"]), "SKL-BTC")
    asked = json.loads(request("subscribe", [("matches", "A-B"), ("ticker", "A-B"), ("matches", "C-D")]))
    assert asked == {
        "type": "subscribe",
        "channels": [
            {"name": "matches", "product_ids": ["A-B", "C-D"]},
            {"name": "ticker", "product_ids": ["A-B"]},
        ],
    }
