"""A batch of a few rows is merged in plain Python, any other by columns: both decide the same."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import store.merge
from market.candle import CANDLE_SCHEMA, COLUMNS, CandleState, candles, check, unsigned_zeros
from market.candle_row import FEW_ROWS, all_storable, plain_rows
from market.clock import to_ms
from market.errors import StoreUnusable
from market.fingerprint import Digest, digest, row_digest
from market.instrument import Series
from market.interval import Interval, IntervalSet
from market.timeframe import DAY_MS, DEFAULT_ORIGIN_MS, TIMEFRAMES, Timeframe
from store.batch import CandleBatch
from store.merge import Merge, StoredChunk, chunk_start, chunk_starts
from store.series_key import SeriesKey

START = to_ms("2023-12-30")
KNOWN = {"volume": 2.0, "quote_volume": 3.0, "trades": 4, "taker_buy_volume": 1.0, "taker_buy_quote_volume": 1.5}
#: What is wrong with a row, or only unusual, by column.
ODD: list[dict[str, Any]] = [
    *({name: value} for name in COLUMNS[1:7] for value in (-1.0, -0.0, 0.0, math.nan, math.inf, -math.inf)),
    *({name: value} for name in COLUMNS[8:10] for value in (None, -1.0, -0.0, 0.0, math.nan, math.inf)),
    *({"trades": value} for value in (None, -1, 0, 2**53 + 1)),
    *({"quote_volume": value} for value in (None, 5e-324, 1e300)),
    {"high": 100.0},
    {"low": 101.5},
    {"low": 200.0},
    {"early_close_time": START + 1},
    {"quote_volume": None, "trades": None, "taker_buy_volume": None, "taker_buy_quote_volume": None},
]


def row(open_time: int, version: int = 0, odd: dict[str, Any] | None = None) -> dict[str, Any]:
    prices = {"open": 100.5, "high": 103.0 + version, "low": 99.25, "close": 101.125}
    return {"open_time": open_time, **prices, **KNOWN, "early_close_time": None, **(odd or {})}


def table(rows: list[dict[str, Any]]) -> pa.Table:
    instants = ("open_time", "trades", "early_close_time")
    return candles(
        {
            name: pa.array([one[name] for one in rows], pa.int64() if name in instants else pa.float64())
            for name in COLUMNS
        }
    )


def odd_rows(timeframe: Timeframe) -> st.SearchStrategy[dict[str, Any]]:
    length = timeframe.milliseconds
    bucket = st.integers(0, 5).map(lambda number: timeframe.next(timeframe.ceil(START), number))
    shifted = st.sampled_from([0, 0, 0, 0, 0, 0, 1, -1, length // 2, -START, 200 * 365 * DAY_MS])
    plain: st.SearchStrategy[dict[str, Any]] = st.just({})
    return st.builds(
        lambda time, shift, version, odd: row(time + shift, version, odd),
        bucket,
        shifted,
        st.integers(0, 1),
        st.one_of(plain, plain, plain, plain, st.sampled_from(ODD)),
    )


@dataclass
class Case:
    batch: CandleBatch
    key: SeriesKey
    stored: pa.Table
    states: list[int]
    archived: IntervalSet
    revision: int | None


@st.composite
def cases(draw: st.DrawFn) -> Case:
    timeframe = TIMEFRAMES[draw(st.sampled_from(["1m", "1h", "12h", "1d", "3d", "1w", "1M"]))]
    series = Series("binance", "BTC/USDT", timeframe)
    # Rows that may stand in a database: each open time once, none against the rules.
    there = draw(st.lists(odd_rows(timeframe), max_size=5, unique_by=lambda one: one["open_time"]))
    anchored, origin = draw(st.booleans()), draw(st.sampled_from([DEFAULT_ORIGIN_MS, 0, 2 * DAY_MS]))
    stored = table(sorted(there, key=lambda one: one["open_time"]))
    good, _ = check(stored, timeframe, 2**60, origin)
    stored = unsigned_zeros(stored.filter(pa.array(good)))
    new = draw(st.lists(odd_rows(timeframe), max_size=5))
    if draw(st.booleans()):
        new = sorted({one["open_time"]: one for one in new}.values(), key=lambda one: one["open_time"])
    ends = [timeframe.next(timeframe.ceil(START), count) for count in (2, 4, 30)]
    batch = CandleBatch(
        series=series,
        source="test",
        now_ms=draw(st.sampled_from([*ends, ends[1] - 1])),
        table=table(new),
        state=draw(st.sampled_from([CandleState.CLOSED, CandleState.VERIFIED])),
    )
    archived = IntervalSet()
    if stored.num_rows and draw(st.integers(0, 4)) == 0:
        first = plain_rows(stored)[0][0]
        archived = IntervalSet([Interval(first, first + 1)])
    key = SeriesKey(1, timeframe.seconds, 3, draw(st.sampled_from([0, START * 2])), origin, anchored)
    states = draw(st.lists(st.integers(1, 2), min_size=stored.num_rows, max_size=stored.num_rows))
    return Case(batch, key, stored, states, archived, draw(st.sampled_from([None, 2])))


def chunks_of(case: Case) -> dict[int, StoredChunk]:
    chunks: dict[int, StoredChunk] = {}
    for place, (one, state) in enumerate(zip(plain_rows(case.stored), case.states, strict=True)):
        start = int(chunk_starts(np.array([one[0]]), case.batch.series.timeframe)[0])
        chunk = chunks.setdefault(start, StoredChunk(Digest(), 0, case.revision))
        chunk.digest += digest(case.stored.slice(place, 1))
        chunk.unverified += state < CandleState.VERIFIED
        if one[0] in case.archived:
            chunk.archived += digest(case.stored.slice(place, 1))
    return chunks


def merged(case: Case, few: int) -> tuple[Any, ...]:
    """Everything that a store reads off a merge, with `few` rows as the limit of the plain way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.merge, "FEW_ROWS", few)
        merge = Merge.of(case.batch, case.key, START)
        stored = chunks_of(case)
        span = merge.span
        inside = {start: one for start, one in stored.items() if span is not None and start in span}
        try:
            spans = merge.meet(inside, case.archived)
        except StoreUnusable as error:
            return (str(error),)
        times = np.array([one[0] for one in plain_rows(case.stored)], np.int64)
        for one in spans:
            there = (times >= one.start) & (times < one.end)
            states = np.array(case.states, np.int64)[there]
            merge.compare(one, case.stored.filter(pa.array(there)), states)
        return (
            span,
            spans,
            plain_rows(merge.table),
            [plain_rows(one) for one in merge.fresh],
            [plain_rows(one) for one in merge.corrections],
            sorted(merge.raised),
            dict(merge.chunks),
            merge.unchanged,
            merge.outranked,
            # A NaN in a reason's values would differ from itself.
            repr(merge.refusals),
            merge.learned_at,
            merge.present,
            merge.news(()),
            merge.changed,
            merge.written().inserted,
        )


