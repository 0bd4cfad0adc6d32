"""Bybit's public streams, version 5: bytes of the wire to messages of `market`.

Spot, linear and inverse contracts have an address each (``/v5/public/spot`` and so on) and the same messages.
Quantities are as Bybit counts them: in base for spot and linear contracts, in quote for inverse ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from exchange.ccxt_messages import trade_id
from exchange.reading import (
    UNREADABLE,
    Answer,
    AnswerKind,
    Count,
    Milliseconds,
    Price,
    Quantity,
    Reading,
    Traded,
    not_subscribed,
    number,
    one_by_one,
    price,
    refused,
)
from market.book_message import BookChange, BookSnapshot
from market.candle_update import CandleUpdate
from market.channel import Channel, Topic
from market.errors import BadInput
from market.ticker import Ticker
from market.trade import Trade

#: Levels of each side in an order book: the second largest book that spot and contracts both stream, each 100 ms
#: (contracts) or 200 ms (spot).
BOOK_LEVELS = 200
#: Bybit's names of our timeframes.
INTERVALS = {
    "1m": "1", "3m": "3", "5m": "5", "15m": "15", "30m": "30", "1h": "60", "2h": "120", "4h": "240", "6h": "360",
    "12h": "720", "1d": "D", "1w": "W", "1M": "M",
}  # fmt: skip


class _Head(msgspec.Struct):
    """What tells one message from another."""

    topic: str = ""
    type: Literal["", "snapshot", "delta"] = ""
    ts: Milliseconds = 0
    data: msgspec.Raw = msgspec.Raw()
    op: str = ""
    success: bool | None = None
    ret_msg: str = ""
    req_id: str = ""


class _Trade(msgspec.Struct):
    T: Milliseconds
    S: Literal["Buy", "Sell"]
    v: Traded
    p: Price
    i: str


class _Book(msgspec.Struct):
    b: list[tuple[Price, Quantity]]
    a: list[tuple[Price, Quantity]]
    u: Count


class _Ticker(msgspec.Struct):
    lastPrice: str | None = None
    prevPrice24h: str | None = None
    highPrice24h: str | None = None
    lowPrice24h: str | None = None
    volume24h: str | None = None
    turnover24h: str | None = None
    bid1Price: str | None = None
    bid1Size: str | None = None
    ask1Price: str | None = None
    ask1Size: str | None = None


class _Candle(msgspec.Struct):
    start: Milliseconds
    open: Price
    high: Price
    low: Price
    close: Price
    volume: Quantity
    turnover: Quantity
    confirm: bool
    timestamp: Milliseconds


_head = msgspec.json.Decoder(_Head)
_trades = msgspec.json.Decoder(list[_Trade], strict=False)
_book = msgspec.json.Decoder(_Book, strict=False)
_tickers = msgspec.json.Decoder(_Ticker)
_candles = msgspec.json.Decoder(list[_Candle], strict=False)


def wire_names(topic: Topic, exchange_symbol: str, *, spot: bool) -> list[str]:
    """Bybit's topics that bring the messages of `topic`.

    A spot ticker has its best prices from a book of one level.

    :param exchange_symbol: ``BTCUSDT``.
    :raises BadInput: for a candle length that Bybit does not stream.
    """
    if topic.channel is Channel.TRADES:
        return [f"publicTrade.{exchange_symbol}"]
    if topic.channel is Channel.ORDER_BOOKS:
        return [f"orderbook.{BOOK_LEVELS}.{exchange_symbol}"]
    if topic.channel is Channel.TICKERS:
        return [f"tickers.{exchange_symbol}", *([f"orderbook.1.{exchange_symbol}"] if spot else [])]
    name = topic.timeframe.name if topic.timeframe is not None else ""
    if name not in INTERVALS:
        raise BadInput("timeframe", name, "one that Bybit streams: " + " ".join(INTERVALS))
    return [f"kline.{INTERVALS[name]}.{exchange_symbol}"]


def request(op: Literal["subscribe", "unsubscribe"], names: list[str], request_id: str) -> bytes:
    """A request for topics, which Bybit grants or refuses as a whole.

    ::

        {"op": "subscribe", "args": ["publicTrade.BTCUSDT"], "req_id": "1"}
    """
    return msgspec.json.encode({"op": op, "args": names, "req_id": request_id})


def read(raw: bytes, topics: Mapping[str, Topic], received_at: int) -> list[Reading]:
    """What one message says; a message may hold several trades or candles.

    Answers look like this; the second is spot's to a ping, the third that of contracts::

        {"success": true, "ret_msg": "", "conn_id": "0bf9e02b-7c9d", "req_id": "1", "op": "subscribe"}
        {"success": true, "ret_msg": "pong", "conn_id": "0bf9e02b-7c9d", "op": "ping"}
        {"req_id": "", "op": "pong", "args": ["1675418560633"], "conn_id": "cfcb4ocsvfriu23r3er0-1b"}

    For the others see the functions below.

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
        return _READERS[topic.channel](head, topic, received_at)
    except UNREADABLE as error:
        try:
            return one_by_one(raw, error, lambda single: read(single, topics, received_at))
        except UNREADABLE:
            return [refused("bybit", topic, error, raw, received_at, part)]


