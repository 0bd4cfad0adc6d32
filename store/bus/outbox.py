"""What waits for the server of a bus, and the task that sends it as long as the bus is open."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import structlog

from market.errors import StoreUnavailable
from store.bus.bus import BusRules
from store.bus.message import Message

log = structlog.get_logger(__name__)

#: Messages sent at once, before their confirmations are waited for.
TOGETHER = 256
#: Seconds without a message after which the server is asked whether it is still there.
IDLE_SECONDS = 1.0


class Link(Protocol):
    """One connection over which messages go to a server."""

    async def send(self, messages: Sequence[Message]) -> int:
        """Send them in order and return when the server has them; none asks only whether it is there.

        :returns: how many of them the server refused for good.
        :raises StoreUnavailable: the connection is of no use any more. Some of them may have arrived: they are sent
            again, and subscribers know them by their numbers.
        """
        ...


class Outbox:
    """Messages on their way to a server. Bounded: when it is full, the oldest is dropped and counted.

    One server away for long costs memory up to the bound and the oldest messages; it never blocks a publisher.
    """

    def __init__(
        self, connect: Callable[[], AbstractAsyncContextManager[Link]], rules: BusRules, shown: str
    ) -> None:
        """:param connect: opens a link, or raises StoreUnavailable.
        :param shown: the server, without a password.
        """
        self._connect = connect
        self._rules = rules
        self._shown = shown
        self._queue: deque[Message] = deque()
        self._size = 0
        #: Sent, but not known to have arrived.
        self._under_way: list[Message] = []
        self._filled = asyncio.Event()
        self._moved = asyncio.Event()
        #: Set when the first attempt to connect has ended, one way or the other.
        self.tried = asyncio.Event()
        self.connected = False
        self.error: str | None = None
        self.taken = 0
        self.dropped = 0

    @property
    def waiting(self) -> int:
        """Messages that the server may not have."""
        return len(self._queue) + len(self._under_way)

    def put(self, message: Message) -> None:
        """Take a message to be sent."""
        self.taken += 1
        self._queue.append(message)
        self._size += len(message.payload)
        self._keep_bounds()
        self._filled.set()

    def _keep_bounds(self) -> None:
        rules = self._rules
        while len(self._queue) > rules.outgoing_messages or self._size > rules.outgoing_bytes:
            self._size -= len(self._queue.popleft().payload)
            self.dropped += 1
            self._moved.set()

    async def settled(self, seconds: float) -> None:
        """Wait until all messages taken so far have arrived or were dropped.

        :raises StoreUnavailable: not within `seconds`.
        """
        goal = self.taken
        try:
            async with asyncio.timeout(seconds):
                while self.taken - self.waiting < goal:
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            raise StoreUnavailable(
                f"{self._shown} did not take all messages within {seconds:g} s"
                + (f": {self.error}" if self.error else "")
            ) from None

    async def run(self) -> None:
        """Send, and connect again whenever the server was away, until cancelled."""
        wait = self._rules.first_wait
        while True:
            try:
                async with self._connect() as link:
                    wait = self._rules.first_wait
                    self._found()
                    await self._send_all(link)
            except StoreUnavailable as error:
                self._lost(error)
            finally:
                self.connected = False
                self.tried.set()
            # Not all programs at once, when their server comes back.
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))
            wait = min(wait * 2, self._rules.longest_wait)

    async def _send_all(self, link: Link) -> None:
        while True:
            if not self._queue:
                self._filled.clear()
                try:
                    async with asyncio.timeout(IDLE_SECONDS):
                        await self._filled.wait()
                except TimeoutError:
                    await link.send(())
                    continue
            while self._queue and len(self._under_way) < TOGETHER:
                message = self._queue.popleft()
                self._size -= len(message.payload)
                self._under_way.append(message)
            self.dropped += await link.send(self._under_way)
            self._under_way = []
            self._moved.set()

    def _found(self) -> None:
        if self.error is not None:
            log.info("the bus is back", bus=self._shown, waiting=self.waiting, dropped=self.dropped)
        self.connected, self.error = True, None
        self.tried.set()

    def _lost(self, error: StoreUnavailable) -> None:
        if self.error is None:
            log.warning("the bus does not answer; messages wait, the oldest are dropped", error=str(error))
        self.error = str(error)
        self._queue.extendleft(reversed(self._under_way))
        self._size += sum(len(message.payload) for message in self._under_way)
        self._under_way = []
        self._keep_bounds()
