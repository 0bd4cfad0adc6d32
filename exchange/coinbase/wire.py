"""Coinbase Exchange's feed (``wss://ws-feed.exchange.coinbase.com``): bytes of the wire to messages of `market`.

The feed has no candles. Its ``level2`` asks for a key today; ``level2_batch`` is public and sends the same messages
each 50 ms.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, TypeAlias

import msgspec

from exchange.reading import (
    UNREADABLE,
    Answer,
    AnswerKind,
    Count,
    Price,
    Quantity,
    Reading,
    Traded,
    not_subscribed,
    number,
    price,
    refused,
)
from market.book_message import BookChange, BookSnapshot
from market.channel import Channel, Topic
from market.errors import BadInput
from market.ticker import Ticker
from market.trade import Trade

#: A channel and a product: ``("matches", "BTC-USD")``.
WireName: TypeAlias = tuple[str, str]

BOOKS = "level2_batch"
_NAMED = {Channel.TRADES: "matches", Channel.TICKERS: "ticker", Channel.ORDER_BOOKS: BOOKS}

_Moment: TypeAlias = Annotated[datetime, msgspec.Meta(tz=True)]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


class _Match(msgspec.Struct, tag="match"):
    product_id: str
    trade_id: Count
    side: Literal["buy", "sell"]
    size: Traded
    price: Price
    time: _Moment


class _LastMatch(_Match, tag="last_match"):
    pass


class _Ticker(msgspec.Struct, tag="ticker"):
    product_id: str
    time: _Moment | None = None
    price: str = ""
    best_bid: str = ""
    best_bid_size: str = ""
    best_ask: str = ""
    best_ask_size: str = ""
    open_24h: str = ""
    high_24h: str = ""
    low_24h: str = ""
    volume_24h: str = ""


class _Snapshot(msgspec.Struct, tag="snapshot"):
    product_id: str
    bids: list[tuple[Price, Quantity]]
    asks: list[tuple[Price, Quantity]]
    time: _Moment | None = None


class _Update(msgspec.Struct, tag="l2update"):
    product_id: str
    changes: list[tuple[Literal["buy", "sell"], Price, Quantity]]
    time: _Moment


class _Channel(msgspec.Struct):
    name: str
    product_ids: list[str] = []


class _Subscriptions(msgspec.Struct, tag="subscriptions"):
    channels: list[_Channel] = []


class _Error(msgspec.Struct, tag="error"):
    message: str = ""
    reason: str = ""


class _Heartbeat(msgspec.Struct, tag="heartbeat"):
    product_id: str = ""


_News: TypeAlias = _Match | _LastMatch | _Ticker | _Snapshot | _Update
_decoder = msgspec.json.Decoder(_News | _Subscriptions | _Error | _Heartbeat, strict=False)
_loose = msgspec.json.Decoder(dict[str, msgspec.Raw])


def wire_name(topic: Topic, exchange_symbol: str) -> WireName:
    """The channel and the product that bring the messages of `topic`.

    :param exchange_symbol: ``BTC-USD``.
    :raises BadInput: for candles.
    """
    if topic.channel not in _NAMED:
        raise BadInput("channels", str(topic.channel), "one that Coinbase streams: " + ", ".join(_NAMED))
    return _NAMED[topic.channel], exchange_symbol


def request(op: Literal["subscribe", "unsubscribe"], names: list[WireName]) -> bytes:
    """A request for channels; Coinbase answers with all subscriptions of the connection.

    ::

        {"type": "subscribe", "channels": [{"name": "matches", "product_ids": ["BTC-USD"]}]}
    """
    products: dict[str, list[str]] = {}
    for channel, product in names:
        products.setdefault(channel, []).append(product)
    channels = [{"name": channel, "product_ids": ids} for channel, ids in products.items()]
    return msgspec.json.encode({"type": op, "channels": channels})


def read(raw: bytes, topics: Mapping[WireName, Topic], received_at: int) -> list[Reading]:
    """What one message says.

    Answers look like this::

        {"type": "subscriptions", "channels": [{"name": "ticker", "product_ids": ["YFI-BTC", "NU-GBP"]}]}
        {"type": "error", "message": "Failed to subscribe", "reason": "ABC-DEF is not a valid product"}

    :param topics: what was subscribed to.
    :param received_at: epoch milliseconds of our clock.
    """
    try:
        found = _decoder.decode(raw)
        if isinstance(found, _News):
            topic = topics.get((_CHANNELS[type(found)], found.product_id))
            if topic is None:
                raise not_subscribed("product_id", f"{_CHANNELS[type(found)]} {found.product_id}")
            return [_news(found, topic, received_at)]
        return [_answer(found)]
    except UNREADABLE as error:
        return [refused("coinbaseexchange", _topic_of(raw, topics), error, raw, received_at)]


def _news(found: _News, topic: Topic, received_at: int) -> Reading:
    if isinstance(found, _Update):
        return topic, _change(found, received_at)
    if isinstance(found, _Match):
        return topic, _trade(found, received_at)
    if isinstance(found, _Ticker):
        return topic, _ticker(found, received_at)
    return topic, _snapshot(found, received_at)


def _trade(found: _Match, received_at: int) -> Trade:
    """A match. Its ``side`` is the maker's: where the maker sells, the taker buys.

    ::

        {"type": "match", "trade_id": 280232, "maker_order_id": "2a0da34e-61f7-4c36-88e5-c9dd15927b16",
         "taker_order_id": "3c82abaa-c01e-4608-be59-6a1e69742891", "side": "sell", "size": "985",
         "price": "0.00001305", "product_id": "SKL-BTC", "sequence": 177100030,
         "time": "2021-04-17T16:43:37.089723Z"}

    The first message of a product has type ``last_match``: the last trade before the subscription.
    """
    return Trade(found.trade_id, found.price, found.size, _ms(found.time), found.side == "sell", received_at)


def _ticker(found: _Ticker, received_at: int) -> Ticker:
    """The last trade, best prices and the last 24 hours (volume in base).

    ::

        {"type": "ticker", "sequence": 333938798, "product_id": "BAND-GBP", "price": "14.7775",
         "open_24h": "14.6647", "volume_24h": "94381.28000000", "low_24h": "14.3691", "high_24h": "16.55",
         "volume_30d": "2295579.57000000", "best_bid": "14.7550", "best_ask": "14.8060", "side": "buy",
         "time": "2021-04-17T16:43:30.244075Z", "trade_id": 881613, "last_size": "0.04"}

    Today it has ``best_bid_size`` and ``best_ask_size`` too.
    """
    return Ticker(
        received_at=received_at,
        event_time=None if found.time is None else _ms(found.time),
        bid=price("best_bid", found.best_bid),
        bid_quantity=number("best_bid_size", found.best_bid_size),
        ask=price("best_ask", found.best_ask),
        ask_quantity=number("best_ask_size", found.best_ask_size),
        last=price("price", found.price),
        open=price("open_24h", found.open_24h),
        high=price("high_24h", found.high_24h),
        low=price("low_24h", found.low_24h),
        volume=number("volume_24h", found.volume_24h),
    )


def _snapshot(found: _Snapshot, received_at: int) -> BookSnapshot:
    """The whole book, best first, before the first change.

    ::

        {"type": "snapshot", "product_id": "BAND-GBP", "asks": [["14.8024", "12.77"], ["14.8069", "12.49"]],
         "bids": [["14.7550", "2.39"]]}
    """
    when = None if found.time is None else _ms(found.time)
    return BookSnapshot(0, found.bids, found.asks, when, received_at)


def _change(found: _Update, received_at: int) -> BookChange:
    """Levels that changed: side of the book, price, size there now.

    ::

        {"type": "l2update", "product_id": "SKL-BTC", "changes": [["sell", "0.00001306", "660.5"]],
         "time": "2021-04-17T16:43:37.075687Z"}
    """
    bids = [(at, size) for side, at, size in found.changes if side == "buy"]
    asks = [(at, size) for side, at, size in found.changes if side == "sell"]
    return BookChange(0, 0, None, bids, asks, _ms(found.time), received_at)


_CHANNELS: dict[type[_News], str] = {
    _Match: _NAMED[Channel.TRADES],
    _LastMatch: _NAMED[Channel.TRADES],
    _Ticker: _NAMED[Channel.TICKERS],
    _Snapshot: BOOKS,
    _Update: BOOKS,
}
_TYPES = {"match": "matches", "last_match": "matches", "ticker": "ticker", "snapshot": BOOKS, "l2update": BOOKS}


def _answer(found: _Subscriptions | _Error | _Heartbeat) -> Answer:
    if isinstance(found, _Subscriptions):
        # The feed answers with its own name of the book channel (level2_50 for level2_batch).
        names = {
            (BOOKS if channel.name.startswith("level2") else channel.name, product)
            for channel in found.channels
            for product in channel.product_ids
        }
        return Answer(AnswerKind.SUBSCRIBED, frozenset(names))
    if isinstance(found, _Error):
        return Answer(AnswerKind.REFUSED, text=": ".join(one for one in (found.message, found.reason) if one))
    return Answer(AnswerKind.NOTICE, text="heartbeat")


def _topic_of(raw: bytes, topics: Mapping[WireName, Topic]) -> Topic | None:
    """The topic of a message that cannot be read, if that much of it can."""
    try:
        fields = _loose.decode(raw)
        type_, product = (msgspec.json.decode(fields.get(key, b'""'), type=str) for key in ("type", "product_id"))
    except UNREADABLE:
        return None
    return topics.get((_TYPES.get(type_, ""), product))


def _ms(moment: datetime) -> int:
    return (moment - _EPOCH) // _MILLISECOND
