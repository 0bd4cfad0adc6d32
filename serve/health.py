"""``/v1/health`` and ``/v1/ready``: is the process alive, and can it answer."""

from __future__ import annotations

from dataclasses import asdict
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from market.errors import ChandleryError
from serve import examples
from serve.parameters import StrictRoute
from store.market_data import MarketData

router = APIRouter(prefix="/v1", tags=["service"], route_class=StrictRoute)


@router.get("/health", summary="Liveness and facts", response_class=Response, responses={200: examples.HEALTH})
async def read_health(request: Request) -> Response:
    """Answers 200 as long as the process lives; `store.ok` says whether the store does too.

    `cache` tells how the tiers of this process fare: the safety and operating state, bytes of process memory, and
    hits, misses, errors, evictions and bytes by tier and kind of values.
    """
    return _json(HTTPStatus.OK, await _facts(request))


@router.get(
    "/ready",
    summary="Readiness",
    response_class=Response,
    responses={200: examples.READY, 503: {"description": "The store cannot answer; `store.detail` says why"}},
)
async def read_ready(request: Request) -> Response:
    """200 when reads will be answered, 503 otherwise; for load balancers and start-up scripts."""
    facts = await _facts(request)
    ready = facts["store"]["ok"]
    status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
    return _json(status, {"ready": ready, "store": {key: facts["store"][key] for key in ("ok", "detail")}})


async def _facts(request: Request) -> dict[str, Any]:
    market_data: MarketData = request.app.state.market_data
    try:
        store = asdict(await market_data.health())
    except ChandleryError as error:
        store = {"ok": False, "detail": str(error)}
    tiers = market_data.tiers()
    return {
        "status": "ok",
        "version": request.app.version,
        "now": request.app.state.clock.now_ms(),
        "store": store,
        "cache": None if tiers is None else asdict(tiers),
    }


def _json(status: HTTPStatus, content: dict[str, Any]) -> Response:
    retry = {"Retry-After": "1"} if status == HTTPStatus.SERVICE_UNAVAILABLE else {}
    return Response(
        orjson.dumps(content), status, {"Cache-Control": "no-store", **retry}, media_type="application/json"
    )
