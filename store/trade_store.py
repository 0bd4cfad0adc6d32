"""What every store does with live trades, and with messages that could not be used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from market.trade import Trade
from store.message_quarantine import QuarantinedMessage
from store.trade_batch import TradeBatch, TradeRun, TradesWritten

#: Days that trades are kept; on TimescaleDB a policy of the schema drops them.
TRADE_HISTORY_DAYS = 90


class TradeStore(Protocol):
    """Trades, the ledger of their ids, and refused messages. Times are epoch milliseconds, ranges half-open."""

    async def write_trades(self, batches: Sequence[TradeBatch]) -> TradesWritten:
        """All batches in one transaction; durable when it returns.

        A trade is stored once, whatever comes again under its id: the first one stays. Where the exchange counts
        its trades (`dense`), the ledger of ids tells which were stored, so that not even a trade that retention
        has dropped is stored again.

        :raises BadInput: an id or a number that cannot be stored; nothing was written.
        :raises StoreBusy: somebody else held what it needs for too long; nothing was written.
        """
        ...

    async def trades(
        self, exchange: str, symbol: str, start_ms: int, end_ms: int, *, limit: int | None = None
    ) -> list[Trade]:
        """Trades with ``start_ms <= event_time < end_ms`` in the order of the exchange: by event time, then by id.

        :param limit: at most so many, the first ones.
        """
        ...

    async def trade_runs(self, exchange: str, symbol: str) -> list[TradeRun]:
        """The ledger of trade ids, by id. Ids in none of the runs are unknown.

        What retention has dropped stays in it: those trades were stored.
        """
        ...

    async def newest_trade(self, exchange: str, symbol: str) -> Trade | None:
        """The trade with the highest id, where the exchange counts them; else the latest; None for none."""
        ...

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
        """Say in the ledger that the exchange no longer serves some trades. What is in a run already stays so.

        :param last_id: inclusive.
        :param first_time: event time of the trade stored before them, where there is one; `last_time`, after.
        :param evidence: what the exchange said, in words.
        """
        ...

    async def drop_trades(self, before_ms: int) -> None:
        """Drop the trades before an instant. What keeps partitions drops those that lie wholly before it."""
        ...

    async def refuse_messages(self, refused: Sequence[QuarantinedMessage]) -> None:
        """Keep messages that could not be used.

        The same one again, for the same reason, is counted; of each exchange, the newest 10,000 stay.
        """
        ...

    async def refused_messages(self, exchange: str, limit: int = 100) -> list[QuarantinedMessage]:
        """The newest messages of an exchange that could not be used, newest first."""
        ...
