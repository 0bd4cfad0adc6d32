"""What process memory holds of a series is what is stored, whatever happened and however it came there."""

from __future__ import annotations

import os
from dataclasses import replace
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from market.clock import LATEST_MS, to_ms
from market.instrument import Series
from market.interval import Interval
from market.timeframe import DAY_MS, TIMEFRAMES
from store.ledger import clip
from store.merge import chunk_start
from store.tiers import held_series
from store.tiers.held_series import HeldSeries
from store.tiers.periods import periods_of
from tests.support.made_candles import BTC, MINUTE, made_at
from tests.support.stored_series import Stored

#: Around borders of days, months, years and decades.
DAYS = [to_ms(day) for day in ("2019-12-31", "2020-01-01", "2022-12-31", "2023-01-01", "2023-01-31", "2023-02-01")]
#: Few, so that there is something to correct, to come late and to trim.
SMALL = {"_LONG_TAIL": 8, "_SHORT_TAIL": 3, "_MOST_CHANGES": 2}


def instants(series: Series) -> list[int]:
    """Open times that may be written."""
    timeframe = series.timeframe
    return sorted({timeframe.floor(day + minute * MINUTE) for day in DAYS for minute in (0, 1, 60, 1439)})


@st.composite
def steps(draw: st.DrawFn) -> tuple[Series, list[tuple[object, ...]]]:
    series = BTC.at(TIMEFRAMES[draw(st.sampled_from(["1m", "1h", "1d"]))])
    at = st.sampled_from(instants(series))
    times = st.lists(at, min_size=1, max_size=4)
    kinds = st.one_of(
        st.tuples(st.just("write"), times, st.integers(0, 2), st.booleans()),
        st.tuples(st.just("write"), times, st.integers(0, 2), st.booleans()),
        st.tuples(st.just("absent"), at),
        st.tuples(st.just("drop"), at),
        st.tuples(st.just("follow")),
        st.tuples(st.just("tail"), at),
        st.tuples(st.just("periods")),
    )
    return series, draw(st.lists(kinds, min_size=1, max_size=25))


def followed(held: HeldSeries, stored: Stored, limit: int = 5) -> HeldSeries:
    """As the views do it: again from before what is wrong, until nothing is."""
    for _ in range(3):
        after = LATEST_MS if held.tail is None else held.tail.last
        held = held.after(stored.delta(held.revision, after, limit))
        if held.whole:
            return held
        held = held.repaired()
    return replace(held, tail=None)


def check(held: HeldSeries, stored: Stored) -> None:
    """It is what is stored."""
    assert (held.facts, held.whole) == (stored.facts, True)
    whole = Interval(0, LATEST_MS)
    assert held.coverage(whole) == list(stored.ledger)
    inner = Interval(DAYS[1] + MINUTE, DAYS[4] + 1)
    assert held.coverage(inner) == clip(stored.ledger, inner)
    truth = periods_of(stored.series, stored.told())
    assert list(held.periods) == list(truth)
    assert all(held.periods[one] == truth[one] for one in truth if one not in held.unknown)
    for start, end in ((0, LATEST_MS), (DAYS[2], DAYS[3]), (DAYS[3], DAYS[3] + 1), (DAYS[1] + 5, DAYS[4])):
        expected = [one.start for one in truth.values() if one.start < end and one.end > start]
        assert [one.start for one in held.between(start, end)] == expected
    if held.tail is not None:
        assert held.tail.rows(whole).equals(stored.table(held.tail.start, LATEST_MS))
        assert held.tail.rows(inner).equals(stored.table(max(held.tail.start, inner.start), inner.end))


def first_change(before: Stored, after: Stored) -> int | None:
    return min((one for one, version in after.rows.items() if before.rows.get(one) != version), default=None)


@settings(max_examples=int(os.environ.get("CHANDLERY_TEST_HELD_EXAMPLES", "60")))
@given(plan=steps())
def test_what_is_held_is_what_is_stored(plan: tuple[Series, list[tuple[object, ...]]]) -> None:
    series, happened = plan
    stored = Stored(series).written([instants(series)[-3]], 0)
    held = HeldSeries.read(series, stored.delta(-1, LATEST_MS, 0))
    history = [stored]
    with patch.multiple(held_series, **SMALL):
        for kind, *arguments in happened:
            match kind, arguments:
                case "write", [list() as times, int(version), bool(follows)]:
                    stored = stored.written(times, version)
                    held = followed(held, stored) if follows else held
                case "absent", [int(at)]:
                    stored = stored.written([], 0, [Interval(at, series.timeframe.next(at))])
                case "drop", [int(at)]:
                    stored = stored.dropped(at)
                case "follow", _:
                    held = followed(held, stored)
                case "tail", [int(at)]:
                    start = chunk_start(at, series.timeframe)
                    held = held.with_tail(start, stored.delta(-1, start - 1, 1000))
                    assert held.tail is not None
                    assert held.tail.start >= start
                case "periods", _:
                    after = LATEST_MS if held.tail is None else held.tail.last
                    held = held.known_again(stored.delta(-1, after, 5))
                    held = held if held.whole else replace(held, tail=None)
                    assert not held.unknown
            history.append(stored)
            if held.revision == stored.revision:
                check(held, stored)
                for earlier in history:
                    said, truth = held.changed_since(earlier.revision), first_change(earlier, stored)
                    assert truth is None or (said is not None and said <= truth), (said, truth)
                    assert said != -1 or earlier.revision < held.since
        check(followed(held, stored), stored)
        assert len(held.changes) <= SMALL["_MOST_CHANGES"]


def test_growth_alone_is_told_from_its_first_candle() -> None:
    """Or larger candles of the whole day would be made again with each minute."""
    times = [DAYS[3] + number * MINUTE for number in range(10)]
    stored = Stored(BTC).written(times, 0)
    held = HeldSeries.read(BTC, stored.delta(-1, LATEST_MS, 0))
    held = held.with_tail(DAYS[3], stored.delta(-1, DAYS[3] - 1, 100))
    before = held.revision
    late = DAYS[3] + 20 * MINUTE
    held = followed(held, stored.written([late], 0))
    assert held.changed_since(before) == late
    assert held.changed_since(held.revision) is None


def test_a_long_tail_is_cut_and_frees_what_was_cut_off() -> None:
    stored = Stored(BTC)
    with patch.multiple(held_series, **SMALL):
        for day in DAYS:
            stored = stored.written([day + number * MINUTE for number in range(20)], 0)
        held = HeldSeries.read(BTC, stored.delta(-1, LATEST_MS, 0)).with_tail(0, stored.delta(-1, 0, 1000))
        # Something that leaves the tail as it is.
        stored = stored.written([], 0, [Interval(DAYS[0] - MINUTE, DAYS[0])])
        held = followed(held, stored)
    assert held.tail is not None
    assert held.tail.start == DAYS[-1]
    assert held.tail.table.column(0).chunk(0).offset == 0
    assert held.tail.rows(Interval(0, LATEST_MS)).equals(made_at([DAYS[-1] + one * MINUTE for one in range(20)]))


def test_a_tail_does_not_begin_where_candles_are_in_the_archive_alone() -> None:
    stored = Stored(BTC).written(DAYS, 0).dropped(DAYS[4] + 5 * MINUTE)
    held = HeldSeries.read(BTC, stored.delta(-1, LATEST_MS, 0)).with_tail(
        DAYS[0], stored.delta(-1, DAYS[0] - 1, 100)
    )
    assert held.tail is not None
    assert held.tail.start == DAYS[4] + DAY_MS
    check(held, stored)
