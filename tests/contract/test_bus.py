"""Every bus alike: order, patterns, the ring for who comes late, bounds, and servers that die and come back.

All tests with the servers are in this file: it is run by one process, and each process starts servers of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import aio_pika
import pytest
import redis.asyncio
from structlog.testing import capture_logs

from market.channel import Channel
from market.errors import BadInput, StoreBusy, StoreUnavailable
from market.trade import Trade
from store.bus.bus import Bus, BusRules, Subscription
from store.bus.message import MarketBatch, Message
from store.bus.opening import opened_bus
from tests.support import servers
from tests.support.notes import eventually
from tests.support.redis_server import PrivateRedis
from tests.support.server_process import ServerProcess

#: Seconds for whatever must arrive.
DEADLINE = 90.0
#: Impatient, so that the server's return is seen soon.
QUICK = BusRules(first_wait=0.02, longest_wait=0.1)


@dataclass(frozen=True)
class Place:
    """Where a bus is, and how two programs open it."""

    url: str | None
    kill: Callable[[], None] | None = None
    start: Callable[[], object] | None = None
    process: Callable[[], int] | None = None
    settle: Callable[[], None] = lambda: None

    @contextlib.asynccontextmanager
    async def opened(self, rules: BusRules | None = None) -> AsyncIterator[tuple[Bus, Bus]]:
        """One bus to publish on and another to subscribe on; in memory they can only be the same."""
        async with opened_bus(self.url, rules) as one:
            if self.url is None:
                yield one, one
                return
            async with opened_bus(self.url, rules) as other:
                yield one, other


@pytest.fixture(params=["memory", "redis", "rabbitmq"])
async def place(request: pytest.FixtureRequest) -> Place:
    if request.param == "memory":
        return Place(None)
    server = await asyncio.to_thread(getattr(servers, request.param))
    return Place(server.url)


@pytest.fixture(params=["redis", "rabbitmq"])
def server(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A server that may be killed."""
    if request.param == "redis":
        with PrivateRedis() as private:
            yield Place(private.url, private.kill, private.start, lambda: process(private))
    else:
        rabbit = servers.rabbitmq()
        yield Place(rabbit.url, rabbit.kill, rabbit.start, lambda: process(rabbit), rabbit.settle)
        rabbit.start()


def process(server: ServerProcess) -> int:
    return int((server.folder / server.PID_FILE).read_text())


@pytest.fixture
def name() -> str:
    """The first part of topics that no other test has."""
    return f"test_{uuid.uuid4().hex[:12]}"


async def take(subscription: Subscription, count: int) -> list[Message]:
    """The next `count` messages."""
    taken: list[Message] = []
    try:
        async with asyncio.timeout(DEADLINE):
            while len(taken) < count:
                taken.append(await anext(subscription))
    except TimeoutError:
        pytest.fail(f"only {len(taken)} of {count} messages came; missed {subscription.missed}")
    return taken


async def until(subscription: Subscription, payload: bytes) -> list[Message]:
    """The next messages, to the one with `payload`."""
    taken = await take(subscription, 1)
    while taken[-1].payload != payload:
        taken += await take(subscription, 1)
    return taken


def payloads(messages: Sequence[Message]) -> list[bytes]:
    return [message.payload for message in messages]


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [str(number).encode() for number in range(start, start + count)]


def publish_all(bus: Bus, topic: str, wanted: Sequence[bytes]) -> None:
    for payload in wanted:
        bus.publish(topic, payload)


# Order and topics.


async def test_messages_arrive_in_order_with_their_numbers(place: Place, name: str) -> None:
    async with place.opened() as (bus, other), other.subscribe(f"{name}.one") as subscription:
        publish_all(bus, f"{name}.one", numbered(1000))
        got = await take(subscription, 1000)
    assert payloads(got) == numbered(1000)
    assert [message.sequence for message in got] == list(range(1, 1001))
    assert len({message.run for message in got}) == 1
    assert {message.topic for message in got} == {f"{name}.one"}
    assert subscription.missed == 0


