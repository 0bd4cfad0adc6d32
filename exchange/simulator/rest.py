"""The REST endpoints of Binance spot market data, with its paging, limits, weights and error bodies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from exchange.binance.wire import (
    Trade,
    encode_agg_trade,
    encode_depth,
    encode_error,
    encode_klines,
    encode_trade,
)
from exchange.simulator.exchange import Exchange
from exchange.simulator.info import contracts_info, spot_info
from exchange.simulator.limits import Verdict, WeightLimit, depth_weight, ticker_weight
from exchange.simulator.market import Market
from exchange.simulator.query import Query, Refused
from exchange.simulator.rest_faults import STALE
from exchange.simulator.ticker import average_price, best_prices, day_statistics, last_price

_SYMBOLS = ("symbol", "symbols", "symbolStatus")


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One path, its parameters, what it costs and what it answers."""

    path: str
    answer: Callable[[Exchange, Query], Any]
    parameters: tuple[str, ...] = ()
    weight: Callable[[Query], int] = lambda query: 1


def rest_routes(exchange: Exchange, limit: WeightLimit) -> list[Route]:
    """A route for each endpoint."""
    return [Route(one.path, _handler(one, exchange, limit), methods=["GET"]) for one in ENDPOINTS]


def _handler(endpoint: Endpoint, exchange: Exchange, limit: WeightLimit) -> Callable[[Request], Any]:
    async def handle(request: Request) -> Response:
        address = request.client.host if request.client else ""
        try:
            query = Query(request.query_params.multi_items(), endpoint.parameters)
            weight = endpoint.weight(query)
        except Refused as refused:
            return json_answer(encode_error(refused.code, refused.message), refused.status, limit.spend(address, 1))
        verdict = limit.spend(address, weight)
        if verdict.status != 200:
            return over_limit(verdict, limit.limit)
        try:
            stale = request.scope.get(STALE)
            seen = exchange if stale is None else exchange.earlier(int(stale * 1000))
            return json_answer(endpoint.answer(seen, query), 200, verdict)
        except Refused as refused:
            return json_answer(encode_error(refused.code, refused.message), refused.status, verdict)

    return handle


async def broken(request: Request, exc: Exception) -> Response:
    """The answer where a recording cannot be read after all."""
    return Response(
        orjson.dumps(encode_error(-1000, f"An unknown error occurred while processing the request: {exc}")),
        500,
        media_type="application/json;charset=UTF-8",
    )


async def not_found(request: Request, exc: Exception) -> Response:
    """The answer to an unknown path."""
    return Response(
        orjson.dumps({"timestamp": 0, "status": 404, "error": "Not Found", "path": request.url.path}),
        404,
        media_type="application/json;charset=UTF-8",
    )


def json_answer(body: Any, status: int, verdict: Verdict) -> Response:
    """An answer with the headers that tell the weight used."""
    return Response(
        orjson.dumps(body),
        status,
        {"x-mbx-used-weight": str(verdict.used), "x-mbx-used-weight-1m": str(verdict.used)},
        media_type="application/json;charset=UTF-8",
    )


def over_limit(verdict: Verdict, limit: int) -> Response:
    """The answer to who has asked too much."""
    if verdict.status == 418:
        message = (
            f"Way too much request weight used; IP banned until {verdict.banned_until_ms}. "
            "Please use WebSocket Streams for live updates to avoid bans."
        )
    else:
        message = (
            f"Too much request weight used; current limit is {limit} request weight per 1 MINUTE. "
            "Please use WebSocket Streams for live updates to avoid polling the API."
        )
    response = json_answer(encode_error(-1003, message), verdict.status, verdict)
    response.headers["retry-after"] = str(verdict.retry_after)
    return response


def _market(exchange: Exchange, symbol: str) -> Market:
    market = exchange.market(symbol)
    if market is None:
        raise Refused(-1121, "Invalid symbol.")
    return market


def _markets(exchange: Exchange, query: Query) -> list[Market]:
    symbols = query.symbols()
    return exchange.markets() if symbols is None else [_market(exchange, symbol) for symbol in symbols]


def _one_or_all(exchange: Exchange, query: Query, answer: Callable[[Market], Any]) -> Any:
    """An object for ``symbol``, a list for ``symbols`` or none."""
    answers = [answer(market) for market in _markets(exchange, query)]
    return answers[0] if "symbol" in query else answers


def _info(exchange: Exchange, query: Query) -> Any:
    symbols = query.symbols()
    if symbols is not None and "permissions" in query:
        raise Refused(-1128, "Combination of optional parameters invalid.")
    permissions = query.text("permissions")
    markets = _markets(exchange, query)
    if permissions is not None and "SPOT" not in permissions:
        markets = []
    return spot_info([market.listing for market in markets], exchange.now_ms(), exchange.allowance)


def _klines(exchange: Exchange, query: Query) -> Any:
    market = _market(exchange, query.symbol())
    timeframe = query.interval()
    start, end = query.number("startTime"), query.number("endTime")
    limit = query.limit(500, 1000)
    now_ms = exchange.now_ms()
    if start is not None and start > now_ms:
        return []
    # Binance's endTime is inclusive.
    stop = None if end is None or end >= now_ms else end + 1
    table = market.klines(timeframe, now_ms, start, stop, limit)
    return encode_klines(table, timeframe)


