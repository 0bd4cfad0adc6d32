"""How long a call to Redis may take: by what is heard meanwhile, and by who is slow."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from market.clock import SystemClock
from market.system_event import unheard
from store.cache.breaker import CircuitBreaker
from store.cache.shared_values import SharedAway
from store.redis.address import RedisUrl
from store.redis.command import command
from store.redis.connection import RedisConnection
from store.redis.node import RedisRules
from tests.support import servers


@contextlib.asynccontextmanager
async def slow_server(seconds: float) -> AsyncIterator[str]:
    """A server that lets everybody in, and answers +OK to each ECHO after so long; its URL."""

    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            while line := await reader.readline():
                words = []
                for _ in range(int(line[1:])):
                    length = int((await reader.readline())[1:])
                    words.append((await reader.readexactly(length + 2))[:-2])
                if words[0] == b"ECHO":
                    await asyncio.sleep(seconds)
                writer.write(b"+OK\r\n")
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            # The client has gone, or the test is over.
            return
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving)


@contextlib.asynccontextmanager
async def opened(url: str, rules: RedisRules) -> AsyncIterator[tuple[RedisConnection, CircuitBreaker]]:
    breaker = CircuitBreaker("redis", SystemClock(), unheard)
    async with RedisConnection.opened(RedisUrl.parse(url), rules, breaker) as connection:
        yield connection, breaker


async def test_much_may_take_longer_than_one_answer_may() -> None:
    rules = RedisRules(connect_seconds=10.0, answer_seconds=1.5)
    async with slow_server(0.25) as url, opened(url, rules) as (connection, _):
        began = time.monotonic()
        assert await connection.pipeline([command("ECHO", "a")] * 8) == [b"OK"] * 8
        assert time.monotonic() - began > rules.answer_seconds


async def test_not_even_a_server_that_always_says_something_is_waited_for_without_end() -> None:
    rules = RedisRules(connect_seconds=10.0, answer_seconds=0.15)
    async with slow_server(0.03) as url, opened(url, rules) as (connection, breaker):
        began = time.monotonic()
        with pytest.raises(SharedAway):
            await connection.pipeline([command("ECHO", "a")] * 10_000)
        assert rules.answer_seconds <= time.monotonic() - began < 10 * rules.answer_seconds + 8
        assert breaker.counts.failures == 1


async def test_a_delay_of_our_own_is_not_the_servers() -> None:
    """The answer is there when our loop has time again; had it not been, it would not have counted as a failure."""
    rules = RedisRules(connect_seconds=10.0, answer_seconds=0.2)
    async with opened(servers.redis().url, RedisRules(connect_seconds=10.0, answer_seconds=10.0)) as (patient, _):
        await patient.execute("SET", "bounds", "x")
    async with opened(servers.redis().url, rules) as (connection, breaker):
        for _ in range(3):
            with contextlib.suppress(SharedAway):
                await connection.execute("GET", "bounds")
        failures = breaker.counts.failures
        asked = asyncio.create_task(connection.execute("GET", "bounds"))
        for _ in range(5):
            await asyncio.sleep(0)
        end = time.monotonic() + 3 * rules.answer_seconds
        while time.monotonic() < end:
            pass
        assert await asked == b"x"
        assert breaker.counts.failures == failures


async def test_a_closed_connection_answers_nobody() -> None:
    async with slow_server(3600.0) as url:
        async with opened(url, RedisRules(connect_seconds=10.0, answer_seconds=3600.0)) as (connection, breaker):
            asked = [asyncio.create_task(connection.execute("ECHO", "a")) for _ in range(3)]
            for _ in range(5):
                await asyncio.sleep(0)
        ended = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(one, SharedAway) for one in ended)
        with pytest.raises(SharedAway):
            await connection.execute("ECHO", "a")
        assert breaker.counts.failures == 0


async def test_more_than_can_wait_is_refused_and_is_no_failure() -> None:
    rules = RedisRules(connections=1, connect_seconds=10.0, answer_seconds=10.0)
    async with slow_server(0.0) as url, opened(url, rules) as (connection, breaker):
        ended = await asyncio.gather(
            *(connection.pipeline([command("ECHO", "a")] * 100) for _ in range(30)), return_exceptions=True
        )
        refused = [one for one in ended if isinstance(one, SharedAway)]
        assert 0 < len(refused) < 30
        assert [one for one in ended if one not in refused] == [[b"OK"] * 100] * (30 - len(refused))
        assert breaker.counts.failures == 0
