"""What the simulator says of itself, for tests: exchange time, and the faults it has injected.

``GET /simulator/clock`` answers ``{"now_ms": 1717200000000, "speed": 60.0}``; ``GET /simulator/faults`` how often
each rule of the faults file has hit, by its place in it: ``{"0": 2, "1": 0}``. Neither costs weight or is faulty.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from exchange.simulator.faults import Faults


def about_routes(faults: Faults, clock: Callable[[], dict[str, Any]]) -> list[Route]:
    """The two endpoints. `clock` gives the answer of the first."""

    async def time(request: Request) -> Response:
        return Response(orjson.dumps(clock()), media_type="application/json")

    async def hits(request: Request) -> Response:
        return Response(orjson.dumps(faults.counts()), media_type="application/json")

    return [Route("/simulator/clock", time), Route("/simulator/faults", hits)]
