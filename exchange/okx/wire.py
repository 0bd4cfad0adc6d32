"""OKX's public streams, version 5: bytes of the wire to messages of `market`.

Books, tickers and (aggregated) trades come on ``/ws/v5/public``; candles and single trades on
``/ws/v5/business``. Quantities are as OKX counts them: in base for spot, in contracts for swaps, futures and
options; the volume of a candle is in base for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import msgspec

from exchange.reading import (
    LARGEST,
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
from market.book_message import BookChange, BookSnapshot, Level, LevelText
from market.candle_update import CandleUpdate
from market.channel import Channel, Topic
from market.errors import BadInput
from market.ticker import Ticker
from market.trade import Trade

#: A channel of the wire and an instrument there: ``("books", "BTC-USDT")``.
WireName: TypeAlias = tuple[str, str]

#: Every trade alone (business), or trades of one taker at one price added up (public).
SINGLE_TRADES = "trades-all"
ADDED_TRADES = "trades"
#: OKX's names of our timeframes; without ``utc`` the days begin in Hong Kong.
CANDLE_CHANNELS = {
    "1m": "candle1m", "3m": "candle3m", "5m": "candle5m", "15m": "candle15m", "30m": "candle30m",
    "1h": "candle1H", "2h": "candle2H", "4h": "candle4H", "6h": "candle6Hutc", "12h": "candle12Hutc",
    "1d": "candle1Dutc", "3d": "candle3Dutc", "1w": "candle1Wutc", "1M": "candle1Mutc",
}  # fmt: skip
#: Codes of errors that pass: too many requests, a busy service, an internal error.
_PASSING = frozenset({"50001", "50004", "50011", "50013", "50026", "60014", "63999"})
_NAMED = {Channel.TRADES: SINGLE_TRADES, Channel.TICKERS: "tickers", Channel.ORDER_BOOKS: "books"}


class _Arg(msgspec.Struct, frozen=True):
    channel: str = ""
    instId: str = ""


class _Head(msgspec.Struct):
    """What tells one message from another."""

    arg: _Arg = _Arg()
    event: str = ""
    action: Literal["", "snapshot", "update"] = ""
    data: msgspec.Raw = msgspec.Raw()
    code: str = ""
    msg: str = ""


class _Trade(msgspec.Struct):
    tradeId: Count
    px: Price
    sz: Traded
    side: Literal["buy", "sell"]
    ts: Milliseconds
    count: Count = 1


class _Ticker(msgspec.Struct):
    ts: Milliseconds
    instType: str = ""
    last: str = ""
    askPx: str = ""
    askSz: str = ""
    bidPx: str = ""
    bidSz: str = ""
    open24h: str = ""
    high24h: str = ""
    low24h: str = ""
    vol24h: str = ""
    volCcy24h: str = ""


class _Book(msgspec.Struct):
    asks: list[list[str]]
    bids: list[list[str]]
    ts: Milliseconds
    checksum: int = 0
    seqId: int | None = None
    prevSeqId: int | None = None


#: Open time, four prices, volume (contracts, or base of spot), volume in the base or quote currency, volume in
#: quote, and whether it has closed.
_Candle: TypeAlias = tuple[
    Milliseconds, Price, Price, Price, Price, Quantity, Quantity, Quantity, Literal["0", "1"]
]

_head = msgspec.json.Decoder(_Head)
_trades = msgspec.json.Decoder(list[_Trade], strict=False)
_tickers = msgspec.json.Decoder(list[_Ticker], strict=False)
_books = msgspec.json.Decoder(list[_Book], strict=False)
_candles = msgspec.json.Decoder(list[_Candle], strict=False)


def wire_name(topic: Topic, exchange_symbol: str, *, trades: str = SINGLE_TRADES) -> WireName:
    """The channel and the instrument that bring the messages of `topic`.

    :param exchange_symbol: ``BTC-USDT``.
    :param trades: the channel for trades: :data:`SINGLE_TRADES` or :data:`ADDED_TRADES`.
    :raises BadInput: for a candle length that OKX does not stream.
    """
    if topic.timeframe is not None:
        if topic.timeframe.name not in CANDLE_CHANNELS:
            raise BadInput("timeframe", topic.timeframe.name, "one that OKX streams: " + " ".join(CANDLE_CHANNELS))
        return CANDLE_CHANNELS[topic.timeframe.name], exchange_symbol
    channel = trades if topic.channel is Channel.TRADES else _NAMED[topic.channel]
    return channel, exchange_symbol


def is_business(name: WireName) -> bool:
    """True for what is subscribed to at ``/ws/v5/business``, not at ``/ws/v5/public``."""
    return name[0] == SINGLE_TRADES or name[0].startswith("candle")


def request(op: Literal["subscribe", "unsubscribe"], names: list[WireName]) -> bytes:
    """A request for channels; OKX answers each channel of it.

    ::

        {"op": "subscribe", "args": [{"channel": "books", "instId": "BTC-USDT"}]}
    """
    args = [{"channel": channel, "instId": instrument} for channel, instrument in names]
    return msgspec.json.encode({"op": op, "args": args})


def read(raw: bytes, topics: Mapping[WireName, Topic], received_at: int) -> list[Reading]:
    """What one message says; a message may hold several trades or candles.

    Answers look like this (and ``pong``, not in JSON)::

        {"event": "subscribe", "arg": {"channel": "tickers", "instId": "BTC-USDT"}}
        {"event": "error", "code": "60012", "msg": "Invalid request: ...", "connId": "a4d3ae55"}
        {"event": "notice", "code": "64008", "msg": "The connection will soon be closed for a service upgrade. ..."}

    For the others see the functions below.

    :param topics: what was subscribed to.
    :param received_at: epoch milliseconds of our clock.
    """
    if raw == b"pong":
        return [Answer(AnswerKind.PONG)]
    topic, part = None, ""
    try:
        head = _head.decode(raw)
        name = (head.arg.channel, head.arg.instId)
        if head.event:
            return [_answer(head, name)]
        if not head.arg.channel:
            raise BadInput("message", raw[:100].decode("utf-8", "replace"), "one with arg or event")
        topic = topics.get(name)
        if topic is None:
            raise not_subscribed("arg", " ".join(name))
        part = "data"
        return _READERS[topic.channel](head, topic, received_at)
    except UNREADABLE as error:
        try:
            return one_by_one(raw, error, lambda single: read(single, topics, received_at))
        except UNREADABLE:
            return [refused("okx", topic, error, raw, received_at, part)]


def _answer(head: _Head, name: WireName) -> Answer:
    if head.event == "error":
        names = frozenset([name]) if head.arg.channel else frozenset[WireName]()
        kind = AnswerKind.BUSY if head.code in _PASSING else AnswerKind.REFUSED
        return Answer(kind, names, f"{head.msg} (code {head.code})")
    if head.event == "subscribe":
        return Answer(AnswerKind.SUBSCRIBED, frozenset([name]))
    return Answer(AnswerKind.NOTICE, text=f"{head.event} {head.msg}".strip())


def _read_trades(head: _Head, topic: Topic, received_at: int) -> list[Reading]:
    """Trades; ``side`` is the taker's. Added up ones have ``count``, and the id of the last.

    ::

        {"arg": {"channel": "trades", "instId": "BTC-USDT"}, "data": [
            {"instId": "BTC-USDT", "tradeId": "338476307", "px": "30250.2", "sz": "0.5", "side": "buy",
             "ts": "1652459225151"}]}
    """
    return [
        (topic, Trade(one.tradeId, one.px, one.sz, one.ts, one.side == "buy", received_at, max(1, one.count)))
        for one in _trades.decode(head.data)
    ]


def _read_tickers(head: _Head, topic: Topic, received_at: int) -> list[Reading]:
    """Best prices and the last 24 hours.

    ::

        {"arg": {"channel": "tickers", "instId": "BTC-USD-220527"}, "data": [
            {"instType": "FUTURES", "instId": "BTC-USD-220527", "last": "30218.8", "lastSz": "1",
             "askPx": "30220.1", "askSz": "3", "bidPx": "30210.4", "bidSz": "4", "open24h": "29571.4",
             "high24h": "31003.3", "low24h": "27930.8", "sodUtc0": "28935.3", "sodUtc8": "30320.5",
             "volCcy24h": "2620.289", "vol24h": "779573", "ts": "1652459223003"}]}

    For spot ``vol24h`` is in base and ``volCcy24h`` in quote; otherwise the first is in contracts and the second
    in base.
    """
    return [(topic, _ticker(one, received_at)) for one in _tickers.decode(head.data)]


def _ticker(one: _Ticker, received_at: int) -> Ticker:
    spot = one.instType == "SPOT"
    return Ticker(
        received_at=received_at,
        event_time=one.ts,
        bid=price("data[0].bidPx", one.bidPx),
        bid_quantity=number("data[0].bidSz", one.bidSz),
        ask=price("data[0].askPx", one.askPx),
        ask_quantity=number("data[0].askSz", one.askSz),
        last=price("data[0].last", one.last),
        open=price("data[0].open24h", one.open24h),
        high=price("data[0].high24h", one.high24h),
        low=price("data[0].low24h", one.low24h),
        volume=number("data[0].vol24h", one.vol24h if spot else one.volCcy24h),
        quote_volume=number("data[0].volCcy24h", one.volCcy24h) if spot else None,
    )


def _read_books(head: _Head, topic: Topic, received_at: int) -> list[Reading]:
    """The 400 best levels of each side, then what changes in them.

    ::

        {"arg": {"channel": "books", "instId": "BTC-USD-220527"}, "action": "update", "data": [
            {"asks": [["30249.4", "0", "0", "0"], ["30261", "4", "0", "1"]], "bids": [["30182.6", "452", "0", "1"]],
             "ts": "1652459225464", "checksum": -914047754}]}

    A level is price, size, an unused zero and the number of orders. Since 2023 there are ``seqId`` and
    ``prevSeqId`` (-1 in a snapshot); since 2026 ``checksum`` is always 0, which says nothing.
    """
    if not head.action:
        raise BadInput("action", head.action, "snapshot or update")
    found: list[Reading] = []
    for book in _books.decode(head.data):
        bids, asks = _levels("bids", book.bids), _levels("asks", book.asks)
        checksum = book.checksum or None
        texts = (_texts(book.bids), _texts(book.asks)) if checksum is not None else (None, None)
        last = book.seqId or 0
        if head.action == "snapshot":
            found.append((topic, BookSnapshot(last, bids, asks, book.ts, received_at, checksum, *texts)))
        else:
            change = BookChange(last, last, book.prevSeqId, bids, asks, book.ts, received_at, checksum, *texts)
            found.append((topic, change))
    return found


def _levels(side: str, rows: list[list[str]]) -> list[Level]:
    try:
        levels = [(float(row[0]), float(row[1])) for row in rows]
    except (LookupError, ValueError):
        levels = [(0.0, 0.0)]
    for at, quantity in levels:
        if not (0.0 < at <= LARGEST and 0.0 <= quantity <= LARGEST):
            raise _bad_level(side, rows)
    return levels


def _bad_level(side: str, rows: list[list[str]]) -> BadInput:
    """The error that names the first level that cannot be used."""
    field, row = f"data[0].{side}", rows[0] if rows else []
    for at, row in enumerate(rows):
        field = f"data[0].{side}[{at}]"
        try:
            worth, quantity = float(row[0]), float(row[1])
        except (LookupError, ValueError):
            break
        if not (0.0 < worth <= LARGEST and 0.0 <= quantity <= LARGEST):
            break
    return BadInput(field, row, f"a price above 0 and a size from 0 on, both at most {LARGEST:g}")


def _texts(rows: list[list[str]]) -> list[LevelText]:
    return [(row[0], row[1]) for row in rows]


def _read_candles(head: _Head, topic: Topic, received_at: int) -> list[Reading]:
    """Candles, forming or closed. OKX does not say when it sent them: the time of receipt stands in.

    ::

        {"arg": {"channel": "candle1m", "instId": "BTC-USDT"}, "data": [
            ["1597026383085", "8533.02", "8553.74", "8527.17", "8548.26", "45247", "529.5858061", "529.5858061",
             "0"]]}
    """
    # Spot has two parts (BTC-USDT); every contract has three or more (BTC-USDT-SWAP).
    spot = head.arg.instId.count("-") == 1
    found: list[Reading] = []
    for open_time, first, high, low, close, volume, other, quote, closed in _candles.decode(head.data):
        base = volume if spot else other
        update = CandleUpdate(
            open_time, first, high, low, close, base, quote, None, None, None, None,
            closed == "1", received_at, received_at,
        )  # fmt: skip
        found.append((topic, update))
    return found


_READERS = {
    Channel.TRADES: _read_trades,
    Channel.TICKERS: _read_tickers,
    Channel.ORDER_BOOKS: _read_books,
    Channel.CANDLES: _read_candles,
}
