"""Candles of Binance (spot, binance.us, USD-M futures) with every column, from the raw klines.

The request goes through ccxt's own endpoint method, so ccxt's throttle, time-outs and errors apply; only its
parser, which drops quote volume, trade count and taker volumes, is not used.

Binance answers ``startTime``, ``endTime`` and ``limit`` with the first candles at or after the start. A page
shorter than the limit therefore says everything about the range; a full one, everything up to its last row.
"""

from __future__ import annotations

from typing import Any

import ccxt.async_support as ccxt

from exchange.binance.wire import parse_klines
from exchange.ccxt_client import CcxtHistory
from exchange.page import CandlePage
from market.candle import by_open_time, no_candles, open_times_ms
from market.errors import ExchangeUnavailable
from market.interval import Interval
from market.timeframe import Timeframe

#: Exchange ids that speak this protocol.
BINANCE_IDS = ("binance", "binanceus", "binanceusdm")
#: ccxt settings for them. Binance counts weight per minute, so a rolling minute describes its rule: 80 % of the
#: allowance (ccxt's own figure for all of it is 50 ms for one unit of cost) may be used at any pace. ccxt's other
#: way, one request at a time at an even pace, makes a backfill of a year twice as long.
BINANCE_SETTINGS: dict[str, Any] = {
    "rateLimiterAlgorithm": "rollingWindow",
    "rollingWindowSize": 60_000.0,
    "rateLimit": 62.5,
    # "Overloaded, try again": ccxt knows it at Binance's own host name only.
    "exceptions": {"exact": {"-1008": ccxt.OperationFailed}},
}
PAGE = 1000


class BinanceHistory(CcxtHistory):
    """Candles of Binance, with all columns."""

    async def candles(self, symbol: str, timeframe: Timeframe, start_ms: int, end_ms: int) -> CandlePage:
        market = await self._market(symbol)
        if not (market["spot"] or market["linear"]):
            return await super().candles(symbol, timeframe, start_ms, end_ms)
        limit = max(1, min(PAGE, timeframe.count(start_ms, end_ms)))
        return await self._klines(market, timeframe, Interval(start_ms, end_ms), limit)

    async def first_open(self, symbol: str, timeframe: Timeframe, start_ms: int, end_ms: int) -> int | None:
        market = await self._market(symbol)
        if not (market["spot"] or market["linear"]):
            return await super().first_open(symbol, timeframe, start_ms, end_ms)
        page = await self._klines(market, timeframe, Interval(start_ms, end_ms), 1)
        return int(open_times_ms(page.table)[0]) if page.table.num_rows else None

    async def _klines(self, market: Any, timeframe: Timeframe, asked: Interval, limit: int) -> CandlePage:
        self.check_timeframe(timeframe)
        request = {
            "symbol": market["id"],
            "interval": timeframe.name,
            "startTime": asked.start,
            # Binance includes the end.
            "endTime": asked.end - 1,
            "limit": limit,
        }
        endpoint = self._ccxt.publicGetKlines if market["spot"] else self._ccxt.fapiPublicGetKlines
        async with self._calling(market["symbol"]):
            rows = await endpoint(request)
        if not isinstance(rows, list):
            raise ExchangeUnavailable(f"{self.exchange} sent something that is not a list of klines")
        if not rows:
            return CandlePage(table=no_candles(), reaches=asked.end)
        table = by_open_time(parse_klines(rows, timeframe))
        times = open_times_ms(table)
        if times[0] < asked.start or times[-1] >= asked.end:
            raise ExchangeUnavailable(f"{self.exchange} sent klines outside the range it was asked for")
        whole = table.num_rows < limit
        return CandlePage(table=table, reaches=asked.end if whole else timeframe.next(int(times[-1])))
