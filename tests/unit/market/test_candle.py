"""Candles: the schema, each rule with its reason, repeats, and what counts as traded."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.candle import (
    CANDLE_SCHEMA,
    COLUMNS,
    PRICES,
    by_open_time,
    candles,
    check,
    no_candles,
    open_times_ms,
    traded,
)
from market.errors import BadInput
from market.timeframe import DAY_MS, TIMEFRAMES

START = 1_672_531_200_000
MINUTE = TIMEFRAMES["1m"]
LATER = START + 10 * DAY_MS
GOOD: dict[str, Any] = {
    "open": 10.0,
    "high": 12.0,
    "low": 9.0,
    "close": 11.0,
    "volume": 5.0,
    "quote_volume": 52.0,
    "trades": 7,
    "taker_buy_volume": 2.0,
    "taker_buy_quote_volume": 21.0,
}


def row(minute: int = 0, **changed: Any) -> dict[str, Any]:
    return {"open_time": START + minute * 60_000, "early_close_time": None, **GOOD, **changed}


def table(*rows: dict[str, Any]) -> pa.Table:
    return candles({name: [one[name] for one in rows] for name in COLUMNS})


def test_good_rows_pass() -> None:
    flat = row(1, open=9.0, high=9.0, low=9.0, close=9.0, volume=0.0, quote_volume=0.0, trades=0)
    unknown = row(2, quote_volume=None, trades=None, taker_buy_volume=None, taker_buy_quote_volume=None)
    good, refusals = check(table(row(), flat, unknown), MINUTE, LATER)
    assert good.tolist() == [True] * 3
    assert refusals == []


def test_no_rows() -> None:
    good, refusals = check(no_candles(), MINUTE, LATER)
    assert len(good) == len(refusals) == 0


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"open": math.nan}, "open is nan: not a finite number"),
        ({"high": math.inf}, "high is inf: not a finite number"),
        ({"low": -math.inf}, "low is -inf: not a finite number"),
        ({"close": math.nan}, "close is nan: not a finite number"),
        ({"volume": math.inf}, "volume is inf: not a finite number"),
        ({"quote_volume": math.inf}, "quote_volume is inf: not a finite number"),
        ({"quote_volume": math.nan}, "quote_volume is nan: not a finite number"),
        ({"taker_buy_volume": -math.inf}, "taker_buy_volume is -inf: not a finite number"),
        ({"taker_buy_quote_volume": math.nan}, "taker_buy_quote_volume is nan: not a finite number"),
        ({"low": 0.0}, "low is 0.0: a price must be above zero"),
        ({"open": -10.0}, "open is -10.0: a price must be above zero"),
        ({"high": 8.0, "open": 8.0, "close": 8.0}, "high 8.0 is below low 9.0"),
        ({"high": 10.5}, "high 10.5 is below open 10.0 or close 11.0"),
        ({"low": 10.5}, "low 10.5 is above open 10.0 or close 11.0"),
        ({"volume": -1.0}, "volume is -1.0: must not be negative"),
        ({"quote_volume": -0.5}, "quote_volume is -0.5: must not be negative"),
        ({"trades": -1}, "trades is -1: must not be negative"),
        ({"taker_buy_volume": -1.0}, "taker_buy_volume is -1.0: must not be negative"),
        ({"taker_buy_quote_volume": -1.0}, "taker_buy_quote_volume is -1.0: must not be negative"),
        ({"open_time": START + 1}, "open_time is not the start of a 1m bucket (UTC)"),
        ({"open_time": LATER}, "the candle is not closed yet at exchange time: its bucket ends in the future"),
    ],
)
def test_a_broken_rule_is_named_and_only_its_row_refused(changed: dict[str, Any], reason: str) -> None:
    bad = row(1, **changed)
    good, (refusal,) = check(table(row(0), bad, row(2)), MINUTE, LATER)
    assert good.tolist() == [True, False, True]
    assert refusal.row == 1
    assert refusal.open_time == bad["open_time"]
    assert refusal.reason == reason
    assert str(bad["volume"]) in refusal.raw
    assert str(bad["open_time"]) in refusal.raw


def test_a_candle_closes_with_its_bucket_not_a_millisecond_before() -> None:
    assert check(table(row()), MINUTE, START + 60_000)[0].tolist() == [True]
    assert check(table(row()), MINUTE, START + 59_999)[0].tolist() == [False]


def test_months_and_three_day_buckets_are_checked_by_their_own_calendar() -> None:
    month = TIMEFRAMES["1M"]
    assert check(table(row()), month, START + 31 * DAY_MS)[0].all()
    assert not check(table(row()), month, START + 31 * DAY_MS - 1)[0].any()
    three = TIMEFRAMES["3d"]
    assert check(table(row()), three, LATER, origin_ms=START)[0].all()
    assert not check(table(row()), three, LATER, origin_ms=START + DAY_MS)[0].any()


def test_exact_repeats_are_dropped_and_different_ones_refused() -> None:
    batch = table(row(0), row(1), row(0), row(1, close=10.5), row(2))
    good, refusals = check(batch, MINUTE, LATER)
    assert good.tolist() == [True, True, False, False, True]
    (refusal,) = refusals
    assert refusal.row == 3
    assert "same open_time and other values; the first one was kept" in refusal.reason


def test_a_repeat_of_a_refused_row_is_kept() -> None:
    good, refusals = check(table(row(0, high=1.0), row(0)), MINUTE, LATER)
    assert good.tolist() == [False, True]
    assert [one.row for one in refusals] == [0]


@given(st.permutations(range(6)))
def test_each_row_is_stored_refused_or_a_repeat_in_any_order(order: list[int]) -> None:
    rows = [row(0), row(1, low=-1.0), row(2), row(2), row(3, open_time=START + 7), row(4, volume=math.nan)]
    good, refusals = check(table(*(rows[index] for index in order)), MINUTE, LATER)
    assert sorted(order[at] for at in np.flatnonzero(good) if order[at] not in (2, 3)) == [0]
    assert good.sum() == 2
    assert sorted(order[one.row] for one in refusals) == [1, 4, 5]


def test_columns_by_name() -> None:
    found = candles({name: [1.0] for name in ("open", "high", "low", "close", "volume")} | {"open_time": [START]})
    assert found.schema == CANDLE_SCHEMA
    assert found.column("trades").null_count == 1
    assert open_times_ms(found).tolist() == [START]
    with pytest.raises(BadInput, match="bid"):
        candles({"open_time": [START], "bid": [1.0]})
    with pytest.raises(BadInput, match="a column open"):
        candles({"open_time": [START]})


@given(st.permutations(range(5)))
def test_sorting_keeps_repeats_in_their_order(order: list[int]) -> None:
    rows = [row(0), row(1), row(2, volume=1.0), row(2, volume=2.0), row(3)]
    repeats = [rows[index]["volume"] for index in order if index in (2, 3)]
    found = by_open_time(table(*(rows[index] for index in order)))
    assert (np.diff(open_times_ms(found)) >= 0).all()
    assert found.column("volume").to_pylist()[2:4] == repeats


@pytest.mark.parametrize(
    ("trades", "volume", "expected"),
    [(0, 0.0, False), (1, 0.0, True), (0, 5.0, False), (None, 5.0, True), (None, 0.0, False), (3, 5.0, True)],
)
def test_traded(trades: int | None, volume: float, expected: bool) -> None:
    assert traded(table(row(trades=trades, volume=volume))).tolist() == [expected]


def test_traded_with_known_and_unknown_counts_together() -> None:
    rows = table(row(0, trades=None, volume=0.0), row(1, trades=2), row(2, trades=None), row(3, trades=0))
    assert traded(rows).tolist() == [False, True, True, False]


def test_many_repeats_are_told_apart_in_one_pass() -> None:
    rng = np.random.default_rng(3)
    count = 20_000
    minutes = rng.integers(0, count // 3, count)
    version = rng.integers(0, 2, count)
    price = 1.0 + minutes + version
    columns = {name: price for name in ("open", "high", "low", "close", "volume")}
    known = pa.array(np.ones(count), mask=version == 0)
    table = candles({"open_time": 10**12 // 60_000 * 60_000 + minutes * 60_000, **columns, "quote_volume": known})
    good, refusals = check(table, TIMEFRAMES["1m"], 2 * 10**12)
    first: dict[int, int] = {}
    expected_good, expected_refused = [], []
    for row, (minute, kind) in enumerate(zip(minutes.tolist(), version.tolist(), strict=True)):
        if minute not in first:
            first[minute] = kind
            expected_good.append(row)
        elif first[minute] != kind:
            expected_refused.append(row)
    assert np.flatnonzero(good).tolist() == expected_good
    assert [one.row for one in refusals] == expected_refused


@pytest.mark.parametrize(
    "open_time", [0, -60_000, 1_679_659_200, 1_679_659_200_000_000, 2**63 - 1 - (2**63 - 1) % 60_000]
)
def test_an_open_time_in_another_unit_is_refused(open_time: int) -> None:
    one = candles({"open_time": [open_time], **{name: [1.0] for name in (*PRICES, "volume")}})
    good, refusals = check(one, TIMEFRAMES["1m"], 10**13)
    assert not good.any()
    assert "not from 2000 to 2099" in refusals[0].reason