def _answer(head: _Head, raw: bytes) -> Answer:
    if head.op == "pong" or (head.op == "ping" and head.success):
        return Answer(AnswerKind.PONG)
    names = frozenset([head.req_id] if head.req_id else [])
    if head.success is False:
        return Answer(AnswerKind.REFUSED, names, head.ret_msg)
    if head.op == "subscribe":
        return Answer(AnswerKind.SUBSCRIBED, names)
    if not head.op:
        raise BadInput("message", raw[:100].decode("utf-8", "replace"), "one with topic or op")
    return Answer(AnswerKind.NOTICE, names, f"{head.op} {head.ret_msg}".strip())


def _read_trades(head: _Head, topic: Topic, received_at: int) -> list[Reading]:
    """Trades; ``S`` is the taker's side. Ids name a trade and do not count.

    ::

        {"topic": "publicTrade.BTCUSDT", "type": "snapshot", "ts": 1672304486868, "data": [
            {"T": 1672304486865, "s": "BTCUSDT", "S": "Buy", "v": "0.001", "p": "16578.50", "L": "PlusTick",
             "i": "20f43950-d8dd-5b31-9112-a178eb6023af", "BT": false}]}
    """
    rows = _trades.decode(head.data)
    return [(topic, Trade(trade_id(one.i), one.p, one.v, one.T, one.S == "Buy", received_at)) for one in rows]


def _read_books(head: _Head, topic: Topic, received_at: int) -> list[Reading]:
    """The best levels of each side, then what changes in them.

    ::

        {"topic": "orderbook.500.XRPUSDT", "type": "delta", "ts": 1733011204990, "data": {
            "s": "XRPUSDT", "b": [["1.9531", "18677"]], "a": [["1.9532", "7969"]], "u": 20254913,
            "seq": 130020250880}, "cts": 1733011204981}

    ``u`` counts up by one within a book. After a restart of Bybit's service there is a snapshot with ``u`` 1.
    """
    if not head.type:
        raise BadInput("type", head.type, "snapshot or delta")
    book = _book.decode(head.data)
    if head.type == "snapshot":
        return [(topic, BookSnapshot(book.u, book.b, book.a, head.ts, received_at))]
    return [(topic, BookChange(book.u, book.u, None, book.b, book.a, head.ts, received_at))]


def _read_tickers(head: _Head, topic: Topic, received_at: int) -> list[Reading]:
    """The last 24 hours, with best prices for contracts; a delta has only what changed.

    ::

        {"topic": "tickers.BTCUSDT", "ts": 1673853746003, "type": "snapshot", "cs": 2588407389, "data": {
            "symbol": "BTCUSDT", "lastPrice": "21109.77", "highPrice24h": "21426.99", "lowPrice24h": "20575",
            "prevPrice24h": "20704.93", "volume24h": "6780.866843", "turnover24h": "141946527.22907118",
            "price24hPcnt": "0.0196", "usdIndexPrice": "21120.2400136"}}
    """
    if head.topic.startswith("orderbook."):
        return [(topic, _best(head, received_at))]
    one = _tickers.decode(head.data)
    ticker = Ticker(
        received_at=received_at,
        event_time=head.ts,
        bid=price("data.bid1Price", one.bid1Price),
        bid_quantity=number("data.bid1Size", one.bid1Size),
        ask=price("data.ask1Price", one.ask1Price),
        ask_quantity=number("data.ask1Size", one.ask1Size),
        last=price("data.lastPrice", one.lastPrice),
        open=price("data.prevPrice24h", one.prevPrice24h),
        high=price("data.highPrice24h", one.highPrice24h),
        low=price("data.lowPrice24h", one.lowPrice24h),
        volume=number("data.volume24h", one.volume24h),
        quote_volume=number("data.turnover24h", one.turnover24h),
    )
    return [(topic, ticker)]


def _best(head: _Head, received_at: int) -> Ticker:
    """The best prices from a book of one level: a change takes the old level away and brings the new one."""
    book = _book.decode(head.data)
    bid, bid_quantity = next((level for level in book.b if level[1]), (None, None))
    ask, ask_quantity = next((level for level in book.a if level[1]), (None, None))
    return Ticker(received_at, head.ts, bid, bid_quantity, ask, ask_quantity)


def _read_candles(head: _Head, topic: Topic, received_at: int) -> list[Reading]:
    """Candles, forming or closed (``confirm``).

    ::

        {"topic": "kline.5.BTCUSDT", "type": "snapshot", "ts": 1672324988882, "data": [
            {"start": 1672324800000, "end": 1672325099999, "interval": "5", "open": "16649.5", "close": "16677",
             "high": "16677", "low": "16608", "volume": "2.081", "turnover": "34666.4005", "confirm": false,
             "timestamp": 1672324988882}]}
    """
    found: list[Reading] = []
    for one in _candles.decode(head.data):
        update = CandleUpdate(
            one.start, one.open, one.high, one.low, one.close, one.volume, one.turnover, None, None, None, None,
            one.confirm, head.ts, received_at,
        )  # fmt: skip
        found.append((topic, update))
    return found


_READERS = {
    Channel.TRADES: _read_trades,
    Channel.TICKERS: _read_tickers,
    Channel.ORDER_BOOKS: _read_books,
    Channel.CANDLES: _read_candles,
}
