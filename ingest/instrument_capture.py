"""Keeping what an exchange says of its markets every day: tick and lot sizes, limits, status, valid from when."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import structlog

from market.clock import Clock
from market.errors import ExchangeRefused, Retryable
from market.instrument import Instrument
from market.timeframe import DAY_MS

log = structlog.get_logger(__name__)

#: Seconds after which it is tried again where it failed.
_RETRY_SECONDS = 300.0
#: Seconds after midnight, drawn, so that not everybody asks at the same moment.
_SPREAD_SECONDS = 1800.0


class Markets(Protocol):
    """Who tells of an exchange's markets."""

    async def instruments(self) -> list[Instrument]:
        """Every market of the exchange, as it is now."""
        ...


class InstrumentStore(Protocol):
    """Where that is kept."""

    async def save_instruments(self, instruments: Sequence[Instrument], complete: bool = False) -> None:
        """Keep it with the history of its changes; of a complete list, what is absent is no longer traded."""
        ...


async def capture_daily(
    markets: Markets,
    store: InstrumentStore,
    clock: Clock,
    told: Callable[[list[Instrument]], None],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Keep the exchange's markets shortly after each midnight (UTC), until cancelled.

    :param told: gets each list, once it is kept.
    """
    while True:
        until_midnight = (DAY_MS - clock.now_ms() % DAY_MS) / 1000
        await sleep(until_midnight + random.uniform(0, _SPREAD_SECONDS))
        while True:
            try:
                listed = await markets.instruments()
                await store.save_instruments(listed, complete=True)
                log.info("markets captured", instruments=len(listed))
                told(listed)
                break
            except (Retryable, ExchangeRefused) as error:
                log.warning("markets are captured later", error=str(error))
                await sleep(_RETRY_SECONDS)
