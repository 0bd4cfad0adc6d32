"""The forms of an answer: pure functions from an Arrow table to bytes.

Numbers keep their value in every form: JSON and CSV write the shortest decimal text that brings back the same
float64, Arrow and Parquet hold the float itself. Instants are epoch milliseconds in JSON and CSV and
``timestamp[ms, UTC]`` in Arrow and Parquet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from market.errors import BadInput

#: Key of the schema metadata that carries ``meta`` in Arrow and Parquet, as JSON.
META_KEY = b"chandlery.meta"


class Format(StrEnum):
    """The forms an answer can have."""

    JSON = "json"
    CSV = "csv"
    ARROW = "arrow"
    PARQUET = "parquet"

    @staticmethod
    def named(name: str | None) -> Format:
        """The format called `name`; JSON by default."""
        try:
            return Format.JSON if name is None else Format(name)
        except ValueError:
            raise BadInput("format", name, "one of " + ", ".join(Format)) from None

    @property
    def media_type(self) -> str:
        """The answer's Content-Type."""
        return _MEDIA[self]

    @property
    def version(self) -> str:
        """Changes when equal tables may give other bytes; part of the ETag."""
        return "1" if self in (Format.JSON, Format.CSV) else f"1-{pa.__version__}"


_MEDIA = {
    Format.JSON: "application/json",
    Format.CSV: "text/csv; charset=utf-8",
    Format.ARROW: "application/vnd.apache.arrow.stream",
    Format.PARQUET: "application/vnd.apache.parquet",
}


def encode_json(table: pa.Table, meta: Mapping[str, Any]) -> bytes:
    """``{"columns": [...], "data": [[...], ...], "meta": {...}}``."""
    values = [_json_column(column) for column in table.columns]
    return orjson.dumps(
        {"columns": table.column_names, "data": list(zip(*values, strict=True)), "meta": meta},
        option=orjson.OPT_NON_STR_KEYS,
    )


def _json_column(column: pa.ChunkedArray) -> list[Any]:
    """Python values of a column; orjson writes NaN as null, so float columns need no look at their nulls."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    if column.null_count == len(column):
        return [None] * len(column)
    if pa.types.is_floating(column.type) or not column.null_count:
        listed: list[Any] = column.to_numpy().tolist()
        return listed
    values: list[Any] = column.to_pylist()
    return values


def encode_csv(table: pa.Table, meta: Mapping[str, Any]) -> bytes:
    """A header line and one line per candle; nulls are empty, `meta` has no place and travels in headers."""
    plain = [column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column for column in table.columns]
    sink = pa.BufferOutputStream()
    pa_csv.write_csv(
        pa.table(plain, names=table.column_names),
        sink,
        pa_csv.WriteOptions(quoting_style="none", quoting_header="none"),
    )
    body: bytes = sink.getvalue().to_pybytes()
    return body


def encode_arrow(table: pa.Table, meta: Mapping[str, Any]) -> bytes:
    """An Arrow IPC stream; `meta` as JSON in the schema's metadata under :data:`META_KEY`."""
    table = _with_meta(table, meta)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def encode_parquet(table: pa.Table, meta: Mapping[str, Any]) -> bytes:
    """A Parquet file (zstd); `meta` as in :func:`encode_arrow`."""
    sink = pa.BufferOutputStream()
    pq.write_table(_with_meta(table, meta), sink, compression="zstd")
    body: bytes = sink.getvalue().to_pybytes()
    return body


def _with_meta(table: pa.Table, meta: Mapping[str, Any]) -> pa.Table:
    return table.replace_schema_metadata({META_KEY: orjson.dumps(meta)})


ENCODERS: dict[Format, Callable[[pa.Table, Mapping[str, Any]], bytes]] = {
    Format.JSON: encode_json,
    Format.CSV: encode_csv,
    Format.ARROW: encode_arrow,
    Format.PARQUET: encode_parquet,
}
