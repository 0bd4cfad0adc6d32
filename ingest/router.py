"""The router of one exchange: streams first, and whatever it takes to come out of their failures complete.

Topics are spread over connections. A connection that ends is opened again, with growing pauses; one whose life is
about to be cut by the exchange is replaced by a second one before, so that nothing is missed in between; one on
which nothing comes any more, though the socket is open, is given up. Meanwhile every route helps itself over REST
(`ingest.route`).
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from exchange.stream import Connection, Listener, RefusedMessage, StreamClient
from ingest.route import Path, Route, RouteStatus, Silence, SilenceRules
from market.book_message import BookChain, BookStart
from market.channel import Channel, Topic
from market.clock import Clock
from market.errors import ChandleryError, ExchangeRefused, ExchangeUnavailable, NotFound, RateLimited, Retryable

log = structlog.get_logger(__name__)

#: A connection on which nothing has come for so many times its usual pause is still, and with it each topic on it.
_STILL = SilenceRules(silent_after=1, usual=5.0)


@dataclass(frozen=True, kw_only=True)
class RouterRules:
    """How to keep connections. Seconds."""

    #: Between two looks at every route.
    check_every: float = 1.0
    #: A connection on which nothing at all has come for this long is given up.
    dead_after: float = 20.0
    #: A connection this old on which a topic alone is dead is given up.
    half_dead_after: float = 60.0
    #: Before opening a connection again; doubled up to the longest while it fails.
    first_wait: float = 0.5
    longest_wait: float = 15.0
    #: The longest while the exchange refuses the connection or what is subscribed to.
    longest_refused: float = 300.0
    #: A connection that lasted this long is a success: the next pause is the first one again.
    lasting: float = 3.0
    #: How long both connections are kept where one replaces the other.
    overlap: float = 5.0


@dataclass(frozen=True, kw_only=True)
class ConnectionStatus:
    """How one connection fares."""

    #: Number of topics on it.
    topics: int
    open: bool
    #: Since when, epoch milliseconds of our clock.
    since: int
    frames: int
    #: Opened again after an end, and replaced as planned.
    reconnects: int
    replaced: int
    #: Why it last ended.
    reason: str | None


class _Keeper:
    """One group of topics that share a connection."""

    def __init__(self, routes: Mapping[Topic, Route], since: int) -> None:
        self.routes = routes
        self.open: list[Connection] = []
        self.since = since
        self.frames = 0
        self.reconnects = 0
        self.replaced = 0
        self.reason: str | None = None
        #: The exchange refused the last try to connect for good.
        self.turned_away = False
        self._silence = Silence(_STILL, since)
        #: Nothing has come since, though it could have.
        self._still_since = since

    def still_ms(self, now_ms: int, *, paused: bool) -> int:
        """For how long nothing at all has come, milliseconds; 0 where that is usual, or we do not read."""
        frames = self.frames + sum(one.frames for one in self.open)
        if self._silence.heard(frames, now_ms) or paused or not self.open:
            self._still_since = now_ms
        return now_ms - self._still_since if self._silence.silent(now_ms) else 0

    def status(self) -> ConnectionStatus:
        return ConnectionStatus(
            topics=len(self.routes),
            open=bool(self.open),
            since=self.since,
            frames=self.frames + sum(one.frames for one in self.open),
            reconnects=self.reconnects,
            replaced=self.replaced,
            reason=self.reason,
        )


class Router:
    """Keeps the streams of one exchange and their routes alive until cancelled.

    :param routes: made by :meth:`add` before :meth:`run`.
    :param refused: told of each message that could not be used.
    """

    def __init__(
        self,
        client: StreamClient,
        clock: Clock,
        *,
        refused: Callable[[RefusedMessage], None],
        rules: RouterRules | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._client = client
        self._clock = clock
        self._refused = refused
        self._rules = rules or RouterRules()
        self._sleep = sleep
        self._routes: dict[Topic, Route] = {}
        self._keepers: list[_Keeper] = []
        self._works: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()
        self._crowded = False
        self._opened: deque[float] = deque(maxlen=client.rules.connects)

    def add(self, route: Route) -> None:
        """A topic to keep; before :meth:`run`."""
        self._routes[route.topic] = route

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` beside the router; it is cancelled with it, and its failure is the router's."""
        task = asyncio.get_running_loop().create_task(work)
        self._works.add(task)
        task.add_done_callback(self._ended)

    def crowd(self, crowded: bool) -> None:
        """Stop reading while the writer has too much to do, and go on after that. Nothing is dropped: what the
        exchange sends waits in the network, and if that gets too long it cuts us off, and the routes refill."""
        self._crowded = crowded
        for keeper in self._keepers:
            for connection in keeper.open:
                if crowded:
                    connection.pause()
                else:
                    connection.resume()

    def statuses(self) -> list[RouteStatus]:
        """How every topic fares, sorted."""
        return [self._routes[topic].status() for topic in sorted(self._routes, key=str)]

    def connections(self) -> list[ConnectionStatus]:
        """How every connection fares."""
        return [keeper.status() for keeper in self._keepers]

    async def run(self) -> None:
        """Keep everything going.

        :raises ChandleryError: what a route could not survive (the store is unusable).
        """
        self._keepers = [_Keeper(group, self._clock.now_ms()) for group in self._groups()]
        try:
            for keeper in self._keepers:
                self.spawn(self._keep(keeper))
            self.spawn(self._watch())
            await self._failed.wait()
            assert self._failure is not None
            raise self._failure
        finally:
            works = list(self._works)
            for task in works:
                task.cancel()
            await asyncio.gather(*works, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._works.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        self._failure = self._failure or error
        self._failed.set()

    def _groups(self) -> list[dict[Topic, Route]]:
        """The routes, spread over as few connections as may be; all topics of a symbol on one."""
        most = self._client.rules.topics_per_connection
        topics = sorted(self._routes, key=lambda topic: (topic.symbol, topic.channel, str(topic.timeframe)))
        return [
            {topic: self._routes[topic] for topic in topics[at : at + most]} for at in range(0, len(topics), most)
        ]

    async def _watch(self) -> None:
        """Look at every route about once a second."""
        while True:
            now = self._clock.now_ms()
            for keeper in self._keepers:
                still_ms = keeper.still_ms(now, paused=self._crowded)
                for route in keeper.routes.values():
                    route.check(now, still_ms)
            await self._sleep(self._rules.check_every)

    async def _keep(self, keeper: _Keeper) -> None:
        """Keep one group connected."""
        wait = self._rules.first_wait
        while True:
            began, least = asyncio.get_running_loop().time(), 0.0
            try:
                await self._connected(keeper)
            except (Retryable, ExchangeRefused, NotFound) as error:
                keeper.turned_away = not isinstance(error, Retryable)
                self._away(keeper, error)
                least = error.retry_after if isinstance(error, RateLimited) else 0.0
            if asyncio.get_running_loop().time() - began >= self._rules.lasting:
                wait = self._rules.first_wait
            await self._sleep(max(least, wait * random.uniform(0.5, 1.0)))
            longest = self._rules.longest_refused if keeper.turned_away else self._rules.longest_wait
            wait = min(wait * 2, longest)
            keeper.reconnects += 1

    def _away(self, keeper: _Keeper, error: ChandleryError) -> None:
        keeper.reason, keeper.since = str(error), self._clock.now_ms()
        log.warning("stream connection ended", exchange=self._client.exchange, reason=str(error))
        for route in keeper.routes.values():
            route.disconnected(str(error))

    async def _connected(self, keeper: _Keeper) -> None:
        """From the opening of a connection to its end; planned replacements included."""
        async with AsyncExitStack() as all_of_them:
            connection, end = await self._open(keeper, all_of_them)
            while await self._until_old(keeper, connection):
                if not self._overlaps(keeper):
                    raise ExchangeUnavailable("the connection is replaced before the exchange cuts it")
                # The next one first; a short while both are read, and the routes know the repeated messages.
                old, (connection, end) = end, await self._open(keeper, all_of_them)
                await self._sleep(self._rules.overlap)
                await old.aclose()
                keeper.replaced += 1

    async def _open(self, keeper: _Keeper, life: AsyncExitStack) -> tuple[Connection, AsyncExitStack]:
        """A connection, and what closes it, at the end of `life` at the latest."""
        await self._allowed()
        end = AsyncExitStack()
        life.push_async_exit(end)
        routes = self._wanted(keeper)
        listeners: dict[Topic, Listener] = {topic: route.on_message for topic, route in routes.items()}
        connecting = self._client.connect(listeners, partial(self._refuse, routes))
        connection = await end.enter_async_context(connecting)
        keeper.turned_away = False
        keeper.open.append(connection)
        end.callback(self._close, keeper, connection)
        if len(keeper.open) == 1:
            keeper.since, keeper.reason = self._clock.now_ms(), None
        if self._crowded:
            connection.pause()
        for route in routes.values():
            route.connected()
        return connection, end

    def _wanted(self, keeper: _Keeper) -> Mapping[Topic, Route]:
        """What to subscribe to: everything; or, where the exchange has just refused that, nothing of the symbols
        that it refuses over REST too. One that is no longer traded must not keep the others from their streams."""
        if not keeper.turned_away:
            return keeper.routes
        gone = {topic.symbol for topic, route in keeper.routes.items() if route.status().path is Path.REFUSED}
        return {topic: route for topic, route in keeper.routes.items() if topic.symbol not in gone} or keeper.routes

    def _refuse(self, routes: Mapping[Topic, Route], message: RefusedMessage) -> None:
        """A message could not be used. Where it does not say what it was about, it may have been about anything."""
        self._refused(message)
        if message.topic is None:
            for route in routes.values():
                route.refused(message.reason)
        elif message.topic in routes:
            routes[message.topic].refused(message.reason)

    def _close(self, keeper: _Keeper, connection: Connection) -> None:
        if connection in keeper.open:
            keeper.open.remove(connection)
            keeper.frames += connection.frames

    async def _allowed(self) -> None:
        """Wait until the exchange allows one more connection."""
        loop, rules = asyncio.get_running_loop(), self._client.rules
        if len(self._opened) == rules.connects:
            await self._sleep(max(0.0, self._opened[0] + rules.connect_seconds - loop.time()))
        self._opened.append(loop.time())

    async def _until_old(self, keeper: _Keeper, connection: Connection) -> bool:
        """True when the connection has lived long enough; raises when it has ended, or nothing comes any more."""
        loop, life = asyncio.get_running_loop(), self._client.rules.longest_life
        # Not all of them at the same moment.
        end = None if life is None else loop.time() + life * random.uniform(0.9, 1.0)
        ended = asyncio.ensure_future(connection.ended())
        began = loop.time()
        frames, since = connection.frames, began
        try:
            while end is None or loop.time() < end:
                await asyncio.wait([ended], timeout=self._rules.check_every)
                if ended.done():
                    ended.result()
                if connection.frames != frames or self._crowded:
                    frames, since = connection.frames, loop.time()
                elif loop.time() - since > self._rules.dead_after:
                    raise ExchangeUnavailable(
                        f"nothing came for {self._rules.dead_after:g} s on an open connection"
                    )
                if loop.time() - began > self._rules.half_dead_after and not self._crowded:
                    self._look_for_silent(keeper)
            return True
        finally:
            ended.cancel()

    def _look_for_silent(self, keeper: _Keeper) -> None:
        """A connection may live while a topic on it is dead: REST brings what its stream should have brought."""
        silent = [topic for topic, route in keeper.routes.items() if route.missing_out]
        if silent:
            raise ExchangeUnavailable(
                f"the connection is open, but REST alone brings {silent[0]}"
                + (f" and {len(silent) - 1} more" if silent[1:] else "")
            )

    def _overlaps(self, keeper: _Keeper) -> bool:
        """True where messages that come on two connections can be told apart, by their numbers."""
        rules = self._client.rules
        channels = {topic.channel for topic in keeper.routes}
        # A stream that begins with the whole book would bring it in between the other one's changes.
        numbered = rules.book_chain is not BookChain.CONNECTION and rules.book_start is BookStart.REST
        books = Channel.ORDER_BOOKS not in channels or numbered
        trades = Channel.TRADES not in channels or rules.dense_trade_ids
        return books and trades
