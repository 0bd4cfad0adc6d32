"""Requests to a replay: order books as recorded, and what else follows from the messages played so far.

Spot and USD-M futures, whichever was recorded. Trades, aggregated trades and candles are those of the session's own
messages, so there are none from before it, and none after what has been played.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from exchange.binance.wire import encode_error
from exchange.simulator.info import contracts_info, spot_info
from exchange.simulator.limits import Allowance, WeightLimit, depth_weight
from exchange.simulator.market import Listing
from exchange.simulator.query import Query, Refused
from exchange.simulator.recorded import split_symbol
from exchange.simulator.replay_streams import Replay
from exchange.simulator.rest import json_answer, over_limit
from exchange.simulator.rest_faults import STALE
from exchange.simulator.session import Session

_KLINE_ROW = ("t", "o", "h", "l", "c", "v", "T", "q", "n", "V", "Q")
_RANGE = ("symbol", "fromId", "startTime", "endTime", "limit", "interval", "timeZone")
#: Lines that are looked at for which symbols there are, and how many decimals they have.
_SAMPLE = 20_000

Event = dict[str, Any]
Answer = Callable[[Query, float], Awaitable[Any]]


class ReplayRest:
    """The endpoints of a replay."""

    def __init__(self, replay: Replay, limit: WeightLimit, allowance: Allowance) -> None:
        self._replay = replay
        self._limit = limit
        self._allowance = allowance
        self._listings: list[Listing] | None = None

    def routes(self) -> list[Route]:
        """A route for each endpoint, of spot under ``/api/``, of futures under ``/fapi/``."""
        found = [Route("/sapi/v1/system/status", self._handler(_normal, ()), methods=["GET"])]
        for family in ("/api/v3", "/api/v1", "/fapi/v1", "/dapi/v1"):
            is_own = family.startswith("/fapi") == self._replay.session.is_futures and family != "/dapi/v1"
            info = self._info if is_own else self._nothing
            found += [
                Route(f"{family}/{name}", self._handler(answer, known), methods=["GET"])
                for name, answer, known in (
                    ("ping", _empty, ()),
                    ("time", self._time, ()),
                    ("exchangeInfo", info, ("symbol", "symbols", "permissions", "showPermissionSets")),
                    ("depth", self._depth, ("symbol", "limit")),
                    ("trades", self._trades, _RANGE),
                    ("historicalTrades", self._trades, _RANGE),
                    ("aggTrades", self._agg_trades, _RANGE),
                    ("klines", self._klines, _RANGE),
                )
            ]
        return found

    def _handler(self, answer: Answer, known: tuple[str, ...]) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            address = request.client.host if request.client else ""
            weight = 1
            try:
                query = Query(request.query_params.multi_items(), known)
                if answer == self._depth:
                    weight = depth_weight(query.limit(100, 5000))
                verdict = self._limit.spend(address, weight)
                if verdict.status != 200:
                    return over_limit(verdict, self._limit.limit)
                return json_answer(await answer(query, request.scope.get(STALE, 0.0)), 200, verdict)
            except Refused as refused:
                body = encode_error(refused.code, refused.message)
                return json_answer(body, refused.status, self._limit.spend(address, 0))

        return handle

    async def _time(self, query: Query, stale: float) -> Any:
        return {"serverTime": self._replay.playback.now_ms}

    async def _info(self, query: Query, stale: float) -> Any:
        if self._listings is None:
            self._listings = listings_of(self._replay.session)
        wanted = query.symbols()
        kept = [one for one in self._listings if wanted is None or one.exchange_symbol in wanted]
        make = contracts_info if self._replay.session.is_futures else spot_info
        return make(kept, self._replay.playback.now_ms, self._allowance)

    async def _nothing(self, query: Query, stale: float) -> Any:
        return contracts_info([], self._replay.playback.now_ms, self._allowance)

    async def _depth(self, query: Query, stale: float) -> Any:
        book = await self._replay.playback.order_book(query.symbol(), query.limit(100, 5000), stale)
        if book is None:
            raise Refused(-1121, "Invalid symbol.")
        return book

    def _played(self, kind: str, symbol: str) -> list[Event]:
        """The messages of a type that were played."""
        upto = self._replay.playback.position
        return [event for at, event in self._replay.session.events(kind) if at < upto and event["s"] == symbol]

    async def _trades(self, query: Query, stale: float) -> Any:
        trades, from_id = self._played("trade", query.symbol()), query.number("fromId")
        return [_trade_row(one) for one in _page(trades, "t", from_id, query.limit(500, 1000))]

    async def _agg_trades(self, query: Query, stale: float) -> Any:
        start, end, from_id = (query.number(name) for name in ("startTime", "endTime", "fromId"))
        trades = [
            one
            for one in self._played("aggTrade", query.symbol())
            if (start is None or one["T"] >= start) and (end is None or one["T"] <= end)
        ]
        first = trades[0]["a"] if from_id is None and start is not None and trades else from_id
        rows = _page(trades, "a", first, query.limit(500, 1000))
        return [{name: one[name] for name in "apqflTmM" if name in one} for one in rows]

    async def _klines(self, query: Query, stale: float) -> Any:
        """Each candle as it was described last."""
        interval = query.required("interval")
        start, end = query.number("startTime"), query.number("endTime")
        found: dict[int, Event] = {}
        for event in self._played("kline", query.symbol()):
            kline = event["k"]
            if kline["i"] == interval and (start or 0) <= kline["t"] and (end is None or kline["t"] <= end):
                found[kline["t"]] = kline
        rows = [[*(found[at][name] for name in _KLINE_ROW), "0"] for at in sorted(found)]
        limit = query.limit(500, 1000)
        return rows[:limit] if start is not None else rows[-limit:]


async def _empty(query: Query, stale: float) -> Any:
    return {}


async def _normal(query: Query, stale: float) -> Any:
    return {"status": 0, "msg": "normal"}


def _page(events: list[Event], id_: str, from_id: int | None, limit: int) -> list[Event]:
    """The first from an id on, or else the last."""
    if from_id is None:
        return events[-limit:]
    return [one for one in events if one[id_] >= from_id][:limit]


def _trade_row(event: Event) -> Event:
    return {
        "id": event["t"],
        "price": event["p"],
        "qty": event["q"],
        "quoteQty": f"{Decimal(event['p']) * Decimal(event['q']):.8f}",
        "time": event["T"],
        "isBuyerMaker": event["m"],
        "isBestMatch": True,
    }


def listings_of(session: Session) -> list[Listing]:
    """The symbols of a session of Binance, with as many decimals as its messages use."""
    prices: dict[str, set[str]] = {}
    quantities: dict[str, set[str]] = {}
    for event in session.sample(_SAMPLE):
        symbol, kind = event["s"], event["e"]
        of_price, of_quantity = prices.setdefault(symbol, set()), quantities.setdefault(symbol, set())
        if kind in ("trade", "aggTrade"):
            of_price.add(event["p"])
            of_quantity.add(event["q"])
        for price, quantity in (*event["b"], *event["a"]) if kind == "depthUpdate" else ():
            of_price.add(price)
            of_quantity.add(quantity)
    listings = []
    for symbol in sorted(prices):
        base, quote = split_symbol(symbol)
        decimals = (max(map(_decimals, texts), default=8) for texts in (prices[symbol], quantities[symbol]))
        price_decimals, lot_decimals = decimals
        listings.append(Listing(base=base, quote=quote, price_decimals=price_decimals, lot_decimals=lot_decimals))
    return listings


def _decimals(text: str) -> int:
    return len(text.partition(".")[2].rstrip("0"))