def _agg_trades(exchange: Exchange, query: Query) -> Any:
    market = _market(exchange, query.symbol())
    from_id, start, end = (query.number(name) for name in ("fromId", "startTime", "endTime"))
    limit = query.limit(500, 1000)
    now_ms = exchange.now_ms()
    until = now_ms + 1 if end is None else min(end, now_ms) + 1
    if from_id is not None:
        if start is not None or end is not None:
            raise Refused(-1128, "Combination of optional parameters invalid.")
        trades = market.agg_trades_from(from_id, now_ms)
    elif start is not None:
        trades = market.agg_trades(start, until)
    else:
        return [encode_agg_trade(one) for one in _newest(market, until, limit)]
    return [encode_agg_trade(one) for one in islice(trades, limit)]


def _newest(market: Market, end_ms: int, limit: int) -> list[Trade]:
    newest = list(islice(market.newest_agg_trades(end_ms), limit))
    newest.reverse()
    return newest


def _trades(exchange: Exchange, query: Query) -> Any:
    """The newest single trades, or those from ``fromId`` on."""
    market = _market(exchange, query.symbol())
    limit = query.limit(500, 1000)
    now_ms = exchange.now_ms()
    from_id = query.number("fromId")
    if from_id is not None:
        return [encode_trade(one) for one in islice(market.trades_from(from_id, now_ms), limit)]
    single = [one for aggregated in _newest(market, now_ms + 1, limit) for one in market.single(aggregated)]
    return [encode_trade(one) for one in single[-limit:]]


def _depth(exchange: Exchange, query: Query) -> Any:
    market = _market(exchange, query.symbol())
    return encode_depth(market.book.snapshot(exchange.now_ms(), query.limit(100, 5000)))


def _day(exchange: Exchange, query: Query) -> Any:
    kind = query.text("type") or "FULL"
    if kind not in ("FULL", "MINI"):
        raise Refused(-1139, "Invalid ticker type.")
    now_ms = exchange.now_ms()
    return _one_or_all(exchange, query, lambda market: day_statistics(market, now_ms, mini=kind == "MINI"))


def _price(exchange: Exchange, query: Query) -> Any:
    now_ms = exchange.now_ms()
    return _one_or_all(exchange, query, lambda market: last_price(market, now_ms))


def _best(exchange: Exchange, query: Query) -> Any:
    now_ms = exchange.now_ms()
    return _one_or_all(exchange, query, lambda market: best_prices(market, now_ms))


def _average(exchange: Exchange, query: Query) -> Any:
    return average_price(_market(exchange, query.symbol()), exchange.now_ms())


def _ping(exchange: Exchange, query: Query) -> Any:
    return {}


def _time(exchange: Exchange, query: Query) -> Any:
    return {"serverTime": exchange.now_ms()}


def _no_contracts(exchange: Exchange, query: Query) -> Any:
    return contracts_info([], exchange.now_ms(), exchange.allowance)


def _status(exchange: Exchange, query: Query) -> Any:
    return {"status": 0, "msg": "normal"}


def _day_weight(query: Query) -> int:
    symbols = query.symbols()
    return ticker_weight(None if symbols is None else len(symbols))


_KLINES = ("symbol", "interval", "startTime", "endTime", "limit", "timeZone")

ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(path="/api/v3/ping", answer=_ping),
    Endpoint(path="/api/v3/time", answer=_time),
    Endpoint(
        path="/api/v3/exchangeInfo",
        answer=_info,
        parameters=(*_SYMBOLS, "permissions", "showPermissionSets"),
        weight=lambda query: 20,
    ),
    Endpoint(path="/api/v3/klines", answer=_klines, parameters=_KLINES, weight=lambda query: 2),
    Endpoint(path="/api/v3/uiKlines", answer=_klines, parameters=_KLINES, weight=lambda query: 2),
    Endpoint(
        path="/api/v3/aggTrades",
        answer=_agg_trades,
        parameters=("symbol", "fromId", "startTime", "endTime", "limit"),
        weight=lambda query: 4,
    ),
    Endpoint(path="/api/v3/trades", answer=_trades, parameters=("symbol", "limit"), weight=lambda query: 25),
    Endpoint(
        path="/api/v3/historicalTrades",
        answer=_trades,
        parameters=("symbol", "limit", "fromId"),
        weight=lambda query: 25,
    ),
    Endpoint(
        path="/api/v3/depth",
        answer=_depth,
        parameters=("symbol", "limit", "symbolStatus"),
        weight=lambda query: depth_weight(query.limit(100, 5000)),
    ),
    Endpoint(path="/api/v3/avgPrice", answer=_average, parameters=("symbol",), weight=lambda query: 2),
    Endpoint(path="/api/v3/ticker/24hr", answer=_day, parameters=(*_SYMBOLS, "type"), weight=_day_weight),
    Endpoint(
        path="/api/v3/ticker/price",
        answer=_price,
        parameters=_SYMBOLS,
        weight=lambda query: 2 if "symbol" in query else 4,
    ),
    Endpoint(
        path="/api/v3/ticker/bookTicker",
        answer=_best,
        parameters=_SYMBOLS,
        weight=lambda query: 2 if "symbol" in query else 4,
    ),
    # What a client of the whole Binance looks at while loading its markets; there are none but spot ones here.
    Endpoint(path="/fapi/v1/ping", answer=_ping),
    Endpoint(path="/fapi/v1/time", answer=_time),
    Endpoint(path="/fapi/v1/exchangeInfo", answer=_no_contracts),
    Endpoint(path="/dapi/v1/ping", answer=_ping),
    Endpoint(path="/dapi/v1/time", answer=_time),
    Endpoint(path="/dapi/v1/exchangeInfo", answer=_no_contracts),
    Endpoint(path="/sapi/v1/system/status", answer=_status),
)
