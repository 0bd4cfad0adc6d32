"""``/v1/series``: what is stored."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from market.errors import NotFound
from market.instrument import check_exchange, check_symbol
from market.timeframe import Timeframe
from serve import examples
from serve.answers import json_response
from serve.parameters import SomeExchange, SomeSymbol, SomeTimeframe, StrictRoute
from serve.records import series_record
from store.answer import SeriesInfo
from store.market_data import MarketData

router = APIRouter(prefix="/v1", tags=["series"], route_class=StrictRoute)


@router.get("/series", summary="Stored series", response_class=Response, responses={200: examples.SERIES})
async def read_series(
    request: Request,
    exchange: SomeExchange = None,
    symbol: SomeSymbol = None,
    timeframe: SomeTimeframe = None,
) -> Response:
    """Every stored series with its rows, first and last open time, revision, sources and missing minutes."""
    market_data: MarketData = request.app.state.market_data
    infos = await market_data.series()
    if exchange is not None:
        check_exchange(exchange)
        infos = _only(infos, "exchange", exchange, [info.series.exchange for info in infos])
    if symbol is not None:
        check_symbol(symbol)
        infos = _only(infos, "symbol", symbol, [info.series.symbol for info in infos])
    if timeframe is not None:
        Timeframe.parse(timeframe)
        infos = _only(infos, "timeframe", timeframe, [info.series.timeframe.name for info in infos])
    return json_response(request, {"data": [series_record(info) for info in infos]})


def _only(infos: list[SeriesInfo], field: str, wanted: str, names: list[str]) -> list[SeriesInfo]:
    kept = [info for info, name in zip(infos, names, strict=True) if name == wanted]
    if not kept:
        raise NotFound(field, wanted, sorted(set(names)))
    return kept
