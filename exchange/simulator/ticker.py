"""What Binance's ticker endpoints say of a market: 24-hour statistics, last price, best bid and ask, average."""

from __future__ import annotations

from typing import Any

import numpy as np

from exchange.binance.wire import decimal
from exchange.simulator.market import Market
from market.candle import floats
from market.rollup import decimal_sums
from market.timeframe import DAY_MS, MINUTE_MS, ONE_MINUTE

#: Fields of the short form (``type=MINI``).
_MINI = (
    *("symbol", "openPrice", "highPrice", "lowPrice", "lastPrice", "volume", "quoteVolume"),
    *("openTime", "closeTime", "firstId", "lastId", "count"),
)
_AVERAGE_MINUTES = 5


def day_statistics(market: Market, now_ms: int, *, mini: bool = False) -> dict[str, Any]:
    """One answer of ``GET /api/v3/ticker/24hr``, over the minutes that opened in the last 24 hours.

    ::

        {"symbol": "BNBBTC", "priceChange": "-94.99999800", "priceChangePercent": "-95.960",
         "weightedAvgPrice": "0.29628482", "prevClosePrice": "0.10002000", "lastPrice": "4.00000200",
         "lastQty": "200.00000000", "bidPrice": "4.00000000", "bidQty": "100.00000000", "askPrice": "4.00000200",
         "askQty": "100.00000000", "openPrice": "99.00000000", "highPrice": "100.00000000",
         "lowPrice": "0.10000000", "volume": "8913.30000000", "quoteVolume": "15.30000000",
         "openTime": 1499783499040, "closeTime": 1499869899040, "firstId": 28385, "lastId": 28460, "count": 76}
    """
    since = ONE_MINUTE.ceil(now_ms - DAY_MS)
    table = market.minutes(now_ms, since, now_ms + 1)
    last = market.last_price(now_ms) or 0.0
    before = market.klines(ONE_MINUTE, now_ms, None, since, 1)
    previous = before.column("close")[0].as_py() if before.num_rows else 0.0
    traded = table.num_rows > 0
    open_ = floats(table, "open")[0] if traded else last
    volume, quote = (_sum(floats(table, name)) for name in ("volume", "quote_volume"))
    count = int(table.column("trades").to_numpy().sum()) if traded else 0
    first_id = market.first_trade_id(since)
    newest = next(market.newest_agg_trades(now_ms + 1), None)
    answer = {
        "symbol": market.listing.exchange_symbol,
        "priceChange": decimal(last - open_),
        "priceChangePercent": f"{(last - open_) / open_ * 100 if open_ else 0:.3f}",
        "weightedAvgPrice": decimal(quote / volume if volume else last),
        "prevClosePrice": decimal(previous),
        "lastPrice": decimal(last),
        "lastQty": decimal(newest.quantity if newest else 0.0),
        **_best(market, now_ms),
        "openPrice": decimal(open_),
        "highPrice": decimal(floats(table, "high").max() if traded else last),
        "lowPrice": decimal(floats(table, "low").min() if traded else last),
        "volume": decimal(volume),
        "quoteVolume": decimal(quote),
        "openTime": now_ms - DAY_MS,
        "closeTime": now_ms,
        "firstId": first_id if count else -1,
        "lastId": first_id + count - 1 if count else -1,
        "count": count,
    }
    return {name: answer[name] for name in _MINI} if mini else answer


def last_price(market: Market, now_ms: int) -> dict[str, Any]:
    """One answer of ``GET /api/v3/ticker/price``: ``{"symbol": "LTCBTC", "price": "4.00000200"}``."""
    return {"symbol": market.listing.exchange_symbol, "price": decimal(market.last_price(now_ms) or 0.0)}


def best_prices(market: Market, now_ms: int) -> dict[str, Any]:
    """One answer of ``GET /api/v3/ticker/bookTicker``.

    ::

        {"symbol": "LTCBTC", "bidPrice": "4.00000000", "bidQty": "431.00000000", "askPrice": "4.00000200",
         "askQty": "9.00000000"}
    """
    return {"symbol": market.listing.exchange_symbol, **_best(market, now_ms)}


def average_price(market: Market, now_ms: int) -> dict[str, Any]:
    """``GET /api/v3/avgPrice``: ``{"mins": 5, "price": "9.35751834", "closeTime": 1694061154503}``."""
    table = market.minutes(now_ms, ONE_MINUTE.ceil(now_ms - _AVERAGE_MINUTES * MINUTE_MS), now_ms + 1)
    volume, quote = (_sum(floats(table, name)) for name in ("volume", "quote_volume"))
    price = quote / volume if volume else market.last_price(now_ms) or 0.0
    newest = next(market.newest_agg_trades(now_ms + 1), None)
    return {
        "mins": _AVERAGE_MINUTES,
        "price": decimal(price),
        "closeTime": newest.time if newest else now_ms,
    }


def _best(market: Market, now_ms: int) -> dict[str, str]:
    book = market.book.snapshot(now_ms, 1)
    bid, bid_quantity = book.bids[0] if book.bids else (0.0, 0.0)
    ask, ask_quantity = book.asks[0] if book.asks else (0.0, 0.0)
    return {
        "bidPrice": decimal(bid),
        "bidQty": decimal(bid_quantity),
        "askPrice": decimal(ask),
        "askQty": decimal(ask_quantity),
    }


def _sum(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    return float(decimal_sums(values, np.zeros(1, np.int64))[0]) if len(values) else 0.0
