"""One Redis server: its connections, and a conversation over one of them within a bound of time."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from redis.asyncio import SSLConnection
from redis.asyncio.connection import Connection
from redis.exceptions import NoScriptError, RedisError, ResponseError

from market.errors import BadInput
from store.redis.address import Place, RedisUrl
from store.redis.command import Argument, Command, Reply, packed

#: Seconds by which our own loop may notice a time-out too late before the delay is held to be ours.
_OURS = 0.01
#: Commands of one round trip, except of one caller's own.
_COMMANDS_TOGETHER = 1_000
#: Time-outs that a round trip may take where a server does answer, though slowly or much.
_ROUND = 10


@dataclass(frozen=True, kw_only=True)
class RedisRules:
    """Bounds of the connections to Redis."""

    #: To each server at most. Who finds all in use waits for one, not longer than another takes.
    connections: int = 50
    #: Until a server must have let us in.
    connect_seconds: float = 0.5
    #: Until a server must have answered, and between two answers of a round trip, which takes ten times as long
    #: at most.
    answer_seconds: float = 0.1
    #: Between two questions to a cluster which node has what, at least.
    refresh_seconds: float = 0.1

    def __post_init__(self) -> None:
        for name in ("connections", "connect_seconds", "answer_seconds", "refresh_seconds"):
            if not 0 < getattr(self, name) < 86_400:
                raise BadInput(name, getattr(self, name), "a number above 0 and below 86,400")


class NoAnswer(Exception):
    """A server gave no answer in time, or none at all.

    :param theirs: false where the delay is our own: no free connection, or a loop that was busy elsewhere.
    """

    def __init__(self, message: str, *, theirs: bool = True) -> None:
        super().__init__(message)
        self.theirs = theirs


class Node:
    """One server. Connections are made when they are first needed and kept for the next."""

    def __init__(self, place: Place, url: RedisUrl, rules: RedisRules) -> None:
        self.place = place
        self._url = url
        self._rules = rules
        self._free: list[Connection] = []
        #: Waits for a connection; bounded, and refused when it is full. So many commands are in it:
        self._waiting: deque[_Call] = deque()
        self._held = 0
        #: One for each connection in use.
        self._sending: set[asyncio.Task[None]] = set()
        #: Scripts that the server has seen since it last failed.
        self._scripts: set[str] = set()
        self._closed = False

    async def exchange(self, commands: Sequence[Command], *, asking: bool = False) -> list[Reply]:
        """Say all in one round trip; the answers in the same order, an error of one among them as a ResponseError.

        :param asking: the slot is on its way to this server: say so before each.
        :raises NoAnswer: nothing is known of what was done and what was not.
        """
        known = set(self._scripts)
        said = []
        for one in commands:
            said.append(one.said(whole=one.script is not None and one.script.sha1 not in known))
            if one.script is not None:
                known.add(one.script.sha1)
        replies = await self._asked(said, asking)
        lost = [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if lost:
            # Somebody flushed the scripts. Their calls follow, in order, after what else was said.
            whole = [commands[at].said(whole=True) for at in lost]
            for at, reply in zip(lost, await self._asked(whole, asking), strict=True):
                replies[at] = reply
        for one, reply in zip(commands, replies, strict=True):
            # A server that sends us elsewhere has not looked at the script.
            if one.script is not None and not isinstance(reply, ResponseError):
                self._scripts.add(one.script.sha1)
        return replies

    async def _asked(self, said: Sequence[Sequence[Argument]], asking: bool) -> list[Reply]:
        if not asking:
            return await self.converse(said)
        return (await self.converse([words for one in said for words in (("ASKING",), one)]))[1::2]

    async def converse(self, said: Sequence[Sequence[Argument]]) -> list[Reply]:
        """The same with words as they are.

        What several tasks say at the same moment goes out together. An error of one does not touch the others, but
        when there is no answer there is none for all; only one of them is then told that it is the server's fault.
        """
        if self._closed or self._held >= self._rules.connections * _COMMANDS_TOGETHER:
            raise NoAnswer(f"{self.place}: too much waits for it", theirs=False)
        loop = asyncio.get_running_loop()
        call = _Call([packed(words) for words in said], loop.create_future())
        self._waiting.append(call)
        self._held += len(said)
        if len(self._waiting) == 1:
            loop.call_soon(self._send_waiting)
        return await call.answers

    def _send_waiting(self) -> None:
        """Let as many connections as there may be each take a part of what waits.

        The rest waits for one of them. It is no more than they take in one more round, so nobody waits for two.
        """
        loop = asyncio.get_running_loop()
        while self._waiting and len(self._sending) < self._rules.connections:
            calls: list[_Call] = []
            size = 0
            while self._waiting and (not calls or size + len(self._waiting[0].said) <= _COMMANDS_TOGETHER):
                call = self._waiting.popleft()
                self._held -= len(call.said)
                if not call.answers.done():
                    calls.append(call)
                    size += len(call.said)
            if calls:
                sending = loop.create_task(self._send(calls))
                self._sending.add(sending)
                sending.add_done_callback(self._sent)

    def _sent(self, sending: asyncio.Task[None]) -> None:
        self._sending.discard(sending)
        if not self._closed:
            self._send_waiting()

    async def _send(self, calls: Sequence[_Call]) -> None:
        said = [words for call in calls for words in call.said]
        seconds = self._rules.answer_seconds
        try:
            async with (
                self._connection() as connection,
                self._within(seconds, "no answer", at_most=seconds * _ROUND) as progress,
            ):
                await connection.send_packed_command(said, check_health=False)
                for call in calls:
                    replies = []
                    for _ in call.said:
                        replies.append(await _reply(connection))
                        progress.made()
                    if not call.answers.done():
                        call.answers.set_result(replies)
        except NoAnswer as failure:
            theirs = failure.theirs
            for call in calls:
                if call.fail(NoAnswer(str(failure), theirs=theirs)):
                    theirs = False
        finally:
            for call in calls:
                call.fail(NoAnswer(f"{self.place}: the connection is closed", theirs=False))

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        try:
            connection = await self._take()
            try:
                yield connection
            except BaseException:
                # An answer may still be under way on it, which the next would take for its own.
                await connection.disconnect(nowait=True)
                raise
        except NoAnswer as failure:
            if failure.theirs:
                await self._forget()
            raise
        self._free.append(connection)

    async def _take(self) -> Connection:
        while self._free:
            connection = self._free.pop()
            try:
                if not await _has_more(connection):
                    return connection
            except (RedisError, OSError):
                pass
            # The server closed it while nobody looked.
            self._scripts.clear()
            await connection.disconnect(nowait=True)
        return await self.connected()

    async def connected(self) -> Connection:
        """A connection of the caller's own, which is not among those that are counted.

        :raises NoAnswer: the server did not let us in.
        """
        # The driver's release decides how far it says its types.
        connection: Any = (SSLConnection if self._url.tls else Connection)(
            host=self.place.host,
            port=self.place.port,
            username=self._url.user,
            password=self._url.password,
            db=self._url.database,
            # We bound whole conversations ourselves, not each word of them.
            socket_connect_timeout=None,
            socket_timeout=None,
            protocol=2,
            client_name="chandlery",
        )
        try:
            async with self._within(self._rules.connect_seconds, "no connection"):
                await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        made: Connection = connection
        return made

    async def _forget(self) -> None:
        """After a failure: what the other connections are worth is unknown."""
        self._scripts.clear()
        free, self._free = self._free, []
        for connection in free:
            await connection.disconnect(nowait=True)

    @contextlib.asynccontextmanager
    async def _within(self, seconds: float, what: str, *, at_most: float | None = None) -> AsyncIterator[_Progress]:
        """End what makes no progress for so long, and in any case after `at_most` seconds."""
        loop = asyncio.get_running_loop()
        progress = _Progress()
        last = progress.at + (seconds if at_most is None else at_most)
        ours = False
        timers: list[asyncio.TimerHandle] = []

        def over() -> None:
            nonlocal ours
            due = min(progress.at + seconds, last)
            if loop.time() < due:
                timers.append(loop.call_at(due, over))
                return
            # When our own loop was busy elsewhere, the answer may lie there unread: look once more.
            ours = loop.time() - due > _OURS
            bound.reschedule(loop.time() + (seconds if ours else 0.0))

        try:
            async with asyncio.timeout(None) as bound:
                timers.append(loop.call_at(progress.at + seconds, over))
                try:
                    yield progress
                finally:
                    timers[-1].cancel()
        except TimeoutError as error:
            raise NoAnswer(f"{self.place}: {what} within {seconds:g} s", theirs=not ours) from error
        except (RedisError, OSError) as error:
            raise NoAnswer(f"{self.place}: {what}: {error}") from error

    async def close(self) -> None:
        """Close all; who still waits for an answer gets none."""
        self._closed = True
        for call in self._waiting:
            call.fail(NoAnswer(f"{self.place}: the connection is closed", theirs=False))
        for sending in self._sending:
            sending.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
        await self._forget()


class _Progress:
    """When something was last heard, on the loop's clock."""

    def __init__(self) -> None:
        self._now = asyncio.get_running_loop().time
        self.at = self._now()

    def made(self) -> None:
        self.at = self._now()


class _Call(NamedTuple):
    """What one task said, and waits for."""

    said: list[bytes]
    answers: asyncio.Future[list[Reply]]

    def fail(self, failure: NoAnswer) -> bool:
        """Whether somebody was still there to hear it."""
        if self.answers.done():
            return False
        self.answers.set_exception(failure)
        return True


async def _reply(connection: Connection) -> Reply:
    try:
        return await connection.read_response(disable_decoding=True)
    except ResponseError as error:
        return error


async def _has_more(connection: Any) -> bool:
    """Whether something waits to be read where nothing was asked, or the other side has closed."""
    # The driver gave it another name in release 8.
    look = getattr(connection, "can_read", None) or connection.can_read_destructive
    return bool(await look())
