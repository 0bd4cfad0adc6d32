"""Series, candles and instruments as PostgreSQL rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import asyncpg
import pyarrow as pa

import sql
from market.fingerprint import Digest
from market.instrument import Instrument, Series
from market.interval import Interval
from market.timeframe import DAY_MS
from store.candle_store import Chunk
from store.postgres.columns import Instant, read_table
from store.postgres.connection import Connection
from store.series_key import SeriesKey, parts_of

QUERIES = sql.queries("postgres")
#: A range of this length is in few partitions: not worth a question before.
_FEW_CHUNKS_MS = 5 * DAY_MS


async def find_series(connection: Connection, series: Series) -> SeriesKey | None:
    """The key of a stored series, or None."""
    row = await connection.fetchrow(
        QUERIES["find_series"], series.exchange, series.symbol, series.timeframe.seconds
    )
    if row is None or row["revision"] is None:
        return None
    return await _key(connection, series, row)


async def lock_all(connection: Connection, series: Iterable[Series]) -> dict[Series, SeriesKey]:
    """The keys of series, made known if they were not, and held until the transaction ends.

    What many need is asked for at once: a minute closes for all of them together.
    """
    # In one order, as they are locked.
    wanted = sorted(set(series), key=str)
    found = await _find_all(connection, wanted)
    if missing := [one for one in wanted if one not in found]:
        names = [(one.exchange, one.symbol, one.symbol, *parts_of(one.symbol)) for one in missing]
        await connection.executemany(QUERIES["name_instrument"], names)
        rows = await _rows_of(connection, missing)
        await connection.executemany(
            QUERIES["add_series"], [(row["instrument_id"], row["timeframe"]) for row in rows]
        )
        found = await _find_all(connection, wanted)
    # Another writer may have been here between the look and the lock: what it committed counts.
    keys = [(key.instrument_id, key.timeframe) for key in found.values()]
    if keys:
        await connection.fetch(QUERIES["lock_series"], *zip(*keys, strict=True))
        found = await _find_all(connection, wanted)
    return found


async def _find_all(connection: Connection, series: Sequence[Series]) -> dict[Series, SeriesKey]:
    """The keys of those series that are stored."""
    by_name = {(one.exchange, one.symbol, one.timeframe.seconds): one for one in series}
    found = {}
    for row in await _rows_of(connection, series):
        if row["revision"] is not None:
            one = by_name[row["exchange"], row["symbol"], row["timeframe"]]
            found[one] = await _key(connection, one, row)
    return found


async def _rows_of(connection: Connection, series: Sequence[Series]) -> list[asyncpg.Record]:
    names = [(one.exchange, one.symbol, one.timeframe.seconds) for one in series]
    return await connection.fetch(QUERIES["find_all_series"], *zip(*names, strict=True)) if names else []


async def _key(connection: Connection, series: Series, row: asyncpg.Record) -> SeriesKey:
    first = None
    if row["listed_at"] is None and series.timeframe.name == "3d":
        first = await connection.fetchval(QUERIES["first_open"], row["instrument_id"], series.timeframe.seconds)
    return SeriesKey.of(series, row["instrument_id"], row["revision"], row["last_write"], row["listed_at"], first)


async def read_candles(
    connection: Connection,
    key: SeriesKey,
    interval: Interval,
    limit: int | None = None,
    newest: bool = False,
    as_of_ms: int | None = None,
) -> pa.Table:
    """Candles of an interval, sorted; see :meth:`store.candle_store.CandleStore.read`.

    With a limit, no more of the table is opened than holds so many candles: a query over an open range would have
    to plan for, and to lock, every partition there is.
    """
    if limit is None or interval.duration <= _FEW_CHUNKS_MS:
        return await _read_run(connection, key, interval, limit, newest, as_of_ms)
    found: list[pa.Table] = []
    rest, missing, count = interval, limit, limit
    while True:
        run = await _run_with(connection, key, rest, count, newest)
        table = await _read_run(connection, key, run, missing, newest, as_of_ms)
        found.append(table)
        missing -= table.num_rows
        if not missing or run == rest:
            return pa.concat_tables(found[::-1] if newest else found)
        rest = Interval(rest.start, run.start) if newest else Interval(run.end, rest.end)
        # As of an earlier moment, and where the archive alone has them, candles are fewer than were counted.
        count *= 4


async def _run_with(
    connection: Connection, key: SeriesKey, interval: Interval, count: int, newest: bool
) -> Interval:
    """The end of an interval, or its beginning, that holds at least `count` candles; all of it if it does not."""
    name, edge = ("newest_bound", interval.end) if newest else ("oldest_bound", interval.start)
    bound = await connection.fetchval(QUERIES[name], key.instrument_id, key.timeframe, edge, count)
    if bound is None or not interval.start < bound < interval.end:
        return interval
    return Interval(bound, interval.end) if newest else Interval(interval.start, bound)


async def _read_run(
    connection: Connection,
    key: SeriesKey,
    interval: Interval,
    limit: int | None,
    newest: bool,
    as_of_ms: int | None,
) -> pa.Table:
    name = "read_newest_candles" if newest else "read_candles"
    arguments: list[int | None] = [
        key.instrument_id, key.timeframe, Instant(interval.start), Instant(interval.end), limit
    ]  # fmt: skip
    if as_of_ms is not None:
        name += "_as_of"
        arguments.append(Instant(as_of_ms))
    return await read_table(connection, QUERIES[name], *arguments, newest_first=newest)


def to_chunk(row: asyncpg.Record) -> Chunk:
    """A row of ``read_chunks``."""
    return Chunk(
        start=row[0],
        digest=Digest.of_hex(row[1], row[3]),
        revision=row[4],
        archived=archived_part(row[5], row[6]),
    )


def archived_part(rows: int, text: str | None) -> Digest:
    """What the archive alone has of a chunk, from its two columns."""
    return Digest() if text is None else Digest.of_hex(rows, text)


def to_instrument(row: asyncpg.Record) -> Instrument:
    """A row of ``list_instruments``."""
    return Instrument(
        exchange=row["exchange"],
        symbol=row["symbol"],
        exchange_symbol=row["exchange_symbol"],
        base=row["base"],
        quote=row["quote"],
        kind=row["kind"],
        tick_size=row["tick_size"],
        lot_size=row["lot_size"],
        min_notional=row["min_notional"],
        active=row["active"],
        listed_ms=row["listed_at"],
    )


def instrument_row(instrument: Instrument, now_ms: int) -> tuple[Any, ...]:
    """The parameters of ``save_instrument``."""
    return (
        instrument.exchange,
        instrument.symbol,
        instrument.exchange_symbol,
        instrument.base,
        instrument.quote,
        instrument.kind,
        instrument.tick_size,
        instrument.lot_size,
        instrument.min_notional,
        instrument.active,
        instrument.listed_ms,
        now_ms,
    )


def storable(text: str) -> str:
    """Text without null characters, which PostgreSQL does not take; they are written out."""
    return text.replace("\0", "\\x00")
