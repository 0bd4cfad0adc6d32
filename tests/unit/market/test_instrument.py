"""Series and instruments: which names are accepted, and where three-day candles count from."""

from __future__ import annotations

import pytest

from market.errors import BadInput
from market.instrument import Instrument, Series
from market.timeframe import DAY_MS, DEFAULT_ORIGIN_MS, TIMEFRAMES


@pytest.mark.parametrize("symbol", ["BTC/USDT", "1000PEPE/USDT", "BTC/USDT:USDT", "BTC/USDT:USDT-231229-30000-C"])
def test_series_of_outside_names(symbol: str) -> None:
    one = Series.parse("binance", symbol, "1m")
    assert str(one) == f"binance {symbol} 1m"
    assert one.at(TIMEFRAMES["1h"]) == Series("binance", symbol, TIMEFRAMES["1h"])


@pytest.mark.parametrize(
    ("exchange", "symbol", "timeframe", "field"),
    [
        ("", "BTC/USDT", "1m", "exchange"),
        ("Binance", "BTC/USDT", "1m", "exchange"),
        ("../etc", "BTC/USDT", "1m", "exchange"),
        ("binance\n", "BTC/USDT", "1m", "exchange"),
        ("binance", "BTCUSDT", "1m", "symbol"),
        ("binance", "BTC/", "1m", "symbol"),
        ("binance", "BTC/../USDT", "1m", "symbol"),
        ("binance", "BTC/USDT\n", "1m", "symbol"),
        ("binance", "BTC /USDT", "1m", "symbol"),
        ("binance", "BTC/USDT", "1H", "timeframe"),
    ],
)
def test_other_names_are_refused(exchange: str, symbol: str, timeframe: str, field: str) -> None:
    with pytest.raises(BadInput) as refused:
        Series.parse(exchange, symbol, timeframe)
    assert refused.value.field == field


def test_three_day_candles_count_from_the_listing_day() -> None:
    names = {
        "exchange": "binance",
        "symbol": "ARB/USDT",
        "exchange_symbol": "ARBUSDT",
        "base": "ARB",
        "quote": "USDT",
    }
    listed = 1_679_583_600_000  # 2023-03-23 15:00 UTC
    assert Instrument(**names, listed_ms=listed).origin_ms == listed // DAY_MS * DAY_MS
    assert Instrument(**names).origin_ms == DEFAULT_ORIGIN_MS
