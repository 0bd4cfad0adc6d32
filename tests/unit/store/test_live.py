"""Router memory of forming candles: the newest wins, and silence ends it."""

from __future__ import annotations

from typing import Any

from market.candle import candles
from market.instrument import Series
from market.timeframe import ONE_MINUTE
from store.live import LiveCandles

SERIES = Series("binance", "BTC/USDT", ONE_MINUTE)


def row(close: float) -> Any:
    one = {name: [close] for name in ("open", "high", "low", "close", "volume")}
    return candles({"open_time": [1_700_000_000_000 // 60_000 * 60_000], **one})


def test_the_newest_by_exchange_time_wins(clock: Any) -> None:
    live = LiveCandles(clock)
    assert live.get(SERIES) is None
    live.put(SERIES, row(1.0), 1000)
    clock.advance(5)
    live.put(SERIES, row(2.0), 2000)
    live.put(SERIES, row(3.0), 1999)
    assert live.get(SERIES) == (row(2.0), clock.now_ms())
    live.put(SERIES, row(4.0), 2000)
    assert live.get(SERIES) == (row(4.0), clock.now_ms())


def test_silence_ends_it(clock: Any) -> None:
    live = LiveCandles(clock, lifetime_ms=1000)
    live.put(SERIES, row(1.0), 1000)
    clock.advance(1000)
    assert live.get(SERIES) is not None
    clock.advance(1)
    assert live.get(SERIES) is None
