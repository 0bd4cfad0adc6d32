"""What live ingest notes on SQLite beside its data: messages it could not use, and how candles settle."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from market.channel import Channel
from market.clock import Clock
from market.timeframe import Timeframe
from store.message_quarantine import KEPT_MESSAGES, QuarantinedMessage
from store.settling import SettleCheck, SettleCount
from store.sqlite.database import Database
from store.sqlite.rows import QUERIES
from store.sqlite.writing import data_transaction


class SqliteNotes:
    """See :class:`store.trade_store.TradeStore` and :class:`store.settling.SettleStore`."""

    _database: Database
    _clock: Clock

    async def refuse_messages(self, refused: Sequence[QuarantinedMessage]) -> None:
        """Keep messages that could not be used.

        The same one again, for the same reason, is counted; of each exchange, the newest 10,000 stay.
        """
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

        def work(connection: sqlite3.Connection) -> None:
            with data_transaction(connection):
                connection.executemany(QUERIES["keep_message"], rows)
                for exchange in {one.exchange for one in refused}:
                    asked = {"exchange": exchange, "count": KEPT_MESSAGES}
                    connection.execute(QUERIES["delete_old_messages"], asked)

        await self._database.write(work)

    async def refused_messages(self, exchange: str, limit: int = 100) -> list[QuarantinedMessage]:
        """The newest messages of an exchange that could not be used, newest first."""

        def work(connection: sqlite3.Connection) -> list[QuarantinedMessage]:
            return [
                QuarantinedMessage(
                    exchange=row[0],
                    channel=None if row[1] is None else Channel(row[1]),
                    symbol=row[2],
                    reason=row[3],
                    raw=row[4],
                    received_at=row[5],
                    times=row[6],
                )
                for row in connection.execute(QUERIES["read_messages"], {"exchange": exchange, "limit": limit})
            ]

        return await self._database.read(work)

    async def record_settle(self, exchange: str, timeframe: Timeframe, counts: Sequence[SettleCount]) -> None:
        """Add to what is known of an exchange and timeframe; one transaction."""
        now_ms = self._clock.now_ms()
        rows = [(exchange, timeframe.seconds, *one, now_ms) for one in counts]

        def work(connection: sqlite3.Connection) -> None:
            with data_transaction(connection):
                connection.executemany(QUERIES["add_settle_check"], rows)

        await self._database.write(work)

    async def settle_checks(self, exchange: str | None = None) -> list[SettleCheck]:
        """What came of reading candles again, by exchange, timeframe and age."""

        def work(connection: sqlite3.Connection) -> list[SettleCheck]:
            return [
                SettleCheck(
                    exchange=row[0],
                    timeframe=Timeframe.of_seconds(row[1]),
                    age_ms=row[2],
                    checked=row[3],
                    drifted=row[4],
                    last_drift_open_time=row[5],
                    updated_at=row[6],
                )
                for row in connection.execute(QUERIES["list_settle_checks"], {"exchange": exchange})
            ]

        return await self._database.read(work)
