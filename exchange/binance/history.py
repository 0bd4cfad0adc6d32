"""Candles of Binance (spot, binance.us, USD-M futures) with every column, from the raw klines; its market now.

The request goes through ccxt's own endpoint method, so ccxt's throttle, time-outs and errors apply; only its
parser, which drops quote volume, trade count and taker volumes, is not used.

Binance answers ``startTime``, ``endTime`` and ``limit`` with the first candles at or after the start. A page
shorter than the limit therefore says everything about the range; a full one, everything up to its last row.
"""

from __future__ import annotations

from typing import Any

import ccxt.async_support as ccxt

from exchange.binance.rest import parse_agg_trades, parse_best, parse_book, parse_day, parse_trades
from exchange.binance.wire import parse_klines
from exchange.ccxt_client import CcxtHistory
from exchange.page import CandlePage
from exchange.trade_page import TradePage
from market.book_message import BookSnapshot
from market.candle import by_open_time, no_candles, open_times_ms
from market.errors import BadInput, ExchangeUnavailable
from market.interval import Interval
from market.ticker import Ticker
from market.timeframe import Timeframe
from market.trade import Trade

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
#: Depths of an order book: spot serves any up to the last, the futures exactly these.
_SPOT_LEVELS = 5000
_FUTURES_LEVELS = (5, 10, 20, 50, 100, 500, 1000)


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

    async def trades_after(self, symbol: str, last: Trade | None, *, limit: int = 1000) -> TradePage:
        """The trades that follow `last`, `limit` at most (1,000); without `last` the newest.

        Ids count up by one: single trades of spot, aggregated ones of the futures.
        """
        market = await self._market(symbol)
        if not (market["spot"] or market["linear"]):
            return await super().trades_after(symbol, last, limit=limit)
        if last is not None and not isinstance(last.id, int):
            raise BadInput("last", last.id, f"a trade of {self.exchange}: its ids are whole numbers")
        limit = max(1, min(PAGE, limit))
        following = None if last is None else int(last.id) + 1
        request = {"symbol": market["id"], "limit": limit}
        if following is not None:
            request["fromId"] = following
        async with self._calling(symbol):
            if market["spot"]:
                rows = await self._old_trades(request)
            else:
                rows = await self._ccxt.fapiPublicGetAggTrades(request)
        parse = parse_trades if market["spot"] else parse_agg_trades
        trades = parse(rows, self._clock.now_ms())
        if following is not None and trades and int(trades[0].id) < following:
            raise ExchangeUnavailable(f"{self.exchange} sent older trades than it was asked for")
        return TradePage(
            trades=trades,
            complete=following is None or len(trades) < limit,
            missing=following is not None and bool(trades) and trades[0].id != following,
        )

    async def _old_trades(self, request: dict[str, Any]) -> Any:
        """``GET historicalTrades``. It has needed no key since 2023, but ccxt does not send it without one."""
        cost = self._ccxt.calculate_rate_limiter_cost("public", "GET", "historicalTrades", request, {"cost": 5})
        await self._ccxt.throttle(cost)
        url = f"{self._ccxt.urls['api']['public']}/historicalTrades?{self._ccxt.urlencode(request)}"
        return await self._ccxt.fetch(url, "GET")

    async def order_book(self, symbol: str, levels: int = 1000) -> BookSnapshot:
        """The book now, with at most so many levels on each side and the number of the last change in it."""
        market = await self._market(symbol)
        if not (market["spot"] or market["linear"]):
            return await super().order_book(symbol, levels)
        limit = max(1, min(levels, _SPOT_LEVELS))
        if not market["spot"]:
            limit = next((one for one in _FUTURES_LEVELS if one >= levels), _FUTURES_LEVELS[-1])
        endpoint = self._ccxt.publicGetDepth if market["spot"] else self._ccxt.fapiPublicGetDepth
        async with self._calling(symbol):
            answer = await endpoint({"symbol": market["id"], "limit": limit})
        return parse_book(answer, levels, self._clock.now_ms())

    async def ticker(self, symbol: str) -> Ticker:
        """Best prices and the last 24 hours; two requests at the futures, which serve them apart."""
        market = await self._market(symbol)
        if not (market["spot"] or market["linear"]):
            return await super().ticker(symbol)
        request = {"symbol": market["id"]}
        endpoint = self._ccxt.publicGetTicker24hr if market["spot"] else self._ccxt.fapiPublicGetTicker24hr
        async with self._calling(symbol):
            day = parse_day(await endpoint(request), self._clock.now_ms())
        if market["spot"]:
            return day
        async with self._calling(symbol):
            best = parse_best(await self._ccxt.fapiPublicGetTickerBookTicker(request), self._clock.now_ms())
        return best.over(day)

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
