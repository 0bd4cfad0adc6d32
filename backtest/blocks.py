"""Blocks: runs of one series' candles with their indicators, cut at the same rows whatever the reading did.

Indicators are computed a block at a time, over the block and the `warm_up` candles before it, which is also what a
live engine shows a strategy. Blocks are counted from the start of a run without holes, so their bounds, and with
them every last bit of an indicator, do not depend on how many rows were read at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from backtest.feed import Piece
from backtest.source import Source
from market.candle import Float64s, floats, open_times_ms
from market.errors import BadInput, StrategyFailed
from market.instrument import Series
from market.timeframe import Int64s
from trading.catalogue import method_line
from trading.strategy import CANDLE_FIELDS, Candle, Strategy, candle_rows, candle_type

#: Candles of all series together in one block of each.
BLOCK_ROWS = 65_536


def block_rows(sources: Sequence[Source]) -> int:
    """Rows of a block of each series: fewer for many series, but never mostly warm-up."""
    return max(BLOCK_ROWS // len(sources), 4 * max(one.warm_up for one in sources), 512)


@dataclass(frozen=True)
class RawBlock:
    """Candles of one series with the ones before them, as archived."""

    #: Candle schema: first the context, then the block's own rows.
    table: pa.Table
    #: How many rows at the start belong to earlier blocks.
    context: int
    #: How many of the block's own rows come before the strategy's warm-up is over.
    cold: int


@dataclass(frozen=True)
class Block:
    """Candles of one series, ready to be shown. Columns are parallel."""

    #: When each candle becomes available, epoch milliseconds, increasing.
    times: Int64s
    closes: Float64s
    #: The candle's fields, in the order of its class.
    columns: tuple[np.ndarray[Any, Any], ...]
    #: Classes for the rows before and after the end of the warm-up.
    kinds: tuple[type[Candle], type[Candle]]
    #: How many rows at the start are of the first class.
    cold: int

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, rows: slice) -> Block:
        start, stop, _ = rows.indices(len(self))
        return Block(
            self.times[rows],
            self.closes[rows],
            tuple(column[rows] for column in self.columns),
            self.kinds,
            min(max(self.cold - start, 0), stop - start),
        )

    def candles(self) -> Iterator[Candle]:
        """The candles one by one."""
        lists = [column.tolist() for column in self.columns]
        if not self.cold:
            return candle_rows(self.kinds[1], lists)
        cold = candle_rows(self.kinds[0], [column[: self.cold] for column in lists])
        return chain(cold, candle_rows(self.kinds[1], [column[self.cold :] for column in lists]))


def raw_blocks(pieces: Iterable[Piece], warm_up: int, rows: int) -> Iterator[RawBlock]:
    """Pieces cut into blocks of exactly `rows` rows, the last of each run without holes excepted."""
    held: list[pa.Table] = []
    context, seen = 0, 0

    def blocks(final: bool) -> Iterator[RawBlock]:
        nonlocal held, context, seen
        table = pa.concat_tables(held).combine_chunks() if held else None
        while table is not None and (table.num_rows - context >= rows or (final and table.num_rows > context)):
            own = min(rows, table.num_rows - context)
            yield RawBlock(table.slice(0, context + own), context, min(max(warm_up - seen, 0), own))
            seen += own
            kept = min(warm_up, context + own)
            table = table.slice(context + own - kept)
            context = kept
        held = [table] if table is not None else []

    for piece in pieces:
        if piece.begins:
            yield from blocks(final=True)
            held, context, seen = [], 0, 0
        held.append(piece.table)
        if sum(one.num_rows for one in held) - context >= rows:
            yield from blocks(final=False)
    yield from blocks(final=True)


class Indicators:
    """Turns raw blocks of one series into blocks of candles, through a strategy's `populate_indicators`."""

    def __init__(self, strategy: Strategy, series: Series) -> None:
        self._strategy = strategy
        self._series = series
        self._names: tuple[str, ...] | None = None
        self._kinds: tuple[type[Candle], type[Candle]] | None = None

    def added(self, table: pa.Table) -> pl.DataFrame:
        """The columns that the strategy adds to these candles, numbers without nulls (NaN instead).

        :raises StrategyFailed: what came back is not the frame with columns added.
        """
        given = frame_of(table, self._series)
        result: object = self._strategy.populate_indicators(given)
        if not isinstance(result, pl.DataFrame):
            raise self._failed(f"returned {type(result).__name__}; expected a polars DataFrame")
        if result.height != given.height:
            raise self._failed(f"returned {result.height} rows for {given.height}; expected the same rows")
        if "open_time" not in result.columns or not result["open_time"].equals(given["open_time"]):
            raise self._failed("changed open_time; expected the same rows in the same order")
        names = tuple(name for name in result.columns if name not in given.columns)
        if self._names is None:
            self._names = names
        elif set(names) != set(self._names):
            raise self._failed(f"added {names}; expected the same columns each time: {self._names}")
        return result.select(_without_nulls(result[name]) for name in self._names)

    def block(self, raw: RawBlock, from_ms: int) -> Block | None:
        """A raw block with indicators, without its context and the rows before `from_ms`."""
        added = self.added(raw.table)
        if self._kinds is None:
            self._kinds = self._candle_types(added.columns)
        opens = open_times_ms(raw.table)
        first = max(raw.context, int(np.searchsorted(opens, from_ms)))
        if first == len(opens):
            return None
        columns = [
            opens[first:],
            *(floats(raw.table, name)[first:] for name in CANDLE_FIELDS[1:]),
            *(column.to_numpy()[first:] for column in added),
        ]
        times = self._series.timeframe.next_all(opens[first:])
        cold = max(raw.cold - (first - raw.context), 0)
        return Block(times, floats(raw.table, "close")[first:], tuple(columns), self._kinds, cold)

    def _candle_types(self, names: list[str]) -> tuple[type[Candle], type[Candle]]:
        try:
            return candle_type(self._series, names, ready=False), candle_type(self._series, names)
        except BadInput as error:
            raise self._failed(f"added a column that no candle can have: {error}") from error

    def _failed(self, what: str) -> StrategyFailed:
        return StrategyFailed(f"{method_line(self._strategy, 'populate_indicators')} {what}")


