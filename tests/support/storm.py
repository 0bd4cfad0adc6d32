"""An exchange in a storm: many symbols, a clock that runs fast, a fault of every kind every few seconds."""

from __future__ import annotations

from typing import Any

from exchange.simulator.market import Market
from exchange.simulator.synthetic import SyntheticTape

#: A market with an outage of its own in the hour of the storm: flat minutes, a candle cut short, then no candles.
SEED = 5
#: 2024-06-18T11:20:00Z. The exchange trades nothing from 11:39 on and has no candles from 11:55 to 12:07.
BEGIN_MS = 1_718_709_600_000
SYMBOLS = tuple(f"{base}/USDT" for base in (
    "BTC", "ETH", "SOL", "XRP", "ADA", "DOT", "AVAX", "LINK", "LTC", "UNI",
    "ATOM", "XLM", "NEAR", "APT", "ARB", "OP", "INJ", "TIA", "SUI", "SEI",
))  # fmt: skip
#: The request over REST from which on any may fail: the storm begins when the feed knows the markets. It asks for
#: them ever more seldom, and whoever comes less often than the faults do would meet one each time.
FIRST = 4


def markets() -> dict[str, Market]:
    """What the storm's exchange trades, by symbol: the truth to hold what was kept against."""
    return {symbol: Market(SyntheticTape(SEED, symbol)) for symbol in SYMBOLS}


def faults(seconds: float) -> list[dict[str, Any]]:
    """A fault of every kind, each every few real seconds, until `seconds` have passed, about."""
    rules: list[dict[str, Any]] = [
        {"stream": "*", "every": 4.0, "do": "disconnect"},
        {"stream": "*", "every": 9.0, "do": "close", "code": 1012},
        {"stream": "*", "every": 8.0, "do": "silence", "seconds": 2.0},
        {"stream": "*@trade", "every": 5.0, "do": "silence", "seconds": 3.0, "scope": "stream"},
        {"stream": "*@trade", "every": 0.5, "do": "duplicate", "n": 3},
        {"stream": "*@trade", "every": 0.7, "do": "reorder", "n": 2},
        {"stream": "*@trade", "every": 1.1, "do": "lose", "n": 4},
        {"stream": "*@kline_1m", "every": 1.3, "do": "lose", "n": 2},
        {"stream": "*@kline_1m", "every": 1.7, "do": "duplicate", "n": 2},
        {"stream": "*@kline_1m", "every": 1.9, "do": "reorder", "n": 2},
        {"stream": "*@depth*", "every": 1.5, "do": "lose", "n": 1},
        {"stream": "*@depth*", "every": 1.2, "do": "duplicate", "n": 1},
        {"stream": "*@depth*", "every": 1.4, "do": "reorder", "n": 1},
        {"stream": "*", "every": 0.4, "do": "garbage"},
        {"stream": "*@trade", "every": 2.3, "do": "garbage", "kind": "absurd_price"},
        {"path": "/api/v3/depth", "every": 2.0, "do": "stale", "seconds": 60},
        {"path": "/api/v3/", "every": 3.0, "do": "status", "status": 429, "retry_after": 1},
        {"path": "/api/v3/", "every": 7.0, "do": "status", "status": 503},
        {"path": "/api/v3/historicalTrades", "every": 2.0, "do": "partial"},
        {"path": "/api/v3/klines", "every": 2.5, "do": "partial"},
        {"path": "/api/v3/", "every": 3.5, "do": "half_body"},
        {"path": "/api/v3/", "every": 4.5, "do": "empty"},
        {"path": "/api/v3/", "every": 5.5, "do": "html"},
        {"path": "/api/v3/time", "every": 6.0, "do": "skew", "seconds": 1.0, "milliseconds": 5000},
        {"path": "/api/v3/time", "every": 13.0, "do": "outage", "seconds": 2.0},
    ]  # fmt: skip
    for seed, rule in enumerate(rules, 1):
        rule |= {"seed": seed, "count": max(1, int(seconds / rule["every"]))}
        if rule.get("path") == "/api/v3/":
            rule["from"] = FIRST
    return rules
