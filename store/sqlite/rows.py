"""Candles as SQLite rows and back as columns."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa

import sql
from market.candle import CANDLE_SCHEMA, INSTANT, CandleState, no_candles
from market.instrument import Instrument, Series
from store.series_key import SeriesKey, parts_of

QUERIES = sql.queries("sqlite")
#: Rows read at a time: with more of them, turning rows into columns misses the processor's cache.
_FETCHED = 4096
#: Making an empty table takes longer than reading a few rows.
_NO_CANDLES = no_candles()
#: Rows turned into parameters at a time; a multiple of sixteen.
_BLOCK = 16_384


def named(key: SeriesKey) -> dict[str, Any]:
    """A key as named parameters of a query."""
    return {"instrument_id": key.instrument_id, "timeframe": key.timeframe}


def find_series(connection: sqlite3.Connection, series: Series) -> SeriesKey | None:
    """The key of a stored series, or None."""
    row = connection.execute(
        QUERIES["find_series"],
        {"exchange": series.exchange, "symbol": series.symbol, "timeframe": series.timeframe.seconds},
    ).fetchone()
    if row is None or row[1] is None:
        return None
    first = None
    if row[3] is None and series.timeframe.name == "3d":
        bounds = {"instrument_id": row[0], "timeframe": series.timeframe.seconds}
        first = connection.execute(QUERIES["series_bounds"], bounds).fetchone()[0]
    return SeriesKey.of(series, row[0], row[1], row[2], row[3], first)


def add_series(connection: sqlite3.Connection, series: Series) -> SeriesKey:
    """The key of a series, which is made known if it was not."""
    found = find_series(connection, series)
    if found is not None:
        return found
    base, quote, kind = parts_of(series.symbol)
    connection.execute(
        QUERIES["name_instrument"],
        {
            "exchange": series.exchange,
            "symbol": series.symbol,
            "exchange_symbol": series.symbol,
            "base": base,
            "quote": quote,
            "kind": kind,
        },
    )
    row = connection.execute(
        QUERIES["find_series"],
        {"exchange": series.exchange, "symbol": series.symbol, "timeframe": series.timeframe.seconds},
    ).fetchone()
    connection.execute(QUERIES["add_series"], {"instrument_id": row[0], "timeframe": series.timeframe.seconds})
    added = find_series(connection, series)
    assert added is not None
    return added


def to_table(rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    """Rows in the order of the candle schema as a table."""
    if not rows:
        return _NO_CANDLES
    arrays = []
    for field, column in zip(CANDLE_SCHEMA, zip(*rows, strict=True), strict=True):
        if field.type == INSTANT:
            arrays.append(pa.array(column, pa.int64()).cast(INSTANT))
        else:
            arrays.append(pa.array(column, field.type))
    return pa.Table.from_arrays(arrays, schema=CANDLE_SCHEMA)


def fetched(cursor: sqlite3.Cursor, newest_first: bool = False) -> pa.Table:
    """All rows of a query in the order of the candle schema as a table, oldest first.

    Rows are turned into columns a block at a time: as Python objects they take ten times the room.
    """
    tables = []
    while rows := cursor.fetchmany(_FETCHED):
        tables.append(to_table(rows[::-1] if newest_first else rows))
    return pa.concat_tables(tables[::-1] if newest_first else tables) if tables else _NO_CANDLES


def to_parameters(
    table: pa.Table, key: SeriesKey, state: CandleState, learned_at: int, rows: int
) -> Iterator[list[Any]]:
    """A table as parameters of an insert of that many candles at a time, without holding all of them at once.

    :param rows: divides the rows of the table.
    """
    width = len(CANDLE_SCHEMA) + 4
    for batch in table.combine_chunks().to_batches(max_chunksize=_BLOCK):
        size = batch.num_rows
        columns = [
            (column.cast(pa.int64()) if column.type == INSTANT else column).to_pylist() for column in batch.columns
        ]
        ends = [[key.instrument_id] * size, [key.timeframe] * size], [[int(state)] * size, [learned_at] * size]
        flat: list[Any] = [None] * (size * width)
        for place, column in enumerate([*ends[0], *columns, *ends[1]]):
            flat[place::width] = column
        for start in range(0, len(flat), rows * width):
            yield flat[start : start + rows * width]


def to_instrument(row: tuple[Any, ...]) -> Instrument:
    """A row of ``list_instruments``."""
    return Instrument(
        exchange=row[0],
        symbol=row[1],
        exchange_symbol=row[2],
        base=row[3],
        quote=row[4],
        kind=row[5],
        tick_size=_decimal(row[6]),
        lot_size=_decimal(row[7]),
        min_notional=_decimal(row[8]),
        active=bool(row[9]),
        listed_ms=row[10],
    )


def _decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)
