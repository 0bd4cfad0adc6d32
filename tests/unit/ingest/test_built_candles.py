"""Candles built from trades: held against the exchange's own, or stored where it has none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from ingest.built_candles import BuiltCandles
from market.candle import CandleState, open_times_ms
from market.candle_update import CandleUpdate
from market.instrument import Series
from market.timeframe import MINUTE_MS, ONE_MINUTE
from market.trade import Trade
from store.batch import CandleBatch
from store.live import LiveCandles
from tests.conftest import ManualClock

SERIES = Series("okx", "BTC/USDT", ONE_MINUTE)
#: 2023-11-14T22:13:00Z.
START = 1_699_999_980_000


class Sink:
    """Where stored candles go."""

    def __init__(self) -> None:
        self.written: list[CandleBatch] = []

    def candles(self, batch: CandleBatch, received_at: int) -> None:
        self.written.append(batch)

    @property
    def minutes(self) -> list[int]:
        return [int(open_times_ms(one.table)[0] - START) // MINUTE_MS for one in self.written]


def trade(minute: int, second: int, price: float, quantity: float = 1.0) -> Trade:
    at = START + minute * MINUTE_MS + second * 1000
    return Trade(minute * 100 + second, price, quantity, at, second % 2 == 0, at)


def minute_of_trades(minute: int) -> list[Trade]:
    """10, 12, 9, 11: bought 1.5 of 3."""
    prices = [(0, 10.0, 1.0), (11, 12.0, 0.5), (20, 9.0, 0.5), (31, 11.0, 1.0)]
    return [trade(minute, second, price, quantity) for second, price, quantity in prices]


def theirs(minute: int, **more: Any) -> CandleUpdate:
    """What the exchange says of that minute."""
    start = START + minute * MINUTE_MS
    said = CandleUpdate(start, 10.0, 12.0, 9.0, 11.0, 3.0, 31.5, 4, 1.5, 14.5, None, True, start + MINUTE_MS, 0)
    return said._replace(**more)


def build(built: BuiltCandles, minutes: Sequence[int]) -> None:
    """All trades of these minutes, and the next one, which ends the last; the first one is not complete."""
    for minute in minutes:
        for one in minute_of_trades(minute):
            built.add(one)
    built.add(minute_of_trades(minutes[-1] + 1)[0])


@pytest.mark.parametrize("theirs_first", [True, False])
@pytest.mark.parametrize(
    "said, differing",
    [
        (theirs(1), []),
        # What the exchange does not tell is not compared.
        (theirs(1, quote_volume=None, trades=None, taker_buy_volume=None, taker_buy_quote_volume=None), []),
        (theirs(1, event_time=0, received_at=5, early_close_time=7), []),
        (theirs(1, close=11.5), ["close"]),
        (theirs(1, volume=3.5, trades=5), ["volume", "trades"]),
    ],
)
def test_a_complete_candle_is_held_against_the_exchanges(
    said: CandleUpdate, differing: list[str], theirs_first: bool
) -> None:
    built = BuiltCandles(SERIES, 0)
    with capture_logs() as logs:
        if theirs_first:
            built.theirs(said)
        build(built, [0, 1])
        if not theirs_first:
            built.theirs(said)
    agreement = built.agreement
    assert (agreement.built, agreement.incomplete) == (1, 1)
    assert (agreement.equal, agreement.different) == (int(not differing), int(bool(differing)))
    assert [one["fields"] for one in logs] == ([differing] if differing else [])


def test_a_candle_that_lacks_trades_is_held_against_nothing() -> None:
    built = BuiltCandles(SERIES, 0)
    build(built, [0, 1])
    built.broken()
    build(built, [2, 3, 4])
    for minute in range(5):
        built.theirs(theirs(minute))
    # The first one, and the one with the hole before it; the rest of the one before is known from what follows.
    agreement = built.agreement
    assert agreement.different == 0
    assert agreement.equal == agreement.built < 5
    assert agreement.built + agreement.incomplete <= 5
    assert agreement.incomplete >= 1


def test_a_forming_candle_of_the_exchange_is_held_against_nothing() -> None:
    built = BuiltCandles(SERIES, 0)
    built.theirs(theirs(1, closed=False, close=10.5))
    build(built, [0, 1])
    assert (built.agreement.equal, built.agreement.different) == (0, 0)
    built.theirs(theirs(1))
    assert built.agreement.equal == 1


def test_candles_that_wait_for_the_other_side_are_not_kept_for_ever() -> None:
    built = BuiltCandles(SERIES, 0)
    for minute in range(1, 101):
        built.theirs(theirs(minute))
    build(built, range(101))
    assert built.agreement.built == 100
    assert built.agreement.equal == 32


def test_where_the_exchange_has_none_complete_candles_are_stored_and_the_forming_one_is_shown() -> None:
    sink, live = Sink(), LiveCandles(ManualClock(START))
    built = BuiltCandles(SERIES, 0, sink=sink, live=live)
    build(built, [0, 1, 2])
    assert sink.minutes == [1, 2]
    (batch, _) = sink.written
    assert (batch.state, batch.source, batch.now_ms) == (CandleState.CLOSED, "okx trades", START + 2 * MINUTE_MS)
    assert batch.table.equals(theirs(1).table())
    built.add(trade(3, 50, 20.0))
    built.show()
    held = live.get(SERIES)
    assert held is not None
    assert held[0]["open_time"].cast("int64").to_pylist() == [START + 3 * MINUTE_MS]
    assert held[0]["close"].to_pylist() == [20.0]
    assert (built.agreement.equal, built.agreement.different) == (0, 0)


def test_what_the_exchange_has_itself_is_neither_stored_nor_shown() -> None:
    live = LiveCandles(ManualClock(START))
    built = BuiltCandles(SERIES, 0, live=live)
    build(built, [0, 1])
    built.add(trade(2, 5, 20.0))
    built.show()
    assert live.get(SERIES) is None
