"""From one received message to the listener of its topic, for the streams of one Binance connection.

Messages come combined, ``{"stream": "btcusdt@trade", "data": {...}}``, and are told apart by the name of the
stream. Those without that envelope are known by their own fields. Answers to SUBSCRIBE are neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import structlog

from exchange.binance.messages import (
    read_agg_trade,
    read_book_ticker,
    read_candle,
    read_day_ticker,
    read_depth,
    read_trade,
)
from exchange.plausible import MOST_TIMES, EventTimes, PriceBand
from exchange.reading import UNREADABLE, refused
from exchange.stream import Listener, RefusedMessage
from market.book_message import BookChange
from market.candle_update import CandleUpdate
from market.channel import Topic
from market.errors import BadInput
from market.ticker import Ticker
from market.timeframe import Timeframe
from market.trade import Trade

log = structlog.get_logger(__name__)

#: Reads the inner object of a message, given when it was received (epoch milliseconds).
Read = Callable[[bytes, int], Any]
#: Kind of a stream, as in its name, to the name of its messages.
_EVENTS = {
    "trade": "trade",
    "aggTrade": "aggTrade",
    "kline": "kline",
    "bookTicker": "bookTicker",
    "ticker": "24hrTicker",
    "depth": "depthUpdate",
}


class _Envelope(msgspec.Struct, gc=False):
    stream: str = ""
    data: msgspec.Raw = msgspec.Raw(b"")


class _Fault(msgspec.Struct):
    code: int = 0
    msg: str = ""


class _Interval(msgspec.Struct):
    i: str = ""


class _Unnamed(msgspec.Struct):
    """What tells messages without an envelope apart."""

    e: str = ""
    s: str = ""
    k: _Interval | None = None
    id: int | str | None = None
    result: Any = msgspec.UNSET
    error: _Fault | None = None
    #: Errors of the futures streams have no object around them.
    code: int | None = None
    msg: str = ""


_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_unnamed = msgspec.json.Decoder(_Unnamed).decode


class SubscribeAnswer(msgspec.Struct, frozen=True):
    """What the exchange says to a request.

    ::

        {"result": null, "id": 1}
        {"error": {"code": 2, "msg": "Invalid request: unknown stream"}, "id": 1}
        {"code": 2, "msg": "Invalid request: unknown stream", "id": 1}
    """

    #: Of the request; None where it could not be read.
    id: int | str | None
    #: None if the request was followed.
    error: str | None = None
    code: int = 0


class Stream:
    """One subscribed stream."""

    __slots__ = ("event", "listener", "read", "topic")

    def __init__(
        self, name: str, exchange_symbol: str, topic: Topic, listener: Listener, times: EventTimes, *, futures: bool
    ) -> None:
        """
        :param name: ``btcusdt@depth@100ms``.
        :param times: of the connection.
        """
        kind, _, interval = name.split("@")[1].partition("_")
        self.topic = topic
        self.listener = listener
        self.read: Read = _reader(kind, exchange_symbol, topic, times, futures=futures)
        #: What its messages say of themselves: name, symbol, timeframe.
        self.event = (_EVENTS[kind], exchange_symbol, interval)


def dispatch(
    exchange: str,
    streams: Mapping[str, Stream],
    refuse: Callable[[RefusedMessage], None],
    answered: Callable[[SubscribeAnswer], None],
    now_ms: Callable[[], int],
) -> Callable[[bytes], None]:
    """What hears the messages of one connection. The hot path: a function, and as few calls as possible in it.

    :param streams: by name.
    :param refuse: told of each message that cannot be used.
    :param answered: told of each answer to a request.
    :param now_ms: our clock.
    """
    get = streams.get
    decode = _decode_envelope
    by_event = {one.event: one for one in streams.values()}
    by_plain_name = {_plain(name): one for name, one in streams.items()}

    def hear(raw: bytes) -> None:
        received_at = now_ms()
        stream = None
        part = ""
        try:
            envelope = decode(raw)
            stream = get(envelope.stream)
            if stream is None and envelope.stream:
                stream = _at_another_pace(envelope.stream, by_plain_name)
            if stream is not None:
                part = "data"
                message = stream.read(envelope.data, received_at)
            else:
                stream = _unnamed(raw, by_event, answered)
                if stream is None:
                    return
                message = stream.read(raw, received_at)
        except UNREADABLE as error:
            refuse(refused(exchange, None if stream is None else stream.topic, error, raw, received_at, part))
            return
        # Not inside: what a listener raises is a bug of ours, not a bad message.
        stream.listener(message)

    return hear


def _plain(name: str) -> str:
    """A stream's name without its pace: ``btcusdt@depth`` for ``btcusdt@depth@100ms``."""
    return "@".join(name.split("@", 2)[:2])


