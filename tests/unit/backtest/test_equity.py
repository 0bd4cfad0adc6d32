"""Equity, drawdown, exposure and the Sharpe ratio, against plain calculation."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backtest.blocks import Block
from backtest.equity import Booking, EquityRecorder, Holdings, curve_step
from market.interval import Interval
from market.timeframe import DAY_MS, TIMEFRAMES
from tests.unit.backtest.written_archive import START

MINUTE, DAY = TIMEFRAMES["1m"], TIMEFRAMES["1d"]


def block_of(times: list[int], closes: list[float]) -> Block:
    return Block(np.array(times, np.int64), np.array(closes), (), (None, None), 0)  # type: ignore[arg-type]


def add(recorder: EquityRecorder, times, closes, holdings, bookings=(), marks=None) -> None:
    recorder.add(np.array(times, np.int64), holdings, list(bookings), marks or {}, {"A/B": block_of(times, closes)})


def test_sharpe_is_yearly_from_daily_returns() -> None:
    recorder = EquityRecorder(100.0, DAY)
    days = [START + (n + 1) * DAY_MS for n in range(4)]
    add(recorder, days, [110.0, 99.0, 108.9, 108.9], Holdings(0.0, {"A/B": 1.0}))
    returns = [0.1, -0.1, 0.1, 0.0]
    wanted = statistics.mean(returns) / statistics.stdev(returns) * math.sqrt(365)
    assert recorder.sharpe == pytest.approx(wanted)
    assert recorder.drawdown == pytest.approx(0.1)
    assert recorder.times == days


@pytest.mark.parametrize("closes", [[100.0], [100.0, 100.0, 100.0]])
def test_sharpe_needs_days_and_variation(closes: list[float]) -> None:
    recorder = EquityRecorder(100.0, DAY)
    add(recorder, [START + (n + 1) * DAY_MS for n in range(len(closes))], closes, Holdings(0.0, {"A/B": 1.0}))
    assert recorder.sharpe is None


def test_a_drawdown_reaches_over_chunks_and_starts_from_the_cash() -> None:
    recorder = EquityRecorder(100.0, MINUTE)
    add(recorder, [START + 60_000], [80.0], Holdings(0.0, {"A/B": 1.0}))
    assert recorder.drawdown == pytest.approx(0.2)
    add(recorder, [START + 120_000, START + 180_000], [200.0, 50.0], Holdings(0.0, {"A/B": 1.0}))
    assert recorder.drawdown == pytest.approx(0.75)


def test_a_symbol_without_candles_in_the_chunk_keeps_its_mark() -> None:
    recorder = EquityRecorder(100.0, MINUTE)
    recorder.add(np.array([START]), Holdings(1.0, {"C/B": 2.0}), [], {"C/B": 7.0}, {})
    assert recorder.last == 15.0


@given(
    st.lists(st.floats(1, 100), min_size=1, max_size=40),
    st.lists(st.tuples(st.integers(0, 39), st.floats(0, 100), st.floats(0, 10)), max_size=10),
    st.integers(1, 13),
)
def test_equity_equals_a_plain_loop_however_it_is_chunked(closes, changes, size: int) -> None:
    times = [START + (n + 1) * 60_000 for n in range(len(closes))]
    bookings = [
        Booking(times[at], "A/B", cash, quantity)
        for at, cash, quantity in sorted(changes, key=lambda one: one[0])
        if at < len(times)
    ]
    wanted, cash, quantity, held = [], 100.0, 0.0, 0
    for time, close in zip(times, closes, strict=True):
        for one in bookings:
            if one.at == time:
                cash, quantity = one.cash, one.quantity
        wanted.append(cash + quantity * close)
        held += quantity > 0
    recorder = EquityRecorder(100.0, MINUTE)
    cash, quantity = 100.0, 0.0
    for start in range(0, len(times), size):
        part = slice(start, start + size)
        inside = [one for one in bookings if one.at in times[part]]
        add(recorder, times[part], closes[part], Holdings(cash, {"A/B": quantity}), inside)
        if inside:
            cash, quantity = inside[-1].cash, inside[-1].quantity
    assert recorder.values == pytest.approx(wanted)
    assert recorder.times == times
    assert (recorder.instants, recorder.held_instants) == (len(times), held)
    highs = np.maximum.accumulate([100.0, *wanted])[1:]
    assert recorder.drawdown == pytest.approx(max(0.0, *(1 - np.array(wanted) / highs)))


def test_a_curve_has_a_bounded_number_of_points() -> None:
    def step(days: int, name: str) -> str:
        return curve_step(Interval(START, START + days * DAY_MS), TIMEFRAMES[name]).name

    assert step(5, "1m") == "1m"
    assert step(365, "1m") == "1h"
    assert step(3650, "1m") == "1d"
    assert step(3650, "4h") == "1d"
    assert step(3650, "1w") == "1w"


def test_a_curve_keeps_the_last_value_of_each_step() -> None:
    recorder = EquityRecorder(100.0, TIMEFRAMES["1h"])
    times = [START + (n + 1) * 60_000 for n in range(90)]
    for part in (slice(0, 20), slice(20, 70), slice(70, 90)):
        add(recorder, times[part], [float(n) for n in range(1, 91)][part], Holdings(0.0, {"A/B": 1.0}))
    assert recorder.times == [times[59], times[89]]
    assert recorder.values == [60.0, 90.0]
