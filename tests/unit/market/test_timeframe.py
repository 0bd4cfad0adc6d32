"""Timeframes: buckets of all fifteen lengths, one by one and over arrays."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.clock import to_ms
from market.errors import BadInput
from market.timeframe import DAY_MS, DEFAULT_ORIGIN_MS, TIMEFRAMES, Timeframe

FIFTEEN = tuple(TIMEFRAMES.values())
timeframes = st.sampled_from(FIFTEEN)
#: 2000 to 2099.
instants = st.integers(946_684_800_000, 4_102_444_800_000 - 1)
origins = st.integers(0, 40_000).map(lambda day: day * DAY_MS)


def test_the_fifteen() -> None:
    assert " ".join(TIMEFRAMES) == "1m 3m 5m 15m 30m 1h 2h 4h 6h 8h 12h 1d 3d 1w 1M"
    for timeframe in FIFTEEN:
        assert Timeframe.parse(timeframe.name) is timeframe
        assert Timeframe.of_seconds(timeframe.seconds) is timeframe
        assert timeframe.milliseconds == timeframe.seconds * 1000


@pytest.mark.parametrize("name", ["", "1", "2m", "60", "1H", "1min", "1D", "m1", None, ["1m"]])
def test_unknown_names_list_the_known_ones(name: str) -> None:
    with pytest.raises(BadInput, match="1m 3m 5m") as refused:
        Timeframe.parse(name, "--timeframe")
    assert refused.value.field == "--timeframe"


@pytest.mark.parametrize(
    ("name", "instant", "bucket"),
    [
        ("1m", "2023-03-24T12:39:59.999Z", "2023-03-24T12:39Z"),
        ("3m", "2023-03-24T12:41:00Z", "2023-03-24T12:39Z"),
        ("15m", "2023-03-24T12:44:59Z", "2023-03-24T12:30Z"),
        ("8h", "2023-03-24T15:59Z", "2023-03-24T08:00Z"),
        ("12h", "2023-03-24T11:59Z", "2023-03-24T00:00Z"),
        ("1d", "2023-03-24T23:59Z", "2023-03-24"),
        ("3d", "2017-08-19T23:59Z", "2017-08-17"),  # BTC/USDT was listed on 2017-08-17
        ("3d", "2017-08-20T00:00Z", "2017-08-20"),
        ("1w", "2023-01-01T12:00Z", "2022-12-26"),  # a Sunday
        ("1w", "2023-01-02T00:00Z", "2023-01-02"),  # a Monday
        ("1M", "2024-02-29T23:59Z", "2024-02-01"),
        ("1M", "2023-12-31T23:59:59.999Z", "2023-12-01"),
    ],
)
def test_known_buckets(name: str, instant: str, bucket: str) -> None:
    assert TIMEFRAMES[name].floor(to_ms(instant)) == to_ms(bucket)


def test_three_day_buckets_count_from_the_origin() -> None:
    listed = to_ms("2023-03-23")
    timeframe = TIMEFRAMES["3d"]
    assert timeframe.floor(listed, listed) == listed
    assert timeframe.floor(listed + 3 * DAY_MS - 1, listed) == listed
    assert timeframe.ceil(listed + 1, listed) == listed + 3 * DAY_MS
    assert timeframe.floor(listed - 1, listed) == listed - 3 * DAY_MS
    # Only three-day buckets have an origin.
    for other in FIFTEEN:
        if other is not timeframe:
            assert other.floor(listed + 12_345, listed + DAY_MS) == other.floor(listed + 12_345)


@given(timeframes, instants, origins)
def test_a_bucket_holds_its_instant(timeframe: Timeframe, ms: int, origin: int) -> None:
    opened = timeframe.floor(ms, origin)
    assert opened <= ms < timeframe.next(opened)
    assert timeframe.floor(opened, origin) == opened
    assert timeframe.floor(timeframe.next(opened), origin) == timeframe.next(opened)
    assert timeframe.floor(timeframe.next(opened) - 1, origin) == opened


@given(timeframes, instants, origins)
def test_ceil_is_the_first_open_time_at_or_after(timeframe: Timeframe, ms: int, origin: int) -> None:
    found = timeframe.ceil(ms, origin)
    assert ms <= found
    assert timeframe.floor(found, origin) == found
    assert found == ms or timeframe.floor(ms, origin) == timeframe.next(found, -1)


@given(instants)
def test_weeks_and_months_agree_with_the_calendar(ms: int) -> None:
    moment = datetime.fromtimestamp(ms // 1000, UTC)
    midnight = moment.replace(hour=0, minute=0, second=0)
    month = midnight.replace(day=1)
    following = (month + timedelta(days=32)).replace(day=1)
    monday = midnight - timedelta(days=moment.weekday())
    assert TIMEFRAMES["1w"].floor(ms) == int(monday.timestamp()) * 1000
    assert TIMEFRAMES["1M"].floor(ms) == to_ms(month)
    assert TIMEFRAMES["1M"].next(to_ms(month)) == int(following.timestamp()) * 1000


@given(timeframes, instants, st.integers(-50, 50), origins)
def test_next_moves_by_buckets(timeframe: Timeframe, ms: int, count: int, origin: int) -> None:
    opened = timeframe.floor(ms, origin)
    there = timeframe.next(opened, count)
    assert timeframe.next(there, -count) == opened
    assert timeframe.floor(there, origin) == there
    assert timeframe.count(min(opened, there), max(opened, there), origin) == abs(count)


@given(timeframes, st.lists(instants, min_size=1, max_size=30), origins)
def test_arrays_give_what_single_values_give(timeframe: Timeframe, several: list[int], origin: int) -> None:
    floors = timeframe.floor_all(np.array(several, np.int64), origin)
    assert floors.dtype == np.int64
    assert floors.tolist() == [timeframe.floor(ms, origin) for ms in several]
    ends = timeframe.next_all(floors)
    assert ends.dtype == np.int64
    assert ends.tolist() == [timeframe.next(int(ms)) for ms in floors]


@given(timeframes, instants, st.integers(-3, 70), st.integers(-1000, 1000), origins)
def test_open_times_and_their_count(timeframe: Timeframe, start: int, buckets: int, odd: int, origin: int) -> None:
    end = start + buckets * timeframe.milliseconds + odd
    naive = []
    at = timeframe.ceil(start, origin)
    while at < end:
        naive.append(at)
        at = timeframe.next(at)
    found = timeframe.open_times(start, end, origin)
    assert found.dtype == np.int64
    assert found.tolist() == naive
    assert timeframe.count(start, end, origin) == len(naive)


@given(timeframes, timeframes, instants)
def test_a_derived_bucket_is_a_whole_number_of_base_buckets(larger: Timeframe, base: Timeframe, ms: int) -> None:
    if not larger.derives_from(base):
        return
    opened = larger.floor(ms)
    assert base.floor(opened) == opened
    assert base.floor(larger.next(opened)) == larger.next(opened)


def test_what_derives_from_what() -> None:
    minute = TIMEFRAMES["1m"]
    assert [one.name for one in FIFTEEN if one.derives_from(minute)] == [one.name for one in FIFTEEN[1:]]
    assert not minute.derives_from(minute)
    assert not TIMEFRAMES["12h"].derives_from(TIMEFRAMES["8h"])
    assert not TIMEFRAMES["1M"].derives_from(TIMEFRAMES["1w"])
    assert not TIMEFRAMES["1M"].derives_from(TIMEFRAMES["3d"])


def test_the_default_origin_is_that_of_btc_and_eth() -> None:
    assert to_ms("2017-08-17") // DAY_MS % 3 == DEFAULT_ORIGIN_MS // DAY_MS