async def test_a_market_batch_arrives_as_it_was_under_the_name_of_its_instrument(place: Place, name: str) -> None:
    trades = [Trade(number, 57000.1, 0.5, 1_723_118_400_000, True, 1_723_118_400_071) for number in range(50)]
    batch = MarketBatch(
        exchange=name, symbol="BTC/USDT", channel=Channel.TRADES, messages=trades, run=7, sequence=1
    )
    async with place.opened() as (bus, other), other.subscribe(f"market_data.{name}.*") as subscription:
        bus.publish(batch.topic, batch.packed())
        (got,) = await take(subscription, 1)
    assert got.topic == f"market_data.{name}.BTC/USDT"
    assert MarketBatch.unpacked(got.payload) == batch


@pytest.mark.parametrize(
    "pattern, wanted",
    [
        ("{}.trade", ["{}.trade"]),
        ("{}.*", ["{}.trade", "{}.fill"]),
        ("{}.*.BTC/USDT:USDT", ["{}.binance.BTC/USDT:USDT", "{}.okx.BTC/USDT:USDT"]),
        ("{}.binance.#", ["{}.binance.BTC/USDT:USDT", "{}.binance.A.B"]),
        ("{}.#", None),
    ],
)
async def test_patterns(place: Place, name: str, pattern: str, wanted: list[str] | None) -> None:
    topics = ["trade", "fill", "binance.BTC/USDT:USDT", "okx.BTC/USDT:USDT", "binance.A.B"]
    topics = [f"{name}.{topic}" for topic in topics]
    expected = topics if wanted is None else [one.format(name) for one in wanted]
    async with place.opened() as (bus, other):
        # Half of them are known when the subscriber comes, the others are new.
        for topic in topics[::2]:
            bus.publish(topic, b"before")
        await bus.flush()
        async with other.subscribe(pattern.format(name), f"{name}_end") as subscription:
            for topic in topics:
                bus.publish(topic, topic.encode())
            await bus.flush()
            bus.publish(f"{name}_end", b"end")
            got = await take(subscription, len(expected) + 1)
    assert sorted(message.topic for message in got) == sorted([*expected, f"{name}_end"])
    assert all(message.payload in (message.topic.encode(), b"end") for message in got)


async def test_every_subscriber_gets_everything(place: Place, name: str) -> None:
    async with place.opened() as (bus, other), contextlib.AsyncExitStack() as stack:
        subscriptions = [await stack.enter_async_context(other.subscribe(f"{name}.*")) for _ in range(8)]
        assert other.status.subscriptions == 8
        publish_all(bus, f"{name}.one", numbered(100))
        for subscription in subscriptions:
            assert payloads(await take(subscription, 100)) == numbered(100)
    assert other.status.subscriptions == 0


async def test_publishers_on_one_topic_have_runs_of_their_own(place: Place, name: str) -> None:
    async with place.opened() as (one, second), second.subscribe(f"{name}.one") as subscription:
        for number in range(100):
            one.publish(f"{name}.one", b"a%d" % number)
            second.publish(f"{name}.one", b"b%d" % number)
        messages = await take(subscription, 200)
    got = payloads(messages)
    assert [one for one in got if one[:1] == b"a"] == [b"a%d" % number for number in range(100)]
    assert [one for one in got if one[:1] == b"b"] == [b"b%d" % number for number in range(100)]
    assert len({message.run for message in messages}) == (1 if place.url is None else 2)
    assert subscription.missed == 0


async def test_waiting_may_be_given_up_and_taken_up_again(place: Place, name: str) -> None:
    async with place.opened() as (bus, other), other.subscribe(f"{name}.one") as subscription:
        for number in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await anext(subscription)
            bus.publish(f"{name}.one", b"%d" % number)
            assert payloads(await take(subscription, 1)) == [b"%d" % number]
    assert subscription.missed == 0


# The ring.


@pytest.mark.parametrize("backlog, past", [(0, 0), (1, 1), (30, 30), (500, 100)])
async def test_who_comes_late_gets_the_last_messages_first(
    place: Place, name: str, backlog: int, past: int
) -> None:
    async with place.opened() as (bus, other):
        publish_all(bus, f"{name}.one", numbered(100))
        publish_all(bus, f"{name}.two", numbered(100))
        await bus.flush()
        async with other.subscribe(f"{name}.*", backlog=backlog) as subscription:
            publish_all(bus, f"{name}.one", numbered(10, 100))
            publish_all(bus, f"{name}.two", numbered(10, 100))
            got = await take(subscription, 2 * (past + 10))
    for topic in ("one", "two"):
        of_topic = [message for message in got if message.topic == f"{name}.{topic}"]
        assert payloads(of_topic) == numbered(past + 10, 100 - past)
    assert subscription.missed == 0


