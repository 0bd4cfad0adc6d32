"""Intervals: the algebra against a model that knows every single millisecond."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.coverage import CoverageState, Covered, gaps
from market.errors import BadInput
from market.interval import Interval, IntervalSet, parse_interval
from market.timeframe import TIMEFRAMES, Timeframe

bounds = st.tuples(st.integers(0, 60), st.integers(0, 60))
pairs = st.lists(bounds, max_size=8)


def instants(several: list[tuple[int, int]]) -> set[int]:
    return {ms for start, end in several for ms in range(start, end)}


def held(found: IntervalSet) -> set[int]:
    """What a set holds; checks on the way that it is sorted, disjoint and not touching."""
    several = list(found)
    for one, following in pairwise(several):
        assert one.end < following.start
    return {ms for one in several for ms in range(one.start, one.end)}


@given(pairs, pairs)
def test_algebra_is_that_of_sets(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    one, other = IntervalSet.of(*a), IntervalSet.of(*b)
    assert held(one) == instants(a)
    assert held(one | other) == instants(a) | instants(b)
    assert held(one & other) == instants(a) & instants(b)
    assert held(one - other) == instants(a) - instants(b)
    assert (one == other) == (instants(a) == instants(b))
    assert bool(one) == bool(instants(a))
    assert one.duration == len(instants(a))
    if one == other:
        assert hash(one) == hash(other)


@given(pairs, bounds, st.integers(-5, 65))
def test_clip_hull_and_membership(a: list[tuple[int, int]], window: tuple[int, int], ms: int) -> None:
    one = IntervalSet.of(*a)
    assert held(one.clip(*window)) == instants(a) & instants([window])
    assert (ms in one) == (ms in instants(a))
    everything = instants(a)
    assert one.hull == (Interval(min(everything), max(everything) + 1) if everything else None)
    assert len(one) == len(list(one))


@given(
    st.sampled_from([TIMEFRAMES[name] for name in ("1m", "1h", "1d", "1w", "1M")]),
    st.sets(st.integers(0, 50), max_size=30),
)
def test_candles_cover_their_buckets(timeframe: Timeframe, buckets: set[int]) -> None:
    first = timeframe.floor(1_672_531_200_000)
    times = np.array([timeframe.next(first, bucket) for bucket in sorted(buckets)], np.int64)
    naive = IntervalSet(Interval(int(ms), timeframe.next(int(ms))) for ms in times)
    assert IntervalSet.of_candles(times, timeframe) == naive


@pytest.mark.parametrize("end", [5, 4])
def test_empty_and_reversed_intervals_are_refused(end: int) -> None:
    with pytest.raises(BadInput, match="start before the end"):
        Interval(5, end)


def test_an_interval_is_half_open() -> None:
    one = Interval(10, 20)
    assert 10 in one
    assert 20 not in one
    assert one.duration == 10
    assert str(Interval(1_672_531_200_000, 1_672_531_260_500)) == "[2023-01-01T00:00:00Z, 2023-01-01T00:01:00.500Z)"


def test_a_set_says_what_it_holds() -> None:
    assert repr(IntervalSet.of((0, 60_000))) == "IntervalSet([1970-01-01T00:00:00Z, 1970-01-01T00:01:00Z))"


def test_parse_interval_names_the_wrong_end() -> None:
    assert parse_interval("2023-01-01", "2023-01-02").duration == 86_400_000
    with pytest.raises(BadInput, match=r"^until: '2023-01-01T00:00:00Z' .* after since") as reversed_:
        parse_interval("2023-01-02", "2023-01-01", "since", "until")
    assert reversed_.value.field == "until"
    with pytest.raises(BadInput, match=r"^since"):
        parse_interval("2023-01-01T00:00:00", "2023-01-02", "since", "until")


@given(pairs, bounds, st.integers(0, 10))
def test_gaps_are_what_no_unexpired_state_covers(
    a: list[tuple[int, int]], wanted: tuple[int, int], now: int
) -> None:
    if wanted[0] >= wanted[1]:
        return
    ledger = [
        Covered(
            interval=Interval(start, end),
            state=CoverageState.PRESENT if index % 2 else CoverageState.EMPTY,
            source="a test",
            learned_at=0,
            expires_at=None if index % 2 else index,
        )
        for index, (start, end) in enumerate(a)
        if start < end
    ]
    known = [
        (one.interval.start, one.interval.end) for one in ledger if one.expires_at is None or one.expires_at > now
    ]
    assert held(gaps(Interval(*wanted), ledger, now)) == instants([wanted]) - instants(known)
