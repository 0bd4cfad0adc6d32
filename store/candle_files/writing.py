"""Writing candle files: CSV, Parquet and Arrow, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from market.candle import CANDLE_SCHEMA
from market.errors import BadInput
from store.files import replacing

#: File suffix -> format.
SUFFIXES = {".csv": "csv", ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".arrows": "arrow stream"}
_ROW_GROUP = 100_000


def format_of(path: Path) -> str:
    """The format that the suffix of `path` asks for.

    :raises BadInput: naming ``file``.
    """
    found = SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise BadInput("file", str(path), "a name that ends in " + ", ".join(SUFFIXES))
    return found


def write_candle_file(
    path: Path, tables: Iterable[pa.Table], format_: str | None = None, *, overwrite: bool = False
) -> int:
    """Write candles to `path`; it appears when the last row is on the disk, or not at all.

    The columns are those of the first table (the candle schema where there is no table). CSV has a header, times
    as ``2023-01-01 00:00:00.000Z`` and the shortest text that brings back the same float64; null is empty.

    :param tables: in the order they are written; all with the columns of the first.
    :param format_: one of the values of :data:`SUFFIXES`; by the suffix of `path` if None.
    :param overwrite: replace a file that is there.
    :return: rows written.
    :raises BadInput: naming ``file``: unknown suffix, exists already, or a folder that is not there.
    :raises StoreUnusable: the disk is full or fails, or the folder cannot be written.
    """
    chosen = format_ if format_ is not None else format_of(path)
    if chosen not in SUFFIXES.values():
        raise BadInput("format", chosen, "one of " + ", ".join(dict.fromkeys(SUFFIXES.values())))
    if path.is_dir() or not path.parent.is_dir():
        raise BadInput("file", str(path), "the name of a file in a folder that exists")
    _refuse_existing(path, overwrite)
    with replacing(path) as partial:
        with partial.open("wb") as file:
            rows = _write(file, tables, chosen)
        _refuse_existing(path, overwrite)
    return rows


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if not overwrite and path.exists():
        raise BadInput("file", str(path), "a file that is not there yet, or --overwrite")


def _write(file: IO[bytes], tables: Iterable[pa.Table], format_: str) -> int:
    remaining = iter(tables)
    first = next(remaining, None)
    if first is None:
        first = CANDLE_SCHEMA.empty_table()
    rows = 0
    with _writer(file, first.schema, format_) as writer:
        for table in _with(first, remaining):
            writer.write_table(table, _ROW_GROUP)
            rows += table.num_rows
    return rows


def _with(first: pa.Table, rest: Iterator[pa.Table]) -> Iterator[pa.Table]:
    yield first
    yield from rest


def _writer(file: IO[bytes], schema: pa.Schema, format_: str) -> Any:
    if format_ == "csv":
        return pa_csv.CSVWriter(file, schema, write_options=pa_csv.WriteOptions(quoting_style="none"))
    if format_ == "parquet":
        return pq.ParquetWriter(file, schema, compression="zstd")
    if format_ == "arrow":
        return pa.ipc.new_file(file, schema)
    return pa.ipc.new_stream(file, schema)
