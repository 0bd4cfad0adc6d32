"""Router memory inside one process: the newest ticker of each instrument."""

from __future__ import annotations

from collections.abc import Callable

from market.clock import Clock
from market.ticker import Ticker


class LiveTickers:
    """What was last said of each market; messages of best prices and of the day are joined.

    :param clock: our clock.
    :param lifetime_ms: a ticker not heard of for this long is no longer served.
    """

    def __init__(self, clock: Clock, lifetime_ms: int = 5 * 60_000) -> None:
        self._clock = clock
        self._lifetime_ms = lifetime_ms
        # Messages of best prices come a hundred times as often as the others: joined when read.
        self._best: dict[tuple[str, str], Ticker] = {}
        self._day: dict[tuple[str, str], Ticker] = {}

    def sink(self, exchange: str, symbol: str) -> Callable[[Ticker], None]:
        """Where the messages about one instrument are put."""
        key = exchange, symbol
        best, day = self._best, self._day

        def put(ticker: Ticker) -> None:
            if ticker.last is None:
                best[key] = ticker
            else:
                day[key] = ticker

        return put

    def get(self, exchange: str, symbol: str) -> Ticker | None:
        """The newest ticker, or None."""
        oldest = self._clock.now_ms() - self._lifetime_ms
        best, day = (held.get((exchange, symbol)) for held in (self._best, self._day))
        fresh = sorted((one for one in (best, day) if one is not None and one.received_at >= oldest), key=_age)
        return None if not fresh else fresh[-1].over(fresh[0])

    def all(self, exchange: str) -> dict[str, Ticker]:
        """The newest ticker of each symbol of an exchange."""
        symbols = sorted({symbol for held in (self._best, self._day) for one, symbol in held if one == exchange})
        found = {symbol: self.get(exchange, symbol) for symbol in symbols}
        return {symbol: ticker for symbol, ticker in found.items() if ticker is not None}


def _age(ticker: Ticker) -> int:
    return ticker.received_at