async def test_the_ring_outlives_the_publisher_on_a_server(place: Place, name: str) -> None:
    async with place.opened() as (bus, other):
        if place.url is None:
            pytest.skip("memory ends with its process")
        publish_all(bus, f"{name}.one", numbered(10))
        await bus.flush()
    async with place.opened() as (bus, other), other.subscribe(f"{name}.one", backlog=5) as subscription:
        assert payloads(await take(subscription, 5)) == numbered(5, 5)
        bus.publish(f"{name}.one", b"again")
        (again,) = await take(subscription, 1)
        assert (again.payload, again.sequence) == (b"again", 1)


async def test_there_is_no_hole_and_no_repeat_between_the_ring_and_live(place: Place, name: str) -> None:
    topics = [f"{name}.{topic}" for topic in ("one", "two", "three")]
    dice = random.Random(8)
    ended = asyncio.Event()

    async def publish(bus: Bus) -> None:
        number = 0
        while not ended.is_set():
            for _ in range(dice.randrange(1, 20)):
                for topic in topics:
                    bus.publish(topic, b"%d" % number)
                number += 1
            await asyncio.sleep(0)
            await bus.flush()
        for topic in topics:
            bus.publish(topic, b"end")

    async def read(bus: Bus, backlog: int) -> None:
        async with bus.subscribe(f"{name}.*", backlog=backlog) as subscription:
            joined.append(backlog)
            if len(joined) == 12:
                ended.set()
            sequences: dict[str, list[int]] = {topic: [] for topic in topics}
            ends = 0
            while ends < 3:
                (message,) = await take(subscription, 1)
                sequences[message.topic].append(message.sequence)
                ends += message.payload == b"end"
        for topic in topics:
            first, last = sequences[topic][0], sequences[topic][-1]
            assert sequences[topic] == list(range(first, last + 1))
        assert subscription.missed == 0

    joined: list[int] = []
    async with place.opened() as (bus, other):
        for topic in topics:
            publish_all(bus, topic, numbered(50))
        await bus.flush()
        async with asyncio.TaskGroup() as group:
            group.create_task(publish(bus))
            for _ in range(12):
                group.create_task(read(other, dice.choice([0, 1, 20, 200])))


# Bounds.


async def test_a_slow_subscriber_loses_the_oldest_and_knows_how_many(place: Place, name: str) -> None:
    rules = BusRules(ring_messages=200, ring_bytes=131_072, waiting_messages=200)
    large = bytes(1000)
    async with place.opened(rules) as (bus, other), other.subscribe(f"{name}.one") as subscription:
        bus.publish(f"{name}.one", b"first")
        assert payloads(await take(subscription, 1)) == [b"first"]
        for _ in range(20):
            publish_all(bus, f"{name}.one", [large] * 100)
            await bus.flush()
        bus.publish(f"{name}.one", b"last")
        await bus.flush()
        got = await until(subscription, b"last")
    sequences = [message.sequence for message in got]
    assert sequences == sorted(set(sequences))
    assert sequences[-1] == 2002
    # What a server keeps is more than the ring by a block of its files, and by what is under way.
    assert len(got) < 700
    assert subscription.missed == 2001 - len(got)


async def test_a_late_subscriber_cannot_get_more_than_the_ring(place: Place, name: str) -> None:
    rules = BusRules(ring_messages=100, ring_bytes=131_072)
    async with place.opened(rules) as (bus, other):
        for _ in range(10):
            publish_all(bus, f"{name}.one", [bytes(1000)] * 100)
            await bus.flush()
        bus.publish(f"{name}.one", b"last")
        await bus.flush()
        async with other.subscribe(f"{name}.one", backlog=10_000) as subscription:
            got = await until(subscription, b"last")
    assert 50 < len(got) < 500
    assert [message.sequence for message in got] == list(range(1002 - len(got), 1002))


