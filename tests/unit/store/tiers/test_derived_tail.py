"""Larger candles that are kept are those that would be made now, and they are made of few candles at a time."""

from __future__ import annotations

import os
from typing import cast
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.clock import LATEST_MS, to_ms
from market.interval import Interval
from market.rollup import roll_up
from market.timeframe import DAY_MS, DEFAULT_ORIGIN_MS, ONE_MINUTE, TIMEFRAMES, Timeframe
from store.cache.memory import MEMORY_TIER
from store.candle_store import CandleStore, SeriesFacts, StoredPage
from store.derived import windows
from store.tiers import derived
from store.tiers.held_series import HeldSeries
from store.tiers.sealed import DATABASE_TIER
from store.tiers.tiered_views import TieredViews
from store.tiers.view import Moved, StoredView, UnknownPeriods
from tests.conftest import ManualClock
from tests.support.made_candles import BTC, HOUR, MINUTE
from tests.support.stored_series import OneSeriesStore, Stored
from tests.support.tiered import tiered

DAYS = [to_ms(day) for day in ("2019-12-30", "2020-01-01", "2022-12-31", "2023-01-01", "2023-01-31", "2023-02-01")]
INSTANTS = sorted(day + minute * MINUTE for day in DAYS for minute in (0, 1, 2, 59, 60, 719, 1438, 1439))
SMALL = {"_LONG_TAIL": 12, "_SHORT_TAIL": 4, "_LONGEST_REACH": 30, "_MOST_PIECES": 3, "_MOST_AT_ONCE": 3000}


class Larger:
    """Larger candles of one series in a store, kept, and held to what they must be."""

    def __init__(self) -> None:
        self.store = OneSeriesStore(BTC)
        self.views: TieredViews = tiered(cast(CandleStore, self.store), None, ManualClock(), None)
        self.view = StoredView(
            cast(CandleStore, self.store), None, BTC, SeriesFacts(revision=0, origin_ms=0, known=None)
        )

    def held(self, tail_from: int | None = None) -> HeldSeries:
        now = self.store.now
        found = HeldSeries.read(BTC, now.delta(-1, LATEST_MS, 0))
        return found if tail_from is None else found.with_tail(tail_from, now.delta(-1, tail_from - 1, 1000))

    async def rows(
        self, held: HeldSeries, truth: Stored, wanted: Interval, timeframe: Timeframe, origin: int
    ) -> str:
        """The tier of an answer that must be what `held` was made of."""
        with patch.multiple(derived, **SMALL):
            table, tier = await self.views.derived.rows(held, self.view, wanted, timeframe, origin)
        assert table.equals(roll_up(truth.table(wanted.start, wanted.end), timeframe, origin).table)
        return tier


@st.composite
def plans(draw: st.DrawFn) -> list[tuple[object, ...]]:
    at = st.sampled_from(INSTANTS)
    times = st.lists(at, min_size=1, max_size=4)
    frames = st.sampled_from(["5m", "1h", "4h", "1d", "3d", "1w", "1M"]).map(TIMEFRAMES.__getitem__)
    read = st.tuples(st.just("read"), frames, at, at, st.sampled_from([0, DAY_MS, 2 * DAY_MS]), st.booleans())
    kinds = st.one_of(
        read,
        read,
        read,
        st.tuples(st.just("write"), times, st.integers(0, 2)),
        st.tuples(st.just("absent"), at),
        st.tuples(st.just("follow")),
        st.tuples(st.just("tail"), at),
        st.tuples(st.just("lag"), st.booleans()),
        st.tuples(st.just("go back")),
    )
    return draw(st.lists(kinds, min_size=3, max_size=25))


