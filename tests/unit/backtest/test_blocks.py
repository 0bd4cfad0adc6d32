"""Cutting and merging: the same as doing it naively, whatever the sizes."""

from __future__ import annotations

from itertools import groupby, pairwise

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from backtest.blocks import Indicators, merged, raw_blocks
from backtest.feed import Piece
from backtest.source import Source
from market.candle import floats, open_times_ms
from market.coverage import CoverageState
from market.instrument import Series
from market.interval import Interval
from market.timeframe import TIMEFRAMES
from store.archive.manifest import ArchiveFile, Manifest
from tests.unit.backtest.scripted import Scripted
from tests.unit.backtest.written_archive import START, coverage_of, walk

MINUTE = TIMEFRAMES["1m"]


@given(
    st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=12),
    st.integers(0, 15),
    st.integers(1, 50),
)
def test_blocks_hold_every_row_once_with_the_context_before_it(sizes, warm_up: int, rows: int) -> None:
    table = walk(MINUTE, sum(size for size, _ in sizes))
    pieces, at = [], 0
    for size, begins in sizes:
        pieces.append(Piece(table.slice(at, size), begins or not at))
        at += size
    runs = [sum(one.table.num_rows for one in group) for group in _runs(pieces)]
    seen, expected_own = 0, []
    for run in runs:
        expected_own += [min(rows, run - start) for start in range(0, run, rows)]
    found = list(raw_blocks(pieces, warm_up, rows))
    assert [one.table.num_rows - one.context for one in found] == expected_own
    position_in_run = 0
    remaining = list(runs)
    for block in found:
        own = block.table.num_rows - block.context
        assert block.context == min(warm_up, position_in_run)
        assert block.cold == min(max(warm_up - position_in_run, 0), own)
        assert block.table.equals(table.slice(seen - block.context, block.table.num_rows))
        seen += own
        position_in_run += own
        if position_in_run == remaining[0]:
            remaining.pop(0)
            position_in_run = 0
    assert seen == table.num_rows


def _runs(pieces):
    runs: list[list[Piece]] = []
    for piece in pieces:
        if piece.begins:
            runs.append([])
        runs[-1].append(piece)
    return runs


class WithMean(Scripted):
    def populate_indicators(self, frame):
        return frame.with_columns(mean=pl.col("close").rolling_mean(3))


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["1m", "3m", "15m", "1h"]),
            st.sampled_from(["BTC/USDT", "ETH/USDT"]),
            st.integers(0, 90),
            st.integers(1, 200),
            st.integers(1, 64),
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda one: one[:2],
    )
)
def test_merging_equals_a_naive_sort(given_series) -> None:
    """By available time, then longer timeframe, then symbol."""
    streams, naive = [], []
    ranked = sorted(given_series, key=lambda one: (-TIMEFRAMES[one[0]].seconds, one[1]))
    for name, symbol, shift, count, rows in ranked:
        timeframe = TIMEFRAMES[name]
        series = Series("binance", symbol, timeframe)
        table = walk(timeframe, count, seed=shift, start=timeframe.ceil(START + shift * 60_000))
        indicators = Indicators(WithMean(), series)
        streams.append(iter([indicators.block(raw, 0) for raw in raw_blocks([Piece(table, True)], 2, rows)]))
        means = pl.Series(floats(table, "close")).rolling_mean(3).fill_null(float("nan"))
        for open_time, close, mean in zip(
            open_times_ms(table).tolist(), floats(table, "close").tolist(), means, strict=True
        ):
            naive.append((timeframe.next(open_time), -timeframe.seconds, symbol, close, round(mean, 9)))
    naive.sort(key=lambda one: one[:3])
    found = []
    for chunk in merged(streams):
        instants = list(chunk.instants)
        assert [one[0].available_at for one in instants] == chunk.times.tolist()
        for instant in instants:
            found.append(
                [
                    (one.available_at, -one.timeframe.seconds, one.symbol, one.close, round(one.mean, 9))
                    for one in instant
                ]
            )
    wanted = [list(group) for _, group in groupby(naive, key=lambda one: one[0])]
    assert repr(found) == repr(wanted)


def test_an_indicator_of_one_block_equals_the_same_over_the_whole_series() -> None:
    table = walk(MINUTE, 1_000)
    indicators = Indicators(WithMean(), Series("binance", "BTC/USDT", MINUTE))
    whole = pl.Series(floats(table, "close")).rolling_mean(3)
    for rows in (10, 64, 1_000):
        means = [
            candle.mean
            for raw in raw_blocks([Piece(table, True)], 2, rows)
            for candle in indicators.block(raw, 0).candles()
        ]
        assert (pl.Series(means[2:]) - whole[2:]).abs().max() < 1e-9


def _source(timeframe: str, files: list[tuple[int, int]], base: str = "1m", warm_up: int = 0) -> Source:
    series = Series("binance", "BTC/USDT", TIMEFRAMES[timeframe])
    length = TIMEFRAMES[base].milliseconds
    archived = tuple(
        ArchiveFile(
            period=str(first),
            name=f"{first}.parquet",
            rows=count,
            first_open=START + first * length,
            last_open=START + (first + count - 1) * length,
            sha256="",
            digest="0" * 32,
            size=0,
        )
        for first, count in files
    )
    total = files[-1][0] + files[-1][1]
    manifest = Manifest(
        series=series.at(TIMEFRAMES[base]),
        files=archived,
        coverage=tuple(coverage_of(walk(TIMEFRAMES[base], total), TIMEFRAMES[base])),
    )
    assert all(one.state is CoverageState.PRESENT for one in manifest.coverage)
    return Source(series=series, warm_up=warm_up, manifest=manifest)


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=8),
    st.sampled_from(["1m", "15m", "1h"]),
    st.integers(1, 500),
    st.integers(0, 200),
    st.integers(0, 30),
)
def test_slices_cover_a_segment_once_between_buckets(
    counts: list[int], timeframe: str, rows: int, skip: int, warm_up: int
) -> None:
    files, at = [], 0
    for count in counts:
        files.append((at, count))
        at += count
    source = _source(timeframe, files, warm_up=warm_up)
    length = source.series.timeframe
    for segment in source.segments(Interval(START + skip * 60_000, START + (skip + at) * 60_000)):
        slices = list(source.slices(segment, rows))
        if not slices:
            continue
        assert slices[0][0].start == segment.start
        assert slices[-1][0].end == segment.end
        for (left, _), (right, _) in pairwise(slices):
            assert left.end == right.start == length.floor(left.end)
        for span, held in slices:
            assert held == source.manifest.files_in(span)
            bucket_rows = length.seconds // 60
            assert span.duration // 60_000 <= max(2 * rows, rows + max(counts)) + 2 * bucket_rows
