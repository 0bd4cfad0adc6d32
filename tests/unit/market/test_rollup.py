"""Larger candles: equal to exact decimal arithmetic, and to the exchange's own in every field."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from market.candle import COLUMNS, QUANTITIES, candles, no_candles, open_times_ms
from market.clock import to_ms
from market.rollup import decimal_sums, roll_up
from market.timeframe import DAY_MS, TIMEFRAMES, Timeframe

START = 1_672_531_200_000
FIVE = TIMEFRAMES["5m"]

#: Decimals of up to 15 digits and 8 decimals, from 1e-8 to 1e15: what exchanges publish.
quantities = st.builds(
    lambda digits, places: Decimal(digits).scaleb(-places), st.integers(0, 10**15 - 1), st.integers(0, 8)
)
prices = st.builds(lambda digits, places: Decimal(digits).scaleb(-places), st.integers(1, 10**9), st.integers(0, 8))


def test_nothing_rolls_up_to_nothing() -> None:
    rolled = roll_up(no_candles(), FIVE)
    assert rolled.table.equals(no_candles())
    assert len(rolled.parts) == 0


# --- sums ---


@given(st.lists(st.lists(quantities, min_size=1, max_size=12), min_size=1, max_size=6))
@example([[Decimal("0.1"), Decimal("0.2")]])
@example([[Decimal("50000000000"), Decimal("0.00000001"), Decimal("49999999999.5")]])
@example([[Decimal("999999999999999")] * 10, [Decimal("0.00000001")] * 10])
@example([[Decimal("9007199.25474099"), Decimal("0.00000001")]])
@example([[Decimal("90071992.5474099")] * 12])
def test_sums_are_those_of_decimals_rounded_once(groups: list[list[Decimal]]) -> None:
    starts = np.cumsum([0] + [len(group) for group in groups[:-1]])
    values = np.array([float(one) for group in groups for one in group])
    assert decimal_sums(values, starts).tolist() == [float(sum(group)) for group in groups]


@given(
    st.sampled_from([(Decimal("1e-8"), 2), (Decimal("5e10"), 0), (Decimal("16541.77"), 5), (Decimal("1e6"), 8)]),
    st.integers(0, 2**32),
)
def test_a_month_of_minutes_adds_up_exactly(kind: tuple[Decimal, int], seed: int) -> None:
    scale, places = kind
    rng = np.random.default_rng(seed)
    step = Decimal(1).scaleb(-min(8, places + max(0, -scale.adjusted())))
    group = [(scale * int(digits) / 1000).quantize(step) for digits in rng.integers(0, 3000, 2000)]
    values = np.array([float(one) for one in group])
    assert decimal_sums(values, np.array([0])).tolist() == [float(sum(group))]


# --- candles ---


@st.composite
def minutes(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Minute candles with holes, flat minutes, unknown columns; every number a Decimal."""
    rows = []
    for minute in sorted(draw(st.sets(st.integers(0, 30), min_size=1, max_size=20))):
        several = draw(st.lists(prices, min_size=4, max_size=4))
        low, middle, other, high = sorted(several)
        flat = draw(st.booleans())
        quantity = Decimal(0) if flat else draw(quantities) + Decimal("0.00000001")
        if quantity >= 10**7:
            quantity = Decimal(int(quantity))
        known = draw(st.booleans())
        rows.append(
            {
                "open_time": START + minute * 60_000,
                "open": middle,
                "high": middle if flat else high,
                "low": middle if flat else low,
                "close": middle if flat else other,
                "volume": quantity,
                "quote_volume": quantity if known else None,
                "trades": (0 if flat else draw(st.integers(1, 10**6))) if known else None,
                "taker_buy_volume": Decimal(0) if known else None,
                "taker_buy_quote_volume": quantity if draw(st.booleans()) else None,
                "early_close_time": None,
            }
        )
    return rows


def as_table(rows: list[dict[str, Any]]) -> pa.Table:
    return candles(
        {
            name: [float(one[name]) if isinstance(one[name], Decimal) else one[name] for one in rows]
            for name in COLUMNS
        }
    )


