"""Router memory inside one process: everything that is live and never stored."""

from __future__ import annotations

from market.clock import Clock
from store.live import LiveCandles
from store.live_books import LiveBooks
from store.live_tickers import LiveTickers
from store.live_trades import LiveTrades


class LiveMarket:
    """What ingest keeps for readers of the same process.

    :param clock: our clock, for the age of what is held.
    """

    def __init__(self, clock: Clock) -> None:
        #: Forming candles.
        self.candles = LiveCandles(clock)
        self.tickers = LiveTickers(clock)
        #: The trades of the last minutes.
        self.trades = LiveTrades(clock)
        self.order_books = LiveBooks(clock)
