"""Every request of a ccxt client through the shared budget of its host.

ccxt works out the cost of a request (``calculate_rate_limiter_cost``), waits (``throttle``), sends, and shows each
answer to ``on_rest_response``. These three are replaced on the client, so that no request goes around the budget,
whichever of ccxt's methods sends it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from exchange.budget import BudgetStatus, Limit, Purpose
from exchange.errors import wait_told
from exchange.shared_budget import LONGEST_WAIT, SharedBudget
from market.errors import RateLimited

#: Where ccxt only knows a pace: so many requests at that pace may come at once, and a window has a second at least.
_REQUESTS_AT_ONCE = 10
_SHORTEST_WINDOW_MS = 1000
#: Of a refusal's body, as much as is looked at.
_TEXT = 2000


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What one request costs, and where."""

    #: Host, and kind of the limit.
    budget: str
    #: What is assumed of the limit until the exchange tells.
    limit: Limit
    weight: float


class Tariff(Protocol):
    """What the requests to one exchange cost, and what its answers say of that."""

    def charge(self, api: str, path: str, cost: float) -> Charge:
        """The cost of a request.

        :param api: ccxt's name of a part of the exchange.
        :param path: ccxt's name of the endpoint.
        :param cost: by ccxt, in its own units.
        """
        ...

    def counted(self, headers: Mapping[str, str]) -> float | None:
        """The weight that the exchange has counted in its current window; None where it does not say."""
        ...

    def told(self, url: str, body: str) -> Limit | None:
        """The limit, if this answer tells it."""
        ...


class PlainTariff:
    """Of any exchange: ccxt's costs, at ccxt's pace."""

    def __init__(self, client: Any) -> None:
        pace_ms = float(client.rateLimit)
        window_ms = round(max(_SHORTEST_WINDOW_MS, _REQUESTS_AT_ONCE * pace_ms))
        self._limit = Limit(weight=window_ms / pace_ms, window_ms=window_ms)
        self._budget = host(client, client.urls["api"])

    def charge(self, api: str, path: str, cost: float) -> Charge:
        return Charge(budget=self._budget, limit=self._limit, weight=cost)

    def counted(self, headers: Mapping[str, str]) -> float | None:
        return None

    def told(self, url: str, body: str) -> Limit | None:
        return None


def host(client: Any, urls: Any) -> str:
    """Host and port of the first address in a tree of ccxt's; ccxt's id where there is none."""
    while isinstance(urls, dict | list) and urls:
        urls = next(iter(urls.values())) if isinstance(urls, dict) else urls[0]
    if not isinstance(urls, str):
        return str(client.id)
    return urlsplit(client.implode_hostname(urls)).netloc or str(client.id)


class _Sent(NamedTuple):
    """A request under way."""

    budget: SharedBudget
    weight: float
    #: Epoch milliseconds.
    sent_ms: int


#: ccxt waits, sends and receives in one task; so does each request know its own answer.
_UNDER_WAY: ContextVar[_Sent | None] = ContextVar("request under way", default=None)


class RequestLimits:
    """The shared budgets that the requests of one ccxt client go through.

    :param folder: where the records of all budgets are; every process of the machine should use the same one.
    :param purpose: what the client's requests are for.
    """

    def __init__(
        self, client: Any, tariff: Tariff, folder: Path, purpose: Purpose, longest_wait: float = LONGEST_WAIT
    ) -> None:
        self._tariff = tariff
        self._folder = folder
        self._purpose = purpose
        self._longest_wait = longest_wait
        self._budgets: dict[str, SharedBudget] = {}
        self._last: SharedBudget | None = None
        self._ccxt_cost = client.calculate_rate_limiter_cost
        self._ccxt_answer = client.on_rest_response
        client.enableRateLimit = True
        client.calculate_rate_limiter_cost = self._cost
        client.throttle = self._throttle
        client.on_rest_response = self._answer

    def status(self) -> list[BudgetStatus]:
        """Every budget that was used so far."""
        return [self._budgets[name].status() for name in sorted(self._budgets)]

    def obey(self, refusal: RateLimited) -> None:
        """Let every process wait as an exchange asked in its own way (with a code, not with a status)."""
        if self._last is not None and self._last.status().held_until is None:
            self._last.refused(refusal.retry_after, banned=refusal.banned)

    def _cost(self, api: Any, method: Any, path: str, params: Any, config: Any = None) -> Charge:
        cost = self._ccxt_cost(api, method, path, params, config or {})
        part = api[0] if isinstance(api, list | tuple) else api
        return self._tariff.charge(str(part), path, float(cost))

    async def _throttle(self, cost: Charge | float | None = None) -> None:
        """Wait for the turn of a request. A number comes from an exchange that calls it by itself."""
        charge = cost if isinstance(cost, Charge) else self._tariff.charge("", "", float(cost or 1.0))
        budget = self._budgets.get(charge.budget)
        if budget is None:
            budget = self._budgets[charge.budget] = SharedBudget(
                self._folder, charge.budget, charge.limit, longest_wait=self._longest_wait
            )
        self._last = budget
        sent_ms = await budget.spend(charge.weight, self._purpose)
        _UNDER_WAY.set(_Sent(budget, charge.weight, sent_ms))

    def _answer(
        self,
        code: int,
        reason: Any,
        url: str,
        method: Any,
        response_headers: Mapping[str, str],
        response_body: str,
        request_headers: Any,
        request_body: Any,
    ) -> Any:
        """What an answer says of the limits; the body as ccxt wants it."""
        sent = _UNDER_WAY.get()
        if sent is not None:
            _UNDER_WAY.set(None)
            if code in (418, 429):
                wait = wait_told(response_headers, response_body[:_TEXT], banned=code == 418)
                sent.budget.refused(wait, banned=code == 418)
            else:
                counted = self._tariff.counted(response_headers)
                sent.budget.answered(sent.weight, sent.sent_ms, counted, well=code < 500)
                limit = self._tariff.told(url, response_body) if code == 200 else None
                if limit is not None:
                    sent.budget.learn(limit)
        return self._ccxt_answer(
            code, reason, url, method, response_headers, response_body, request_headers, request_body
        )
