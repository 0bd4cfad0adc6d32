"""Shared values in Redis as a test opens them: patient, with its own breaker, and what happened to listen to."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from market.clock import SystemClock
from market.system_event import SystemEvent
from store.cache.breaker import CircuitBreaker
from store.cache.invalidation import Invalidation
from store.redis.address import RedisUrl
from store.redis.connection import RedisConnection
from store.redis.invalidations import Invalidations, ListeningRules
from store.redis.node import RedisRules
from store.redis.values import RedisValues

#: A busy machine is no failure.
PATIENT = RedisRules(connect_seconds=10.0, answer_seconds=10.0)
QUICK_LISTENING = ListeningRules(beat_seconds=0.05, silent_seconds=5.0, first_wait=0.02, longest_wait=0.1)


@dataclass
class Seconds:
    """Seconds that pass only when they are told to."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class OpenedValues:
    """One process's way to Redis."""

    values: RedisValues
    connection: RedisConnection
    invalidations: Invalidations
    breaker: CircuitBreaker
    #: Of the breaker.
    seconds: Seconds
    events: list[SystemEvent]
    heard: list[Invalidation] = field(default_factory=list)
    #: How often it was told that it may have missed something.
    missed: list[None] = field(default_factory=list)
    #: Each command and how long it took.
    commands: list[tuple[str, float]] = field(default_factory=list)


@contextlib.asynccontextmanager
async def opened_values(
    url: str, rules: RedisRules = PATIENT, listening: ListeningRules = QUICK_LISTENING
) -> AsyncIterator[OpenedValues]:
    """All of it, whether the server answers or not."""
    events: list[SystemEvent] = []
    heard: list[Invalidation] = []
    missed: list[None] = []
    commands: list[tuple[str, float]] = []
    seconds = Seconds()
    breaker = CircuitBreaker("redis", SystemClock(), events.append, monotonic=seconds)
    async with RedisConnection.opened(
        RedisUrl.parse(url), rules, breaker, on_command=lambda *one: commands.append(one)
    ) as connection:
        invalidations = Invalidations(connection, listening)
        values = RedisValues(connection, invalidations)
        async with invalidations.listen(heard.append, lambda: missed.append(None)):
            yield OpenedValues(values, connection, invalidations, breaker, seconds, events, heard, missed, commands)
