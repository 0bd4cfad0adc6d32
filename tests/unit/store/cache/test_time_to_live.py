"""Times to live: the classes of D3, what the operating state and the trading hours change, what is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.clock import to_ms
from market.errors import BadInput
from store.cache.time_to_live import KINDS, LONGEST_MS, TimesToLive, TtlClass
from store.cache.trading_hours import TradingHours
from store.control import OperatingState

#: One kind of each class, and its time in milliseconds.
DEFAULTS = {
    "ticker": 100,
    "order_book": 50,
    "position": 1_000,
    "risk": 5_000,
    "order": 60_000,
    "strategy": 60_000,
    "query": 300_000,
}


def test_the_named_times() -> None:
    times = TimesToLive()
    assert {kind: times.milliseconds(kind) for kind in DEFAULTS} == DEFAULTS
    assert {KINDS[kind] for kind in DEFAULTS} == set(TtlClass)
    times.operating = OperatingState.AGGRESSIVE
    assert {kind: times.milliseconds(kind) for kind in DEFAULTS} == DEFAULTS | {"ticker": 50}
    times.operating = OperatingState.DEFENSIVE
    assert {kind: times.milliseconds(kind) for kind in DEFAULTS} == DEFAULTS | {"position": 5_000}


def test_a_time_of_the_kind_wins_over_everything() -> None:
    closed = TradingHours("mon 00:00-00:01", ["price"], 10)
    times = TimesToLive({"price": 200}, {"ticker": 7}, OperatingState.AGGRESSIVE, closed)
    tuesday = to_ms("2026-11-17T12:00:00Z")
    assert times.milliseconds("ticker", tuesday) == 7
    assert times.milliseconds("trades", tuesday) == 500
    times.operating = OperatingState.BALANCED
    assert (times.milliseconds("trades", tuesday), times.milliseconds("trades")) == (2_000, 200)


@pytest.mark.parametrize(
    ("price", "aggressive", "position", "defensive"), [(20, 20, 8_000, 8_000), (500, 50, 2_000, 5_000)]
)
def test_a_state_never_undoes_a_stricter_setting(
    price: int, aggressive: int, position: int, defensive: int
) -> None:
    times = TimesToLive({TtlClass.PRICE: price, TtlClass.POSITION: position})
    times.operating = OperatingState.AGGRESSIVE
    assert times.milliseconds("ticker") == aggressive
    times.operating = OperatingState.DEFENSIVE
    assert times.milliseconds("position") == defensive


@pytest.mark.parametrize("wrong", [0, -1, LONGEST_MS + 1, True, 1.5, "100"])
def test_wrong_times_are_refused_by_name(wrong: Any) -> None:
    with pytest.raises(BadInput, match=r"^cache\.ttl\.price: .* whole milliseconds from 1 to 86400000"):
        TimesToLive({"price": wrong})
    with pytest.raises(BadInput, match=r"^cache\.ttl\.ticker: "):
        TimesToLive({}, {"ticker": wrong})


def test_unknown_names_are_refused() -> None:
    with pytest.raises(BadInput, match=r"^cache\.ttl: 'prices' .*price, order_book"):
        TimesToLive({"prices": 1})
    with pytest.raises(BadInput, match=r"^cache\.ttl: 'tickers' .*one of: balance, candle_version"):
        TimesToLive({}, {"tickers": 1})
    with pytest.raises(BadInput, match=r"^cache\.trading_hours\.classes: 'ticker'"):
        TimesToLive(trading_hours=TradingHours("mon 08:00-09:00", ["ticker"]))
    with pytest.raises(BadInput, match=r"^kind: 'bar'"):
        TimesToLive().milliseconds("bar")


@pytest.mark.parametrize(
    ("text", "open_at", "closed_at"),
    [
        ("mon-fri 08:00-17:00", ["2026-11-16T08:00", "2026-11-20T16:59"], ["2026-11-16T07:59", "2026-11-20T17:00"]),
        ("mon-fri 08:00-17:00", ["2026-11-18T12:00"], ["2026-11-21T12:00", "2026-11-22T12:00"]),
        ("fri 22:00-02:00", ["2026-11-20T22:00", "2026-11-21T01:59"], ["2026-11-20T01:00", "2026-11-21T02:00"]),
        ("sun 23:00-01:00", ["2026-11-22T23:30", "2026-11-23T00:30"], ["2026-11-22T00:30", "2026-11-23T01:00"]),
        ("sat-mon 10:00-11:00", ["2026-11-21T10:00", "2026-11-23T10:00"], ["2026-11-24T10:00", "2026-11-20T10:00"]),
        ("Mon 00:00-24:00, wed 9:00-9:30", ["2026-11-16T23:59", "2026-11-18T09:29"], ["2026-11-17T00:00"]),
        ("mon 00:00-00:00", ["2026-11-16T00:00"], ["2026-11-17T00:00", "2026-11-15T23:59"]),
    ],
)
def test_windows_of_the_week(text: str, open_at: list[str], closed_at: list[str]) -> None:
    hours = TradingHours(text)
    assert [hours.open(to_ms(f"{one}:00Z")) for one in open_at] == [True] * len(open_at)
    assert [hours.open(to_ms(f"{one}:00Z")) for one in closed_at] == [False] * len(closed_at)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "''"),
        ("mon-fri", "'mon-fri'"),
        ("mon-fri 8-17", "windows in UTC such as"),
        ("mon-fri 08:00-17:00,", "''"),
        ("mon-fry 08:00-17:00", "'fry'.*mon, tue"),
        ("mon 08:60-17:00", "'08:60'.*00:00 to 24:00"),
        ("mon 08:00-24:01", "'24:01'"),
        ("mon 25:00-26:00", "'25:00'"),
    ],
)
def test_wrong_windows_are_refused_precisely(text: str, said: str) -> None:
    with pytest.raises(BadInput, match=rf"^cache\.trading_hours: .*{said}"):
        TradingHours(text)


@pytest.mark.parametrize("factor", [0.99, 0, -1, float("nan"), float("inf"), 1_001, True])
def test_wrong_factors_are_refused(factor: float) -> None:
    with pytest.raises(BadInput, match=r"^cache\.trading_hours\.factor: "):
        TradingHours("mon 08:00-17:00", factor=factor)


DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@settings(max_examples=60)
@given(st.integers(0, 6), st.integers(0, 1439), st.integers(0, 1439), st.integers(1_600_000_000, 1_800_000_000))
def test_a_window_is_open_when_it_began_less_than_its_length_ago(day: int, start: int, end: int, now: int) -> None:
    text = f"{DAYS[day]} {start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}"
    moment = datetime.fromtimestamp(now, UTC)
    midnight = moment.replace(hour=0, minute=0, second=0)
    length = timedelta(minutes=(end - start) % 1440 or 1440)
    began = [midnight - timedelta(days=back) + timedelta(minutes=start) for back in (0, 1)]
    expected = any(one.weekday() == day and one <= moment < one + length for one in began)
    assert TradingHours(text).open(now * 1000) == expected
    assert TradingHours(text, factor=2).factor("price", now * 1000) == (1 if expected else 2)