@settings(max_examples=int(os.environ.get("CHANDLERY_TEST_HELD_EXAMPLES", "40")))
@given(plan=plans())
async def test_kept_candles_are_those_that_would_be_made_now(plan: list[tuple[object, ...]]) -> None:
    larger = Larger()
    larger.store.now = Stored(BTC).written(INSTANTS[::5], 0)
    held, truth = larger.held(), larger.store.now
    before = held, truth
    for kind, *arguments in plan:
        match kind, arguments:
            case "write", [list() as times, int(version)]:
                larger.store.now = larger.store.now.written(times, version)
            case "absent", [int(at)]:
                larger.store.now = larger.store.now.written([], 0, [Interval(at, at + HOUR)])
            case "follow", _:
                before = held, truth
                after = LATEST_MS if held.tail is None else held.tail.last
                held = held.after(larger.store.now.delta(held.revision, after, 1000))
                held, truth = (held if held.whole else larger.held()), larger.store.now
            case "tail", [int(at)]:
                before = held, truth
                held, truth = larger.held(at // DAY_MS * DAY_MS), larger.store.now
            case "lag", [bool(lags)]:
                larger.store.lagging = larger.store.now if lags else None
            case "go back", _:
                # A read that began earlier goes on with what it saw.
                held, truth = before
            case "read", [Timeframe() as timeframe, int(first), int(last), int(origin), bool(newest)]:
                assert truth.known is not None
                asked = Interval(min(first, last), max(first, last) + 1)
                for run in windows(timeframe, ONE_MINUTE, origin, truth.known, asked, None, newest):
                    try:
                        await larger.rows(held, truth, run, timeframe, origin)
                    except UnknownPeriods:
                        held, truth = larger.held(), larger.store.now
                        break
                    except Moved:
                        break


async def test_a_late_minute_makes_its_closed_bucket_again() -> None:
    larger, hours = Larger(), TIMEFRAMES["1h"]
    first = DAYS[3]
    silent = Interval(first + 10 * MINUTE, first + 2 * HOUR)
    larger.store.now = Stored(BTC).written(range(first, first + 10 * MINUTE, MINUTE), 0, [silent])
    held = larger.held(first)
    await larger.rows(held, larger.store.now, Interval(first, first + HOUR), hours, DEFAULT_ORIGIN_MS)
    assert held.tail is not None
    larger.store.now = larger.store.now.written([first + 40 * MINUTE], 1)
    held = held.after(larger.store.now.delta(held.revision, held.tail.last, 100))
    for _ in range(2):
        await larger.rows(held, larger.store.now, Interval(first, first + HOUR), hours, DEFAULT_ORIGIN_MS)


async def test_what_a_lagging_server_gives_is_not_kept() -> None:
    larger, hours = Larger(), TIMEFRAMES["1h"]
    old = larger.store.now = Stored(BTC).written(range(DAYS[3], DAYS[3] + 3 * HOUR, MINUTE), 0)
    larger.store.now = old.written([DAYS[3] + 30 * MINUTE], 1)
    wanted = Interval(DAYS[3], DAYS[3] + 3 * HOUR)
    larger.store.lagging = old
    with pytest.raises(Moved):
        await larger.rows(larger.held(), larger.store.now, wanted, hours, DEFAULT_ORIGIN_MS)
    larger.store.lagging = None
    assert await larger.rows(larger.held(), larger.store.now, wanted, hours, DEFAULT_ORIGIN_MS) == DATABASE_TIER
    assert await larger.rows(larger.held(), larger.store.now, wanted, hours, DEFAULT_ORIGIN_MS) == MEMORY_TIER


async def test_what_a_second_store_gives_is_not_kept() -> None:
    larger = Larger()
    larger.store.now = Stored(BTC).written(range(DAYS[3], DAYS[3] + HOUR, MINUTE), 0)
    held, page = larger.held(), larger.store.now.page(Interval(DAYS[3], DAYS[3] + HOUR), None, False)
    assert await larger.views.agrees(held, page, Interval(DAYS[3], DAYS[3] + HOUR))
    other = StoredPage(table=page.table, coverage=page.coverage, tier="somewhere else")
    assert not await larger.views.agrees(held, other, Interval(DAYS[3], DAYS[3] + HOUR))


async def test_a_write_elsewhere_does_not_undo_what_was_made() -> None:
    larger = Larger()
    larger.store.now = Stored(BTC).written([*range(DAYS[3], DAYS[3] + HOUR, MINUTE), DAYS[5]], 0)
    held, truth = larger.held(), larger.store.now
    larger.store.now = truth.written([DAYS[5]], 1)
    wanted = Interval(DAYS[3], DAYS[3] + HOUR)
    await larger.rows(held, truth, wanted, TIMEFRAMES["1h"], DEFAULT_ORIGIN_MS)
    with pytest.raises(Moved):
        await larger.rows(held, truth, Interval(DAYS[5], DAYS[5] + HOUR), TIMEFRAMES["15m"], DEFAULT_ORIGIN_MS)


@pytest.mark.parametrize("name", ["5m", "1h", "1d", "1w", "1M"])
async def test_however_far_apart_reads_are_little_is_made_at_once(name: str) -> None:
    larger, timeframe = Larger(), TIMEFRAMES[name]
    # Ten years, a candle in six days.
    first, last = to_ms("2016-01-01"), to_ms("2026-01-01")
    larger.store.now = Stored(BTC).written(range(first, last, 6 * DAY_MS), 0)
    held, asked = larger.held(), list[Interval]()
    rolled = larger.store.rolled

    async def noted(series, interval, *named):  # type: ignore[no-untyped-def]
        asked.append(interval)
        return await rolled(series, interval, *named)

    larger.store.rolled = noted  # type: ignore[method-assign]
    for day in ("2025-12-31", "2016-02-03", "2022-05-05", "2025-12-01"):
        start = timeframe.ceil(to_ms(day), DEFAULT_ORIGIN_MS)
        wanted = Interval(
            start, timeframe.next(start, 1 if name == "1M" else max(1, DAY_MS // timeframe.milliseconds))
        )
        asked.clear()
        table, _ = await larger.views.derived.rows(held, larger.view, wanted, timeframe, DEFAULT_ORIGIN_MS)
        truth = roll_up(larger.store.now.table(wanted.start, wanted.end), timeframe, DEFAULT_ORIGIN_MS).table
        assert table.equals(truth)
        assert max((one.duration for one in asked), default=0) <= 101_000 * MINUTE
        # A year, and what a bucket reaches over it.
        assert sum(one.duration for one in asked) <= (366 + 31) * DAY_MS


async def test_a_gap_between_what_is_kept_and_what_is_wanted_is_not_made() -> None:
    larger, minutes = Larger(), TIMEFRAMES["5m"]
    first = DAYS[3]
    larger.store.now = Stored(BTC).written([first, first + MINUTE], 0)
    start = Interval(first, first + HOUR)
    await larger.views.derived.rows(larger.held(), larger.view, start, minutes, DEFAULT_ORIGIN_MS)
    # Half a year at once, as after an outage: the next read knows it as one change.
    late = first + 200 * DAY_MS
    held = larger.held()
    larger.store.now = larger.store.now.written(range(first + DAY_MS, late + 1, DAY_MS), 0)
    held = held.after(larger.store.now.delta(held.revision, LATEST_MS, 0))
    larger.store.calls.clear()
    wanted = Interval(late, late + HOUR)
    table, _ = await larger.views.derived.rows(held, larger.view, wanted, minutes, DEFAULT_ORIGIN_MS)
    assert table.num_rows == 1
    assert larger.store.calls["rolled"] == 1
