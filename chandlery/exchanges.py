"""The part of the composition root that knows exchanges; apart, because importing ccxt takes a second."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from stamina import instrumentation

from chandlery.output import remark
from chandlery.settings import SIMULATED
from exchange.budget import Purpose
from exchange.ccxt_client import CcxtHistory
from exchange.history import open_history
from exchange.live import open_streams
from exchange.stream import StreamClient
from market.errors import RateLimited

#: Whose protocol the simulated exchange speaks.
_SPOKEN = "binance"
_DEFAULT_URL = "http://127.0.0.1:9900"


@contextlib.asynccontextmanager
async def opened_exchange(
    exchange: str, url: str | None, limits: Path | None = None, purpose: Purpose = Purpose.BACKFILL
) -> AsyncIterator[CcxtHistory]:
    """The history of an exchange; its connections are closed at the end.

    :param exchange: a ccxt id, or ``simulated`` for the simulated exchange (on port 9900 unless `url` says else).
    :param limits: folder of the request budgets that all processes share; None for this client's own throttle.
    :param purpose: live requests go before those of a backfill.
    """
    instrumentation.set_on_retry_hooks([_say])
    spoken, address = _spoken(exchange, url)
    history = open_history(spoken, address, limits=limits, purpose=purpose)
    history.exchange = exchange
    try:
        yield history
    finally:
        await history.close()


def streams_of(exchange: str, url: str | None, symbols: Mapping[str, str]) -> StreamClient:
    """The live streams of an exchange; nothing is connected yet.

    :param symbols: unified symbols to the exchange's.
    """
    spoken, address = _spoken(exchange, url)
    return open_streams(spoken, address, symbols)


def _spoken(exchange: str, url: str | None) -> tuple[str, str | None]:
    """Whose protocol an exchange speaks, and where it is."""
    return (_SPOKEN, url or _DEFAULT_URL) if exchange == SIMULATED else (exchange, url)


def _say(details: instrumentation.RetryDetails) -> None:
    """Tell who waits what for; the default is a line of the retrying library's own terms."""
    # A rate limit says itself how long to wait.
    limited = isinstance(details.caused_by, RateLimited)
    remark(f"{details.caused_by}; " + ("waiting" if limited else f"trying again in {details.wait_for:.1f} s"))
