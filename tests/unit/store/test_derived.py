"""Which windows a larger candle needs, and how many of its minutes are missing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.candle import candles, open_times_ms
from market.interval import Interval, IntervalSet
from market.rollup import roll_up
from market.timeframe import DEFAULT_ORIGIN_MS, ONE_MINUTE, TIMEFRAMES
from store.derived import DerivedCandles, counted, known_before, prefer, windows

MINUTE = 60_000
START = 1_672_531_200_000
M15, DAY = TIMEFRAMES["15m"], TIMEFRAMES["1d"]


def flat(times: list[int], price: float = 1.0) -> object:
    one = [price] * len(times)
    columns = {"open_time": np.array(times, np.int64), "volume": one}
    return candles(columns | {name: one for name in ("open", "high", "low", "close")})


sets = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 30)), max_size=12).map(
    lambda pairs: IntervalSet.of(*[(start, start + length) for start, length in pairs])
)


@given(known=sets, instants=st.lists(st.integers(-10, 260), max_size=20))
def test_what_is_known_before_an_instant(known: IntervalSet, instants: list[int]) -> None:
    expected = [known.clip(-100, instant).duration for instant in instants]
    assert known_before(known, np.array(instants, np.int64)).tolist() == expected


@given(known=sets, there=st.sets(st.integers(0, 239), min_size=1))
def test_missing_minutes_are_those_in_no_interval(known: IntervalSet, there: set[int]) -> None:
    stored = IntervalSet.of(*[(one, one + 1) for one in there])
    minutes = known | stored
    instants = IntervalSet.of(*[(START + one.start * MINUTE, START + one.end * MINUTE) for one in minutes])
    table = flat([START + one * MINUTE for one in sorted(there)])
    derived = counted(roll_up(table, M15).table, instants, ONE_MINUTE, M15)
    opened = ((open_times_ms(derived.table) - START) // MINUTE).tolist()
    assert opened == sorted({one // 15 * 15 for one in there})
    assert derived.missing.tolist() == [sum(one not in minutes for one in range(at, at + 15)) for at in opened]


@pytest.mark.parametrize("newest", [False, True])
@pytest.mark.parametrize("count", [None, 1, 5, 1000])
@pytest.mark.parametrize("name", ["15m", "1d", "3d", "1w", "1M"])
def test_windows_are_whole_closed_and_cover_what_is_asked(name: str, count: int | None, newest: bool) -> None:
    timeframe = TIMEFRAMES[name]
    known = Interval(START + 7 * MINUTE, START + 200 * DAY.milliseconds + 5 * MINUTE)
    asked = Interval(START - 40 * DAY.milliseconds, START + 300 * DAY.milliseconds)
    runs = list(windows(timeframe, ONE_MINUTE, DEFAULT_ORIGIN_MS, known, asked, count, newest))
    if newest:
        runs.reverse()
    assert runs[0].start == timeframe.floor(known.start)
    assert runs[-1].end == timeframe.floor(known.end)
    assert all(one.end == after.start for one, after in itertools.pairwise(runs))
    assert all(timeframe.floor(edge) == edge for one in runs for edge in (one.start, one.end))
    # Bounded in memory, and not one by one where a long silence is walked through.
    assert all(
        timeframe.count(one.start, one.end) * timeframe.seconds <= 100_000 * 60 or name == "1M" for one in runs
    )
    assert len(runs) <= 16


def test_no_window_where_nothing_is_closed() -> None:
    known = Interval(START + 3 * MINUTE, START + 12 * MINUTE)
    assert list(windows(M15, ONE_MINUTE, 0, known, Interval(START, START + DAY.milliseconds), None, False)) == []
    # The bucket that began before the asked start is not asked for.
    later = Interval(START + MINUTE, START + DAY.milliseconds)
    known = Interval(START, START + 45 * MINUTE)
    (run,) = windows(M15, ONE_MINUTE, 0, known, later, None, False)
    assert run == Interval(START + 15 * MINUTE, START + 45 * MINUTE)


def test_the_exchanges_own_candle_is_preferred_only_where_minutes_are_missing() -> None:
    times = [START + at * 15 * MINUTE for at in range(4)]
    derived = DerivedCandles(flat(times[:3], 1.0), np.array([0, 4, 2]))
    table, missing = prefer(derived, flat([times[0], times[1], times[3]], 2.0))
    assert open_times_ms(table).tolist() == times
    assert table.column("close").to_pylist() == [1.0, 2.0, 1.0, 2.0]
    assert missing.tolist() == [0, 0, 2, 0]
