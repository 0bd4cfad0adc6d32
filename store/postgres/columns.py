"""Candles as PostgreSQL's binary COPY format and back, a column at a time.

A COPY is a signature, then for each row a count of fields and each field with its length, all big-endian, then -1
(https://www.postgresql.org/docs/current/sql-copy.html). Rows of one shape are one numpy record array: no value
becomes a Python object. Times are microseconds since 2000-01-01T00:00:00Z.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from market.candle import CANDLE_SCHEMA, INSTANT, QUANTITIES, CandleState, no_candles
from market.clock import iso
from market.errors import Mismatch
from market.timeframe import Int64s
from store.postgres.connection import Connection
from store.series_key import SeriesKey

_SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_EPOCH_MS = 946_684_800_000
#: What the queries put in the place of a null, so that all rows have one length.
_NO_INSTANT = np.iinfo(np.int64).min
_NO_COUNT = -1
#: Rows encoded at a time: they fit into the processor's cache, and the next ones are made while the server works.
_BLOCK = 1024
#: Bytes turned into columns at a time, for the same reason.
_RECEIVED = 1 << 19
#: Beyond this an instant is PostgreSQL's infinity in a query.
_LAST_MS = 253_402_300_799_999
_FIRST_MS = -62_135_596_800_000

_KINDS = {field.name: ">i8" if field.type in (INSTANT, pa.int64()) else ">f8" for field in CANDLE_SCHEMA}
#: The columns of the table `candles`, in the order in which rows are sent.
WRITTEN = ("instrument_id", "timeframe", *CANDLE_SCHEMA.names, "state", "learned_at")
_WRITTEN_KINDS = {"instrument_id": ">i4", "timeframe": ">i4", **_KINDS, "state": ">i2", "learned_at": ">i8"}


#: The fields of a row that is read: four numbers travel as one line segment.
_READ: tuple[tuple[str, str], ...] = (
    ("open_time", ">i8"),
    ("prices", "(4,)>f8"),
    ("quantities", "(4,)>f8"),
    ("trades", ">i8"),
    ("early_close_time", ">i8"),
)
#: Where in them the columns of numbers stand.
_INSIDE = {
    **{name: ("prices", place) for place, name in enumerate(("open", "high", "low", "close"))},
    **{name: ("quantities", place) for place, name in enumerate(QUANTITIES)},
}


def _record(kinds: Sequence[tuple[str, str | None]]) -> np.dtype[np.void]:
    """The shape of one row; a kind of None is a null, which has a length and no value."""
    fields: list[tuple[str, str]] = [("fields", ">i2")]
    for name, kind in kinds:
        fields.append((f"{name} length", ">i4"))
        if kind is not None:
            fields.append((name, kind))
    return np.dtype(fields)


async def encoded(table: pa.Table, key: SeriesKey, state: CandleState, learned_at: int) -> AsyncIterator[bytes]:
    """A table in the candle schema as the bytes of a COPY into the columns :data:`WRITTEN`.

    Rows with the same columns unknown stand together; their order in the table does not matter.
    """
    yield _SIGNATURE
    columns = [_plain(column) for column in table.columns]
    nulls = np.zeros(table.num_rows, np.int64)
    for place, column in enumerate(table.columns):
        if column.null_count:
            nulls |= column.is_null().to_numpy().astype(np.int64) << place
    for pattern in np.unique(nulls).tolist():
        alike = nulls == pattern
        rows = columns if alike.all() else [column[alike] for column in columns]
        row = _row(pattern, key, state, learned_at)
        for start in range(0, len(rows[0]), _BLOCK):
            yield _block([column[start : start + _BLOCK] for column in rows], row)
    yield _TRAILER


def _row(nulls: int, key: SeriesKey, state: CandleState, learned_at: int) -> npt.NDArray[np.void]:
    """One row with all that is alike in every row; the columns in the bit set `nulls` are null."""
    unknown = {name for place, name in enumerate(CANDLE_SCHEMA.names) if nulls >> place & 1}
    row = np.zeros(1, _record([(name, None if name in unknown else kind) for name, kind in _WRITTEN_KINDS.items()]))
    row["fields"] = len(WRITTEN)
    for name, kind in _WRITTEN_KINDS.items():
        row[f"{name} length"] = -1 if name in unknown else int(kind[-1])
    row["instrument_id"], row["timeframe"] = key.instrument_id, key.timeframe
    row["state"], row["learned_at"] = int(state), (learned_at - _EPOCH_MS) * 1000
    return row


def _block(columns: Sequence[npt.NDArray[Any]], row: npt.NDArray[np.void]) -> bytes:
    records = np.repeat(row, len(columns[0]))
    for name, values in zip(CANDLE_SCHEMA.names, columns, strict=True):
        if row.dtype.fields is not None and name in row.dtype.fields:
            records[name] = values
    return records.tobytes()


def _plain(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """A column as PostgreSQL counts; what stands in the place of a null is never sent."""
    if column.type == INSTANT:
        milliseconds: Int64s = column.cast(pa.int64()).fill_null(0).to_numpy()
        return (milliseconds - _EPOCH_MS) * 1000
    values: npt.NDArray[Any] = column.fill_null(0).to_numpy()
    return values


async def read_table(
    connection: Connection, query: str, *arguments: int | None, newest_first: bool = False
) -> pa.Table:
    """The candles that a query gives, by binary COPY; oldest first.

    :param arguments: numbers, so that they can stand in the text.
    :param newest_first: how the query gives them.
    """
    tables: list[pa.Table] = []
    await _read(connection, query, arguments, _READ, lambda some: tables.append(_to_table(some, newest_first)))
    return pa.concat_tables(tables[::-1] if newest_first else tables) if tables else no_candles()


async def read_table_with_states(
    connection: Connection, query: str, *arguments: int | None
) -> tuple[pa.Table, Int64s]:
    """:func:`read_table`, and the states of the candles."""
    tables: list[pa.Table] = []
    states: list[Int64s] = []

    def keep(some: npt.NDArray[np.void]) -> None:
        tables.append(_to_table(some, newest_first=False))
        states.append(some["state"].astype(np.int64))

    await _read(connection, query, arguments, (*_READ, ("state", ">i2")), keep)
    if not tables:
        return no_candles(), np.empty(0, np.int64)
    return pa.concat_tables(tables), np.concatenate(states)


async def _read(
    connection: Connection,
    query: str,
    arguments: tuple[int | None, ...],
    kinds: Sequence[tuple[str, str]],
    keep: Callable[[npt.NDArray[np.void]], None],
) -> None:
    """Give `keep` what a query gives, some rows at a time, while the server sends the next ones."""
    shape = _record(kinds)
    pending: list[bytes] = []
    size = 0
    begun = False

    def take() -> None:
        nonlocal size, begun
        data = b"".join(pending)
        start = 0 if begun else len(_SIGNATURE)
        begun = True
        count = max(len(data) - start, 0) // shape.itemsize
        if count:
            keep(np.frombuffer(data, shape, count, start))
        pending[:] = [data[start + count * shape.itemsize :]]
        size = len(pending[0])

    async def receive(block: bytes) -> None:
        nonlocal size
        pending.append(block)
        size += len(block)
        if size >= _RECEIVED:
            take()

    await connection.copy_from_query(_filled(query, arguments), output=receive, format="binary")
    take()
    if pending != [_TRAILER]:
        raise Mismatch(f"a COPY of candles ends with {size} bytes that are no row")


def _filled(query: str, arguments: tuple[int | None, ...]) -> str:
    """COPY takes no parameters. An argument is an int, or an :class:`Instant`, or null; nothing else gets here."""

    def literal(found: re.Match[str]) -> str:
        value = arguments[int(found[1]) - 1]
        if isinstance(value, Instant):
            return value.literal
        return "NULL" if value is None else str(int(value))

    return re.sub(r"\$(\d+)", literal, query)


class Instant(int):
    """Epoch milliseconds that stand in a query."""

    @property
    def literal(self) -> str:
        """As a timestamptz; beyond the years 1 and 9999 there is only infinity."""
        if int(self) > _LAST_MS:
            return "'infinity'::timestamptz"
        if int(self) < _FIRST_MS:
            return "'-infinity'::timestamptz"
        return f"'{iso(int(self))}'::timestamptz"


def _to_table(records: npt.NDArray[np.void], newest_first: bool) -> pa.Table:
    if newest_first:
        records = records[::-1]
    arrays = []
    for field in CANDLE_SCHEMA:
        if field.name in _INSIDE:
            name, place = _INSIDE[field.name]
            numbers = records[name][:, place].astype("<f8")
            arrays.append(pa.array(numbers, mask=np.isnan(numbers) if field.nullable else None))
            continue
        values = records[field.name].astype("<i8")
        if field.type == INSTANT:
            unknown = values == _NO_INSTANT if field.nullable else None
            milliseconds = np.where(values == _NO_INSTANT, 0, values) // 1000 + _EPOCH_MS
            arrays.append(pa.array(milliseconds, mask=unknown).cast(INSTANT))
        else:
            arrays.append(pa.array(values, mask=values == _NO_COUNT))
    return pa.Table.from_arrays(arrays, schema=CANDLE_SCHEMA)
