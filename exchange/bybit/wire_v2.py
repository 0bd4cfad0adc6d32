"""Bybit's retired second protocol, to read recordings of it: bytes of the wire to messages of `market`.

Bybit switched these streams off; nothing connects to them. Books came as 25 levels of each side with deletions,
updates and insertions by level id; the id stands for a price, which is sent along.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from exchange.reading import (
    UNREADABLE,
    Answer,
    AnswerKind,
    Milliseconds,
    Price,
    Quantity,
    Reading,
    Traded,
    not_subscribed,
    one_by_one,
    refused,
)
from market.book_message import BookChange, BookSnapshot, Level
from market.channel import Channel, Topic
from market.errors import BadInput
from market.trade import Trade

_Side: TypeAlias = Literal["Buy", "Sell"]


class _Request(msgspec.Struct, frozen=True):
    op: str = ""
    args: list[str] = []


class _Head(msgspec.Struct):
    """What tells one message from another."""

    topic: str = ""
    type: Literal["", "snapshot", "delta"] = ""
    data: msgspec.Raw = msgspec.Raw()
    #: Text, or a number for inverse contracts.
    cross_seq: str | int = 0
    timestamp_e6: str | int = 0
    success: bool | None = None
    ret_msg: str = ""
    request: _Request = _Request()


class _Trade(msgspec.Struct):
    trade_id: str
    side: _Side
    price: Price
    size: Traded
    trade_time_ms: Milliseconds


class _Gone(msgspec.Struct):
    price: Price
    side: _Side


class _Level(_Gone):
    size: Quantity


class _Whole(msgspec.Struct):
    order_book: list[_Level]


class _Delta(msgspec.Struct):
    delete: list[_Gone] = []
    update: list[_Level] = []
    insert: list[_Level] = []


_head = msgspec.json.Decoder(_Head)
_trades = msgspec.json.Decoder(list[_Trade], strict=False)
_whole = msgspec.json.Decoder(_Whole | list[_Level], strict=False)
_delta = msgspec.json.Decoder(_Delta, strict=False)


class _Sides(NamedTuple):
    bids: list[Level]
    asks: list[Level]


def wire_name(topic: Topic, exchange_symbol: str) -> str:
    """The name of `topic` on the wire.

    :raises BadInput: for other channels than trades and order books.
    """
    names = {Channel.TRADES: "trade", Channel.ORDER_BOOKS: "orderBookL2_25"}
    if topic.channel not in names:
        raise BadInput("channels", str(topic.channel), "one of " + ", ".join(names))
    return f"{names[topic.channel]}.{exchange_symbol}"


def read(raw: bytes, topics: Mapping[str, Topic], received_at: int) -> list[Reading]:
    """What one message says; a message may hold several trades.

    An answer::

        {"success": true, "ret_msg": "", "conn_id": "38cf0ac3-af67-483c-9bbc-b57d45910ecb",
         "request": {"op": "subscribe", "args": ["trade.BCHUSDT"]}}

    :param topics: what was subscribed to, by Bybit's name.
    :param received_at: epoch milliseconds of our clock.
    """
    topic, part = None, ""
    try:
        head = _head.decode(raw)
        if not head.topic:
            return [_answer(head, raw)]
        topic = topics.get(head.topic)
        if topic is None:
            raise not_subscribed("topic", head.topic)
        part = "data"
        reader = _read_trades if topic.channel is Channel.TRADES else _read_books
        return reader(head, topic, received_at)
    except UNREADABLE as error:
        try:
            return one_by_one(raw, error, lambda single: read(single, topics, received_at))
        except UNREADABLE:
            return [refused("bybit", topic, error, raw, received_at, part)]


def _answer(head: _Head, raw: bytes) -> Answer:
    names = frozenset(head.request.args)
    if head.success is None:
        raise BadInput("message", raw[:100].decode("utf-8", "replace"), "one with topic or success")
    if not head.success:
        return Answer(AnswerKind.REFUSED, names, head.ret_msg)
    if head.request.op == "ping":
        return Answer(AnswerKind.PONG)
    return Answer(AnswerKind.SUBSCRIBED, names)


def _read_trades(head: _Head, topic: Topic, received_at: int) -> list[Reading]:
    """Trades; ``side`` is the taker's.

    ::

        {"topic": "trade.BCHUSDT", "data": [
            {"symbol": "BCHUSDT", "tick_direction": "MinusTick", "price": "1053.90", "size": 0.14,
             "timestamp": "2021-04-17T16:43:05.000Z", "trade_time_ms": "1618677785116", "side": "Buy",
             "trade_id": "01cacfe9-8d1c-5ee4-995d-d79a43f955a6"}]}
    """
    return [
        (topic, Trade(one.trade_id, one.price, one.size, one.trade_time_ms, one.side == "Buy", received_at))
        for one in _trades.decode(head.data)
    ]


def _read_books(head: _Head, topic: Topic, received_at: int) -> list[Reading]:
    """25 levels of each side, then what changes in them.

    ::

        {"topic": "orderBookL2_25.BCHUSDT", "type": "snapshot", "data": {"order_book": [
            {"price": "1053.05", "symbol": "BCHUSDT", "id": "10530500", "side": "Buy", "size": 2.63}]},
         "cross_seq": "864131773", "timestamp_e6": "1618677786389362"}
        {"topic": "orderBookL2_25.BCHUSDT", "type": "delta", "data": {
            "delete": [{"price": "1053.80", "symbol": "BCHUSDT", "id": "10538000", "side": "Buy"}],
            "update": [{"price": "1053.75", "symbol": "BCHUSDT", "id": "10537500", "side": "Buy", "size": 17.46}],
            "insert": [{"price": "1054.70", "symbol": "BCHUSDT", "id": "10547000", "side": "Sell", "size": 3.71}]},
         "cross_seq": "864131802", "timestamp_e6": "1618677786430132"}

    Inverse contracts have the list itself as the snapshot's ``data``. ``cross_seq`` grows, but not by one: it says
    nothing about what is missing.
    """
    number = _whole_number("cross_seq", head.cross_seq)
    event_time = _whole_number("timestamp_e6", head.timestamp_e6) // 1000
    if head.type == "snapshot":
        found = _whole.decode(head.data)
        bids, asks = _sides(found.order_book if isinstance(found, _Whole) else found)
        bids.sort(reverse=True)
        asks.sort()
        return [(topic, BookSnapshot(number, bids, asks, event_time, received_at))]
    if head.type != "delta":
        raise BadInput("type", head.type, "snapshot or delta")
    delta = _delta.decode(head.data)
    # Deletions first: what they free may be inserted again in the same message.
    gone, kept = _sides(delta.delete), _sides(delta.update + delta.insert)
    bids, asks = gone.bids + kept.bids, gone.asks + kept.asks
    return [(topic, BookChange(number, number, None, bids, asks, event_time, received_at))]


def _sides(levels: list[_Level] | list[_Gone]) -> _Sides:
    sides = _Sides([], [])
    for one in levels:
        side = sides.bids if one.side == "Buy" else sides.asks
        side.append((one.price, one.size if isinstance(one, _Level) else 0.0))
    return sides


def _whole_number(field: str, value: str | int) -> int:
    if isinstance(value, str) and not (value.isascii() and value.isdigit()):
        raise BadInput(field, value, "a whole number")
    return int(value)
