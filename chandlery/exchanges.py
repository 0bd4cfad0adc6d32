"""The part of the composition root that knows exchanges; apart, because importing ccxt takes a second."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from stamina import instrumentation

from chandlery.output import remark
from chandlery.settings import SIMULATED
from exchange.ccxt_client import CcxtHistory
from exchange.history import open_history
from market.errors import RateLimited

#: Whose protocol the simulated exchange speaks.
_SPOKEN = "binance"
_DEFAULT_URL = "http://127.0.0.1:9900"


@contextlib.asynccontextmanager
async def opened_exchange(exchange: str, url: str | None) -> AsyncIterator[CcxtHistory]:
    """The history of an exchange; its connections are closed at the end.

    :param exchange: a ccxt id, or ``simulated`` for the simulated exchange (on port 9900 unless `url` says else).
    """
    instrumentation.set_on_retry_hooks([_say])
    if exchange == SIMULATED:
        history = open_history(_SPOKEN, url or _DEFAULT_URL)
        history.exchange = SIMULATED
    else:
        history = open_history(exchange, url)
    try:
        yield history
    finally:
        await history.close()


def _say(details: instrumentation.RetryDetails) -> None:
    """Tell who waits what for; the default is a line of the retrying library's own terms."""
    # A rate limit says itself how long to wait.
    limited = isinstance(details.caused_by, RateLimited)
    remark(f"{details.caused_by}; " + ("waiting" if limited else f"trying again in {details.wait_for:.1f} s"))