def naive(rows: list[dict[str, Any]], timeframe: Timeframe) -> list[dict[str, Any]]:
    """What the docstring of the module says, one window at a time, in decimals."""
    found = []
    for opened in sorted({timeframe.floor(one["open_time"]) for one in rows}):
        inside = [one for one in rows if timeframe.floor(one["open_time"]) == opened]
        speaks = [one for one in inside if (one["volume"] if one["trades"] is None else one["trades"]) > 0]
        speaks = speaks or inside
        window = {
            "open_time": opened,
            "open": speaks[0]["open"],
            "high": max(one["high"] for one in speaks),
            "low": min(one["low"] for one in speaks),
            "close": speaks[-1]["close"],
            "early_close_time": inside[-1]["early_close_time"],
        }
        for name in (*QUANTITIES, "trades"):
            parts = [one[name] for one in inside]
            window[name] = None if None in parts else sum(parts)
        found.append(window)
    return found


@given(minutes(), st.sampled_from([TIMEFRAMES[name] for name in ("3m", "5m", "15m", "1h", "1w", "1M")]))
def test_rolling_up_follows_the_rule_in_every_field(rows: list[dict[str, Any]], timeframe: Timeframe) -> None:
    rolled = roll_up(as_table(rows), timeframe)
    assert rolled.table.equals(as_table(naive(rows, timeframe)))
    assert rolled.parts.tolist() == [
        sum(timeframe.floor(one["open_time"]) == opened for one in rows) for opened in open_times_ms(rolled.table)
    ]


def flat_then_traded(**last: Any) -> pa.Table:
    row = {"high": 5.0, "low": 5.0, "open": 5.0, "close": 5.0, "volume": 0.0, "trades": 0}
    rows = [
        {**dict.fromkeys(COLUMNS), **row, "open_time": START},
        {**dict.fromkeys(COLUMNS), **row, "open_time": START + 60_000, **last},
    ]
    return candles({name: [one[name] for one in rows] for name in COLUMNS})


def test_minutes_without_trades_say_nothing_about_the_price() -> None:
    table = flat_then_traded(open=7.0, high=8.0, low=6.0, close=7.0, volume=1.0, trades=1)
    (window,) = roll_up(table, FIVE).table.to_pylist()
    assert (window["open"], window["high"], window["low"], window["close"]) == (7.0, 8.0, 6.0, 7.0)


def test_unless_the_whole_window_is_such_minutes() -> None:
    (window,) = roll_up(flat_then_traded(), FIVE).table.to_pylist()
    assert (window["open"], window["high"], window["low"], window["close"]) == (5.0, 5.0, 5.0, 5.0)
    assert window["trades"] == 0


def test_an_early_end_holds_if_nothing_came_after_it() -> None:
    cut = START + 60_000 + 21_646
    table = flat_then_traded(early_close_time=cut)
    assert roll_up(table, FIVE).table.column("early_close_time").cast(pa.int64()).to_pylist() == [cut]
    assert roll_up(table.slice(0, 1), FIVE).table.column("early_close_time").to_pylist() == [None]


def test_three_day_windows_count_from_the_origin() -> None:
    days = np.arange(6) * DAY_MS + START
    table = candles({"open_time": days, **{name: [1.0] * 6 for name in ("open", "high", "low", "close", "volume")}})
    rolled = roll_up(table, TIMEFRAMES["3d"], origin_ms=START)
    assert open_times_ms(rolled.table).tolist() == [START, START + 3 * DAY_MS]
    assert rolled.parts.tolist() == [3, 3]
    assert roll_up(table, TIMEFRAMES["3d"], origin_ms=START + DAY_MS).parts.tolist() == [1, 3, 2]


# --- the exchange's own candles ---

Load = Callable[[str, str], pa.Table]


def assert_same_windows(rolled: pa.Table, recorded: pa.Table, floor: int, names: tuple[str, ...] = COLUMNS) -> None:
    """Every window that both hold is equal in every field of `names`; there are at least `floor` of them."""
    both = np.intersect1d(open_times_ms(rolled), open_times_ms(recorded))
    assert len(both) >= floor
    for name in names:
        ours, theirs = (
            table.column(name).take(pa.array(np.flatnonzero(np.isin(open_times_ms(table), both))))
            for table in (rolled, recorded)
        )
        assert ours.combine_chunks().equals(theirs.combine_chunks()), name


