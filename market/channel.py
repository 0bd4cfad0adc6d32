"""What a live stream can be about."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from market.errors import BadInput
from market.timeframe import Timeframe


class Channel(StrEnum):
    """A kind of live message."""

    #: :class:`market.trade.Trade`
    TRADES = "trades"
    #: :class:`market.candle_update.CandleUpdate`
    CANDLES = "candles"
    #: :class:`market.ticker.Ticker`
    TICKERS = "tickers"
    #: :class:`market.book_message.BookSnapshot` and :class:`~market.book_message.BookChange`
    ORDER_BOOKS = "order_books"

    @staticmethod
    def parse(text: str, field: str = "channels") -> Channel:
        """A channel from outside text.

        :raises BadInput: naming `field`.
        """
        try:
            return Channel(text.strip().lower())
        except ValueError:
            raise BadInput(field, text, "one of " + ", ".join(Channel)) from None


@dataclass(frozen=True, order=True)
class Topic:
    """One channel of one instrument of an exchange."""

    channel: Channel
    #: ccxt unified.
    symbol: str
    #: Of candles only; None for the other channels.
    timeframe: Timeframe | None = None

    def __str__(self) -> str:
        length = "" if self.timeframe is None else f" {self.timeframe}"
        return f"{self.channel} {self.symbol}{length}"
