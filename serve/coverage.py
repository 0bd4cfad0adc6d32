"""``/v1/coverage`` and ``/v1/gaps``: what is known of a series, and what is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from market.instrument import Series
from market.interval import Interval
from serve import examples
from serve.answers import json_response
from serve.parameters import (
    End,
    Exchange,
    Start,
    StrictRoute,
    Symbol,
    TimeframeName,
    instant,
)
from serve.ranges import asked_interval
from serve.records import covered_record, pairs, series_names
from store.market_data import MarketData

router = APIRouter(prefix="/v1", tags=["coverage"], route_class=StrictRoute)


@dataclass(frozen=True, kw_only=True)
class RangeQuery:
    """A series and the part of it asked for; None for the whole of it."""

    series: Series
    interval: Interval | None


async def range_query(
    request: Request,
    exchange: Exchange,
    symbol: Symbol,
    timeframe: TimeframeName,
    start: Start = None,
    end: End = None,
) -> RangeQuery:
    """A series with an optional range; a bound that is not given is the series' own."""
    state = request.app.state
    series = Series.parse(exchange, symbol, timeframe)
    interval = await asked_interval(
        state.market_data, state.clock, series, instant(start, "start"), instant(end, "end")
    )
    return RangeQuery(series=series, interval=interval)


@router.get("/coverage", summary="Coverage ledger", response_class=Response, responses={200: examples.COVERAGE})
async def read_coverage(request: Request, query: Annotated[RangeQuery, Depends(range_query)]) -> Response:
    """The ledger of one series inside a range: present, verified empty, outages; what is in no entry is unknown.

    Without `start` and `end`, from the first to the last known instant.
    """
    market_data: MarketData = request.app.state.market_data
    interval, covered = await market_data.coverage(query.series, query.interval)
    return json_response(
        request,
        {
            **series_names(query.series),
            "start": interval.start,
            "end": interval.end,
            "data": [covered_record(one) for one in covered],
        },
    )


@router.get("/gaps", summary="Gaps", response_class=Response, responses={200: examples.GAPS})
async def read_gaps(request: Request, query: Annotated[RangeQuery, Depends(range_query)]) -> Response:
    """The parts of a range in no state of the ledger, as `[start, end)` pairs: what a backfill would fetch.

    Without `start` and `end`, between the first and the last known instant. `missing` counts candles.
    """
    market_data: MarketData = request.app.state.market_data
    interval, found = await market_data.gaps(query.series, query.interval)
    timeframe = query.series.timeframe
    return json_response(
        request,
        {
            **series_names(query.series),
            "start": interval.start,
            "end": interval.end,
            "complete": not found,
            "missing": sum(timeframe.count(one.start, one.end) for one in found),
            "data": pairs(found),
        },
    )