@pytest.mark.recorded
@pytest.mark.parametrize(
    ("symbol", "timeframe", "windows"),
    [
        ("BTCUSDT", "15m", 35_035),
        ("BTCUSDT", "1h", 8_759),
        ("ETHUSDT", "15m", 35_035),
        ("ETHUSDT", "1h", 8_759),
        ("ARBUSDT", "15m", 10_847),
        ("ARBUSDT", "1h", 3_122),
    ],
)
def test_equal_to_the_exchange(recorded_candles: Load, symbol: str, timeframe: str, windows: int) -> None:
    rolled = roll_up(recorded_candles(f"binance_spot_{symbol}_1m_2023", "1m"), TIMEFRAMES[timeframe])
    recorded = recorded_candles(f"binance_spot_{symbol}_{timeframe}_2023", timeframe)
    if symbol == "ARBUSDT":
        # The minutes of 2023-07-27 from 03:50 are absent: those windows cannot be whole.
        hole = to_ms("2023-07-27T03:00Z"), to_ms("2023-07-28")
        times = open_times_ms(rolled.table)
        whole = (rolled.parts == TIMEFRAMES[timeframe].seconds // 60) | (times < hole[0]) | (times >= hole[1])
        assert_same_windows(rolled.table.filter(pa.array(whole)), recorded, windows)
        return
    assert_same_windows(rolled.table, recorded, windows)


@pytest.mark.recorded
@pytest.mark.parametrize("symbol", ["BTCUSDT", "ETHUSDT"])
@pytest.mark.parametrize(
    ("timeframe", "windows"),
    [("2h", 4_380), ("4h", 2_190), ("6h", 1_460), ("8h", 1_095), ("12h", 730), ("1d", 365)],
)
def test_equal_to_the_exchange_in_coarse_windows(
    recorded_candles: Load, symbol: str, timeframe: str, windows: int
) -> None:
    rolled = roll_up(recorded_candles(f"binance_spot_{symbol}_1m_2023", "1m"), TIMEFRAMES[timeframe])
    recorded = recorded_candles(f"binance_spot_{symbol}_coarse", timeframe)
    assert_same_windows(rolled.table, recorded, windows)


@pytest.mark.recorded
@pytest.mark.parametrize("symbol", ["BTCUSDT", "ETHUSDT"])
@pytest.mark.parametrize(("timeframe", "windows"), [("3d", 1_059), ("1w", 454), ("1M", 104)])
def test_days_roll_up_to_the_exchanges_largest_candles(
    recorded_candles: Load, symbol: str, timeframe: str, windows: int
) -> None:
    days = recorded_candles(f"binance_spot_{symbol}_coarse", "1d")
    recorded = recorded_candles(f"binance_spot_{symbol}_coarse", timeframe)
    rolled = roll_up(days, TIMEFRAMES[timeframe])
    # The quote volume of a day has up to 18 digits, more than a float64 knows: its sum cannot be exact.
    names = tuple(name for name in COLUMNS if not name.endswith("quote_volume"))
    assert_same_windows(rolled.table, recorded, windows, names)
    for name in set(COLUMNS) - set(names):
        ours, theirs = rolled.table.column(name).to_numpy(), recorded.column(name).to_numpy()
        np.testing.assert_allclose(ours[: windows - 1], theirs[: windows - 1], rtol=1e-15)


@pytest.mark.recorded
def test_recorded_decimals_become_the_float_next_to_their_text(recorded_candles: Load, recorded: Any) -> None:
    (path,) = (recorded / "candles").glob("binance_spot_ETHUSDT_1h_*.parquet")
    raw = pq.read_table(path)
    table = recorded_candles("binance_spot_ETHUSDT_1h", "1h")
    for source, target in (("open", "open"), ("volume_base", "volume"), ("volume_quote", "quote_volume")):
        assert table.column(target).to_pylist() == [float(str(one)) for one in raw.column(source).to_pylist()]


@pytest.mark.recorded
def test_seconds_roll_up_to_the_minutes_of_another_exchange(recorded_candles: Load) -> None:
    seconds = recorded_candles("coinbase_BTCUSD_1s", "1m")
    minutes_ = recorded_candles("coinbase_BTCUSD_1m", "1m")
    assert_same_windows(roll_up(seconds, TIMEFRAMES["1m"]).table, minutes_, 4_216)
