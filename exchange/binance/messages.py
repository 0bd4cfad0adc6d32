"""Messages of Binance's market streams (spot, binance.us, USD-M futures) as messages of ``market``.

Pure functions from the inner object of a message to a tuple of ``market``. Only the wanted fields are decoded, by
types that check them: numbers are finite and not negative, prices above zero, times between 2000 and 2100. A
function raises one of :data:`exchange.reading.UNREADABLE` for a message that does not fit; fields nobody asked for
are fine.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

from exchange.reading import Count, Quantity, Traded
from market.book_message import BookChange
from market.candle_update import CandleUpdate
from market.clock import EARLIEST_MS, LATEST_MS
from market.errors import BadInput
from market.ticker import Ticker
from market.timeframe import Timeframe
from market.trade import Trade

#: Quote per base. No market has had a price near the upper bound.
Price: TypeAlias = Annotated[float, msgspec.Meta(gt=0, lt=1e12)]
#: The same where zero stands for "none".
PriceOrNone: TypeAlias = Annotated[float, msgspec.Meta(ge=0, lt=1e12)]
#: Epoch milliseconds; anything outside is another unit.
Instant: TypeAlias = Annotated[int, msgspec.Meta(ge=EARLIEST_MS, lt=LATEST_MS)]


class _Struct(msgspec.Struct, gc=False):
    """A part of a message, under the names of the wire."""


class _Trade(_Struct):
    s: str
    t: Count
    p: Price
    q: Traded
    T: Instant
    m: bool


class _AggTrade(_Struct):
    s: str
    a: Count
    p: Price
    q: Traded
    f: Count
    l: Count  # noqa: E741 - the name on the wire
    T: Instant
    m: bool


class _Kline(_Struct):
    t: Instant
    T: Instant
    i: str
    o: Price
    c: Price
    h: Price
    l: Price  # noqa: E741 - the name on the wire
    v: Quantity
    n: Count
    x: bool
    q: Quantity
    V: Quantity
    Q: Quantity


class _KlineEvent(_Struct):
    s: str
    E: Instant
    k: _Kline


class _BookTicker(_Struct):
    s: str
    b: PriceOrNone
    B: Quantity
    a: PriceOrNone
    A: Quantity
    E: Instant | None = None


class _DayTicker(_Struct):
    s: str
    E: Instant
    c: PriceOrNone
    o: PriceOrNone
    h: PriceOrNone
    l: PriceOrNone  # noqa: E741 - the name on the wire
    v: Quantity
    q: Quantity
    n: Count


class _DepthUpdate(_Struct):
    s: str
    E: Instant
    U: Count
    u: Count
    b: list[tuple[Price, Quantity]]
    a: list[tuple[Price, Quantity]]
    #: USD-M only; -1 before the first.
    pu: Annotated[int, msgspec.Meta(ge=-1)] | None = None


#: A named tuple without its own constructor, which takes as long as all the rest.
_new = tuple.__new__
# Decimals come as text, which `strict=False` turns into the nearest float.
_decode_trade = msgspec.json.Decoder(_Trade, strict=False).decode
_decode_agg_trade = msgspec.json.Decoder(_AggTrade, strict=False).decode
_decode_kline = msgspec.json.Decoder(_KlineEvent, strict=False).decode
_decode_book_ticker = msgspec.json.Decoder(_BookTicker, strict=False).decode
_decode_day_ticker = msgspec.json.Decoder(_DayTicker, strict=False).decode
_decode_depth = msgspec.json.Decoder(_DepthUpdate, strict=False).decode


def read_trade(data: bytes, exchange_symbol: str, received_at: int) -> Trade:
    """A message of ``<symbol>@trade``.

    ::

        {"e": "trade", "E": 1723161255343, "s": "BTCUSDT", "t": 3735683259, "p": "61837.63000000",
         "q": "0.02000000", "T": 1723161255342, "m": true, "M": true}

    ``m`` is true if the buyer was the maker: the taker sold.
    """
    one = _decode_trade(data)
    if one.s != exchange_symbol:
        raise _other_symbol(one.s, exchange_symbol)
    return _new(Trade, (one.t, one.p, one.q, one.T, not one.m, received_at, 1))


def read_agg_trade(data: bytes, exchange_symbol: str, received_at: int) -> Trade:
    """A message of ``<symbol>@aggTrade``: the single trades `f` to `l` of one taker order at one price.

    ::

        {"e": "aggTrade", "E": 1617647603554, "s": "DENTUSDT", "a": 17863117, "p": "0.01436400",
         "q": "3500.00000000", "f": 27281018, "l": 27281018, "T": 1617647603554, "m": false, "M": true}
    """
    one = _decode_agg_trade(data)
    if one.s != exchange_symbol:
        raise _other_symbol(one.s, exchange_symbol)
    if one.l < one.f:
        raise BadInput("l", one.l, f"an id from that of the first trade, {one.f}, on")
    return _new(Trade, (one.a, one.p, one.q, one.T, not one.m, received_at, one.l - one.f + 1))


def read_candle(data: bytes, exchange_symbol: str, received_at: int, timeframe: Timeframe) -> CandleUpdate:
    """A message of ``<symbol>@kline_<interval>``.

    ::

        {"e": "kline", "E": 1628952420015, "s": "XMRBTC", "k": {"t": 1628952360000, "T": 1628952419999,
         "s": "XMRBTC", "i": "1m", "f": 9107440, "L": 9107443, "o": "0.00578600", "c": "0.00578600",
         "h": "0.00578600", "l": "0.00578600", "v": "2.46900000", "n": 4, "x": true, "q": "0.01428563",
         "V": "0.00000000", "Q": "0.00000000", "B": "0"}}

    ``T`` is the candle's last millisecond, earlier than its bucket's where an outage cut it short.
    """
    one = _decode_kline(data)
    if one.s != exchange_symbol:
        raise _other_symbol(one.s, exchange_symbol)
    k = one.k
    start = k.t
    last = timeframe.next(start) - 1
    if k.i != timeframe.name:
        raise BadInput("k.i", k.i, timeframe.name)
    # Where three-day candles begin depends on the instrument.
    if start > one.E or (timeframe.name != "3d" and timeframe.floor(start) != start):
        raise BadInput("k.t", start, f"the start of a {timeframe} candle, not later than the message ({one.E})")
    if not start <= k.T <= last:
        raise BadInput("k.T", k.T, f"a time within the candle, {start} to {last}")
    if not (k.l <= k.o <= k.h and k.l <= k.c <= k.h):
        raise BadInput("k.h", f"{k.h:g} (low {k.l:g})", f"prices around open {k.o:g} and close {k.c:g}")
    return CandleUpdate(
        start, k.o, k.h, k.l, k.c, k.v, k.q, k.n, k.V, k.Q,
        None if last == k.T else k.T, k.x, one.E, received_at,
    )  # fmt: skip


def read_book_ticker(data: bytes, exchange_symbol: str, received_at: int) -> Ticker:
    """A message of ``<symbol>@bookTicker``: the best prices. Spot's has no time and no name.

    ::

        {"u": 50093239212, "s": "BTCUSDT", "b": "61837.63000000", "B": "3.78826000", "a": "61837.64000000",
         "A": "1.54698000"}
        {"e": "bookTicker", "u": 5123107839020, "s": "BTCUSDT", "b": "61800.20", "B": "2.507", "a": "61800.30",
         "A": "2.510", "T": 1723161256313, "E": 1723161256313}

    A side with nothing on it has the price zero, which becomes None.
    """
    one = _decode_book_ticker(data)
    if one.s != exchange_symbol:
        raise _other_symbol(one.s, exchange_symbol)
    if one.b and one.a:
        # The day's seven at the end. Written out: unpacking them takes as long as all the others.
        return _new(
            Ticker, (received_at, one.E, one.b, one.B, one.a, one.A, None, None, None, None, None, None, None)
        )
    bid = (one.b, one.B) if one.b else (None, None)
    ask = (one.a, one.A) if one.a else (None, None)
    return Ticker(received_at, one.E, *bid, *ask)


def read_day_ticker(data: bytes, exchange_symbol: str, received_at: int) -> Ticker:
    """A message of ``<symbol>@ticker``: the last 24 hours, every second.

    ::

        {"e": "24hrTicker", "E": 1672515782136, "s": "BNBBTC", "p": "0.0015", "P": "250.00", "w": "0.0018",
         "x": "0.0009", "c": "0.0025", "Q": "10", "b": "0.0024", "B": "10", "a": "0.0026", "A": "100",
         "o": "0.0010", "h": "0.0025", "l": "0.0010", "v": "10000", "q": "18", "O": 0, "C": 86400000, "F": 0,
         "L": 18150, "n": 18151}

    Its best prices are left out: they are older than those of ``@bookTicker``, which would be overwritten. Prices
    of a market that never traded are zero, which becomes None.
    """
    one = _decode_day_ticker(data)
    if one.s != exchange_symbol:
        raise _other_symbol(one.s, exchange_symbol)
    return Ticker(
        received_at, one.E, None, None, None, None,
        one.c or None, one.o or None, one.h or None, one.l or None, one.v, one.q, one.n,
    )  # fmt: skip


def read_depth(data: bytes, exchange_symbol: str, received_at: int) -> BookChange:
    """A message of ``<symbol>@depth@100ms``: the levels that the changes `U` to `u` left different.

    ::

        {"e": "depthUpdate", "E": 1723161255308, "s": "BTCUSDT", "U": 50093239203, "u": 50093239207,
         "b": [["55653.87000000", "0.00000000"]], "a": [["61838.04000000", "0.32332000"]]}

    USD-M futures add ``"T": 1723161256298, "pu": 5123107831937``: the `u` of the message before.
    """
    one = _decode_depth(data)
    if one.s != exchange_symbol:
        raise _other_symbol(one.s, exchange_symbol)
    if one.u < one.U:
        raise BadInput("u", one.u, f"a number from that of the first change, {one.U}, on")
    return BookChange(one.U, one.u, one.pu, one.b, one.a, one.E, received_at)


def _other_symbol(found: str, asked: str) -> BadInput:
    return BadInput("s", found, f"{asked}, which the stream is about")
