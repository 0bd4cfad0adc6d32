"""What live ingest keeps beside candles, on a hybrid store: in the primary alone.

Trades are many, and a secondary that lacks them has lost no candle: candles, with their ledger, are what two stores
must agree on. While the primary is away, live ingest spills to its journal, as with one store.
"""

from __future__ import annotations

from collections.abc import Sequence

from market.timeframe import Timeframe
from market.trade import Trade
from store.hybrid.side import Side
from store.message_quarantine import QuarantinedMessage
from store.settling import SettleCheck, SettleCount
from store.trade_batch import TradeBatch, TradeRun, TradesWritten


class PrimaryOnly:
    """See :class:`store.trade_store.TradeStore` and :class:`store.settling.SettleStore`.

    Everything raises what the primary raises: nothing is answered by the secondary.
    """

    _primary: Side

    async def write_trades(self, batches: Sequence[TradeBatch]) -> TradesWritten:
        """All batches in one transaction of the primary; durable there when it returns."""
        return await self._primary.use(lambda store: store.write_trades(batches))

    async def trades(
        self, exchange: str, symbol: str, start_ms: int, end_ms: int, *, limit: int | None = None
    ) -> list[Trade]:
        """Trades with ``start_ms <= event_time < end_ms``, by event time, then by id."""
        return await self._primary.use(lambda store: store.trades(exchange, symbol, start_ms, end_ms, limit=limit))

    async def trade_runs(self, exchange: str, symbol: str) -> list[TradeRun]:
        """The ledger of trade ids, by id."""
        return await self._primary.use(lambda store: store.trade_runs(exchange, symbol))

    async def newest_trade(self, exchange: str, symbol: str) -> Trade | None:
        """The trade with the highest id, where the exchange counts them; else the latest."""
        return await self._primary.use(lambda store: store.newest_trade(exchange, symbol))

    async def lose_trades(
        self,
        exchange: str,
        symbol: str,
        first_id: int,
        last_id: int,
        first_time: int,
        last_time: int,
        evidence: str,
    ) -> None:
        """Say in the ledger that the exchange no longer serves some trades; both ids are inclusive."""
        await self._primary.use(
            lambda store: store.lose_trades(exchange, symbol, first_id, last_id, first_time, last_time, evidence)
        )

    async def drop_trades(self, before_ms: int) -> None:
        """Drop the trades before an instant."""
        await self._primary.use(lambda store: store.drop_trades(before_ms))

    async def refuse_messages(self, refused: Sequence[QuarantinedMessage]) -> None:
        """Keep messages that could not be used."""
        await self._primary.use(lambda store: store.refuse_messages(refused))

    async def refused_messages(self, exchange: str, limit: int = 100) -> list[QuarantinedMessage]:
        """The newest messages of an exchange that could not be used, newest first."""
        return await self._primary.use(lambda store: store.refused_messages(exchange, limit))

    async def record_settle(self, exchange: str, timeframe: Timeframe, counts: Sequence[SettleCount]) -> None:
        """Add to what is known of how candles settle."""
        await self._primary.use(lambda store: store.record_settle(exchange, timeframe, counts))

    async def settle_checks(self, exchange: str | None = None) -> list[SettleCheck]:
        """What came of reading candles again, by exchange, timeframe and age."""
        return await self._primary.use(lambda store: store.settle_checks(exchange))
