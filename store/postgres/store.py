"""The candle store on PostgreSQL, with TimescaleDB where the server offers it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

import asyncpg
import numpy as np
import pyarrow as pa
import structlog

from market.candle import Refusal, no_candles, open_times_ms
from market.clock import Clock
from market.coverage import Covered, archived
from market.instrument import Series
from market.interval import Interval
from market.timeframe import DAY_MS, DEFAULT_ORIGIN_MS, ONE_MINUTE, Timeframe
from store.answer import SeriesInfo
from store.archive.archive import Archive
from store.batch import CandleBatch, Written
from store.candle_store import Chunk, SeriesFacts, StoredPage
from store.derived import rolled_page
from store.ledger import clip, counts
from store.postgres import schema
from store.postgres.address import DatabaseUrl
from store.postgres.aggregates import Aggregates, erased, has_aggregate, read_aggregate
from store.postgres.connection import Connection, PoolRules
from store.postgres.coverage import read_coverage
from store.postgres.database import Database
from store.postgres.instruments import PostgresInstruments
from store.postgres.maintenance import Maintenance, apply_rules
from store.postgres.maintenance_rules import MaintenanceRules
from store.postgres.merge import write_batch
from store.postgres.mode import Mode
from store.postgres.notes import PostgresNotes
from store.postgres.partitions import Partitions
from store.postgres.retention import Retention
from store.postgres.rows import (
    QUERIES,
    find_series,
    lock_all,
    read_candles,
    to_chunk,
)
from store.postgres.schema import TIMESCALE_QUERIES, Schema
from store.postgres.status import DatabaseStatus, database_status
from store.postgres.trades import PostgresTrades
from store.postgres.versions import PostgresVersions
from store.series_key import SeriesKey

log = structlog.get_logger(__name__)

LATEST = schema.LATEST
#: Says a line to a person.
Tell = Callable[[str], None]
_ALWAYS = 2**62


def pool_rules(least: int, most: int, seconds: float) -> PoolRules:
    """How many connections to each server, and how long to wait for one of them, or for a statement."""
    return PoolRules(least=least, most=most, acquire_seconds=seconds, command_seconds=seconds)


class PostgresStore(PostgresTrades, PostgresNotes, PostgresInstruments, PostgresVersions):
    """Candles, trades, ledgers, corrections and quarantine in one database. Open with :meth:`opened`."""

    def __init__(self, database: Database, made: Schema, clock: Clock, tell: Tell | None = None) -> None:
        self._database = database
        self._clock = clock
        self.schema = made
        self.aggregates = Aggregates(database, tell) if made.mode is Mode.TIMESCALEDB else None
        self._partitions = Partitions(database, clock) if made.mode is Mode.PLAIN else None

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(
        cls,
        url: DatabaseUrl,
        clock: Clock,
        read_only: bool = False,
        *,
        rules: PoolRules = PoolRules(),  # noqa: B008 - frozen
        replicas: Sequence[DatabaseUrl] = (),
        mode: Mode | None = None,
        refresh: bool = True,
        tell: Tell | None = None,
    ) -> AsyncIterator[PostgresStore]:
        """Connect, make or upgrade the schema (unless `read_only`), close at the end.

        :param replicas: streaming replicas of the same server, to read from.
        :param mode: of a new database; None for TimescaleDB where the server offers it.
        :param refresh: keep the continuous aggregates current in the background, and at the end.
        :param tell: is told which mode a writer runs in and why, and what the end has to wait for.
        :raises BadInput: what the URL says is not so.
        :raises StoreUnavailable: the server does not answer.
        :raises StoreUnusable: another program's database, a missing right, a newer schema.
        """
        async with contextlib.AsyncExitStack() as stack:
            database = await stack.enter_async_context(
                Database.opened(url, rules, replicas=replicas, read_only=read_only)
            )
            if read_only:
                made = await database.read(lambda connection: schema.current(connection, database.location))
            else:
                made, _ = await schema.upgrade(database, mode)
            log.info("database opened", database=database.location, mode=made.mode.value, why=made.why)
            if tell is not None and not read_only:
                tell(f"{database.location} runs as {made.why}")
            store = cls(database, made, clock, tell)
            if not read_only:
                if store._partitions is not None:
                    await store._partitions.make_ahead()
                if store.aggregates is not None and refresh:
                    await stack.enter_async_context(store.aggregates.running())
            yield store

    @staticmethod
    async def upgraded(
        url: DatabaseUrl,
        mode: Mode | None = None,
        rules: PoolRules = PoolRules(),  # noqa: B008 - frozen
        keeping: MaintenanceRules | None = None,
        tell: Tell | None = None,
    ) -> list[int]:
        """Make the schema or bring it up to date; the versions that this call applied.

        :param keeping: how candles are to be kept from now on; None for as they are.
        :param tell: is told which mode runs and why, and which settings were changed.
        """
        async with Database.opened(url, rules) as database:
            made, applied = await schema.upgrade(database, mode)
            lines = [f"{database.location} runs as {made.why}"]
            if keeping is not None:
                lines += await apply_rules(database, made.mode, keeping)
            if tell is not None:
                for line in lines:
                    tell(line)
            return applied

    @property
    def location(self) -> str:
        """The URL without its password."""
        return self._database.location

    async def schema_version(self) -> int:
        """The version of the database's schema."""
        return (await self._database.read(lambda connection: schema.current(connection, self.location))).version

    async def write(self, batch: CandleBatch) -> Written:
        """One batch in one transaction: quarantine, candles, corrections, coverage. Durable when it returns.

        :raises StoreBusy: somebody else held the series, or all connections, for too long; nothing was written.
        :raises StoreUnavailable: the server is away; the message says whether the outcome is known.
        """
        return (await self.write_all([batch]))[0]

    async def write_all(self, batches: Sequence[CandleBatch]) -> list[Written]:
        """All batches in one transaction, each as by :meth:`write`; durable when it returns.

        :raises StoreBusy: somebody else held a series, or all connections, for too long; nothing was written.
        :raises StoreUnavailable: the server is away; the message says whether the outcome is known.
        """

        async def work(connection: Connection) -> list[Written]:
            keys = await lock_all(connection, [one.series for one in batches])
            found = []
            for batch in batches:
                # Of a series that comes twice, the second batch meets what the first one made.
                key = keys.pop(batch.series, None) or await find_series(connection, batch.series)
                assert key is not None
                found.append(await write_batch(connection, self.schema.mode, key, batch, self._clock.now_ms()))
            return found

        if self._partitions is not None and batches:
            await self._partitions.make_for(np.concatenate([open_times_ms(one.table) for one in batches]))
        written = await self._database.write_data(work)
        if self.aggregates is not None and any(
            one.written and batch.series.timeframe == ONE_MINUTE
            for one, batch in zip(written, batches, strict=True)
        ):
            self.aggregates.note()
        return written

    async def read(
        self,
        series: Series,
        start_ms: int,
        end_ms: int,
        *,
        limit: int | None = None,
        newest: bool = False,
        as_of_ms: int | None = None,
    ) -> pa.Table:
        """Stored candles with ``start_ms <= open_time < end_ms``, sorted, in the candle schema.

        :param limit: at most this many rows: the first ones, or the last ones where `newest`.
        :param as_of_ms: the rows as they were known then; epoch milliseconds of our clock.
        """
        interval = Interval(start_ms, end_ms)

        async def work(connection: Connection) -> pa.Table:
            key = await find_series(connection, series)
            if key is None:
                return no_candles()
            return await read_candles(connection, key, interval, limit, newest, as_of_ms)

        return await self._database.read(work)

    async def page(
        self,
        series: Series,
        interval: Interval,
        *,
        limit: int | None = None,
        newest: bool = False,
        as_of_ms: int | None = None,
    ) -> StoredPage:
        """:meth:`read` with the ledger of the part that was read, both from one snapshot of the database."""

        async def work(connection: Connection) -> StoredPage:
            key = await find_series(connection, series)
            if key is None:
                return StoredPage(table=no_candles(), coverage=[])
            table = await read_candles(connection, key, interval, limit, newest, as_of_ms)
            start, end = interval.start, interval.end
            if limit is not None and table.num_rows == limit:
                times = open_times_ms(table)
                start, end = (int(times[0]), end) if newest else (start, series.timeframe.next(int(times[-1])))
            inside = await _clipped(connection, key, Interval(start, end))
            return StoredPage(table=table, coverage=inside, unread=archived(inside), revision=key.revision)

        return await self._database.read(work)

    async def rolled(self, series: Series, interval: Interval, timeframe: Timeframe, origin_ms: int) -> StoredPage:
        """Larger candles made of the stored candles of `series` that open in `interval`, and the ledger of these.

        On TimescaleDB from the continuous aggregate where there is one.

        :param interval: whole buckets of `timeframe`.
        """
        if self.aggregates is None or series.timeframe != ONE_MINUTE or not has_aggregate(timeframe):
            return rolled_page(await self.page(series, interval), timeframe, origin_ms)

        async def work(connection: Connection) -> StoredPage:
            key = await find_series(connection, series)
            if key is None:
                return StoredPage(table=no_candles(), coverage=[])
            table, from_minutes = await read_aggregate(connection, key, timeframe, interval)
            inside = await _clipped(connection, key, interval)
            dropped = archived(inside)
            if not dropped:
                return StoredPage(table=table, coverage=inside, revision=key.revision)
            lost = await erased(connection, key, timeframe, interval, inside, from_minutes)
            unread = dropped & (from_minutes | lost)
            return StoredPage(table=table, coverage=inside, unread=unread, revision=key.revision)

        return await self._database.read(work)

    async def facts(self, series: Series) -> SeriesFacts | None:
        """What a reader must know of a series first; None where it is not stored."""

        async def work(connection: Connection) -> SeriesFacts | None:
            key = await find_series(connection, series)
            if key is None:
                return None
            row = await connection.fetchrow(QUERIES["coverage_bounds"], key.instrument_id, key.timeframe)
            hull = None if row is None or row[0] is None else Interval(row[0], row[1])
            return SeriesFacts(revision=key.revision, origin_ms=key.origin_ms, known=hull)

        return await self._database.read(work)

    async def coverage(self, series: Series, interval: Interval | None = None) -> list[Covered]:
        """The ledger, sorted and disjoint; clipped to `interval` where one is given."""

        async def work(connection: Connection) -> list[Covered]:
            key = await find_series(connection, series)
            if key is None:
                return []
            if interval is None:
                return await read_coverage(connection, key, -_ALWAYS, _ALWAYS)
            return await _clipped(connection, key, interval)

        return await self._database.read(work)

    async def chunks(self, series: Series) -> list[Chunk]:
        """The digests of all chunks of a series, oldest first."""

        async def work(connection: Connection) -> list[Chunk]:
            key = await find_series(connection, series)
            if key is None:
                return []
            rows = await connection.fetch(
                QUERIES["read_chunks"], key.instrument_id, key.timeframe, -_ALWAYS, _ALWAYS
            )
            return [to_chunk(row) for row in rows]

        return await self._database.read(work)

    async def series(self) -> list[SeriesInfo]:
        """Every series with its metadata, by exchange, symbol and timeframe."""
        now_ms = self._clock.now_ms()

        async def work(connection: Connection) -> list[SeriesInfo]:
            return [
                await _info(connection, row, now_ms)
                for row in await connection.fetch(QUERIES["list_series"], now_ms)
            ]

        return await self._database.read(work)

    async def quarantined(self, series: Series, limit: int = 100) -> list[Refusal]:
        """The newest refused rows of a series."""

        async def work(connection: Connection) -> list[Refusal]:
            key = await find_series(connection, series)
            if key is None:
                return []
            rows = await connection.fetch(QUERIES["read_quarantine"], key.instrument_id, key.timeframe, limit)
            return [Refusal(row=at, open_time=row[0], reason=row[1], raw=row[2]) for at, row in enumerate(rows)]

        return await self._database.read(work)

    async def status(self) -> DatabaseStatus:
        """What an operator wants to know of the database."""
        return await database_status(self._database, self.schema)

    def maintenance(self, rules: MaintenanceRules) -> Maintenance:
        """What keeps the database in order."""
        return Maintenance(self._database, self.schema.mode, self._clock, rules)

    def retention(self, archive: Archive, rules: MaintenanceRules) -> Retention:
        """What drops candles that an archive has."""
        mode, young = self.schema.mode, rules.compress_after_days * DAY_MS
        return Retention(self._database, mode, self._clock, archive, young)

    async def count(self) -> tuple[int, int]:
        """How many series, and candles in all of them."""
        row = await self._database.read(lambda connection: connection.fetchrow(QUERIES["count_all"]))
        return (0, 0) if row is None else (row[0], row[1])

    async def size(self) -> tuple[int, int]:
        """Bytes of the database; it does not say how many of them are free."""
        size = await self._database.read(lambda connection: connection.fetchval(QUERIES["database_size"]))
        return int(size), 0

    async def integrity(self) -> list[str]:
        """What the database itself finds wrong; empty when sound."""
        found = []
        if self.aggregates is not None:
            days = await self._database.read(
                lambda connection: connection.fetchval(TIMESCALE_QUERIES["erased_days"])
            )
            if days:
                found.append(
                    f"the aggregates lack minutes of {days:,} archived days, because they were refreshed there by "
                    "hand; larger candles are made from the archive"
                )
        if self._partitions is not None:
            waiting = await self._database.read(
                lambda connection: connection.fetchval(QUERIES["count_default_rows"])
            )
            if waiting:
                found.append(f"{waiting:,} candles wait in the default partition; run `chandlery db maintain`")
        return found


