"""Candles from trades: exact sums, completeness, holes, and the exchange's own candles."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.candle_builder import CandleBuilder
from market.candle_update import CandleUpdate
from market.timeframe import DEFAULT_ORIGIN_MS, MINUTE_MS, ONE_MINUTE, TIMEFRAMES, Timeframe
from market.trade import Trade

START = 1_700_000_040_000


class Built:
    """A builder and what it told."""

    def __init__(self, timeframe: Timeframe = ONE_MINUTE) -> None:
        self.told: list[tuple[CandleUpdate, bool]] = []
        self.builder = CandleBuilder(
            timeframe, lambda one, whole: self.told.append((one, whole)), DEFAULT_ORIGIN_MS
        )

    @property
    def complete(self) -> list[CandleUpdate]:
        return [one for one, whole in self.told if whole]


def trade(id_: int, offset_ms: int, price: float = 10.0, quantity: float = 1.0, *, buys: bool = True) -> Trade:
    at = START + offset_ms
    return Trade(id_, price, quantity, at, buys, at + 5)


def test_the_first_bucket_is_not_complete_and_the_next_one_is() -> None:
    built = Built()
    for one in (
        trade(1, 10_000, 10.0),
        trade(2, MINUTE_MS, 12.0, 0.1),
        trade(3, MINUTE_MS + 1, 11.0, 0.2, buys=False),
    ):
        built.builder.add(one)
    built.builder.add(trade(4, 2 * MINUTE_MS))
    (first, whole), (second, following) = built.told
    assert (first.open_time, whole) == (START, False)
    assert (second.open_time, following) == (START + MINUTE_MS, True)
    assert second[1:10] == (12.0, 12.0, 11.0, 11.0, 0.3, 3.4, 2, 0.1, 1.2)
    assert second.closed
    assert second.early_close_time is None


def test_a_bucket_ends_with_the_next_trade_and_a_silent_one_gives_no_candle() -> None:
    built = Built()
    built.builder.add(trade(1, -1))
    built.builder.add(trade(2, 5))
    assert [one.open_time for one in built.complete] == []
    built.builder.add(trade(3, 2 * MINUTE_MS + 7))
    assert [one.open_time for one in built.complete] == [START]
    built.builder.add(trade(4, 3 * MINUTE_MS))
    assert [one.open_time for one in built.complete] == [START, START + 2 * MINUTE_MS]


def test_a_trade_of_an_ended_bucket_is_counted_and_in_no_candle() -> None:
    built = Built()
    built.builder.add(trade(1, -1))
    built.builder.add(trade(2, 0, quantity=2.0))
    built.builder.add(trade(3, MINUTE_MS))
    built.builder.add(trade(4, 100))
    assert built.builder.late == 1
    assert built.complete[0].volume == 2.0


@pytest.mark.parametrize("after, incomplete", [(30_000, [START]), (MINUTE_MS + 1, [START, START + MINUTE_MS])])
def test_a_hole_makes_the_buckets_on_both_sides_incomplete(after: int, incomplete: list[int]) -> None:
    built = Built()
    for one in (trade(1, -1), trade(2, 5)):
        built.builder.add(one)
    built.builder.broken()
    for one in (trade(9, after), trade(10, 2 * MINUTE_MS), trade(11, 3 * MINUTE_MS)):
        built.builder.add(one)
    assert [one.open_time for one, whole in built.told[1:] if not whole] == incomplete
    assert START + 2 * MINUTE_MS in [one.open_time for one in built.complete]


def test_what_came_before_a_hole_stays_in_the_forming_candle() -> None:
    built = Built()
    built.builder.add(trade(1, 0, 10.0))
    built.builder.broken()
    built.builder.add(trade(5, 10, 11.0))
    forming = built.builder.forming()
    assert forming is not None
    assert (forming.open, forming.close, forming.trades, forming.closed) == (10.0, 11.0, 2, False)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 240_000),
            st.decimals("0.00000001", "99999", places=8),
            st.decimals("0.00000001", "60000000000", places=8).filter(lambda one: len(one.as_tuple().digits) <= 15),
            st.booleans(),
        ),
        min_size=1,
        max_size=40,
    )
)
def test_sums_are_those_of_the_decimals(rows: list[tuple[int, Decimal, Decimal, bool]]) -> None:
    rows.sort(key=lambda one: one[0])
    built = Built()
    built.builder.add(trade(0, -1))
    for id_, (offset, price, quantity, buys) in enumerate(rows, 1):
        built.builder.add(trade(id_, offset, float(price), float(quantity), buys=buys))
    built.builder.add(trade(10**6, 10 * MINUTE_MS))
    assert [one.open_time for one in built.complete] == sorted(
        {START + row[0] // MINUTE_MS * MINUTE_MS for row in rows}
    )
    for candle in built.complete:
        inside = [row for row in rows if START + row[0] // MINUTE_MS * MINUTE_MS == candle.open_time]
        prices = [row[1] for row in inside]
        assert candle.open == float(prices[0])
        assert candle.close == float(prices[-1])
        assert (candle.high, candle.low) == (float(max(prices)), float(min(prices)))
        assert candle.trades == len(inside)
        assert candle.volume == float(sum(row[2] for row in inside))
        assert candle.quote_volume == float(
            sum(_units(row[1]) * _units(row[2]) for row in inside) / Decimal(10**16)
        )
        assert candle.taker_buy_volume == float(sum((row[2] for row in inside if row[3]), Decimal(0)))


def _units(value: Decimal) -> int:
    return int(value * 10**8)


@pytest.mark.recorded
def test_a_day_of_recorded_trades_makes_the_exchanges_candles(recorded: Path) -> None:
    rows = pl.read_parquet(recorded / "trades" / "binance_spot_PEPEUSDT_aggtrades_2024-10-27.parquet")
    trades = [
        Trade(row["agg_id"], float(row["price"]), float(row["qty"]), row["time_ms"], not row["is_buyer_maker"], 0)
        for row in rows.iter_rows(named=True)
    ]
    for name in ("30m", "1h"):
        built = Built(TIMEFRAMES[name])
        # The file begins with the day: nothing came before the first trade in its bucket.
        first = trades[0]
        built.builder.add(first._replace(id=0, event_time=first.event_time // 86_400_000 * 86_400_000 - 1))
        for one in trades:
            built.builder.add(one)
        last = trades[-1]
        built.builder.add(last._replace(id=last.id + 1, event_time=last.event_time + 3_600_000))
        (path,) = (recorded / "candles").glob(f"binance_spot_PEPEUSDT_{name}_ohlcv_*.parquet")
        candles = {row["open_time_ms"]: row for row in pl.read_parquet(path).iter_rows(named=True)}
        assert len(built.complete) == 86_400 // TIMEFRAMES[name].seconds
        for one in built.complete:
            theirs = candles[one.open_time]
            assert one[1:6] == tuple(theirs[key] for key in ("open", "high", "low", "close", "volume_base"))
