"""Router memory inside one process: everything that is live and never stored."""

from __future__ import annotations

from market.clock import Clock
from store.live import LiveCandles
from store.live_books import LiveBooks
from store.live_changes import LiveChanges
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
        #: What changed, where somebody keeps the same for other processes; None where nobody does.
        self.changes: LiveChanges | None = None

    def followed(self) -> LiveChanges:
        """What changes from now on. Ask before anything is fed, for it is asked for once."""
        if self.changes is None:
            self.changes = LiveChanges()
            self.candles.tell(self.changes.candles)
        return self.changes
