"""A made-up series for benchmarks: a seeded random walk with every column that Binance gives."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from market.candle import candles
from market.timeframe import ONE_MINUTE

#: 2022-01-01T00:00:00Z
START = 1_640_995_200_000


def walk(count: int) -> pa.Table:
    """`count` one-minute candles, two decimals in prices and five in volumes; always the same."""
    rng = np.random.default_rng(1)
    close = np.round(30_000 * np.exp(np.cumsum(rng.normal(0, 5e-4, count))), 2)
    opens = np.concatenate(([30_000.0], close[:-1]))
    volume = np.round(rng.uniform(0.1, 50, count), 5)
    return candles(
        {
            "open_time": START + np.arange(count) * ONE_MINUTE.milliseconds,
            "open": opens,
            "high": np.round(np.maximum(opens, close) + rng.uniform(0, 5, count), 2),
            "low": np.round(np.minimum(opens, close) - rng.uniform(0, 5, count), 2),
            "close": close,
            "volume": volume,
            "quote_volume": np.round(volume * close, 5),
            "trades": rng.integers(1, 5000, count),
            "taker_buy_volume": np.round(volume / 2, 5),
            "taker_buy_quote_volume": np.round(volume * close / 2, 5),
        }
    )
