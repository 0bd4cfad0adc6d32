"""What one process tells the others through Redis: that values are no longer true.

Redis passes on what is published to those who listen just then, and to nobody later. So each message has a number,
and each process publishes one every second even if it has nothing to say: who finds a number left out, or hears
nothing, not even itself, or was away, knows that it missed something, though not what.

In a cluster messages are published plainly, not to the shard of the channel (``SPUBLISH``): the servers hand them
on to each other, so one may listen at any server that lives, and they are few and small.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import structlog
from redis.asyncio.connection import Connection
from redis.exceptions import RedisError

from market.errors import BadInput
from store.cache.invalidation import Invalidation
from store.cache.shared_values import SharedAway
from store.redis.command import RedisRefused, command
from store.redis.connection import RedisConnection
from store.redis.keys import PREFIX
from store.redis.node import NoAnswer

log = structlog.get_logger(__name__)

#: Who publishes (drawn anew at each start), and how many messages it has tried to publish, this one included.
_HEAD = struct.Struct(">QQ")
#: Processes whose numbers are remembered; with more, the one that was silent for the longest is forgotten.
_MOST_SENDERS = 10_000
#: Messages that wait at most.
_MOST_OUTGOING = 10_000


@dataclass(frozen=True, kw_only=True)
class ListeningRules:
    """Bounds of listening."""

    #: Between two messages of a process that has nothing to say; what was missed is known after that time.
    beat_seconds: float = 1.0
    #: Without any message for so long we listen elsewhere.
    silent_seconds: float = 3.5
    #: Before the next try after a failure; doubled with each further one, up to the longest.
    first_wait: float = 0.1
    longest_wait: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.beat_seconds < self.silent_seconds:
            raise BadInput("beat_seconds", self.beat_seconds, f"a time below silent_seconds, {self.silent_seconds}")


class Invalidations:
    """Tells what is no longer true, and, while :meth:`listen` is open, hears it from others."""

    def __init__(self, connection: RedisConnection, rules: ListeningRules | None = None) -> None:
        self._connection = connection
        self._rules = rules or ListeningRules()
        self._hear: Callable[[Invalidation], None] = _nobody_hears
        self._missed: Callable[[], None] = _nobody_misses
        # Channels, unlike keys, are the same in all databases of a server.
        self._channel = f"{PREFIX}{connection.url.database}:invalidations"
        self._run = secrets.randbits(64)
        self._published = 0
        #: Waits for the round trip under way; bounded, and refused when it is full.
        self._outgoing: list[tuple[bytes, asyncio.Future[None]]] = []
        self._sending: asyncio.Task[None] | None = None
        #: Of each process, by its run, the number of its last message.
        self._heard: dict[int, int] = {}
        #: Until then the first message of a process that we do not know is where we begin to count.
        self._counting_from = 0.0
        #: Whether we listen now. While not, others' invalidations are not heard.
        self.listening = False
        #: How often something was, or may have been, missed.
        self.gaps = 0

    @contextlib.asynccontextmanager
    async def listen(self, hear: Callable[[Invalidation], None], missed: Callable[[], None]) -> AsyncIterator[None]:
        """Begin to listen, whether Redis answers or not; end with the context.

        :param hear: called with what other processes say, not with what this one says. It must not wait nor raise.
        :param missed: called when something may not have been heard, and whenever listening begins: whatever is
            kept from before must not be trusted any more. It must not wait nor raise.
        """
        self._hear, self._missed = hear, missed
        tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._beat())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for task in tasks:
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            if self._sending is not None:
                # It ends by itself, within the bounds of the connection.
                await self._sending

    async def publish(self, invalidation: Invalidation) -> None:
        """Tell all who listen.

        :raises SharedAway: perhaps nobody heard it. All will know that they missed something as soon as one message
            of ours comes through, at the latest a second after Redis is back.
        """
        await self._say(invalidation.packed())

    async def _say(self, message: bytes) -> None:
        if len(self._outgoing) >= _MOST_OUTGOING:
            raise SharedAway(f"{self._connection.url.shown} does not keep up with what is published")
        heard = asyncio.get_running_loop().create_future()
        self._outgoing.append((message, heard))
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())
        await heard

    async def _send(self) -> None:
        """One round trip after the other, so that messages are heard in the order of their numbers."""
        while self._outgoing:
            taken, self._outgoing = self._outgoing, []
            commands = []
            for message, _ in taken:
                # Counted before it is known whether it goes out, so that those who listen see what did not.
                self._published += 1
                said = _HEAD.pack(self._run, self._published) + message
                commands.append(command("PUBLISH", self._channel, said))
            failure: SharedAway | RedisRefused | None = None
            try:
                await self._connection.pipeline(commands)
            except (SharedAway, RedisRefused) as error:
                failure = error
            for _, heard in taken:
                if heard.done():
                    continue
                if failure is None:
                    heard.set_result(None)
                else:
                    heard.set_exception(type(failure)(str(failure)))

    async def _beat(self) -> None:
        while True:
            with contextlib.suppress(SharedAway):
                await self._say(b"")
            await asyncio.sleep(self._rules.beat_seconds)

    async def _listen(self) -> None:
        wait = self._rules.first_wait
        turn = 0
        while True:
            try:
                async with contextlib.aclosing(self._messages(turn)) as messages:
                    async for message in messages:
                        wait = self._rules.first_wait
                        self._take(message)
            except (NoAnswer, RedisError, OSError) as error:
                if wait == self._rules.first_wait:
                    log.warning("invalidations are not heard", redis=self._connection.url.shown, error=str(error))
            turn += 1
            await asyncio.sleep(wait)
            wait = min(wait * 2, self._rules.longest_wait)

    async def _messages(self, turn: int) -> AsyncGenerator[bytes, None]:
        """What is published from now on, until the connection or the silence ends it."""
        connection = await self._connection.listening_post(turn).connected()
        try:
            await connection.send_command("SUBSCRIBE", self._channel)
            # b"subscribe", the channel, 1: from here on nothing is left out.
            await self._next(connection)
            self._heard.clear()
            loop = asyncio.get_running_loop()
            self._counting_from = loop.time() + 3 * self._rules.beat_seconds
            self.listening = True
            self._miss()
            while True:
                said = await self._next(connection)
                if said[0] == b"message":
                    yield said[2]
        finally:
            self.listening = False
            await connection.disconnect(nowait=True)

    async def _next(self, connection: Connection) -> list[Any]:
        try:
            async with asyncio.timeout(self._rules.silent_seconds):
                said: list[Any] = await connection.read_response(disable_decoding=True)
                return said
        except TimeoutError as error:
            raise NoAnswer(f"silent for {self._rules.silent_seconds:g} s") from error

    def _take(self, message: bytes) -> None:
        if len(message) < _HEAD.size:
            return
        run, number = _HEAD.unpack_from(message)
        # The one that was heard last is the last of the dict. A late message does not count back.
        before = self._heard.pop(run, None)
        self._heard[run] = max(number, before or 0)
        if len(self._heard) > _MOST_SENDERS:
            del self._heard[next(iter(self._heard))]
        if run == self._run:
            return
        body = message[_HEAD.size :]
        said = Invalidation.unpack(body) if body else None
        if said is not None:
            self._hear(said)
        if before is None:
            whole = number == 1 or asyncio.get_running_loop().time() < self._counting_from
        else:
            whole = number <= before + 1
        if not whole or (body and said is None):
            self._miss()

    def _miss(self) -> None:
        self.gaps += 1
        self._missed()


def _nobody_hears(invalidation: Invalidation) -> None:
    """Before somebody listens."""


def _nobody_misses() -> None:
    """Before somebody listens."""
