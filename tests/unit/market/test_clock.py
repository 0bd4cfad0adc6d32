"""Instants from outside: what is read, and what is refused with a reason."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.clock import EARLIEST_MS, LATEST_MS, SystemClock, iso, to_ms
from market.errors import BadInput

NEW_YEAR = 1_672_531_200_000
SEOUL = timezone(timedelta(hours=9))


@pytest.mark.parametrize(
    "value",
    [
        NEW_YEAR,
        str(NEW_YEAR),
        f" {NEW_YEAR} ",
        "2023-01-01",
        date(2023, 1, 1),
        "2023-01-01T00:00:00Z",
        "2023-01-01 00:00Z",
        "2023-01-01T09:00:00+09:00",
        "2022-12-31T19:00:00.000-05:00",
        datetime(2023, 1, 1, tzinfo=UTC),
        datetime(2023, 1, 1, 9, tzinfo=SEOUL),
    ],
)
def test_many_ways_to_say_new_year(value: object) -> None:
    assert to_ms(value) == NEW_YEAR


@pytest.mark.parametrize("value", [datetime(2023, 1, 1), "2023-01-01T00:00:00", "2023-01-01 00:00"])  # noqa: DTZ001 the naive one is the point
def test_naive_times_are_refused(value: object) -> None:
    with pytest.raises(BadInput, match=r"^since: .*this one has no zone") as refused:
        to_ms(value, "since")
    assert refused.value.field == "since"


@pytest.mark.parametrize(
    "value",
    [NEW_YEAR // 1000, NEW_YEAR * 1000, str(NEW_YEAR // 1000), 0, -1, "-1", "1999-12-31", "2100-01-01", LATEST_MS],
)
def test_another_unit_or_century_is_refused(value: object) -> None:
    with pytest.raises(BadInput, match=r"2000 to 2099 \(epoch values are milliseconds\)"):
        to_ms(value)


@pytest.mark.parametrize("value", ["", "now", "01/02/2023", "2023-13-01", "2023-02-30", "1e12", True])
def test_other_text_is_refused(value: object) -> None:
    with pytest.raises(BadInput, match="an instant with a zone"):
        to_ms(value)


@given(st.integers(EARLIEST_MS, LATEST_MS - 1))
def test_iso_and_back(ms: int) -> None:
    text = iso(ms)
    assert to_ms(text) == ms
    assert text.endswith("Z")
    assert ("." in text) == bool(ms % 1000)


@given(st.datetimes(datetime(2001, 1, 1), datetime(2099, 1, 1), timezones=st.timezones()))  # noqa: DTZ001 bounds must be naive for hypothesis
def test_aware_datetimes_lose_only_what_is_below_a_millisecond(moment: datetime) -> None:
    exact = moment - datetime(1970, 1, 1, tzinfo=UTC)
    assert to_ms(moment) == exact // timedelta(milliseconds=1)


def test_the_machine_counts_milliseconds() -> None:
    now = SystemClock().now_ms()
    assert to_ms(now) == now
