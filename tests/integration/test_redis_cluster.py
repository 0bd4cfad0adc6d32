"""A real Redis Cluster of six: keys on their servers, slots that move, a primary that dies or hangs."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from store.cache.breaker import BreakerState
from store.cache.invalidation import Invalidation
from store.cache.key import CacheKey
from store.cache.shared_values import SharedAway
from store.redis.command import RedisRefused, Script, command
from store.redis.figures import command_latency, memory_usage, reset_command_latency
from store.redis.keys import redis_key, tag
from store.redis.node import RedisRules
from tests.support import servers
from tests.support.notes import eventually
from tests.support.redis_cluster import PRIMARIES, ClusterNode, PrivateCluster
from tests.support.redis_values import OpenedValues, opened_values
from tests.support.server_process import until

LONG = 600_000
#: Over all servers.
KEYS = [CacheKey.of("ticker", "cluster", f"C{number}/USDT") for number in range(30)]
VALUES = [b"value %d" % number for number in range(30)]
RULES = RedisRules(connect_seconds=2.0, answer_seconds=2.0)
#: Seconds that a call may take with these bounds, on a machine with other things to do.
BOUND = 2 * (2.0 + 2.0) + 6.0


@pytest.fixture(scope="module")
def running() -> PrivateCluster:
    return servers.redis_cluster()


@pytest.fixture
def cluster(running: PrivateCluster) -> Iterator[PrivateCluster]:
    """All six well, before and after."""
    running.start()
    yield running
    for node in running.nodes:
        node.resume()
    running.start()


@pytest.fixture
async def shared(cluster: PrivateCluster) -> AsyncIterator[OpenedValues]:
    async with opened_values(cluster.url, RULES) as one:
        await one.values.put([(key, value, LONG) for key, value in zip(KEYS, VALUES, strict=True)])
        yield one


async def test_the_keys_are_spread_and_those_of_a_symbol_are_not(
    cluster: PrivateCluster, shared: OpenedValues
) -> None:
    assert len(await shared.connection.primaries()) == PRIMARIES
    assert {cluster.primary_of(redis_key(key)).port for key in KEYS} == {
        node.place.port for node in await shared.connection.primaries()
    }
    script = Script("two", "redis.call('SET', KEYS[1], ARGV[1]) return redis.call('GET', KEYS[2])")
    for number in range(10):
        name = tag("cluster", f"C{number}/USDT")
        other = redis_key(KEYS[number])
        assert await shared.connection.script(script, [f"{name}mine", other], [number]) == VALUES[number]


async def test_one_pipeline_over_all_servers_answers_in_order(shared: OpenedValues) -> None:
    before = len(shared.commands)
    names = [redis_key(key) for key in KEYS]
    answers = await shared.connection.pipeline(
        [one for name in names for one in (command("GET", name), command("STRLEN", name))]
    )
    assert answers == [one for value in VALUES for one in (value, len(value))]
    assert [name for name, _ in shared.commands[before:] if name == "pipeline"].count("pipeline") >= 1
    # Two keys of different symbols in one command are a mistake.
    with pytest.raises(RedisRefused, match="same slot"):
        await shared.connection.execute("MGET", names[0], names[1])


async def test_any_one_server_is_enough_to_find_the_others(cluster: PrivateCluster, shared: OpenedValues) -> None:
    for node in cluster.nodes:
        async with opened_values(f"redis+cluster://127.0.0.1:{node.port}", RULES) as one:
            assert await one.values.get(KEYS) == VALUES


async def test_a_url_of_the_other_kind_says_so(cluster: PrivateCluster, shared: OpenedValues) -> None:
    async with opened_values(f"redis://127.0.0.1:{cluster.nodes[0].port}/0", RULES) as one:
        with pytest.raises(SharedAway, match=r"write redis\+cluster://"):
            await one.connection.pipeline([command("GET", redis_key(key)) for key in KEYS])
    async with opened_values(servers.redis().url.replace("redis://", "redis+cluster://")[:-2], RULES) as one:
        with pytest.raises(SharedAway, match="cluster support disabled"):
            await one.values.get(KEYS)


async def test_a_slot_on_its_way_to_another_server_is_followed(
    cluster: PrivateCluster, shared: OpenedValues
) -> None:
    """First the key is asked for where it goes to (ASK), then it has gone there for good (MOVED), and back."""
    name = redis_key(KEYS[0])
    home = cluster.primary_of(name)
    away = next(
        node for node in cluster.nodes if "role:master" in node.said("INFO", "replication") and node != home
    )
    slot = int(home.said("CLUSTER", "KEYSLOT", name))
    script = Script("read", "return redis.call('GET', KEYS[1])")
    for source, target in ((home, away), (away, home)):
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.said("CLUSTER", "MYID"))
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.said("CLUSTER", "MYID"))
        source.ask("MIGRATE", "127.0.0.1", target.port, name, 0, 5_000)
        assert await shared.values.get(KEYS) == VALUES
        assert await shared.connection.script(script, [name]) == VALUES[0]
        assert await shared.connection.pipeline([command("GET", name), command("STRLEN", name)]) == [
            VALUES[0],
            len(VALUES[0]),
        ]
        for node in (target, source):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.said("CLUSTER", "MYID"))
        assert await shared.values.get(KEYS) == VALUES
        await shared.values.put([(KEYS[0], VALUES[0], LONG)])
        assert await shared.connection.script(script, [name]) == VALUES[0]
    assert state(shared) is BreakerState.CLOSED


def state(shared: OpenedValues) -> BreakerState:
    return shared.breaker.state


async def test_figures_are_of_all_servers(shared: OpenedValues) -> None:
    await reset_command_latency(shared.connection)
    assert await shared.values.get(KEYS) == VALUES
    figures = await command_latency(shared.connection)
    assert figures["mget"].calls == len(KEYS)
    assert figures["mget"].p99 is not None
    assert await memory_usage(shared.connection) > PRIMARIES * 100_000


@pytest.mark.parametrize("how", ["dies", "hangs"])
async def test_one_primary_gone(cluster: PrivateCluster, shared: OpenedValues, how: str) -> None:
    """Its keys cannot be had until its replica has taken over, the others' can all the time; none is ever wrong."""
    lost = cluster.primary_of(redis_key(KEYS[0]))
    await _replicated(cluster)
    owners = [cluster.primary_of(redis_key(key)) for key in KEYS]
    lost.kill() if how == "dies" else lost.pause()
    trace = _Trace(shared)

    async def taken_over() -> bool:
        # Each server in turn, so that one that is gone is not taken for all of Redis.
        for number in (0, *_one_of_each(owners, lost)):
            await trace.ask(number, owners[number] is lost)
        return trace.came_back > 0

    await eventually(taken_over, "the replica has taken over")
    # The breaker opens when all is gone, not when one in three is.
    assert shared.events == []
    assert trace.wrong == []
    assert trace.others_away == 0
    assert trace.slowest < BOUND
    assert cluster.taken_over(redis_key(KEYS[0]), lost)
    assert await shared.values.get(KEYS) == VALUES
    await shared.values.put([(key, b"new", LONG) for key in KEYS])
    assert await shared.values.get(KEYS) == [b"new"] * len(KEYS)
    assert await shared.values.delete_matching("ticker:cluster:*") == len(KEYS)
    # It comes back as a replica, and what it knew is not heard of again.
    lost.resume()
    cluster.start()
    assert "role:slave" in lost.said("INFO", "replication")
    assert await shared.values.get(KEYS) == [None] * len(KEYS)


