"""Redis as the settings want it: what is live, shared by processes."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog

from chandlery.settings import Settings
from chandlery.tiers import told
from market.clock import Clock, SystemClock
from market.errors import BadInput, ChandleryError
from store.cache.breaker import CircuitBreaker
from store.candle_store import CandleStore
from store.control import Control
from store.live_source import LiveSource, LocalMarket
from store.redis.address import RedisUrl
from store.redis.live_reader import RedisMarket
from store.redis.live_rules import RedisCommands
from store.tiers.tiered_views import TieredViews

log = structlog.get_logger(__name__)

#: Seconds between looks at the safety state.
_LOOK_SECONDS = 1.0


@contextlib.asynccontextmanager
async def opened_redis(settings: Settings, clock: Clock | None = None) -> AsyncIterator[RedisCommands | None]:
    """A connection to the Redis of the settings; None where they name none. One that is away is no error.

    :raises BadInput: the driver is not installed.
    """
    if settings.redis_url is None:
        yield None
        return
    url = RedisUrl.parse(settings.redis_url)
    try:
        module = importlib.import_module("store.redis.connection")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "redis":
            raise
        accepted = "none, or the driver for it: pip install 'chandlery[redis]'"
        raise BadInput("redis_url (CHANDLERY_REDIS_URL)", url.shown, accepted) from error
    breaker = CircuitBreaker("redis", clock or SystemClock(), told, monotonic=time.monotonic)
    async with module.RedisConnection.opened(url, module.RedisRules(), breaker) as connection:
        yield connection


@contextlib.asynccontextmanager
async def opened_safety(store: CandleStore, connection: RedisCommands | None) -> AsyncIterator[Callable[[], bool]]:
    """Whether the safety state lets the cache be written, looked at every second; a lockdown empties Redis."""
    control = await store.control()

    async def look() -> Control:
        nonlocal control
        control = await store.control()
        return control

    async with _looking(look, connection):
        yield lambda: control.safety.writes


@contextlib.asynccontextmanager
async def _looking(look: Callable[[], Awaitable[Control]], connection: RedisCommands | None) -> AsyncIterator[None]:
    """Look at the safety state every second; in a lockdown, empty Redis until nothing is left in it."""

    async def work() -> None:
        empty, said = False, ""
        while True:
            try:
                if (await look()).safety.reads_cache:
                    empty = False
                elif connection is not None and not empty:
                    # What others were just writing comes after it: they have stopped when there is nothing more.
                    empty = await _flush(connection) == 0
            except ChandleryError as error:
                # While the database is away, what held holds; while Redis is, it is emptied later.
                if str(error) != said:
                    log.info("the safety state cannot be obeyed yet", error=str(error))
                said = str(error)
            await asyncio.sleep(_LOOK_SECONDS)

    looking = asyncio.create_task(work(), name="safety state")
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.wait([looking])


async def _flush(connection: RedisCommands) -> int:
    """Delete what is ours in Redis; how many values."""
    # With a connection there is its driver.
    from store.redis.connection import RedisConnection  # noqa: PLC0415 - optional driver
    from store.redis.flush import flush  # noqa: PLC0415 - optional driver

    return await flush(connection) if isinstance(connection, RedisConnection) else 0


@contextlib.asynccontextmanager
async def opened_live(settings: Settings, views: TieredViews, clock: Clock) -> AsyncIterator[LiveSource]:
    """What is live, for a process that does not ingest: read from Redis, or nothing."""
    async with opened_redis(settings, clock) as connection:
        if connection is None:
            yield LocalMarket.empty(clock)
            return

        async def look() -> Control:
            return views.control

        # Who wrote to Redis may be gone.
        async with _looking(look, connection):
            yield RedisMarket(
                connection,
                clock,
                times=views.times,
                statistics=views.statistics,
                reads=lambda: views.control.safety.reads_cache,
            )
