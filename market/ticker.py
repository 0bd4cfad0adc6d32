"""Tickers: the best prices of a market now, and its last 24 hours."""

from __future__ import annotations

from typing import NamedTuple


class Ticker(NamedTuple):
    """What one message says of a market; None for what it does not say.

    Messages of best prices have the first four; messages of the day have the rest, or all.
    """

    #: When we received it, epoch milliseconds of our clock.
    received_at: int
    #: When the exchange sent it, epoch milliseconds; None where it does not say.
    event_time: int | None = None
    #: Best prices (quote per base) and the quantities there (base).
    bid: float | None = None
    bid_quantity: float | None = None
    ask: float | None = None
    ask_quantity: float | None = None
    #: Price of the last trade.
    last: float | None = None
    #: The last 24 hours: first, highest and lowest price, base and quote volume, number of trades.
    open: float | None = None
    high: float | None = None
    low: float | None = None
    volume: float | None = None
    quote_volume: float | None = None
    trades: int | None = None

    def over(self, older: Ticker | None) -> Ticker:
        """This message, with what it does not say taken from an older one."""
        if older is None or None not in self:
            return self
        return Ticker._make(mine if mine is not None else theirs for mine, theirs in zip(self, older, strict=True))
