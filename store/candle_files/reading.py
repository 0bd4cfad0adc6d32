"""Reading candle files: from any known layout to tables of the candle schema, and refusals for the bad rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from market.candle import CANDLE_SCHEMA, INSTANT, Bools, Refusal
from market.errors import BadInput
from market.timeframe import TIMEFRAMES, Int64s, Timeframe
from store.candle_files.cells import Faults, cell, instants, numbers
from store.candle_files.container import Container, RowBatch, opened
from store.candle_files.layout import CandleFileFormat, Layout, layout_of

#: A share of steps below this is chance, not the file's timeframe.
_FEW = 0.01


@dataclass(frozen=True, kw_only=True)
class FileBatch:
    """Some rows of a candle file."""

    #: Candle schema, sorted by open time. Each row can be read; whether it may be stored, `market.candle.check`
    #: says. Rows of one open time stay in the file's order.
    table: pa.Table
    #: The file's data row, counted from 0, of each row of `table`.
    rows: Int64s
    #: Rows that cannot be read. `row` counts the file's data rows from 0; `raw` is the row as it stands there.
    refusals: tuple[Refusal, ...]


def recognise(path: Path) -> CandleFileFormat:
    """Which known layout the file at `path` has.

    :raises BadInput: naming ``file``: not there, damaged, or of an unknown layout (its columns are listed).
    """
    with opened(path) as container:
        return layout_of(container, path).format


def read_candle_file(path: Path, timeframe: Timeframe) -> Iterator[FileBatch]:
    """The candles of a file, in batches of up to 100,000 rows, in the file's order.

    The first batch is read, and judged, before this returns, so that a wrong file is refused before anything
    is stored. A file whose rows have several timeframes gives those of `timeframe`.

    :raises BadInput: naming ``file`` as :func:`recognise` does, or because it has no rows, or because no open
        time of its first batch can be read; naming ``timeframe`` where the spacing of the rows says another one.
    """
    batches = _batches(path, timeframe)
    first = next(batches, None)
    if first is None:
        raise BadInput("file", str(path), "at least one candle; this one has a known layout and no rows")
    return chain([first], batches)


def _batches(path: Path, timeframe: Timeframe) -> Iterator[FileBatch]:
    with opened(path) as container:
        layout = layout_of(container, path)
        judged = False
        for batch in _of_timeframe(container, layout, timeframe):
            found = _convert(batch, layout, timeframe)
            if not judged:
                _judge(found, path, timeframe)
                judged = True
            yield found


def _of_timeframe(container: Container, layout: Layout, timeframe: Timeframe) -> Iterator[RowBatch]:
    """The rows of `timeframe`, where the rows say which one they are."""
    if layout.timeframe is None:
        yield from container.batches
        return
    seen: set[str] = set()
    for batch in container.batches:
        names = batch.table.column(layout.timeframe).cast(pa.string())
        seen.update(str(name) for name in pc.unique(names).to_pylist())
        wanted = np.flatnonzero(pc.equal(names, timeframe.name).fill_null(False).to_numpy())
        if len(wanted) or batch.broken:
            yield RowBatch(
                table=batch.table.take(pa.array(wanted)),
                rows=batch.rows[wanted],
                lines=None if batch.lines is None else batch.lines[wanted],
                broken=batch.broken,
            )
    if seen and timeframe.name not in seen:
        raise BadInput("timeframe", timeframe.name, "one that the file holds: " + " ".join(sorted(seen)))


def _convert(batch: RowBatch, layout: Layout, timeframe: Timeframe) -> FileBatch:
    raw = batch.table
    faults = Faults(raw.num_rows)
    binance = layout.format.name == "binance archive"
    columns: dict[str, pa.Array] = {}
    for field in CANDLE_SCHEMA:
        position = layout.columns.get(field.name)
        if position is None:
            columns[field.name] = pa.nulls(raw.num_rows, field.type)
            continue
        column, name, required = raw.column(position).combine_chunks(), layout.names[field.name], not field.nullable
        if field.type == INSTANT:
            found = instants(column, name, faults, required=required, microseconds=binance)
            columns[field.name] = found.cast(pa.int64())
        else:
            columns[field.name] = numbers(column, name, faults, required=required, type_=field.type)
    if layout.close_time is not None:
        column = raw.column(layout.close_time).combine_chunks()
        closes = instants(column, "close_time", faults, required=False, microseconds=binance)
        columns["early_close_time"] = _early(columns["open_time"], closes, column, timeframe, faults)
    _refuse_partial(raw, layout, faults)
    good = np.flatnonzero(~faults.rows)
    good = good[np.argsort(columns["open_time"].take(pa.array(good)).to_numpy(), kind="stable")]
    arrays = [columns[field.name].take(pa.array(good)).cast(field.type) for field in CANDLE_SCHEMA]
    table = pa.Table.from_arrays(arrays, schema=CANDLE_SCHEMA)
    refusals = (*batch.broken, *_refusals(batch, faults, columns["open_time"]))
    return FileBatch(table=table, rows=batch.rows[good], refusals=tuple(sorted(refusals, key=lambda one: one.row)))


def _refuse_partial(raw: pa.Table, layout: Layout, faults: Faults) -> None:
    """Rows that say of themselves that they lack base candles, or are forming, would look whole once stored."""
    if layout.missing is not None:
        column = raw.column(layout.missing).combine_chunks()
        lacking = numbers(column, "missing", faults, required=False, type_=pa.int64()).fill_null(0).to_numpy()
        faults.add(lacking > 0, column, "missing", "only candles that lack no base candle are stored")
    if layout.closed is not None:
        column = raw.column(layout.closed).combine_chunks()
        forming = pc.equal(pc.utf8_lower(column.cast(pa.string())), "false").fill_null(False)
        faults.add(forming.to_numpy(zero_copy_only=False), column, "closed", "only closed candles are stored")


def _early(opens: pa.Array, closes: pa.Array, column: pa.Array, timeframe: Timeframe, faults: Faults) -> pa.Array:
    """The close times that lie before the last millisecond of their bucket; null for full length.

    Some programs write the end of the bucket itself; that is full length too.
    """
    known = opens.is_valid().to_numpy(zero_copy_only=False) & closes.is_valid().to_numpy(zero_copy_only=False)
    start, close = opens.fill_null(0).to_numpy(), closes.fill_null(0).to_numpy()
    end = timeframe.next_all(start)
    wrong: Bools = known & ((close > end) | (close < start))
    faults.add(wrong, column, "close_time", f"not inside the {timeframe} bucket of its open time")
    return pa.array(close, pa.int64(), mask=~(known & (close < end - 1)))


def _refusals(batch: RowBatch, faults: Faults, opens: pa.Array) -> Iterator[Refusal]:
    for row, reason in faults.reasons.items():
        cells = {name: cell(column, row) for name, column in _cells(batch.table)}
        if batch.lines is None:
            place, raw = f"row {batch.rows[row]}", repr(cells)
        else:
            place, raw = f"line {batch.lines[row]}", ",".join(map(str, cells.values()))
        yield Refusal(
            row=int(batch.rows[row]), open_time=opens[row].as_py(), reason=f"{place}: {reason}", raw=raw[:1000]
        )


def _cells(table: pa.Table) -> Iterator[tuple[str, pa.ChunkedArray]]:
    seen: dict[str, int] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        seen[name] = seen.get(name, 0) + 1
        yield (name if seen[name] == 1 else f"{name} ({seen[name]})"), column


def _judge(batch: FileBatch, path: Path, timeframe: Timeframe) -> None:
    """Refuse the whole file where the first batch shows that it was read the wrong way."""
    if not batch.table.num_rows and batch.refusals and all(one.open_time is None for one in batch.refusals):
        raise BadInput("file", str(path), f"rows that can be read; none can, first {batch.refusals[0].reason}")
    times: Int64s = np.unique(batch.table.column("open_time").cast(pa.int64()).to_numpy())
    if len(times) < 3:
        return
    ends, following = timeframe.next_all(times[:-1]), times[1:]
    finer = float(np.mean(following < ends)) > 0.5
    coarser = float(np.mean(following == ends)) < _FEW
    if finer or coarser:
        step = int(np.median(np.diff(times)))
        raise BadInput("timeframe", timeframe.name, f"the file's own: its rows are {_said(step)} apart (median)")


def _said(step_ms: int) -> str:
    by_length = {timeframe.milliseconds: timeframe.name for timeframe in TIMEFRAMES.values()}
    return by_length.get(step_ms, f"{step_ms / 1000:g} s")
