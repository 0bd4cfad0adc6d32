"""What changed in the live market since somebody last looked, for those who keep the same elsewhere.

Putting something in costs one call into the interpreter's own code: a hundred thousand messages a second come by
here. Only the newest ticker and candle of each market matter, so a dict of names bounds them; of trades and changes
of order books the newest stay, and whoever reads is told that there were more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from market.book_message import BookChange
from market.instrument import Series
from market.ticker import Ticker
from market.trade import Trade
from store.live_books import FollowedBook

#: (exchange, symbol)
Market = tuple[str, str]
#: Trades of one market that wait at most. When full, the oldest give way, and all that are held are sent anew.
_MOST_TRADES = 2_000
#: Changes of one book that wait at most. When full, the oldest give way, and the whole book is sent anew.
_MOST_CHANGES = 500


_T = TypeVar("_T")


class Waiting(NamedTuple, Generic[_T]):
    """Trades, or changes of a book, in their order."""

    new: list[_T]
    #: False if some before them were let go.
    all: bool


class LiveChanges:
    """What changed. Whoever reads, reads from the event loop in which the messages come."""

    def __init__(self) -> None:
        #: Which forming candles are new.
        self.candles: dict[Series, None] = {}
        #: The newest message about each ticker that is new; the joined one is in :class:`store.live_tickers`.
        self.tickers: dict[Market, Ticker] = {}
        self.books: dict[Market, FollowedBook] = {}
        #: Set when an order book may be served no longer, which readers should know at once.
        self.urgent = asyncio.Event()
        self._trades: dict[Market, deque[Trade]] = {}
        self._changes: dict[Market, deque[BookChange]] = {}

    def ticker_sink(self, exchange: str, symbol: str) -> Callable[[Ticker], None]:
        """Where the messages about one ticker are put."""
        return partial(self.tickers.__setitem__, (exchange, symbol))

    def trade_sink(self, exchange: str, symbol: str) -> Callable[[Trade], None]:
        """Where the trades of one market are put, in the order of the exchange."""
        return self._trades.setdefault((exchange, symbol), deque(maxlen=_MOST_TRADES)).append

    def book_sink(self, exchange: str, symbol: str) -> Callable[[BookChange], None]:
        """Where the changes of one order book are put; then :meth:`follow` it."""
        return self._changes.setdefault((exchange, symbol), deque(maxlen=_MOST_CHANGES)).append

    def follow(self, exchange: str, symbol: str, book: FollowedBook) -> None:
        """Keep this order book, in place of any before."""
        self.books[exchange, symbol] = book

    def traded(self) -> list[Market]:
        """Where new trades wait."""
        return [market for market, waiting in self._trades.items() if waiting]

    def take_trades(self, market: Market) -> Waiting[Trade]:
        """The trades that wait; they wait no longer."""
        return _taken(self._trades[market])

    def take_changes(self, market: Market) -> Waiting[BookChange]:
        """The changes of a book that wait; they wait no longer."""
        return _taken(self._changes[market])

    def drop(self) -> int:
        """Let go of the trades and changes that wait; how many."""
        dropped = 0
        for trades in self._trades.values():
            dropped += len(trades)
            trades.clear()
        for changes in self._changes.values():
            dropped += len(changes)
            changes.clear()
        return dropped


def _taken(waiting: deque[_T]) -> Waiting[_T]:
    # One that is full may have lost some; that it has not, one time in many, costs little.
    every = len(waiting) < (waiting.maxlen or 0)
    new = list(waiting)
    waiting.clear()
    return Waiting(new, every)
