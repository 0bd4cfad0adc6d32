"""The part of the composition root that knows exchanges; apart, because importing ccxt takes a second."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from exchange.ccxt_client import CcxtHistory
from exchange.history import open_history


@contextlib.asynccontextmanager
async def opened_exchange(exchange: str, url: str | None) -> AsyncIterator[CcxtHistory]:
    """The history of an exchange; its connections are closed at the end."""
    history = open_history(exchange, url)
    try:
        yield history
    finally:
        await history.close()