async def _clipped(connection: Connection, key: SeriesKey, interval: Interval) -> list[Covered]:
    return clip(await read_coverage(connection, key, interval.start, interval.end), interval)


async def _info(connection: Connection, row: asyncpg.Record, now_ms: int) -> SeriesInfo:
    timeframe = Timeframe.of_seconds(row["timeframe"])
    key = SeriesKey(row["instrument_id"], row["timeframe"], row["revision"], row["last_write"], DEFAULT_ORIGIN_MS)
    if timeframe.name == "1M":
        missing, empty = counts(await read_coverage(connection, key, -_ALWAYS, _ALWAYS), timeframe, now_ms)
    elif row["first_instant"] is None:
        missing = empty = 0
    else:
        whole = row["last_instant"] - row["first_instant"]
        missing = (whole - row["known_ms"]) // timeframe.milliseconds
        empty = row["empty_ms"] // timeframe.milliseconds
    # What was archived counts too; where the ledger says so, there is a candle at either end.
    to = row["archived_to"]
    firsts = (row["archived_from"], row["first_open"])
    lasts = (None if to is None else timeframe.next(to, -1), row["last_open"])
    return SeriesInfo(
        series=Series(row["exchange"], row["symbol"], timeframe),
        rows=row["row_count"],
        first_open=min((one for one in firsts if one is not None), default=None),
        last_open=max((one for one in lasts if one is not None), default=None),
        last_write=row["last_write"] or None,
        revision=row["revision"],
        sources=tuple(row["sources"]),
        corrections=row["corrections"],
        quarantined=row["quarantined"],
        missing=missing,
        verified_empty=empty,
    )