class _Trace:
    """What one sees of single keys while a server is gone."""

    def __init__(self, shared: OpenedValues) -> None:
        self._shared = shared
        self.came_back = 0
        self.others_away = 0
        self.slowest = 0.0
        self.wrong: list[object] = []
        self._away = 0

    async def ask(self, number: int, lost: bool) -> None:
        before = len(self._shared.commands)
        try:
            (found,) = await self._shared.values.get([KEYS[number]])
            await self._shared.values.put([(KEYS[number], VALUES[number], LONG)])
        except SharedAway:
            self._away += lost
            self.others_away += not lost
        else:
            self.came_back += lost and self._away > 0
            if found != VALUES[number]:
                self.wrong.append((number, found))
        for _, seconds in self._shared.commands[before:]:
            self.slowest = max(self.slowest, seconds)


def _one_of_each(owners: list[ClusterNode], lost: ClusterNode) -> list[int]:
    """A key of each server but the lost one."""
    return [owners.index(owner) for owner in dict.fromkeys(owners) if owner is not lost]


async def _replicated(cluster: PrivateCluster) -> None:
    """All that was written has reached the replicas; what had not would be lost with a primary, as Redis has it."""

    written = {
        node.port: int(figure(node, "master_repl_offset"))
        for node in cluster.nodes
        if not figure(node, "master_port")
    }

    def reached() -> bool:
        replicas = [node for node in cluster.nodes if figure(node, "master_port")]
        return all(
            int(figure(node, "slave_repl_offset")) >= written[int(figure(node, "master_port"))] for node in replicas
        )

    until(reached, "the replicas have everything")


def figure(node: ClusterNode, name: str) -> str:
    """A line of what a server says of its replication; empty where it does not say it."""
    lines = (line.partition(":") for line in node.said("INFO", "replication").splitlines())
    return next((value.strip() for key, _, value in lines if key == name), "")


async def test_invalidations_are_heard_again_elsewhere(cluster: PrivateCluster) -> None:
    """Those who listened at the server that died listen at another, and know that they missed something."""
    async with opened_values(cluster.url, RULES) as teller, opened_values(cluster.url, RULES) as hearer:

        async def listening() -> bool:
            return teller.invalidations.listening and hearer.invalidations.listening

        await eventually(listening, "both listen")
        missed = len(hearer.missed)
        lost = next(
            node for node in cluster.nodes if "cmd=subscribe" in node.said("CLIENT", "LIST", "TYPE", "pubsub")
        )
        lost.kill()

        async def again() -> bool:
            for one in (teller, hearer):
                one.seconds.now += 60.0
            with contextlib.suppress(SharedAway):
                await teller.values.publish(Invalidation(sender="after", everything=True))
            return len(hearer.missed) > missed and any(one.sender == "after" for one in hearer.heard)

        await eventually(again, "it is heard again")
