"""What requests to Binance cost, from its documentation and from its answers.

Binance counts the weight of all requests of an address, by the minute of its own clock, apart for spot and for each
kind of futures. An answer says what was counted so far (``x-mbx-used-weight-1m``); exchangeInfo says what the limit
is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from exchange.budget import Limit
from exchange.request_limits import Charge, host


class _Part(NamedTuple):
    """One of Binance's limits."""

    name: str
    #: Weight a minute.
    limit: float
    #: Weight of one unit of ccxt's cost.
    unit: float


_SPOT = _Part("spot", 6000, 5)
#: By how ccxt's names of the parts begin; everything else counts as spot.
_PARTS = {"fapi": _Part("usdm", 2400, 1), "dapi": _Part("coinm", 2400, 1), "sapi": _Part("sapi", 12_000, 10)}
_SPOT_OF_THE_US = _Part("spot", 1200, 1)
#: Spot endpoints that have become dearer than ccxt knows.
_DEARER = {"historicalTrades": 25.0, "trades": 25.0, "aggTrades": 4.0}
#: The limits come before the list of symbols, which is megabytes long.
_HEAD = 8192
_RATE_LIMITS = re.compile(r'"rateLimits"\s*:\s*(?P<list>\[[^\]]*\])')
_UNIT_MS = {"SECOND": 1000, "MINUTE": 60_000, "HOUR": 3_600_000, "DAY": 86_400_000}
#: A limit outside of these is not believed.
_SMALLEST, _LARGEST = 10, 10_000_000


class BinanceTariff:
    """Costs by ccxt, in the weights of Binance."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._spot = _SPOT_OF_THE_US if client.id == "binanceus" else _SPOT

    def charge(self, api: str, path: str, cost: float) -> Charge:
        part = _PARTS.get(api[:4], self._spot)
        urls = self._client.urls["api"]
        weight = cost * part.unit
        if part is _SPOT:
            weight = _DEARER.get(path, weight)
        return Charge(
            budget=f"{host(self._client, urls.get(api, urls))} {part.name}",
            limit=Limit(weight=part.limit),
            weight=weight,
        )

    def counted(self, headers: Mapping[str, str]) -> float | None:
        found = {name.lower(): value for name, value in headers.items() if name.lower().startswith("x-mbx-used-w")}
        text = found.get("x-mbx-used-weight-1m") or found.get("x-mbx-used-weight") or ""
        return float(text) if text.isdecimal() and len(text) < 12 else None

    def told(self, url: str, body: str) -> Limit | None:
        """The limit in an answer of exchangeInfo.

        ::

            {"timezone": "UTC", "serverTime": 1634057466123, "rateLimits": [
                {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 1200},
                {"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": 50}], ...}
        """
        found = _RATE_LIMITS.search(body, 0, _HEAD) if "/exchangeInfo" in url else None
        if found is None:
            return None
        try:
            entries = json.loads(found["list"])
            weights = [one for one in entries if one["rateLimitType"] == "REQUEST_WEIGHT"]
            limits = [
                Limit(
                    weight=float(one["limit"]),
                    window_ms=_UNIT_MS[one["interval"]] * int(one["intervalNum"]),
                    told=True,
                )
                for one in weights
                if _SMALLEST <= one["limit"] <= _LARGEST and 1 <= one["intervalNum"] <= 60
            ]
        except (ValueError, KeyError, TypeError):
            # Nothing is lost: the limit we know stays.
            return None
        return min(limits, key=lambda one: one.window_ms, default=None)