def one_case(
    new: list[dict[str, Any]], stored: list[dict[str, Any]], states: list[int], state: CandleState
) -> Case:
    series = Series("binance", "BTC/USDT", TIMEFRAMES["1m"])
    batch = CandleBatch(series=series, source="test", now_ms=2**50, table=table(new), state=state)
    return Case(batch, SeriesKey(1, 60, 3, 0, 0), table(stored), states, IntervalSet(), 2)


T = [START + DAY_MS - 120_000 + number * 60_000 for number in range(4)]


@settings(max_examples=150)
@given(case=cases())
@example(case=one_case([row(T[3])], [row(T[2])], [1], CandleState.CLOSED))
@example(case=one_case([row(one) for one in T], [row(one) for one in T[:2]], [1, 2], CandleState.VERIFIED))
@example(case=one_case([row(T[0], 1), row(T[1])], [row(one) for one in T], [2, 1, 1, 1], CandleState.CLOSED))
@example(case=one_case([row(T[0], 1), row(T[3], 1)], [row(one) for one in T], [1, 1, 1, 2], CandleState.VERIFIED))
def test_both_ways_of_merging_decide_the_same(case: Case) -> None:
    assert merged(case, FEW_ROWS) == merged(case, -1)


def test_a_live_candle_goes_the_plain_way_and_an_odd_one_does_not() -> None:
    # Otherwise the comparison above would compare one way with itself.
    plain = one_case([row(T[0])], [], [], CandleState.CLOSED).batch
    assert Merge.of(plain, SeriesKey(1, 60, 3, 0, 0), START).few == plain_rows(plain.table)
    odd = one_case([row(T[0], odd={"volume": -0.0})], [], [], CandleState.CLOSED).batch
    assert Merge.of(odd, SeriesKey(1, 60, 3, 0, 0), START).few is None


@settings(max_examples=100)
@given(
    name=st.sampled_from(list(TIMEFRAMES)),
    data=st.data(),
    now_ms=st.integers(START, START + 200 * DAY_MS),
    origin=st.sampled_from([0, DAY_MS, 2 * DAY_MS]),
)
def test_rows_said_to_be_storable_pass_the_check_unchanged(
    name: str, data: st.DataObject, now_ms: int, origin: int
) -> None:
    given_rows = table(data.draw(st.lists(odd_rows(TIMEFRAMES[name]), max_size=4)))
    good, refusals = check(given_rows, TIMEFRAMES[name], now_ms, origin)
    zeros = repr(plain_rows(unsigned_zeros(given_rows))) == repr(plain_rows(given_rows))
    times = [one[0] for one in plain_rows(given_rows)]
    expected = bool(good.all()) and not refusals and zeros and times == sorted(set(times))
    assert all_storable(plain_rows(given_rows), TIMEFRAMES[name], now_ms, origin) == expected


numbers = st.one_of(st.floats(allow_nan=False), st.sampled_from([-0.0, 0.0, math.nan, math.inf]))
whole = st.integers(-(2**63), 2**63 - 1)


@settings(max_examples=100)
@given(
    one=st.tuples(
        whole,
        *[numbers] * 5,
        st.none() | numbers,
        st.none() | whole,
        st.none() | numbers,
        st.none() | numbers,
        st.none() | whole,
    )
)
def test_the_digest_of_a_row_is_that_of_its_table(one: tuple[Any, ...]) -> None:
    arrays = [pa.array([value], field.type) for value, field in zip(one, CANDLE_SCHEMA, strict=True)]
    assert row_digest(one) == digest(pa.Table.from_arrays(arrays, schema=CANDLE_SCHEMA))


@given(name=st.sampled_from(list(TIMEFRAMES)), time=st.integers(to_ms("2000-01-01"), to_ms("2099-12-31")))
def test_the_chunk_of_one_candle_is_that_of_many(name: str, time: int) -> None:
    assert chunk_start(time, TIMEFRAMES[name]) == chunk_starts(np.array([time]), TIMEFRAMES[name])[0]
