"""What live ingest notes on PostgreSQL beside its data: messages it could not use, and how candles settle."""

from __future__ import annotations

from collections.abc import Sequence

from market.channel import Channel
from market.clock import Clock
from market.timeframe import Timeframe
from store.message_quarantine import KEPT_MESSAGES, QuarantinedMessage
from store.postgres.connection import Connection
from store.postgres.database import Database
from store.postgres.trades import QUERIES
from store.settling import SettleCheck, SettleCount


class PostgresNotes:
    """See :class:`store.trade_store.TradeStore` and :class:`store.settling.SettleStore`."""

    _database: Database
    _clock: Clock

    async def refuse_messages(self, refused: Sequence[QuarantinedMessage]) -> None:
        """Keep messages that could not be used.

        The same one again, for the same reason, is counted; of each exchange, the newest 10,000 stay.
        """
        exchanges = sorted({one.exchange for one in refused})
        rows = [
            (
                one.exchange,
                one.channel,
                one.symbol,
                one.reason,
                one.raw,
                one.digest,
                one.received_at,
                one.times,
            )
            for one in (message.storable() for message in refused)
        ]

        async def work(connection: Connection) -> None:
            for exchange in exchanges:
                await connection.execute(QUERIES["hold_messages"], exchange)
            await connection.executemany(QUERIES["keep_message"], rows)
            for exchange in exchanges:
                await connection.execute(QUERIES["delete_old_messages"], exchange, KEPT_MESSAGES)

        if rows:
            await self._database.write_data(work)

    async def refused_messages(self, exchange: str, limit: int = 100) -> list[QuarantinedMessage]:
        """The newest messages of an exchange that could not be used, newest first."""
        rows = await self._database.read(
            lambda connection: connection.fetch(QUERIES["read_messages"], exchange, limit)
        )
        return [
            QuarantinedMessage(
                exchange=row["exchange"],
                channel=None if row["channel"] is None else Channel(row["channel"]),
                symbol=row["symbol"],
                reason=row["reason"],
                raw=row["raw"],
                received_at=row["received_at"],
                times=row["times"],
            )
            for row in rows
        ]

    async def record_settle(self, exchange: str, timeframe: Timeframe, counts: Sequence[SettleCount]) -> None:
        """Add to what is known of an exchange and timeframe; one transaction."""
        now_ms = self._clock.now_ms()
        # In one order, so that two who count at once do not wait for each other in a circle.
        rows = [(exchange, timeframe.seconds, *one, now_ms) for one in sorted(counts, key=lambda one: one.age_ms)]
        if rows:
            await self._database.write_data(
                lambda connection: connection.executemany(QUERIES["add_settle_check"], rows)
            )

    async def settle_checks(self, exchange: str | None = None) -> list[SettleCheck]:
        """What came of reading candles again, by exchange, timeframe and age."""
        rows = await self._database.read(
            lambda connection: connection.fetch(QUERIES["list_settle_checks"], exchange)
        )
        return [
            SettleCheck(
                exchange=row["exchange"],
                timeframe=Timeframe.of_seconds(row["timeframe"]),
                age_ms=row["age_ms"],
                checked=row["checked"],
                drifted=row["drifted"],
                last_drift_open_time=row["last_drift_open_time"],
                updated_at=row["updated_at"],
            )
            for row in rows
        ]
