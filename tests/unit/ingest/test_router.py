"""Connections: opened again, replaced before their time, given up when dead, paused when the writer is behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from exchange.stream import Connection, Listener, RefusedMessage, StreamRules
from ingest.route import Path, RouteStatus
from ingest.router import Router, RouterRules
from market.book_message import BookChain, BookStart
from market.channel import Channel, Topic
from market.errors import ExchangeRefused, ExchangeUnavailable, StoreUnusable
from tests.conftest import ManualClock
from tests.support.notes import eventually

QUICK = RouterRules(check_every=0.005, dead_after=60.0, half_dead_after=0.03, first_wait=0.002, overlap=0.02)


class Wire:
    """One open connection of the scripted client."""

    def __init__(self, listeners: Mapping[Topic, Listener], refused: Callable[[RefusedMessage], None]) -> None:
        self.listeners = listeners
        self._refused = refused
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

    def refuse(self, reason: str, topic: Topic | None = None) -> None:
        self._refused(RefusedMessage(exchange="scripted", topic=topic, reason=reason, raw="{", received_at=0))

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
        self.refused_symbols: set[str] = set()
        self.turned_away = 0
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
        for topic in listeners:
            if topic.symbol in self.refused_symbols:
                self.turned_away += 1
                raise ExchangeRefused(f"{topic.symbol} is unknown")
        wire = Wire(listeners, refused)
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
        self.path = Path.STREAM

    def on_message(self, message: Any) -> None:
        self.messages.append(message)

    def connected(self) -> None:
        self.events.append("connected")

    def disconnected(self, reason: str) -> None:
        self.events.append(f"disconnected: {reason}")

    def refused(self, reason: str) -> None:
        self.events.append(f"refused: {reason}")

    def check(self, now_ms: int, still_ms: int = 0) -> None:
        self.checks += 1
        self.still_ms = still_ms

    def status(self) -> RouteStatus:
        return RouteStatus(topic=self.topic, path=self.path, since=0)


@asynccontextmanager
async def routed(
    client: Client,
    *routes: Heard,
    rules: RouterRules = QUICK,
    refused: Callable[[RefusedMessage], None] = lambda message: None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncIterator[Router]:
    """A router at work on `routes`."""
    router = Router(client, ManualClock(), refused=refused, rules=rules, sleep=sleep)
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
    async with routed(client, route, rules=replace(QUICK, dead_after=0.05)):
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


async def test_a_message_that_could_not_be_used_is_told_to_all_whose_it_may_have_been() -> None:
    client, routes = Client(topics_per_connection=2), [Heard("A/B"), Heard("C/D"), Heard("E/F")]
    kept: list[RefusedMessage] = []
    async with routed(client, *routes, refused=kept.append):
        await until(lambda: len(client.open) == 2, "two connections")
        first = next(wire for wire in client.open if routes[0].topic in wire.listeners)
        first.refuse("its own", routes[0].topic)
        first.refuse("anything")
        first.refuse("of another connection", routes[2].topic)
    refusals = [[event for event in route.events if event.startswith("refused")] for route in routes]
    assert refusals == [["refused: its own", "refused: anything"], ["refused: anything"], []]
    assert [one.reason for one in kept] == ["its own", "anything", "of another connection"]


async def test_a_symbol_that_is_no_longer_traded_does_not_keep_the_others_from_their_streams() -> None:
    client, gone, living = Client(), Heard("A/B"), Heard("C/D")
    async with routed(client, gone, living) as router:
        await until(lambda: len(client.open) == 1, "a connection")
        # From now on the exchange refuses the symbol, and soon REST does too.
        client.refused_symbols = {"A/B"}
        client.wires[0].cut()
        await until(lambda: client.turned_away >= 2, "the exchange refuses all of it")
        assert not client.open
        gone.path = Path.REFUSED
        await until(lambda: len(client.open) == 1, "the others are back")
        assert list(client.open[0].listeners) == [living.topic]
        assert (living.events[-1], gone.events[-1]) == ("connected", "disconnected: A/B is unknown")
        assert router.connections()[0].open
        # Traded again: the next connection has everything.
        client.refused_symbols, gone.path = set(), Path.REST
        client.open[0].cut()
        await until(lambda: len(client.open) == 1 and len(client.open[0].listeners) == 2, "both")
        assert gone.events[-1] == "connected"


async def test_where_everything_is_refused_the_exchange_is_asked_more_and_more_seldom() -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    client, gone = Client(connects=1000), Heard("A/B")
    client.refused_symbols, gone.path = {"A/B"}, Path.REFUSED
    rules = RouterRules(check_every=0.125)
    async with routed(client, gone, rules=rules, sleep=sleep):
        await until(lambda: client.turned_away >= 14, "many tries")
    waits = [one for one in pauses if one != 0.125]
    assert all(later <= 300 for later in waits)
    assert min(waits[-3:]) >= 150
