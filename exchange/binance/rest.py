"""Binance's answers about a market as it is now: trades, order book, ticker. Pure functions: no socket, no clock.

:mod:`exchange.binance.wire` has the candles. Every function raises ExchangeUnavailable, naming the field, for an
answer that is not as documented or has a number that no market has.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec

from exchange.answer import as_documented, best_first
from exchange.reading import Count, Milliseconds, Price, Quantity, Traded
from market.book_message import BookSnapshot
from market.errors import ExchangeUnavailable
from market.ticker import Ticker
from market.trade import Trade


class _Trade(msgspec.Struct):
    id: Count
    price: Price
    qty: Traded
    time: Milliseconds
    isBuyerMaker: bool


class _AggTrade(msgspec.Struct):
    a: Count
    p: Price
    q: Traded
    f: Count
    l: Count  # noqa: E741  (the name on the wire)
    T: Milliseconds
    m: bool


class _Book(msgspec.Struct):
    lastUpdateId: Count
    bids: list[tuple[Price, Quantity]]
    asks: list[tuple[Price, Quantity]]
    E: Milliseconds | None = None


class _Best(msgspec.Struct):
    bidPrice: Quantity
    bidQty: Quantity
    askPrice: Quantity
    askQty: Quantity
    time: Milliseconds | None = None


class _Day(msgspec.Struct):
    lastPrice: Quantity
    openPrice: Quantity
    highPrice: Quantity
    lowPrice: Quantity
    volume: Quantity
    quoteVolume: Quantity
    closeTime: Milliseconds
    count: Count
    bidPrice: Quantity = 0.0
    bidQty: Quantity = 0.0
    askPrice: Quantity = 0.0
    askQty: Quantity = 0.0


def parse_trades(rows: Any, received_at: int) -> list[Trade]:
    """Rows of ``GET /api/v3/trades`` and ``/api/v3/historicalTrades``, oldest first.

    ::

        {"id": 28457, "price": "4.00000100", "qty": "12.00000000", "quoteQty": "48.00001200",
         "time": 1499865549590, "isBuyerMaker": true, "isBestMatch": true}
    """
    found = as_documented(rows, list[_Trade], "trades")
    trades = [Trade(one.id, one.price, one.qty, one.time, not one.isBuyerMaker, received_at) for one in found]
    return _counted_up(trades, "trades")


def parse_agg_trades(rows: Any, received_at: int) -> list[Trade]:
    """Rows of ``GET /fapi/v1/aggTrades``, oldest first; their ids are those of the aggregated trades.

    ::

        {"a": 26129, "p": "0.01633102", "q": "4.70443515", "f": 27781, "l": 27781, "T": 1498793709153, "m": true}
    """
    found = as_documented(rows, list[_AggTrade], "aggTrades")
    for one in found:
        if one.l < one.f:
            raise ExchangeUnavailable(f"aggTrades: the last trade {one.l} of {one.a} is before its first {one.f}")
    trades = [Trade(one.a, one.p, one.q, one.T, not one.m, received_at, one.l - one.f + 1) for one in found]
    return _counted_up(trades, "aggTrades")


def parse_book(answer: Any, levels: int, received_at: int) -> BookSnapshot:
    """The answer of ``GET /api/v3/depth`` or ``/fapi/v1/depth`` (which alone says when), `levels` of it at most.

    ::

        {"lastUpdateId": 1027024, "bids": [["4.00000000", "431.00000000"]], "asks": [["4.00000200", "12.00000000"]]}
        {"lastUpdateId": 5123107852948, "E": 1723161256501, "T": 1723161256493, "bids": [["61800.20", "2.909"]],
         "asks": [["61800.30", "10.1"]]}
    """
    book = as_documented(answer, _Book, "depth")
    return BookSnapshot(
        last_id=book.lastUpdateId,
        bids=best_first(book.bids, falling=True, what="depth: bids")[:levels],
        asks=best_first(book.asks, falling=False, what="depth: asks")[:levels],
        event_time=book.E,
        received_at=received_at,
    )


def parse_day(answer: Any, received_at: int) -> Ticker:
    """The answer of ``GET /api/v3/ticker/24hr`` or ``/fapi/v1/ticker/24hr`` (which has no best prices).

    ::

        {"symbol": "BNBBTC", "priceChange": "-94.99999800", "lastPrice": "4.00000200", "bidPrice": "4.00000000",
         "bidQty": "100.00000000", "askPrice": "4.00000200", "askQty": "100.00000000", "openPrice": "99.00000000",
         "highPrice": "100.00000000", "lowPrice": "0.10000000", "volume": "8913.30000000",
         "quoteVolume": "15.30000000", "openTime": 1499783499040, "closeTime": 1499869899040, "firstId": 28385,
         "lastId": 28460, "count": 76, ...}
    """
    day = as_documented(answer, _Day, "ticker/24hr")
    bid, bid_quantity = _offer(day.bidPrice, day.bidQty)
    ask, ask_quantity = _offer(day.askPrice, day.askQty)
    return Ticker(
        received_at=received_at,
        event_time=day.closeTime,
        bid=bid,
        bid_quantity=bid_quantity,
        ask=ask,
        ask_quantity=ask_quantity,
        # Zero is what Binance writes where nothing was traded.
        last=day.lastPrice or None,
        open=day.openPrice or None,
        high=day.highPrice or None,
        low=day.lowPrice or None,
        volume=day.volume,
        quote_volume=day.quoteVolume,
        trades=day.count,
    )


def parse_best(answer: Any, received_at: int) -> Ticker:
    """The answer of ``GET /fapi/v1/ticker/bookTicker``.

    ::

        {"symbol": "BTCUSDT", "bidPrice": "4.00000000", "bidQty": "431.00000000", "askPrice": "4.00000200",
         "askQty": "9.00000000", "time": 1589437530011}
    """
    best = as_documented(answer, _Best, "ticker/bookTicker")
    bid, ask = _offer(best.bidPrice, best.bidQty), _offer(best.askPrice, best.askQty)
    return Ticker(received_at, best.time, *bid, *ask)


def _offer(price: float, quantity: float) -> tuple[float, float] | tuple[None, None]:
    """The best price of a side and the quantity there; Binance writes zeros where there is none."""
    return (price, quantity) if price > 0 else (None, None)


def _counted_up(trades: list[Trade], what: str) -> list[Trade]:
    ids = [int(one.id) for one in trades]
    for before, after in pairwise(ids):
        if after <= before:
            raise ExchangeUnavailable(f"{what}: id {after} follows {before}")
    return trades