def _at_another_pace(name: str, by_plain_name: Mapping[str, Stream]) -> Stream:
    """The subscribed stream that `name` is another pace of: recorded sessions have ``@depth@0ms``.

    :raises BadInput: if there is none.
    """
    stream = by_plain_name.get(_plain(name))
    if stream is None:
        raise BadInput("stream", name, "a stream that was subscribed to")
    return stream


def _unnamed(
    raw: bytes, by_event: Mapping[tuple[str, str, str], Stream], answered: Callable[[SubscribeAnswer], None]
) -> Stream | None:
    """The stream of a message without an envelope; None for one that is about the connection."""
    one = _decode_unnamed(raw)
    if one.error is not None:
        answered(SubscribeAnswer(one.id, one.error.msg or f"code {one.error.code}", one.error.code))
        return None
    if one.code is not None:
        answered(SubscribeAnswer(one.id, one.msg or f"code {one.code}", one.code))
        return None
    if one.result is not msgspec.UNSET:
        answered(SubscribeAnswer(one.id))
        return None
    if one.e == "serverShutdown":
        # Sent some minutes before the exchange ends all connections; the end itself is what we act on.
        log.info("stream_notice", text="the exchange is about to end the connection")
        return None
    # Spot's best prices do not name themselves.
    event = (one.e or "bookTicker", one.s, one.k.i if one.k is not None else "")
    stream = by_event.get(event)
    if stream is None:
        raise BadInput("message", " ".join(event).strip(), "one of a stream that was subscribed to, or an answer")
    return stream


def _reader(kind: str, exchange_symbol: str, topic: Topic, times: EventTimes, *, futures: bool) -> Read:
    """What reads the messages of one kind of stream, and refuses those that cannot be true."""
    band = PriceBand()
    if kind == "trade":
        return _trades(read_trade, exchange_symbol, band, times)
    if kind == "aggTrade":
        return _trades(read_agg_trade, exchange_symbol, band, times)
    if kind == "kline" and topic.timeframe is not None:
        return _candles(exchange_symbol, topic.timeframe, band, times)
    if kind == "bookTicker":
        return _best_prices(exchange_symbol, band, times)
    if kind == "ticker":
        return _days(exchange_symbol, band, times)
    return _changes(exchange_symbol, times, futures=futures)


def _trades(parse: Callable[[bytes, str, int], Trade], symbol: str, band: PriceBand, times: EventTimes) -> Read:
    def read(data: bytes, received_at: int) -> Trade:
        trade = parse(data, symbol, received_at)
        price, event_time = trade.price, trade.event_time
        if not times.lowest <= event_time - received_at <= times.highest:
            times.check("T", event_time, received_at)
        if not band.low < price < band.high:
            band.check("p", price)
        return trade

    return read


def _candles(symbol: str, timeframe: Timeframe, band: PriceBand, times: EventTimes) -> Read:
    def read(data: bytes, received_at: int) -> CandleUpdate:
        candle = read_candle(data, symbol, received_at, timeframe)
        times.check("E", candle.event_time, received_at)
        band.check("k.c", candle.close)
        return candle

    return read


def _best_prices(symbol: str, band: PriceBand, times: EventTimes) -> Read:
    def read(data: bytes, received_at: int) -> Ticker:
        ticker = read_book_ticker(data, symbol, received_at)
        event_time, bid, ask = ticker.event_time, ticker.bid, ticker.ask
        if event_time is not None and not times.lowest <= event_time - received_at <= times.highest:
            times.check("E", event_time, received_at)
        # In a market with next to no offers either side may be anywhere, and come and go.
        if bid is not None and ask is not None and ask < bid * MOST_TIMES and not band.low < bid < band.high:
            band.check("b", bid)
        return ticker

    return read


def _days(symbol: str, band: PriceBand, times: EventTimes) -> Read:
    def read(data: bytes, received_at: int) -> Ticker:
        ticker = read_day_ticker(data, symbol, received_at)
        if ticker.event_time is not None:
            times.check("E", ticker.event_time, received_at)
        if ticker.last is not None:
            band.check("c", ticker.last)
        return ticker

    return read


def _changes(symbol: str, times: EventTimes, *, futures: bool) -> Read:
    # No band: in any book someone bids a cent for a bitcoin.
    def read(data: bytes, received_at: int) -> BookChange:
        change = read_depth(data, symbol, received_at)
        if change.event_time is not None:
            times.check("E", change.event_time, received_at)
        if futures and change.previous_id is None:
            raise BadInput("pu", None, "the number of the message before")
        return change

    return read
