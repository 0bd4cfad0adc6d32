"""What an operator's timer does to a database every day: partitions, aggregates, compression, statistics.

Every step is a transaction of its own, waits for nobody's lock for long, and finds nothing to do the second time.
What cannot be done now, because somebody holds it, is named and left to the next run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import asyncpg
import structlog

import sql
from market.clock import Clock
from market.errors import StoreBusy
from market.interval import IntervalSet
from market.timeframe import DAY_MS
from store.postgres.aggregates import Aggregates
from store.postgres.connection import Connection
from store.postgres.database import Database
from store.postgres.maintenance_rules import MaintenanceRules
from store.postgres.mode import Mode
from store.postgres.partitions import TABLES, Partitions
from store.postgres.patience import patiently
from store.postgres.schema import TIMESCALE_QUERIES
from store.trade_store import TRADE_HISTORY_DAYS

log = structlog.get_logger(__name__)

QUERIES = sql.queries("postgres_maintenance")
TRADE_QUERIES = sql.queries("postgres_live")
_DAY_SECONDS = 86_400
_Step = Callable[["Maintained"], Awaitable[None]]


@dataclass(kw_only=True)
class Maintained:
    """What one run did."""

    #: Settings of the hypertable that were changed, in words.
    settings: list[str] = field(default_factory=list)
    #: Partitions made, by table.
    partitions: dict[str, int] = field(default_factory=dict)
    #: Partitions of old trades that were dropped.
    dropped_partitions: int = 0
    #: What was refreshed in the aggregates, in whole days.
    refreshed: IntervalSet = field(default_factory=IntervalSet)
    #: Chunks that were compressed, or compressed again.
    compressed: int = 0
    #: What somebody else held for too long, in words.
    busy: list[str] = field(default_factory=list)


class Maintenance:
    """Keeps one database in order."""

    def __init__(self, database: Database, mode: Mode, clock: Clock, rules: MaintenanceRules) -> None:
        self._database = database
        self._mode = mode
        self._clock = clock
        self._rules = rules

    async def run(self) -> Maintained:
        """Do all that is due. Safe to be run by several processes at once.

        :raises StoreUnusable: the role lacks a right.
        """
        done = Maintained()
        if self._mode is Mode.TIMESCALEDB:
            await self._attempt("the settings of the hypertable", done, self._settle)
            await self._attempt("the aggregates", done, self._refresh)
            await self._attempt("the chunks to compress", done, self._compress)
        else:
            await self._attempt("the partitions", done, self._partition)
            await self._attempt("the trade history", done, self._drop_trades)
        await self._attempt("the ids of trades", done, self._drop_trade_ids)
        await self._attempt("the facts for the planner", done, self._analyze)
        return done

    async def _attempt(self, what: str, done: Maintained, step: _Step) -> None:
        try:
            await step(done)
        except StoreBusy as error:
            log.warning("maintenance is left to the next run", what=what, error=str(error))
            done.busy.append(f"{what}: {error}")

    async def _settle(self, done: Maintained) -> None:
        done.settings = await apply_rules(self._database, self._mode, self._rules)

    async def _refresh(self, done: Maintained) -> None:
        done.refreshed = await Aggregates(self._database).refresh()

    async def _compress(self, done: Maintained) -> None:
        async def due(connection: Connection) -> list[str]:
            server = await connection.fetchval(QUERIES["server_now"])
            oldest = min(server, self._clock.now_ms()) - self._rules.compress_after_days * DAY_MS
            return [row[0] for row in await connection.fetch(QUERIES["chunks_to_compress"], oldest)]

        for chunk in await patiently(self._database, due, snapshot=True):

            async def compress(connection: Connection, chunk: str = chunk) -> bool:
                return await _compressed(connection, chunk)

            try:
                done.compressed += await patiently(self._database, compress, data=True)
            except StoreBusy as error:
                done.busy.append(f"{chunk}: {error}")

    async def _partition(self, done: Maintained) -> None:
        made = await Partitions(self._database, self._clock).make_ahead()
        if made:
            done.partitions["ahead"] = made
        for table, column in TABLES.items():
            # A month at a time: each is one transaction.
            while moved := await self._empty_default(table, column):
                done.partitions[table] = done.partitions.get(table, 0) + moved

    async def _empty_default(self, table: str, column: str) -> int:
        return int(
            await patiently(
                self._database,
                lambda connection: connection.fetchval(QUERIES["empty_default"], table, column),
                data=True,
            )
        )

    async def _drop_trades(self, done: Maintained) -> None:
        before = self._clock.now_ms() - TRADE_HISTORY_DAYS * DAY_MS
        done.dropped_partitions = int(
            await patiently(
                self._database,
                lambda connection: connection.fetchval(
                    QUERIES["drop_partitions"], "trade_history", TABLES["trade_history"], before
                ),
                data=True,
            )
        )

    async def _drop_trade_ids(self, done: Maintained) -> None:
        before = self._clock.now_ms() - TRADE_HISTORY_DAYS * DAY_MS
        await patiently(
            self._database,
            lambda connection: connection.execute(TRADE_QUERIES["delete_trade_ids"], before),
            data=True,
        )

    async def _analyze(self, done: Maintained) -> None:
        await patiently(self._database, lambda connection: connection.execute(QUERIES["analyze_small_tables"]))
        if done.partitions:
            await patiently(self._database, lambda connection: connection.execute(QUERIES["analyze_candles"]))


async def _compressed(connection: Connection, chunk: str) -> bool:
    """Compress a chunk; False where the server's own job did so, or dropped it, since it was listed.

    ``if_not_compressed`` looks before it waits for the lock, so who waited for that job meets an error.
    """
    await connection.execute(TIMESCALE_QUERIES["allow_decompression"])
    try:
        async with connection.transaction():
            await connection.execute(QUERIES["compress_chunk"], chunk)
    except (asyncpg.DuplicateObjectError, asyncpg.UndefinedTableError):
        return False
    return True


async def apply_rules(database: Database, mode: Mode, rules: MaintenanceRules) -> list[str]:
    """Give the hypertable the chunk interval and the compression policy of the rules; what changed, in words.

    :raises StoreBusy: somebody holds it for too long.
    """

    async def work(connection: Connection) -> list[str]:
        await connection.execute(QUERIES["hold_rules"])
        changed = []
        days, seconds = rules.chunk_days, await connection.fetchval(QUERIES["chunk_seconds"])
        if seconds != days * _DAY_SECONDS:
            await connection.execute(QUERIES["set_chunk_days"], days)
            changed.append(f"new chunks of candles are {_days(days)} long, not {_days(seconds / _DAY_SECONDS)}")
        days, seconds = rules.compress_after_days, await connection.fetchval(QUERIES["compress_after_seconds"])
        if seconds != days * _DAY_SECONDS:
            await connection.execute(QUERIES["remove_compression_policy"])
            await connection.execute(QUERIES["add_compression_policy"], days)
            before = "never" if seconds is None else f"after {_days(seconds / _DAY_SECONDS)}"
            changed.append(f"candles are compressed after {_days(days)}, not {before}")
        return changed

    return await patiently(database, work) if mode is Mode.TIMESCALEDB else []


def _days(count: float) -> str:
    return f"{count:g} day{'' if count == 1 else 's'}"
