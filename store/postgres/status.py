"""What a database says of itself to its operator: mode, chunks, compression, jobs, partitions, what was dropped."""

from __future__ import annotations

from dataclasses import dataclass

import sql
from market.interval import Interval
from store.postgres.connection import FAR_MS, Connection
from store.postgres.database import Database
from store.postgres.mode import Mode
from store.postgres.patience import patiently
from store.postgres.schema import Schema

QUERIES = sql.queries("postgres_maintenance")


@dataclass(frozen=True, kw_only=True)
class HypertableStatus:
    """One hypertable, or the one behind a continuous aggregate. Times are epoch milliseconds."""

    #: Of the table, or of the aggregate's view.
    name: str
    aggregate: bool
    chunks: int
    #: Compressed ones among them.
    compressed: int
    #: From the start of the first chunk to the end of the last; None without chunks.
    interval: Interval | None
    #: How long a new chunk is.
    chunk_seconds: int | None
    #: Size of the compressed chunks before and after they were compressed; None where none is.
    before_bytes: int | None
    after_bytes: int | None

    @property
    def ratio(self) -> float | None:
        """How many times smaller compression makes it."""
        return None if not self.before_bytes or not self.after_bytes else self.before_bytes / self.after_bytes


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """A policy. Times are epoch milliseconds."""

    number: int
    #: ``policy_compression``, ``policy_retention`` or ``policy_refresh_continuous_aggregate``.
    kind: str
    #: The table, or the aggregate's view.
    target: str
    every_seconds: int
    #: False where somebody has switched it off.
    scheduled: bool
    #: As JSON, as TimescaleDB gives it.
    config: str
    last_run: int | None
    last_status: str | None
    next_start: int | None
    runs: int
    failures: int


@dataclass(frozen=True, kw_only=True)
class DueRange:
    """Minutes that the aggregates do not have yet; readers make larger candles of the minutes there."""

    exchange: str
    symbol: str
    interval: Interval
    #: True where it lies before the last drop: no refresh may go there, and it stays so.
    kept: bool


@dataclass(frozen=True, kw_only=True)
class PartitionStatus:
    """A table with monthly partitions, on plain PostgreSQL."""

    table: str
    partitions: int
    #: ``2023_01``; None without partitions.
    first_month: str | None
    last_month: str | None
    #: Rows in the default partition, which has no month.
    waiting_rows: int


@dataclass(frozen=True, kw_only=True)
class DropStatus:
    """Candles before an instant, epoch milliseconds, that were dropped because they are archived."""

    before: int
    dropped_at: int
    candles: int
    archive: str


@dataclass(frozen=True, kw_only=True)
class DatabaseStatus:
    """Everything at one moment."""

    mode: Mode
    #: In words: why it runs in that mode.
    why: str
    #: Of TimescaleDB; None without it.
    extension: str | None
    schema_version: int
    size_bytes: int
    hypertables: tuple[HypertableStatus, ...]
    jobs: tuple[JobStatus, ...]
    due: tuple[DueRange, ...]
    partitions: tuple[PartitionStatus, ...]
    #: Corrections of candles that were compressed already.
    late_corrections: int
    drops: tuple[DropStatus, ...]
    #: Candles in the archive alone.
    archived_candles: int


async def database_status(database: Database, schema: Schema) -> DatabaseStatus:
    """Ask a database for its status, in one snapshot."""

    async def work(connection: Connection) -> DatabaseStatus:
        timescale = schema.mode is Mode.TIMESCALEDB
        drops = await connection.fetch(QUERIES["drops"])
        return DatabaseStatus(
            mode=schema.mode,
            why=schema.why,
            extension=await connection.fetchval(QUERIES["extension"]) if timescale else None,
            schema_version=schema.version,
            size_bytes=await connection.fetchval(QUERIES["size"]),
            hypertables=await _hypertables(connection) if timescale else (),
            jobs=await _jobs(connection) if timescale else (),
            due=await _due(connection) if timescale else (),
            partitions=() if timescale else await _partitions(connection),
            late_corrections=await connection.fetchval(QUERIES["late_corrections"]),
            drops=tuple(
                DropStatus(before=one[0], dropped_at=one[1], candles=one[2], archive=one[3]) for one in drops
            ),
            archived_candles=await connection.fetchval(QUERIES["archived_candles"]),
        )

    return await patiently(database, work, snapshot=True)


async def _hypertables(connection: Connection) -> tuple[HypertableStatus, ...]:
    return tuple(
        HypertableStatus(
            name=row["name"],
            aggregate=row["aggregate"],
            chunks=row["chunks"],
            compressed=row["compressed"],
            interval=None if row["first"] is None else Interval(row["first"], row["last"]),
            chunk_seconds=row["chunk_seconds"],
            before_bytes=row["before_bytes"],
            after_bytes=row["after_bytes"],
        )
        for row in await connection.fetch(QUERIES["hypertables"])
    )


async def _jobs(connection: Connection) -> tuple[JobStatus, ...]:
    return tuple(
        JobStatus(
            number=row["job_id"],
            kind=row["proc_name"],
            target=row["target"],
            every_seconds=row["every_seconds"],
            scheduled=row["scheduled"],
            config=row["config"],
            last_run=_instant(row["last_run"]),
            last_status=row["last_status"],
            next_start=_instant(row["next_start"]),
            runs=row["runs"],
            failures=row["failures"],
        )
        for row in await connection.fetch(QUERIES["jobs"])
    )


def _instant(time_ms: int | None) -> int | None:
    """TimescaleDB says -infinity for never, and infinity while a job runs."""
    return None if time_ms is None or abs(time_ms) >= FAR_MS else time_ms


async def _due(connection: Connection) -> tuple[DueRange, ...]:
    return tuple(
        DueRange(
            exchange=row["exchange"],
            symbol=row["symbol"],
            interval=Interval(row["interval_start"], row["interval_end"]),
            kept=row["kept"],
        )
        for row in await connection.fetch(QUERIES["due"])
    )


async def _partitions(connection: Connection) -> tuple[PartitionStatus, ...]:
    waiting = {row["parent"]: row["count"] for row in await connection.fetch(QUERIES["waiting_rows"])}
    return tuple(
        PartitionStatus(
            table=row["parent"],
            partitions=row["partitions"],
            first_month=row["first_month"],
            last_month=row["last_month"],
            waiting_rows=waiting[row["parent"]],
        )
        for row in await connection.fetch(QUERIES["partitions"])
    )
