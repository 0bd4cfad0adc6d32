"""A Redis that hangs, dies, refuses or comes back: every call ends in time, and no answer is ever another's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from market.clock import SystemClock
from market.system_event import BROKER_DISCONNECT, BROKER_RECONNECT, Severity, SystemEvent, unheard
from store.cache.breaker import BreakerState, CircuitBreaker
from store.cache.invalidation import Invalidation
from store.cache.key import CacheKey
from store.cache.shared_values import SharedAway
from store.redis.address import RedisUrl
from store.redis.command import RedisRefused, Script, command
from store.redis.connection import RedisConnection
from store.redis.figures import command_latency, memory_usage, reset_command_latency
from store.redis.node import RedisRules
from tests.support.cutting_proxy import CuttingProxy
from tests.support.notes import eventually
from tests.support.redis_server import PrivateRedis
from tests.support.redis_values import OpenedValues, Seconds, opened_values

#: A call takes two rounds at most: one that it waits for, and its own.
RULES = RedisRules(connect_seconds=1.0, answer_seconds=1.0)
#: Seconds that such a call may take, on a machine with other things to do.
BOUND = 2 * (1.0 + 1.0) + 6.0
LONG = 600_000
KEYS = [CacheKey.of("ticker", "outage", f"C{number}") for number in range(20)]
VALUES = [b"value %d" % number for number in range(20)]


@pytest.fixture
def server() -> Iterator[PrivateRedis]:
    """A server that a test may hang and kill."""
    with PrivateRedis() as one:
        yield one


@pytest.fixture
async def shared(server: PrivateRedis) -> AsyncIterator[OpenedValues]:
    async with opened_values(server.url, RULES) as one:
        yield one


def events(shared: OpenedValues) -> list[str]:
    return [event.name for event in shared.events]


def state(shared: OpenedValues) -> BreakerState:
    return shared.breaker.state


async def fill(shared: OpenedValues) -> None:
    await shared.values.put([(key, value, LONG) for key, value in zip(KEYS, VALUES, strict=True)])


class Load:
    """Readers and writers that never stop, and what they saw."""

    def __init__(self, shared: OpenedValues) -> None:
        self._shared = shared
        self.answered = 0
        self.away = 0
        self.slowest = 0.0
        self.wrong: list[object] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._run(number)) for number in range(len(KEYS))]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(one, asyncio.CancelledError) for one in ended), ended

    async def _run(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await self._shared.values.put([(KEYS[number], VALUES[number], LONG)])
                others = [number, (number + 7) % len(KEYS)]
                found = await self._shared.values.get([KEYS[one] for one in others])
                # A server that was killed forgets; what it says must be true all the same.
                allowed = [{VALUES[one], None} for one in others]
                if any(value not in of for value, of in zip(found, allowed, strict=True)):
                    self.wrong.append((others, found))
                self.answered += 1
            except SharedAway:
                self.away += 1
            self.slowest = max(self.slowest, loop.time() - began)
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("how", ["hangs", "dies"])
async def test_an_outage_under_load(shared: OpenedValues, server: PrivateRedis, how: str) -> None:
    load = Load(shared)
    await fill(shared)
    async with load.running():

        async def answered() -> bool:
            return load.answered > 50

        await eventually(answered, "the load runs")
        assert shared.events == []
        assert load.away == 0
        server.pause() if how == "hangs" else server.kill()

        async def opened() -> bool:
            return state(shared) is BreakerState.OPEN

        await eventually(opened, "the breaker has opened")
        assert events(shared) == [BROKER_DISCONNECT]
        assert shared.events[0].severity is Severity.CRITICAL

        # All that was under way ends; from then on nobody asks the server any more.
        away, refused = load.away, shared.breaker.counts.refused

        async def left_alone() -> bool:
            return load.away > away + 100 and shared.breaker.counts.refused > refused + 100

        await eventually(left_alone, "calls end at once")

        async def nobody_asks() -> bool:
            # What was under way when it opened may end later; each of the readers has one such call at most.
            asked, more = len(shared.commands), load.away + 50
            await eventually(lambda: _more(load, more), "calls end at once")
            return len(shared.commands) == asked

        await eventually(nobody_asks, "nobody asks the server any more")

        # Before its time there is no trial; at its time there is one, which fails, and nothing is told again.
        shared.seconds.now += 59.0
        assert state(shared) is BreakerState.OPEN
        failures = shared.breaker.counts.failures
        shared.seconds.now += 1.0
        await eventually(lambda: _failed(shared, failures), "the trial has failed")
        assert shared.breaker.counts.failures == failures + 1
        assert events(shared) == [BROKER_DISCONNECT]

        server.resume() if how == "hangs" else server.start()
        answers = load.answered
        shared.seconds.now += 60.0

        async def back() -> bool:
            return load.answered > answers + 50

        await eventually(back, "the load runs again")
    assert state(shared) is BreakerState.CLOSED
    assert events(shared) == [BROKER_DISCONNECT, BROKER_RECONNECT]
    assert load.wrong == []
    assert load.slowest < BOUND
    assert max(seconds for _, seconds in shared.commands) < BOUND / 2


async def _more(load: Load, than: int) -> bool:
    return load.away > than


async def _failed(shared: OpenedValues, than: int) -> bool:
    return shared.breaker.counts.failures > than


async def test_the_fifth_failure_in_a_row_opens_the_breaker(server: PrivateRedis) -> None:
    told: list[SystemEvent] = []
    breaker = CircuitBreaker("redis", SystemClock(), told.append, monotonic=Seconds())
    async with RedisConnection.opened(RedisUrl.parse(server.url), RULES, breaker) as connection:
        for _ in range(3):
            with contextlib.suppress(SharedAway):
                await connection.execute("SET", "a", 1)
        server.kill()
        states = []
        for _ in range(7):
            with pytest.raises(SharedAway):
                await connection.execute("GET", "a")
            states.append(breaker.state)
    assert states == [BreakerState.CLOSED] * 4 + [BreakerState.OPEN] * 3
    assert [event.name for event in told] == [BROKER_DISCONNECT]
    assert (breaker.counts.failures, breaker.counts.refused) == (5, 2)


async def test_one_round_trip_without_an_answer_is_one_failure(server: PrivateRedis) -> None:
    """However many waited for it."""
    breaker = CircuitBreaker("redis", SystemClock(), unheard, monotonic=Seconds())
    async with RedisConnection.opened(RedisUrl.parse(server.url), RULES, breaker) as connection:
        await connection.execute("SET", "a", 1)
        server.kill()
        ended = await asyncio.gather(*(connection.execute("GET", "a") for _ in range(100)), return_exceptions=True)
    assert all(isinstance(one, SharedAway) for one in ended)
    assert breaker.counts.failures == 1


async def test_a_server_that_is_away_at_the_start_is_no_error(server: PrivateRedis) -> None:
    server.kill()
    async with opened_values(server.url, RULES) as shared:
        with pytest.raises(SharedAway):
            await shared.values.get(KEYS)
        server.start()

        async def there() -> bool:
            shared.seconds.now += 60.0
            with contextlib.suppress(SharedAway):
                await fill(shared)
                return await shared.values.get(KEYS) == VALUES
            return False

        await eventually(there, "the server is used")


async def test_a_late_answer_is_not_taken_for_the_next(server: PrivateRedis) -> None:
    rules = RedisRules(connect_seconds=5.0, answer_seconds=0.2, connections=1)
    async with (
        CuttingProxy.opened(server.port) as proxy,
        opened_values(server.url) as direct,
        opened_values(f"redis://127.0.0.1:{proxy.port}/0", rules) as shared,
    ):
        await fill(direct)
        for _ in range(3):
            shared.seconds.now += 60.0
            await eventually(lambda: _reads(shared), "it is there")
            proxy.vanish()
            with pytest.raises(SharedAway):
                await shared.values.get(KEYS[:3])
            proxy.come_back()
            shared.seconds.now += 60.0
            await eventually(lambda: _reads(shared), "it is there again")


async def _answers(shared: OpenedValues) -> bool:
    with contextlib.suppress(SharedAway):
        await shared.values.get(KEYS[:1])
        return True
    return False


async def _reads(shared: OpenedValues) -> bool:
    with contextlib.suppress(SharedAway):
        assert await shared.values.get(KEYS[5:8]) == VALUES[5:8]
        return True
    return False


async def test_a_call_that_is_given_up_leaves_nothing_behind(shared: OpenedValues, server: PrivateRedis) -> None:
    await fill(shared)
    server.pause()
    asked = [asyncio.create_task(shared.values.get(KEYS[:2])) for _ in range(10)]
    await asyncio.sleep(0)
    for task in asked:
        task.cancel()
    assert all(isinstance(one, BaseException) for one in await asyncio.gather(*asked, return_exceptions=True))
    server.resume()
    assert await shared.values.get(KEYS) == VALUES


async def test_a_trial_that_is_given_up_is_no_verdict(shared: OpenedValues, server: PrivateRedis) -> None:
    await fill(shared)
    for number in range(5):
        shared.breaker.failed(f"number {number}")
    shared.seconds.now += 60.0
    server.pause()
    trial = asyncio.create_task(shared.values.get(KEYS[:1]))
    await asyncio.sleep(0)
    trial.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trial
    assert state(shared) is BreakerState.HALF_OPEN
    server.resume()
    assert await shared.values.get(KEYS) == VALUES
    assert state(shared) is BreakerState.CLOSED


async def test_a_server_that_can_only_be_read_is_not_away(shared: OpenedValues) -> None:
    await fill(shared)
    await shared.connection.execute("REPLICAOF", "127.0.0.1", 1)
    await shared.connection.execute("CONFIG", "SET", "replica-serve-stale-data", "yes")
    for _ in range(10):
        with pytest.raises(SharedAway, match="cannot do it now"):
            await fill(shared)
        assert await shared.values.get(KEYS) == VALUES
    assert state(shared) is BreakerState.CLOSED


async def test_a_full_server_is_not_away(shared: OpenedValues) -> None:
    await fill(shared)
    await shared.connection.execute("CONFIG", "SET", "maxmemory-policy", "noeviction")
    await shared.connection.execute("CONFIG", "SET", "maxmemory", 1)
    for _ in range(10):
        with pytest.raises(SharedAway, match="cannot do it now"):
            await fill(shared)
        assert await shared.values.get(KEYS) == VALUES
    assert state(shared) is BreakerState.CLOSED


async def test_a_password_that_is_wrong_counts_as_away_and_is_not_shown(server: PrivateRedis) -> None:
    async with opened_values(server.url) as shared:
        await shared.connection.execute("CONFIG", "SET", "requirepass", "right")
    async with opened_values(server.url.replace("//", "//:hunter2@")) as shared:
        with pytest.raises(SharedAway) as caught:
            await shared.values.get(KEYS)
        assert "hunter2" not in f"{caught.value} {caught.value.__cause__}"

        async def opened() -> bool:
            with contextlib.suppress(SharedAway):
                await shared.values.get(KEYS)
            return state(shared) is BreakerState.OPEN

        await eventually(opened, "the breaker has opened")
        assert "hunter2" not in str(shared.events)
    async with opened_values(server.url.replace("//", "//:right@")) as shared:
        assert await shared.values.get(KEYS[:1]) == [None]


async def test_a_mistake_of_ours_is_no_outage(shared: OpenedValues) -> None:
    await shared.connection.execute("HSET", "h", "a", 1)
    for _ in range(10):
        with pytest.raises(RedisRefused, match="WRONGTYPE"):
            await shared.connection.execute("GET", "h")
        with pytest.raises(RedisRefused, match="user_script"):
            await shared.connection.script(Script("broken", "return nothing.at_all"), ["k"])
    assert state(shared) is BreakerState.CLOSED
    # A value of another type under a name of ours is no value, and is replaced.
    name = "chandlery:1:{outage|C0}:ticker"
    await shared.connection.execute("HSET", name, "a", 1)
    assert await shared.values.get(KEYS[:1]) == [None]
    await fill(shared)
    assert await shared.values.get(KEYS) == VALUES


async def test_a_script_is_said_again_to_a_server_that_forgot_it(
    shared: OpenedValues, server: PrivateRedis
) -> None:
    script = Script("echo", "return {KEYS[1], ARGV[1]}")
    for forgets in (lambda: shared.connection.execute("SCRIPT", "FLUSH"), None):
        assert await shared.connection.script(script, ["k"], [1]) == [b"k", b"1"]
        if forgets is not None:
            await forgets()
        else:
            server.restart()
            # It must first be noticed that the old connections are closed.
            await eventually(lambda: _answers(shared), "it is there again")
        answers = await shared.connection.pipeline(
            [script.call(["k"], [2]), command("GET", "nothing"), script.call(["k"], [3])]
        )
        assert answers == [[b"k", b"2"], None, [b"k", b"3"]]


async def test_a_burst_goes_out_together_over_few_connections(server: PrivateRedis) -> None:
    async with opened_values(server.url, RedisRules(connect_seconds=10, answer_seconds=10, connections=3)) as one:
        await fill(one)
        await reset_command_latency(one.connection)
        found = await asyncio.gather(*(one.values.get([KEYS[n % 20]]) for n in range(2_000)))
        assert found == [[VALUES[n % 20]] for n in range(2_000)]
        clients = (await one.connection.execute("CLIENT", "LIST")).decode()
        # One more listens for invalidations.
        assert clients.count("name=chandlery") <= 3 + 1


async def test_the_servers_own_figures(shared: OpenedValues) -> None:
    await fill(shared)
    await reset_command_latency(shared.connection)
    for _ in range(5):
        await shared.values.get(KEYS)
    figures = await command_latency(shared.connection)
    assert figures["mget"].calls == 5
    assert figures["mget"].p50 is not None
    assert figures["mget"].p99 is not None
    assert 0 < figures["mget"].p50 <= figures["mget"].p99 < 1_000
    assert 0 < figures["mget"].mean < 1_000
    assert await memory_usage(shared.connection) > 100_000


async def test_after_an_outage_one_knows_that_one_missed_something(server: PrivateRedis) -> None:
    async with opened_values(server.url) as teller, opened_values(server.url) as hearer:
        await eventually(lambda: _listening(teller, hearer), "both listen")
        server.kill()

        async def deaf() -> bool:
            return not hearer.invalidations.listening

        await eventually(deaf, "the connection is lost")
        missed = len(hearer.missed)
        server.start()
        await eventually(lambda: _listening(teller, hearer), "both listen again")
        assert len(hearer.missed) > missed
        await eventually(lambda: _told(teller, hearer, "after"), "it is heard again")


async def test_what_could_not_be_told_is_known_to_be_missing(server: PrivateRedis) -> None:
    """The hearer's own connection never breaks: only the number that is left out tells it."""
    rules = RedisRules(connect_seconds=5.0, answer_seconds=0.2)
    async with (
        CuttingProxy.opened(server.port) as proxy,
        opened_values(server.url) as hearer,
        opened_values(f"redis://127.0.0.1:{proxy.port}/0", rules) as teller,
    ):
        await eventually(lambda: _listening(teller, hearer), "both listen")
        await eventually(lambda: _told(teller, hearer, "before"), "it is heard")
        missed = len(hearer.missed)
        proxy.vanish()
        with pytest.raises(SharedAway):
            await teller.values.publish(Invalidation(sender="lost", everything=True))
        proxy.come_back()

        async def noticed() -> bool:
            # Nobody says anything more than that it is there.
            teller.seconds.now += 60.0
            return len(hearer.missed) > missed

        await eventually(noticed, "the gap is noticed")
        assert hearer.invalidations.listening
        assert [one for one in hearer.heard if one.sender == "lost"] == []


async def test_what_nobody_understands_counts_as_missed(shared: OpenedValues) -> None:
    await eventually(lambda: _listening(shared), "it listens")
    missed = len(shared.missed)
    channel = "chandlery:1:0:invalidations"
    await shared.connection.execute("PUBLISH", channel, b"short")
    await shared.connection.execute("PUBLISH", channel, bytes(7) + b"\x01" + bytes(7) + b"\x01" + b"not ours")

    async def noticed() -> bool:
        return len(shared.missed) == missed + 1

    await eventually(noticed, "it is noticed")
    assert shared.heard == []


async def _listening(*of: OpenedValues) -> bool:
    return all(one.invalidations.listening for one in of)


async def _told(teller: OpenedValues, hearer: OpenedValues, sender: str) -> bool:
    teller.seconds.now += 60.0
    with contextlib.suppress(SharedAway):
        await teller.values.publish(Invalidation(sender=sender, everything=True))
    return any(one.sender == sender for one in hearer.heard)