def frame_of(table: pa.Table, series: Series) -> pl.DataFrame:
    """Candles as a strategy sees them: the archive's columns, the symbol and the timeframe."""
    frame = pl.from_arrow(table)
    if not isinstance(frame, pl.DataFrame):
        raise BadInput("candles", type(frame).__name__, "an Arrow table")
    return frame.with_columns(symbol=pl.lit(series.symbol), timeframe=pl.lit(series.timeframe.name))


def _without_nulls(column: pl.Series) -> pl.Series:
    if column.dtype.is_numeric() or column.dtype == pl.Null:
        return column if not column.null_count() else column.cast(pl.Float64).fill_null(float("nan"))
    return column


@dataclass(frozen=True)
class Chunk:
    """All candles of some span, merged by the instant at which they become available."""

    #: The instants, epoch milliseconds, strictly increasing.
    times: Int64s
    #: The candles of each instant: longer timeframe first, then by symbol.
    instants: Iterable[Sequence[Candle]]
    #: The parts of the blocks in it.
    blocks: tuple[Block, ...]


def merged(streams: Sequence[Iterator[Block]]) -> Iterator[Chunk]:
    """Merge the blocks of many series; holds one block of each.

    :param streams: in the order in which candles of one instant are to come.
    """
    heads = [next(stream, None) for stream in streams]
    while any(head is not None for head in heads):
        horizon = min(int(head.times[-1]) for head in heads if head is not None)
        parts: list[Block] = []
        for at, head in enumerate(heads):
            if head is None:
                continue
            count = int(np.searchsorted(head.times, horizon, side="right"))
            if count:
                parts.append(head[:count])
            heads[at] = head[count:] if count < len(head) else next(streams[at], None)
        yield _chunk(parts)


def _chunk(parts: list[Block]) -> Chunk:
    if len(parts) == 1:
        return Chunk(parts[0].times, zip(parts[0].candles(), strict=True), tuple(parts))
    times = np.concatenate([one.times for one in parts])
    order = np.argsort(times, kind="stable")
    times = times[order]
    starts = np.flatnonzero(np.concatenate(([True], times[1:] != times[:-1])))
    every = list(chain.from_iterable(one.candles() for one in parts))
    ordered = map(every.__getitem__, order.tolist())
    counts = np.diff(np.append(starts, len(times))).tolist()
    instants = (tuple(islice(ordered, count)) for count in counts)
    return Chunk(times[starts], instants, tuple(parts))


def streams(
    sources: Sequence[Source],
    strategy: Strategy,
    from_ms: int,
    pieces: Callable[[Source], Iterable[Piece]],
) -> list[Iterator[Block]]:
    """The block stream of each source, in the order candles of one instant are shown."""
    rows = block_rows(sources)

    def stream(source: Source) -> Iterator[Block]:
        indicators = Indicators(strategy, source.series)
        for raw in raw_blocks(pieces(source), source.warm_up, rows):
            block = indicators.block(raw, from_ms)
            if block is not None:
                yield block

    ranked = sorted(sources, key=lambda one: (-one.series.timeframe.seconds, one.series.symbol))
    return [stream(source) for source in ranked]
