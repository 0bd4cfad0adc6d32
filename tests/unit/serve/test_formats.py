"""The encoders alone: every float64, null and instant survives each form."""

from __future__ import annotations

import io

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.candle import COLUMNS, candles, no_candles
from market.errors import BadInput
from serve.formats import ENCODERS, META_KEY, Format

NUMBERS = st.floats(min_value=1e-12, max_value=1e15, allow_nan=False)
OPTIONAL = st.none() | NUMBERS


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    size = draw(st.integers(0, 6))

    def column(values: st.SearchStrategy[object]) -> list[object]:
        return draw(st.lists(values, min_size=size, max_size=size))

    return candles(
        {
            "open_time": np.arange(size, dtype=np.int64) * 60_000 + 1_700_000_040_000,
            **{name: column(NUMBERS) for name in ("open", "high", "low", "close", "volume")},
            "quote_volume": column(OPTIONAL),
            "trades": column(st.none() | st.integers(0, 2**53)),
            "early_close_time": column(st.none() | st.integers(1_700_000_000_000, 1_800_000_000_000)),
        }
    )


def plain(table: pa.Table) -> list[dict[str, object]]:
    fields = [(f.name, pa.int64() if pa.types.is_timestamp(f.type) else f.type) for f in table.schema]
    return table.cast(pa.schema(fields)).to_pylist()


@given(tables())
def test_json_brings_back_every_value(table: pa.Table) -> None:
    body = orjson.loads(ENCODERS[Format.JSON](table, {"rows": table.num_rows}))
    assert body["columns"] == list(COLUMNS)
    assert [dict(zip(COLUMNS, row, strict=True)) for row in body["data"]] == plain(table)
    assert body["meta"] == {"rows": table.num_rows}


@given(tables())
def test_csv_brings_back_every_value(table: pa.Table) -> None:
    body = ENCODERS[Format.CSV](table, {})
    kinds = {name: pl.Int64 for name in ("open_time", "trades", "early_close_time")}
    read = pl.read_csv(io.BytesIO(body), schema={name: kinds.get(name, pl.Float64) for name in COLUMNS})
    assert read.to_dicts() == plain(table)
    assert body.splitlines()[0].decode() == ",".join(COLUMNS)


@given(tables())
def test_arrow_and_parquet_hold_the_table_itself(table: pa.Table) -> None:
    meta = {"rows": table.num_rows}
    arrow = pa.ipc.open_stream(ENCODERS[Format.ARROW](table, meta)).read_all()
    parquet = pq.read_table(io.BytesIO(ENCODERS[Format.PARQUET](table, meta)))
    for read in (arrow, parquet):
        assert read.equals(table)
        assert orjson.loads(read.schema.metadata[META_KEY]) == meta


@pytest.mark.parametrize("form", list(Format))
def test_equal_tables_give_equal_bytes_and_empty_ones_are_fine(form: Format) -> None:
    encode = ENCODERS[form]
    assert encode(no_candles(), {}) == encode(no_candles(), {})
    assert form.media_type
    assert form.version


def test_an_unknown_format_lists_the_known() -> None:
    with pytest.raises(BadInput, match="json, csv, arrow, parquet"):
        Format.named("JSON")
    assert Format.named(None) is Format.JSON