async def test_what_cannot_be_is_refused(place: Place) -> None:
    async with place.opened() as (bus, other):
        for topic in ("", "a..b", "a.*", "#", "a.b\n", "a." * 200 + "b"):
            with pytest.raises(BadInput, match="topic"):
                bus.publish(topic, b"")
        for patterns in ((), ("a.#.b",), ("BTC*",), (".",)):
            with pytest.raises(BadInput, match="patterns"):
                async with other.subscribe(*patterns):
                    pass
        with pytest.raises(BadInput, match="backlog"):
            async with other.subscribe("a", backlog=-1):
                pass
        assert bus.status.published == 0


# Servers that are away.


async def test_a_killed_server_is_waited_for(server: Place, name: str) -> None:
    assert server.kill is not None
    assert server.start is not None
    rules = BusRules(first_wait=0.02, longest_wait=0.1, outgoing_messages=50)
    topic = f"{name}.one"

    async def disconnected() -> bool:
        return not bus.status.connected and not subscription.connected

    async def connected() -> bool:
        return bus.status.connected

    with capture_logs() as logs:
        async with server.opened(rules) as (bus, other), other.subscribe(topic) as subscription:
            publish_all(bus, topic, numbered(10))
            assert payloads(await take(subscription, 10)) == numbered(10)
            waiting = asyncio.create_task(until(subscription, b"last"))

            await asyncio.to_thread(server.settle)
            await asyncio.to_thread(server.kill)
            for number in range(10, 210):
                bus.publish(topic, b"%d" % number)
            await eventually(disconnected, "both see that the server is gone")
            status = bus.status
            assert status.dropped == 150
            assert status.waiting == 50
            assert status.error
            with pytest.raises(StoreUnavailable, match="did not take all"):
                await bus.flush(0.05)
            with pytest.raises(StoreUnavailable):
                async with other.subscribe(topic):
                    pass

            await asyncio.to_thread(server.start)
            await eventually(connected, "the publisher is back")
            bus.publish(topic, b"last")
            await bus.flush(DEADLINE)
            got = await waiting
            assert bus.status.dropped == 150
            assert bus.status.error is None
            assert subscription.connected

            # A topic that is new after all that is found too, by who waits and by who comes late.
            async with other.subscribe(f"{name}.#", backlog=3) as late:
                bus.publish(f"{name}.two", b"new")
                assert set(payloads(await take(late, 4))) == {b"208", b"209", b"last", b"new"}
    assert payloads(got) == [*numbered(50, 160), b"last"]
    assert subscription.missed == 150
    warned = [entry for entry in logs if entry["log_level"] == "warning"]
    # Once by each that saw it: the subscription, the publisher, and perhaps the other bus, which has nothing to do.
    assert len(warned) in (2, 3)
    assert "guest:" not in str(logs)


async def test_a_server_that_hangs_blocks_nobody(server: Place, name: str) -> None:
    assert server.process is not None
    process = server.process()
    topic = f"{name}.one"

    async def connected() -> bool:
        return bus.status.connected and subscription.connected

    async def disconnected() -> bool:
        return not bus.status.connected

    rules = BusRules(first_wait=0.02, longest_wait=0.1, answer_seconds=0.5)
    async with server.opened(rules) as (bus, other), other.subscribe(topic) as subscription:
        bus.publish(topic, b"0")
        assert payloads(await take(subscription, 1)) == [b"0"]
        waiting = asyncio.create_task(take(subscription, 100))
        os.kill(process, signal.SIGSTOP)
        try:
            publish_all(bus, topic, numbered(50, 1))
            await eventually(disconnected, "the publisher sees that nobody answers")
            publish_all(bus, topic, numbered(50, 51))
        finally:
            os.kill(process, signal.SIGCONT)
        await bus.flush(DEADLINE)
        # Some were sent twice, as nobody said that they had come. They arrive once.
        assert payloads(await waiting) == numbered(100, 1)
        await eventually(connected, "all is as before")
        assert (bus.status.dropped, subscription.missed) == (0, 0)


