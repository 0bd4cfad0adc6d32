"""Connections: opened again, replaced before their time, given up when dead, paused when the writer is behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from exchange.stream import Connection, Listener, RefusedMessage, StreamRules
from ingest.route import Path, RouteStatus
from ingest.router import Router, RouterRules
from market.book_message import BookChain, BookStart
from market.channel import Channel, Topic
from market.errors import ExchangeUnavailable, StoreUnusable
from tests.conftest import ManualClock
from tests.support.notes import eventually

QUICK = RouterRules(check_every=0.005, dead_after=0.05, half_dead_after=0.03, first_wait=0.002, overlap=0.02)


class Wire:
    """One open connection of the scripted client."""

    def __init__(self, listeners: Mapping[Topic, Listener]) -> None:
        self.listeners = listeners
        self.frames = 0
        self.paused = False
        self.closed = False
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def ended(self) -> None:
        await asyncio.shield(self._end)

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def cut(self) -> None:
        self._end.set_exception(ExchangeUnavailable("cut"))

    def send(self, topic: Topic, message: Any) -> None:
        self.frames += 1
        self.listeners[topic](message)


class Client:
    """Streams that do what a test says."""

    exchange = "scripted"

    def __init__(self, **rules: Any) -> None:
        self.rules = StreamRules(channels=frozenset(Channel), **rules)
        self.wires: list[Wire] = []
        self.failing = 0
        self.tries = 0

    @property
    def open(self) -> list[Wire]:
        return [wire for wire in self.wires if not wire.closed]

    @asynccontextmanager
    async def connect(
        self, listeners: Mapping[Topic, Listener], refused: Callable[[RefusedMessage], None]
    ) -> AsyncIterator[Connection]:
        self.tries += 1
        if self.failing:
            self.failing -= 1
            raise ExchangeUnavailable("no way in")
        wire = Wire(listeners)
        self.wires.append(wire)
        try:
            yield wire
        finally:
            wire.closed = True


class Heard:
    """A route that notes what happens to it."""

    def __init__(self, symbol: str, channel: Channel = Channel.TRADES) -> None:
        self.topic = Topic(channel, symbol)
        self.messages: list[Any] = []
        self.events: list[str] = []
        self.checks = 0
        self.still_ms = 0
        self.missing_out = False

    def on_message(self, message: Any) -> None:
        self.messages.append(message)

    def connected(self) -> None:
        self.events.append("connected")

    def disconnected(self, reason: str) -> None:
        self.events.append(f"disconnected: {reason}")

    def check(self, now_ms: int, still_ms: int = 0) -> None:
        self.checks += 1
        self.still_ms = still_ms

    def status(self) -> RouteStatus:
        return RouteStatus(topic=self.topic, path=Path.STREAM, since=0)


@asynccontextmanager
async def routed(client: Client, *routes: Heard, rules: RouterRules = QUICK) -> AsyncIterator[Router]:
    """A router at work on `routes`."""
    router = Router(client, ManualClock(), refused=lambda message: None, rules=rules)
    for route in routes:
        router.add(route)
    running = asyncio.create_task(router.run())
    try:
        yield router
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def until(condition: Callable[[], bool], what: str) -> None:
    async def holds() -> bool:
        return condition()

    await eventually(holds, what)


async def alive(client: Client) -> None:
    """Keep every open connection from looking dead."""
    while True:
        for wire in client.open:
            wire.frames += 1
        await asyncio.sleep(0.005)


async def test_topics_are_spread_and_messages_reach_their_routes() -> None:
    client, routes = Client(topics_per_connection=2), [Heard("A/B"), Heard("C/D"), Heard("E/F")]
    async with routed(client, *routes) as router:
        await until(lambda: len(client.open) == 2, "two connections")
        for wire in client.open:
            for topic in wire.listeners:
                wire.send(topic, topic.symbol)
        assert [route.messages for route in routes] == [["A/B"], ["C/D"], ["E/F"]]
        assert sorted(one.topics for one in router.connections()) == [1, 2]
        await until(lambda: all(route.checks for route in routes), "every route is looked at")


async def test_a_cut_connection_is_opened_again_and_the_routes_are_told() -> None:
    client, route = Client(), Heard("A/B")
    async with routed(client, route) as router:
        await until(lambda: len(client.open) == 1, "a connection")
        client.failing = 3
        client.wires[0].cut()
        await until(lambda: len(client.open) == 1 and len(client.wires) == 2, "another connection")
        assert client.tries == 5
        told = ["disconnected: cut", *["disconnected: no way in"] * 3]
        assert route.events == ["connected", *told, "connected"]
        (status,) = router.connections()
        assert (status.open, status.reconnects, status.reason) == (True, 4, None)


async def test_an_open_connection_on_which_nothing_comes_is_given_up() -> None:
    client, route = Client(), Heard("A/B")
    async with routed(client, route):
        await until(lambda: len(client.wires) >= 2, "another connection")
        assert client.wires[0].closed
        assert route.events[1].startswith("disconnected: nothing came for 0.05 s")


async def test_a_connection_on_which_one_topic_alone_is_dead_is_given_up() -> None:
    client, dead, living = Client(), Heard("A/B"), Heard("C/D")
    dead.missing_out = True
    async with routed(client, dead, living):
        keeping = asyncio.create_task(alive(client))
        await until(lambda: len(client.wires) >= 2, "another connection")
        keeping.cancel()
        assert "REST alone brings trades A/B" in living.events[1]


async def test_a_connection_is_replaced_before_its_life_ends_without_a_pause() -> None:
    client, route = Client(longest_life=0.1, dense_trade_ids=True), Heard("A/B")
    async with routed(client, route) as router:
        keeping = asyncio.create_task(alive(client))
        await until(lambda: len(client.wires) >= 2, "a replacement")
        assert len(client.open) == 2
        await until(lambda: client.wires[0].closed, "the old one is closed")
        assert len(client.open) >= 1
        await until(lambda: router.connections()[0].replaced >= 2, "it happens again")
        keeping.cancel()
        assert not any(event.startswith("disconnected") for event in route.events)
        assert router.connections()[0].reconnects == 0


@pytest.mark.parametrize(
    "rules, channel",
    [
        ({"book_chain": BookChain.CONNECTION, "book_start": BookStart.REST}, Channel.ORDER_BOOKS),
        ({"book_chain": BookChain.COUNTED, "book_start": BookStart.STREAM}, Channel.ORDER_BOOKS),
        ({"dense_trade_ids": False}, Channel.TRADES),
    ],
)
async def test_messages_without_numbers_never_come_on_two_connections(
    rules: dict[str, Any], channel: Channel
) -> None:
    client, route = Client(longest_life=0.1, **rules), Heard("A/B", channel)
    async with routed(client, route):
        keeping = asyncio.create_task(alive(client))
        await until(lambda: len(client.wires) >= 2, "a replacement")
        keeping.cancel()
        assert len(client.open) == 1
        assert route.events[1].startswith("disconnected: the connection is replaced")


async def test_a_crowded_writer_pauses_every_connection_also_new_ones() -> None:
    client, route = Client(), Heard("A/B")
    async with routed(client, route) as router:
        await until(lambda: len(client.open) == 1, "a connection")
        router.crowd(True)
        assert client.open[0].paused
        client.wires[0].cut()
        await until(lambda: len(client.wires) == 2, "another connection")
        assert client.wires[1].paused
        router.crowd(False)
        assert not client.wires[1].paused


async def test_no_more_connections_than_the_exchange_allows() -> None:
    client, route = Client(connects=3, connect_seconds=3600.0), Heard("A/B")
    client.failing = 100
    async with routed(client, route):
        await until(lambda: client.tries == 3, "three tries")
        for _ in range(50):
            await asyncio.sleep(0)
        assert client.tries == 3


async def test_what_a_route_cannot_survive_ends_the_router() -> None:
    client, route = Client(), Heard("A/B")
    router = Router(client, ManualClock(), refused=lambda message: None, rules=QUICK)
    router.add(route)

    async def failing() -> None:
        raise StoreUnusable("the disk is full")

    router.spawn(failing())
    with pytest.raises(StoreUnusable, match="the disk is full"):
        async with asyncio.timeout(5):
            await router.run()
