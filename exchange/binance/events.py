"""Messages of Binance spot's order book and ticker streams, as the exchange writes them. Pure functions.

What is shared with REST (trades, candles, whole order books) is in :mod:`exchange.binance.wire`. Times are epoch
milliseconds; prices and quantities become decimal text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from exchange.binance.wire import decimal, decimals
from market.book_message import Level

#: A field of the 24-hour statistics of REST: the same in ``<symbol>@ticker``.
_DAY_FIELDS = {
    "symbol": "s", "priceChange": "p", "priceChangePercent": "P", "weightedAvgPrice": "w", "prevClosePrice": "x",
    "lastPrice": "c", "lastQty": "Q", "bidPrice": "b", "bidQty": "B", "askPrice": "a", "askQty": "A",
    "openPrice": "o", "highPrice": "h", "lowPrice": "l", "volume": "v", "quoteVolume": "q", "openTime": "O",
    "closeTime": "C", "firstId": "F", "lastId": "L", "count": "n",
}  # fmt: skip
_MINI_FIELDS = {
    name: _DAY_FIELDS[name]
    for name in ("symbol", "lastPrice", "openPrice", "highPrice", "lowPrice", "volume", "quoteVolume")
}


def encode_depth_event(
    exchange_symbol: str,
    event_time: int,
    *,
    first_id: int,
    last_id: int,
    bids: Sequence[Level],
    asks: Sequence[Level],
) -> dict[str, Any]:
    """A message of ``<symbol>@depth`` and ``<symbol>@depth@100ms``; a quantity of zero removes the level.

    ::

        {"e": "depthUpdate", "E": 1672515782136, "s": "BNBBTC", "U": 157, "u": 160,
         "b": [["0.00240000", "10.00000000"]], "a": [["0.00260000", "100.00000000"]]}
    """
    return {
        "e": "depthUpdate", "E": event_time, "s": exchange_symbol, "U": first_id, "u": last_id,
        "b": _texts(bids), "a": _texts(asks),
    }  # fmt: skip


def encode_partial_depth(last_id: int, bids: Sequence[Level], asks: Sequence[Level]) -> dict[str, Any]:
    """A message of ``<symbol>@depth5``, ``@depth10`` and ``@depth20``, which does not name its symbol.

    ::

        {"lastUpdateId": 160, "bids": [["0.00240000", "10.00000000"]], "asks": [["0.00260000", "100.00000000"]]}
    """
    return {"lastUpdateId": last_id, "bids": _texts(bids), "asks": _texts(asks)}


def encode_book_ticker(exchange_symbol: str, last_id: int, bid: Level, ask: Level) -> dict[str, Any]:
    """A message of ``<symbol>@bookTicker``, which has no time.

    ::

        {"u": 400900217, "s": "BNBUSDT", "b": "25.35190000", "B": "31.21000000", "a": "25.36520000",
         "A": "40.66000000"}
    """
    return {
        "u": last_id, "s": exchange_symbol, "b": decimal(bid[0]), "B": decimal(bid[1]),
        "a": decimal(ask[0]), "A": decimal(ask[1]),
    }  # fmt: skip


def encode_day_ticker(statistics: Mapping[str, Any], event_time: int) -> dict[str, Any]:
    """A message of ``<symbol>@ticker``, from the same statistics as ``GET /api/v3/ticker/24hr`` answers.

    ::

        {"e": "24hrTicker", "E": 1672515782136, "s": "BNBBTC", "p": "0.00150000", "P": "250.000",
         "w": "0.00180000", "x": "0.00090000", "c": "0.00250000", "Q": "10.00000000", "b": "0.00240000",
         "B": "10.00000000", "a": "0.00260000", "A": "100.00000000", "o": "0.00100000", "h": "0.00250000",
         "l": "0.00100000", "v": "10000.00000000", "q": "18.00000000", "O": 0, "C": 86400000, "F": 0, "L": 18150,
         "n": 18151}
    """
    return {"e": "24hrTicker", "E": event_time} | {key: statistics[name] for name, key in _DAY_FIELDS.items()}


def encode_mini_ticker(statistics: Mapping[str, Any], event_time: int) -> dict[str, Any]:
    """A message of ``<symbol>@miniTicker``, from the same statistics.

    ::

        {"e": "24hrMiniTicker", "E": 1672515782136, "s": "BNBBTC", "c": "0.00250000", "o": "0.00100000",
         "h": "0.00250000", "l": "0.00100000", "v": "10000.00000000", "q": "18.00000000"}
    """
    return {"e": "24hrMiniTicker", "E": event_time} | {key: statistics[name] for name, key in _MINI_FIELDS.items()}


def _texts(levels: Sequence[Level]) -> list[list[str]]:
    texts = decimals([number for level in levels for number in level])
    return [[price, quantity] for price, quantity in zip(texts[::2], texts[1::2], strict=True)]
