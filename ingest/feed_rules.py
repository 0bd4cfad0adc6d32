"""What a live feed is to bring, what it asks, and what it keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from exchange.trade_page import TradePage
from ingest.book_rules import BookRules
from ingest.gap_filler import CandleStore
from ingest.live import LiveRules
from ingest.patience import History
from ingest.route import SilenceRules
from ingest.router import RouterRules
from ingest.settle_check import SettleRules
from ingest.trade_route import TradeRules
from ingest.writer import WritableStore
from market.book_message import BookSnapshot
from market.channel import Channel
from market.instrument import Series
from market.ticker import Ticker
from market.timeframe import DAY_MS
from market.trade import Trade
from store.settling import SettleStore
from store.trade_store import TradeStore


class LiveHistory(History, Protocol):
    """What a live feed asks over REST."""

    async def trades_after(self, symbol: str, last: Trade | None, *, limit: int = 1000) -> TradePage:
        """Trades that follow `last`."""
        ...

    async def order_book(self, symbol: str, levels: int = 1000) -> BookSnapshot:
        """A whole book."""
        ...

    async def ticker(self, symbol: str) -> Ticker:
        """The market now."""
        ...


class FeedStore(CandleStore, WritableStore, TradeStore, SettleStore, Protocol):
    """Everything a live feed keeps."""

    async def read(self, series: Series, start_ms: int, end_ms: int) -> Any:
        """Stored candles with ``start_ms <= open_time < end_ms``."""
        ...


@dataclass(frozen=True, kw_only=True)
class FeedRules:
    """What to bring, and how."""

    channels: frozenset[Channel] = frozenset({Channel.CANDLES})
    #: Keep every trade in the database.
    record_trades: bool = False
    live: LiveRules = field(default_factory=LiveRules)
    silence: SilenceRules = field(default_factory=SilenceRules)
    trades: TradeRules = field(default_factory=TradeRules)
    books: BookRules = field(default_factory=BookRules)
    router: RouterRules = field(default_factory=RouterRules)
    settle: SettleRules = field(default_factory=SettleRules)
    #: Holes between stored trades are filled as far back as this, milliseconds.
    holes_ms: int = DAY_MS