async def test_a_ring_that_somebody_deleted_begins_anew(place: Place, name: str) -> None:
    if place.url is None:
        pytest.skip("nobody can reach into memory")
    topic = f"{name}.one"
    rules = BusRules(first_wait=0.02, longest_wait=0.1, answer_seconds=0.5)
    async with place.opened(rules) as (bus, other), other.subscribe(topic) as subscription:
        for start in (0, 100):
            publish_all(bus, topic, numbered(100, start))
            assert payloads(await take(subscription, 100)) == numbered(100, start)
            await delete(place.url, topic)
        publish_all(bus, topic, numbered(10, 200))
        await bus.flush(DEADLINE)
        assert payloads(await take(subscription, 10)) == numbered(10, 200)
        assert subscription.missed == 0


async def delete(url: str, topic: str) -> None:
    """Delete what the server keeps of a topic."""
    if url.startswith("redis"):
        async with redis.asyncio.from_url(url) as client:
            await client.delete(topic)
    else:
        async with await aio_pika.connect(url) as connection, connection.channel() as channel:
            await channel.queue_delete(topic)


async def test_a_server_that_is_away_at_first_is_no_obstacle(name: str) -> None:
    server = await asyncio.to_thread(PrivateRedis().__enter__)
    try:
        await asyncio.to_thread(server.kill)
        async with opened_bus(server.url, QUICK) as bus:
            assert not bus.status.connected
            bus.publish(f"{name}.one", b"early")
            await asyncio.to_thread(server.start)
            await bus.flush(DEADLINE)
            async with bus.subscribe(f"{name}.one", backlog=1) as subscription:
                assert payloads(await take(subscription, 1)) == [b"early"]
    finally:
        await asyncio.to_thread(server.close)


async def test_passwords_are_in_no_message() -> None:
    quick, rabbit = await asyncio.to_thread(lambda: (servers.redis(), servers.rabbitmq()))
    for url in (
        f"redis://:s3cret@127.0.0.1:{quick.port}/0",
        f"redis://someone:s3cret@127.0.0.1:{quick.port}/0",
        f"amqp://guest:s3cret@127.0.0.1:{rabbit.port}/",
    ):
        with capture_logs() as logs:
            async with opened_bus(url, QUICK) as bus:
                shown = [repr(bus.status)]
                with pytest.raises(StoreUnavailable) as error:
                    async with bus.subscribe("a"):
                        pass
        shown += [str(error.value), str(logs)]
        assert "s3cret" not in "".join(shown)
        assert not bus.status.connected
        assert bus.status.error


async def test_connections_are_bounded(place: Place, name: str) -> None:
    if place.url is None:
        pytest.skip("memory has no connections")
    async with opened_bus(place.url, BusRules(connections=3)) as bus, contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(bus.subscribe(f"{name}.*"))
        with pytest.raises(StoreBusy, match="3 connections"):
            await stack.enter_async_context(bus.subscribe(f"{name}.*"))


async def test_redis_forgets_silent_topics_and_bounds_the_others_by_bytes(name: str) -> None:
    server = await asyncio.to_thread(servers.redis)
    rules = BusRules(ring_bytes=100_000)
    async with (
        opened_bus(server.url, rules) as bus,
        redis.asyncio.Redis(host="127.0.0.1", port=server.port) as client,
    ):
        for _ in range(20):
            publish_all(bus, f"{name}.one", [bytes(2000)] * 50)
            await bus.flush()
        seen: Any = await client.xlen(f"{name}.one")
        assert 40 <= seen <= 60
        assert 86_000 < await client.ttl(f"{name}.one") <= 86_400


async def test_one_topic_that_redis_refuses_does_not_stop_the_others(name: str) -> None:
    server = await asyncio.to_thread(servers.redis)
    async with opened_bus(server.url) as bus, redis.asyncio.Redis(host="127.0.0.1", port=server.port) as client:
        await client.set(f"{name}.bad", "text")
        async with bus.subscribe(f"{name}.good") as subscription:
            bus.publish(f"{name}.bad", b"lost")
            bus.publish(f"{name}.good", b"here")
            assert payloads(await take(subscription, 1)) == [b"here"]
        assert bus.status.dropped == 1
        assert bus.status.connected
