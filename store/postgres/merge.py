"""Carrying out a merge on PostgreSQL, inside a transaction that the caller holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import pyarrow as pa

from market.candle import open_times_ms
from market.coverage import archived
from market.errors import Mismatch
from market.fingerprint import Digest
from market.interval import Interval, IntervalSet
from market.timeframe import ONE_MINUTE
from store.batch import CandleBatch, Written
from store.ledger import learn
from store.merge import Merge, StoredChunk
from store.postgres.columns import WRITTEN, Instant, encoded, read_table_with_states
from store.postgres.connection import Connection
from store.postgres.coverage import read_coverage, replace_coverage
from store.postgres.mode import Mode
from store.postgres.rows import QUERIES, archived_part, storable
from store.postgres.schema import TIMESCALE_QUERIES
from store.series_key import SeriesKey

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: Batches of more rows than this are checked on another thread.
_LARGE = 2000


async def write_batch(
    connection: Connection, mode: Mode, key: SeriesKey, batch: CandleBatch, now_ms: int
) -> Written:
    """Merge the batch of a series that is locked. Nothing is written where nothing changes."""
    merge = await _off_the_loop(batch.table.num_rows, Merge.of, batch, key, now_ms)
    stored = await _stored_chunks(connection, key, merge)
    archive_only = await _archived(connection, key, merge, stored)
    for span in await _off_the_loop(merge.table.num_rows, merge.meet, stored, archive_only):
        table, states = await read_table_with_states(
            connection,
            QUERIES["read_candles_with_states"],
            key.instrument_id,
            key.timeframe,
            Instant(span.start),
            Instant(span.end),
        )
        await _off_the_loop(table.num_rows, merge.compare, span, table, states)
    if mode is Mode.TIMESCALEDB and (merge.corrections or merge.raised or merge.fresh):
        await connection.execute(TIMESCALE_QUERIES["allow_decompression"])
    if merge.corrections:
        span = await _correct(connection, key, merge, batch.source)
        if mode is Mode.TIMESCALEDB:
            await connection.execute(
                TIMESCALE_QUERIES["mark_in_compressed"],
                key.instrument_id,
                key.timeframe,
                span.start,
                span.end,
                merge.learned_at,
            )
    if merge.fresh:
        await _copy_in(connection, "candles", key, merge, merge.fresh)
    for run in merge.raised:
        await connection.execute(
            QUERIES["raise_state"], key.instrument_id, key.timeframe, run.start, run.end, int(merge.state)
        )
    ledger_changed = await _merge_coverage(connection, key, merge, batch)
    if merge.changed or ledger_changed:
        await connection.execute(QUERIES["touch_series"], key.instrument_id, key.timeframe, merge.learned_at)
    if merge.changed and mode is Mode.TIMESCALEDB and batch.series.timeframe == ONE_MINUTE:
        await connection.executemany(
            TIMESCALE_QUERIES["add_aggregate_due"],
            [(key.instrument_id, one.start, one.end) for one in merge.changed],
        )
    await _save_chunks(connection, key, merge)
    if merge.refusals:
        await _quarantine(connection, key, merge, storable(batch.source))
    return merge.written()


async def _off_the_loop(rows: int, work: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs) -> _T:
    """Large batches must not hold up everybody else."""
    if rows > _LARGE:
        return await asyncio.to_thread(work, *arguments, **named)
    return work(*arguments, **named)


async def _stored_chunks(connection: Connection, key: SeriesKey, merge: Merge) -> dict[int, StoredChunk]:
    if merge.span is None:
        return {}
    rows = await connection.fetch(
        QUERIES["read_chunks"], key.instrument_id, key.timeframe, merge.span.start, merge.span.end
    )
    return {
        row[0]: StoredChunk(Digest.of_hex(row[1], row[3]), row[2], row[4], archived_part(row[5], row[6]))
        for row in rows
    }


async def _archived(
    connection: Connection, key: SeriesKey, merge: Merge, stored: dict[int, StoredChunk]
) -> IntervalSet:
    """Where the archive alone has the rows that the batch meets."""
    if not any(one.archived.rows for one in stored.values()):
        return IntervalSet()
    first, last = open_times_ms(merge.table)[[0, -1]].tolist()
    return archived(await read_coverage(connection, key, first, last + 1))


async def _copy_in(connection: Connection, table: str, key: SeriesKey, merge: Merge, parts: list[pa.Table]) -> None:
    await connection.copy_to_table(
        table,
        source=encoded(pa.concat_tables(parts), key, merge.state, merge.learned_at),
        columns=WRITTEN,
        format="binary",
    )


async def _correct(connection: Connection, key: SeriesKey, merge: Merge, source: str) -> Interval:
    """Keep the old versions, and put the new ones in their place; both in one step for all rows.

    :return: from the first to the last of them.
    """
    await connection.execute(QUERIES["make_staging"])
    await _copy_in(connection, "candle_staging", key, merge, merge.corrections)
    times = [open_times_ms(one)[[0, -1]] for one in merge.corrections]
    hull = Interval(min(int(one[0]) for one in times), max(int(one[1]) for one in times) + 1)
    span = (key.instrument_id, key.timeframe, hull.start, hull.end)
    kept = await connection.execute(QUERIES["keep_corrections"], *span, merge.learned_at, storable(source))
    replaced = await connection.execute(QUERIES["replace_candles"], *span)
    await connection.execute(QUERIES["drop_staging"])
    # A compressed chunk has been known to answer for fewer rows than it had
    # (https://github.com/timescale/timescaledb/issues/5448): then nothing of the batch may stay.
    expected = sum(one.num_rows for one in merge.corrections)
    counts = {what: int(told.split()[-1]) for what, told in (("kept", kept), ("replaced", replaced))}
    for what, count in counts.items():
        if count != expected:
            raise Mismatch(f"{expected} corrections were sent, the database {what} {count}; nothing was written")
    return hull


async def _merge_coverage(connection: Connection, key: SeriesKey, merge: Merge, batch: CandleBatch) -> bool:
    hull = merge.news(batch.absences)
    if hull is None:
        return False
    known = await read_coverage(connection, key, hull.start, hull.end)
    after = learn(known, merge.present, batch.absences, batch.source, merge.learned_at)
    return await replace_coverage(connection, key, known, after)


async def _save_chunks(connection: Connection, key: SeriesKey, merge: Merge) -> None:
    if not merge.chunks:
        return
    await connection.executemany(
        QUERIES["save_chunk"],
        [
            (
                key.instrument_id,
                key.timeframe,
                start,
                chunk.digest.rows,
                chunk.unverified,
                chunk.digest.hex,
                key.revision + 1 if chunk.revision is None else chunk.revision,
            )
            for start, chunk in merge.chunks.items()
        ],
    )


async def _quarantine(connection: Connection, key: SeriesKey, merge: Merge, source: str) -> None:
    await connection.executemany(
        QUERIES["insert_quarantine"],
        [
            (
                key.instrument_id,
                key.timeframe,
                one.open_time,
                storable(one.reason),
                storable(one.raw),
                source,
                merge.learned_at,
            )
            for one in merge.refusals
        ],
    )
