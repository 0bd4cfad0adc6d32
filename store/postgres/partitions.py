"""Monthly partitions on plain PostgreSQL: made ahead of time, and for the months a backfill brings."""

from __future__ import annotations

import asyncpg
import structlog

from market.clock import Clock
from market.errors import Retryable, StoreReadOnly, StoreUnusable
from market.timeframe import TIMEFRAMES, Int64s
from store.postgres.database import Database
from store.postgres.rows import QUERIES

log = structlog.get_logger(__name__)

_MONTH = TIMEFRAMES["1M"]
#: Months that have their partitions before the first row comes.
AHEAD = 3
#: Table -> the column it is partitioned by.
TABLES = {"candles": "open_time", "trade_history": "event_time", "system_metrics": "time"}


class Partitions:
    """Which months have a partition. What has none goes to the default one, and into its own when that is made.

    A role that may not create tables, or a server too busy, costs no row: the default partition takes them.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._made: dict[str, set[int]] = {table: set() for table in TABLES}
        self._refused = False

    async def make_ahead(self) -> int:
        """The partitions of this month and the next ones, in every table; how many were missing."""
        now = _MONTH.floor(self._clock.now_ms())
        months = [_MONTH.next(now, count) for count in range(AHEAD + 1)]
        return sum([await self._make(table, months) for table in TABLES])

    async def make_for(self, times: Int64s, table: str = "candles") -> None:
        """The partitions that candles or trades at these times need."""
        if not len(times) or self._refused:
            return
        months = set(_MONTH.floor_all(times).tolist()) - self._made[table]
        if months:
            await self._make(table, sorted(months))

    async def _make(self, table: str, months: list[int]) -> int:
        try:
            made = await self._database.write_data(
                lambda connection: connection.fetchval(QUERIES["make_partitions"], table, TABLES[table], months)
            )
        except StoreReadOnly:
            # What was to be written there is told the same.
            return 0
        except Retryable as error:
            log.warning("no partition was made; rows wait in the default one", table=table, error=str(error))
            return 0
        except StoreUnusable as error:
            if not isinstance(error.__cause__, asyncpg.InsufficientPrivilegeError):
                raise
            self._refused = True
            log.warning("no partition was made; rows wait in the default one", table=table, error=str(error))
            return 0
        self._made[table].update(months)
        return int(made)
