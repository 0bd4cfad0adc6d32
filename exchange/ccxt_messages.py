"""Trades, order books and tickers as ccxt writes them, as messages of `market`. Pure functions.

Every function raises ExchangeUnavailable for an answer without a field it needs, or with a number no market has.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from exchange.answer import as_documented, best_first
from exchange.reading import Count, Milliseconds, Price, Quantity, Traded
from market.book_message import BookSnapshot
from market.errors import ExchangeRefused
from market.ticker import Ticker
from market.trade import Trade

#: Ids of so many digits at most count; longer ones are names made of digits.
_LONGEST_COUNT = 18


class _Trade(msgspec.Struct):
    timestamp: Milliseconds
    price: Price
    amount: Traded
    side: Literal["buy", "sell"]
    id: str | int | None = None


class _Book(msgspec.Struct):
    #: ccxt adds further things to a level on some exchanges.
    bids: list[list[float | int | None]]
    asks: list[list[float | int | None]]
    timestamp: Milliseconds | None = None
    nonce: Count | None = None


_Level = tuple[Price, Quantity]


class _Ticker(msgspec.Struct):
    timestamp: Milliseconds | None = None
    bid: Quantity | None = None
    bidVolume: Quantity | None = None
    ask: Quantity | None = None
    askVolume: Quantity | None = None
    last: Quantity | None = None
    open: Quantity | None = None
    high: Quantity | None = None
    low: Quantity | None = None
    baseVolume: Quantity | None = None
    quoteVolume: Quantity | None = None


def parsed_trades(rows: Any, exchange: str, received_at: int) -> list[Trade]:
    """The list of ``fetch_trades`` by time and, within an instant, by id where ids count; each trade once.

    ::

        [{"id": "28457", "timestamp": 1499865549590, "price": 4.000001, "amount": 12.0, "side": "buy", ...}]

    :raises ExchangeRefused: where the exchange gives trades no ids: nobody could tell them apart.
    """
    found: dict[int | str, Trade] = {}
    for one in as_documented(rows, list[_Trade], f"{exchange} trades"):
        if one.id is None:
            raise ExchangeRefused(f"{exchange} serves trades without ids, so that they cannot be told apart")
        id_ = trade_id(one.id)
        found[id_] = Trade(id_, one.price, one.amount, one.timestamp, one.side == "buy", received_at)
    # Stable, so that trades whose ids do not count stay in the order of the exchange.
    return sorted(found.values(), key=lambda one: (one.event_time, one.id if isinstance(one.id, int) else 0))


def trade_id(id_: str | int) -> int | str:
    """An id of a trade: a number where it is one, else the text."""
    if isinstance(id_, int) or not (id_.isascii() and id_.isdecimal() and len(id_) <= _LONGEST_COUNT):
        return id_
    return int(id_)


def parsed_book(answer: Any, levels: int, exchange: str, received_at: int) -> BookSnapshot:
    """The answer of ``fetch_order_book``, `levels` of it at most.

    ::

        {"bids": [[4.0, 431.0]], "asks": [[4.000002, 12.0]], "timestamp": 1499865549590, "nonce": 1027024, ...}
    """
    book = as_documented(answer, _Book, f"{exchange} order book")
    sides = []
    for falling, side in ((True, book.bids[:levels]), (False, book.asks[:levels])):
        what = f"{exchange} order book: " + ("bids" if falling else "asks")
        pairs = as_documented([row[:2] for row in side], list[_Level], what)
        sides.append(best_first(pairs, falling=falling, what=what))
    return BookSnapshot(
        last_id=book.nonce or 0, bids=sides[0], asks=sides[1], event_time=book.timestamp, received_at=received_at
    )


def parsed_ticker(answer: Any, exchange: str, received_at: int) -> Ticker:
    """The answer of ``fetch_ticker``. A price of zero is none.

    ::

        {"timestamp": 1499869899040, "bid": 4.0, "bidVolume": 100.0, "ask": 4.000002, "askVolume": 100.0,
         "last": 4.0, "open": 99.0, "high": 100.0, "low": 0.1, "baseVolume": 8913.3, "quoteVolume": 15.3, ...}
    """
    one = as_documented(answer, _Ticker, f"{exchange} ticker")
    return Ticker(
        received_at=received_at,
        event_time=one.timestamp,
        bid=one.bid or None,
        bid_quantity=one.bidVolume if one.bid else None,
        ask=one.ask or None,
        ask_quantity=one.askVolume if one.ask else None,
        last=one.last or None,
        open=one.open or None,
        high=one.high or None,
        low=one.low or None,
        volume=one.baseVolume,
        quote_volume=one.quoteVolume,
    )
