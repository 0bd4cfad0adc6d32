"""The tripwire: scramble the future and look whether the past changes.

Everything that becomes available after a cut point is replaced by other candles, and the strategy runs again. Its
indicators at, and its orders up to, the cut must be the same to the last bit; whatever differs was made from
candles that nobody could know yet.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import polars as pl
import pyarrow as pa

from backtest.blocks import Indicators, block_rows, raw_blocks
from backtest.engine import Decided
from backtest.feed import Piece
from backtest.result import Leak
from backtest.source import Source
from market.candle import CANDLE_SCHEMA, PRICES, floats, open_times_ms
from market.clock import iso
from market.interval import Interval
from market.timeframe import Timeframe
from trading.strategy import Strategy

#: Cut points of one check.
CUTS = 5

#: The pieces of a source.
Pieces = Callable[[Source], Iterable[Piece]]


def cut_points(interval: Interval, step: Timeframe, count: int = CUTS) -> list[int]:
    """Instants to cut at: one at a random place in each of `count` equal parts; the same each time.

    They end candles of `step`, and mostly not of any larger timeframe, so that a peek into a larger candle shows.
    """
    places = random.Random(f"{interval.start} {interval.end} {step}")
    part = interval.duration / count
    cuts = {step.floor(int(interval.start + part * (at + places.uniform(0.1, 0.9)))) for at in range(count)}
    return sorted(cut for cut in cuts if interval.start < cut < interval.end)


def scrambled(piece: Piece, timeframe: Timeframe, cut_ms: int) -> Piece:
    """`piece` with other candles after the cut: another order, other price and volume levels, still well formed."""
    table = piece.table
    opens = open_times_ms(table)
    first = int(np.searchsorted(timeframe.next_all(opens), cut_ms, side="right"))
    if first == table.num_rows:
        return piece
    random_source = np.random.default_rng([cut_ms % (1 << 32), int(opens[first]) % (1 << 32)])
    future = table.slice(first)
    order = random_source.permutation(future.num_rows)
    factor = random_source.uniform(0.5, 2.0, future.num_rows)
    columns = dict(zip(CANDLE_SCHEMA.names, future.take(pa.array(order)).columns, strict=True))
    columns["open_time"] = future.column("open_time")
    columns["early_close_time"] = future.column("early_close_time")
    for name in (*PRICES, "volume"):
        columns[name] = pa.chunked_array([floats(future, name)[order] * factor])
    changed = pa.table(columns, schema=CANDLE_SCHEMA)
    return Piece(pa.concat_tables([table.slice(0, first), changed]), piece.begins)


def scrambling(pieces: Pieces, cut_ms: int) -> Pieces:
    """`pieces` with everything after the cut scrambled."""

    def changed(source: Source) -> Iterator[Piece]:
        for piece in pieces(source):
            yield scrambled(piece, source.series.timeframe, cut_ms)

    return changed


def indicator_leaks(
    strategy: Strategy, sources: Sequence[Source], pieces: Pieces, cuts: Sequence[int]
) -> Iterator[Leak]:
    """Indicators whose value at or before a cut depends on candles after it.

    :param strategy: a fresh one.
    """
    rows = block_rows(sources)
    for source in sources:
        indicators = Indicators(strategy, source.series)
        timeframe = source.series.timeframe
        for raw in raw_blocks(pieces(source), source.warm_up, rows):
            times = timeframe.next_all(open_times_ms(raw.table))
            for cut in cuts:
                known = int(np.searchsorted(times, cut, side="right"))
                if raw.context < known < raw.table.num_rows:
                    other = scrambled(Piece(raw.table, True), timeframe, cut).table
                    before = indicators.added(raw.table)[:known]
                    after = indicators.added(other)[:known]
                    yield from _differences(source, cut, before, after)


def _differences(source: Source, cut: int, before: pl.DataFrame, after: pl.DataFrame) -> Iterator[Leak]:
    for name in before.columns:
        if not before[name].equals(after[name]):
            yield Leak(
                cut_ms=cut,
                what=f"indicator {name} of {source.series.symbol} {source.series.timeframe} known by {iso(cut)} "
                "changes with later candles",
            )


def order_leak(cut_ms: int, before: Sequence[Decided], after: Sequence[Decided]) -> Leak | None:
    """The first order up to the cut that differs between the real and the scrambled run."""
    mine = [one for one in before if one.decided_at <= cut_ms]
    theirs = [one for one in after if one.decided_at <= cut_ms]
    for at in range(max(len(mine), len(theirs))):
        left = mine[at] if at < len(mine) else None
        right = theirs[at] if at < len(theirs) else None
        if left != right:
            when = min(one.decided_at for one in (left, right) if one is not None)
            return Leak(
                cut_ms=cut_ms, what=f"an order decided at {iso(when)} changes with candles after {iso(cut_ms)}"
            )
    return None
