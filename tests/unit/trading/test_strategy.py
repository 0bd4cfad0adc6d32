"""Parameters of a strategy, and the candles it is shown."""

from __future__ import annotations

import pytest

from market.errors import BadInput
from market.instrument import Series
from market.timeframe import TIMEFRAMES
from trading.strategies.sma_cross import SmaCross
from trading.strategy import Subscription, candle_rows, candle_type

SERIES = Series.parse("binance", "BTC/USDT", "1m")


def test_parameters_are_converted_and_have_defaults() -> None:
    assert dict(SmaCross(fast="5").parameters) == {"fast": 5, "slow": 30, "stake": 1.0}
    assert SmaCross(fast="5").fast == 5


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"fast": "ten"}, "parameter fast: 'ten' is not accepted; expected a value of type int"),
        ({"fast": 10.5}, "parameter fast"),
        ({"slow": 1}, "parameter slow: 1 .* greater than or equal to 2"),
        ({"stake": "2"}, "parameter stake"),
        ({"fats": 5}, r"parameter fats: 5 .* this strategy has \(fast, slow, stake\)"),
        ({"fast": 40}, r"parameter fast: 40 .* fewer candles than slow \(30\)"),
    ],
)
def test_a_wrong_parameter_is_named(parameters: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        SmaCross(**parameters)


def test_fresh_keeps_parameters_and_drops_state() -> None:
    used = SmaCross(fast=3)
    used.seen = 1  # type: ignore[attr-defined]
    again = used.fresh()
    assert again.fast == 3
    assert not hasattr(again, "seen")


def test_a_candle_shows_its_columns_and_cannot_be_changed() -> None:
    kind = candle_type(SERIES, ["fast"])
    columns = [[60_000], [1.0], [2.0], [0.5], [1.5], [9.0], [1.25]]
    (candle,) = candle_rows(kind, columns)
    assert (candle.symbol, candle.open_time, candle.available_at) == ("BTC/USDT", 60_000, 120_000)
    assert (candle.open, candle.high, candle.low, candle.close, candle.volume) == (1.0, 2.0, 0.5, 1.5, 9.0)
    assert candle.fast == 1.25
    assert candle.ready
    with pytest.raises(AttributeError):
        candle.slow  # noqa: B018
    with pytest.raises(AttributeError):
        candle.close = 3.0  # type: ignore[misc]


def test_months_end_when_they_end() -> None:
    kind = candle_type(SERIES.at(TIMEFRAMES["1M"]), [])
    february = 1_675_209_600_000
    (candle,) = candle_rows(kind, [[february], [1.0], [1.0], [1.0], [1.0], [1.0]])
    assert candle.available_at == february + 28 * 86_400_000


@pytest.mark.parametrize("name", ["class", "_hidden", "two words", "symbol", "count", "available_at"])
def test_an_indicator_needs_a_usable_name(name: str) -> None:
    with pytest.raises(BadInput, match="indicator column"):
        candle_type(SERIES, [name])


def test_a_subscription_checks_itself() -> None:
    with pytest.raises(BadInput, match="symbol"):
        Subscription("BTCUSDT", TIMEFRAMES["1m"])
    with pytest.raises(BadInput, match=r"7m.*1m 3m 5m"):
        Subscription("BTC/USDT", "7m")  # type: ignore[arg-type]
    assert Subscription("BTC/USDT", "4h").timeframe is TIMEFRAMES["4h"]  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="warm_up"):
        Subscription("BTC/USDT", TIMEFRAMES["1m"], warm_up=-1)


def test_a_printed_candle_says_whose_it_is() -> None:
    kind = candle_type(SERIES, ["top"])
    (candle,) = candle_rows(kind, [[0], [1.0], [2.0], [0.5], [1.5], [3.0], [2.5]])
    assert str(candle) == (
        f"Candle({SERIES} 1970-01-01T00:00:00Z: open=1.0, high=2.0, low=0.5, close=1.5, volume=3.0, top=2.5)"
    )
