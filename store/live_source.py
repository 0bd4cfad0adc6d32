"""Where readers get what is live: from the ingest in their own process, or from Redis, by the same questions.

Nothing here is ever asked of a database: what is not held is not there (the push policy).
"""

from __future__ import annotations

from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import pyarrow as pa

from market.clock import Clock
from market.instrument import Series
from market.ticker import Ticker
from market.trade import Trade
from store.cache.shared_values import ROUTER_TIER
from store.live_books import LiveBook
from store.live_market import LiveMarket

_T = TypeVar("_T")

#: A forming candle (one row, candle schema), and when it was received, epoch milliseconds of ingest's clock.
Forming: TypeAlias = tuple[pa.Table, int]


class LiveValue(NamedTuple, Generic[_T]):
    """Something live, and how old it is."""

    value: _T
    #: Since it was received, or, of trades, since router memory was asked; milliseconds, never negative.
    age_ms: int
    #: ``router``; ``memory`` where a copy in this process answered.
    tier: str = ROUTER_TIER


class LiveSource(Protocol):
    """What is live. An answer is what router memory holds, or a copy not older than the time to live of its kind.

    Each raises SharedAway where router memory is elsewhere and does not answer.
    """

    async def ticker(self, exchange: str, symbol: str) -> LiveValue[Ticker] | None:
        """The newest ticker, of the last five minutes."""
        ...

    async def tickers(self, exchange: str) -> dict[str, LiveValue[Ticker]]:
        """The newest ticker of each symbol."""
        ...

    async def order_book(self, exchange: str, symbol: str, levels: int) -> LiveBook | None:
        """The best `levels` of both sides, if the book is LIVE."""
        ...

    async def why_no_book(self, exchange: str, symbol: str) -> str:
        """Why there is no order book, in words."""
        ...

    async def trades(self, exchange: str, symbol: str, limit: int) -> LiveValue[list[Trade]]:
        """The newest trades of the last ten minutes, at most `limit`, oldest first."""
        ...

    async def forming(self, series: Series) -> Forming | None:
        """The forming candle, heard of in the last five minutes."""
        ...

    def fresh_forming(self, series: Series) -> tuple[bool, Forming | None]:
        """:meth:`forming` without waiting: whether this process knows it now, and if so, the answer."""
        ...


class LocalMarket:
    """What ingest holds in this process."""

    @classmethod
    def empty(cls, clock: Clock) -> LocalMarket:
        """Of a process into which nothing comes."""
        return cls(LiveMarket(clock), clock)

    def __init__(self, market: LiveMarket, clock: Clock) -> None:
        self._market = market
        self._clock = clock

    async def ticker(self, exchange: str, symbol: str) -> LiveValue[Ticker] | None:
        found = self._market.tickers.get(exchange, symbol)
        return None if found is None else self._aged(found)

    async def tickers(self, exchange: str) -> dict[str, LiveValue[Ticker]]:
        return {symbol: self._aged(found) for symbol, found in self._market.tickers.all(exchange).items()}

    async def order_book(self, exchange: str, symbol: str, levels: int) -> LiveBook | None:
        return self._market.order_books.get(exchange, symbol, levels)

    async def why_no_book(self, exchange: str, symbol: str) -> str:
        return self._market.order_books.why(exchange, symbol)

    async def trades(self, exchange: str, symbol: str, limit: int) -> LiveValue[list[Trade]]:
        return LiveValue(self._market.trades.get(exchange, symbol, limit), 0)

    async def forming(self, series: Series) -> Forming | None:
        return self._market.candles.get(series)

    def fresh_forming(self, series: Series) -> tuple[bool, Forming | None]:
        return True, self._market.candles.get(series)

    def _aged(self, ticker: Ticker) -> LiveValue[Ticker]:
        return LiveValue(ticker, max(self._clock.now_ms() - ticker.received_at, 0))
