"""``/v1/instruments``: what can be traded where."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from market.errors import NotFound
from market.instrument import check_exchange, check_symbol
from serve import examples
from serve.answers import json_response
from serve.parameters import SomeExchange, SomeSymbol, StrictRoute
from serve.records import instrument_record
from store.market_data import MarketData

router = APIRouter(prefix="/v1", tags=["instruments"], route_class=StrictRoute)


@router.get("/instruments", summary="Instruments", response_class=Response, responses={200: examples.INSTRUMENTS})
async def read_instruments(request: Request, exchange: SomeExchange = None, symbol: SomeSymbol = None) -> Response:
    """Markets as the exchanges described them when last asked; steps and smallest order as exact decimal text."""
    market_data: MarketData = request.app.state.market_data
    found = await market_data.instruments()
    if exchange is not None:
        check_exchange(exchange)
        known = sorted({one.exchange for one in found})
        found = [one for one in found if one.exchange == exchange]
        if not found:
            raise NotFound("exchange", exchange, known)
    if symbol is not None:
        check_symbol(symbol)
        known = sorted({one.symbol for one in found})
        found = [one for one in found if one.symbol == symbol]
        if not found:
            raise NotFound("symbol", symbol, known)
    return json_response(request, {"data": [instrument_record(one) for one in found]})
