"""The one way to Redis, a server or a cluster: behind a circuit breaker, within a bound of time, measured.

Whatever keeps Redis from answering becomes a :class:`store.cache.shared_values.SharedAway`, which a caller answers
by doing without. A server that is away at the start is no error either. A mistake of ours (a wrong type under
a key, an error in a script) is a :class:`store.redis.command.RedisRefused`, and is not hidden.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from store.cache.breaker import CircuitBreaker
from store.cache.shared_values import SharedAway
from store.redis.address import Place, RedisUrl
from store.redis.command import Argument, Command, RedisRefused, Reply, Script, command
from store.redis.node import NoAnswer, Node, RedisRules
from store.redis.slots import Slots

#: How often a command follows a slot to another server.
_HOPS = 3

_T = TypeVar("_T")


class RedisConnection:
    """Open with :meth:`opened`; for the tasks of one event loop."""

    def __init__(
        self,
        url: RedisUrl,
        rules: RedisRules,
        breaker: CircuitBreaker,
        on_command: Callable[[str, float], None] | None = None,
    ) -> None:
        self.url = url
        self.rules = rules
        self._breaker = breaker
        self._on_command = on_command
        self._slots = Slots(url, rules)

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(
        cls,
        url: RedisUrl,
        rules: RedisRules,
        breaker: CircuitBreaker,
        *,
        on_command: Callable[[str, float], None] | None = None,
    ) -> AsyncIterator[RedisConnection]:
        """The Redis at `url`, whether it answers or not.

        :param on_command: told of each command's name, in small letters, and the seconds it took, answered or not.
        """
        connection = cls(url, rules, breaker, on_command)
        try:
            yield connection
        finally:
            await connection._slots.close()

    async def execute(self, name: str, key: str, *arguments: Argument) -> Reply:
        """One command whose first argument is its key: ``execute("GET", key)``.

        :raises SharedAway: Redis does not answer, or cannot do this now; whether it was done is not known.
        :raises RedisRefused: the command is wrong.
        """
        (reply,) = await self._through(name.lower(), [command(name, key, *arguments)])
        return reply

    async def pipeline(self, commands: Sequence[Command]) -> list[Reply]:
        """Many commands, in one round trip to each server that is asked; the answers in the order of the commands.

        Those to one key are carried out in their order. Others may come between them: only a script is one piece.

        :raises SharedAway: any of them was not answered; which were done is not known.
        :raises RedisRefused: any of them is wrong; the others were done.
        """
        return await self._through("pipeline", commands) if commands else []

    async def script(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument] = ()) -> Reply:
        """Run a script. In a cluster all `keys` must lie in one slot.

        :raises SharedAway: see :meth:`execute`.
        :raises RedisRefused: the script is wrong.
        """
        (reply,) = await self._through(script.name, [script.call(keys, arguments)])
        return reply

    async def primaries(self) -> list[Node]:
        """Every server that has keys of its own: for :meth:`execute_on`.

        :raises SharedAway: see :meth:`execute`.
        """
        if not self._slots.known:
            await self._guarded("cluster", self._slots.find())
        return self._slots.primaries()

    async def execute_on(self, node: Node, *words: Argument) -> Reply:
        """A command to one server rather than to that which has a key.

        :raises SharedAway: see :meth:`execute`.
        :raises RedisRefused: the command is wrong.
        """
        (reply,) = await self._guarded(str(words[0]).lower(), node.converse([words]))
        return self._checked(reply)

    def listening_post(self, turn: int) -> Node:
        """A server to listen at for what is published; with another `turn` another, where there are several."""
        nodes = self._slots.nodes()
        return nodes[turn % len(nodes)]

    async def _through(self, name: str, commands: Sequence[Command]) -> list[Reply]:
        return [self._checked(reply) for reply in await self._guarded(name, self._routed(commands))]

    async def _guarded(self, name: str, work: Coroutine[Any, Any, _T]) -> _T:
        """Ask the breaker, do it, tell the breaker how it went."""
        if not self._breaker.allows():
            work.close()
            raise SharedAway(f"{self.url.shown} is left alone for a while, because it did not answer")
        started = time.perf_counter()
        try:
            done = await work
        except NoAnswer as failure:
            if failure.theirs:
                self._breaker.failed(str(failure))
            else:
                self._breaker.abandoned()
            raise SharedAway(f"{self.url.shown} does not answer: {failure}") from failure
        except BaseException:
            self._breaker.abandoned()
            raise
        finally:
            if self._on_command is not None:
                self._on_command(name, time.perf_counter() - started)
        self._breaker.succeeded()
        return done

    async def _routed(self, commands: Sequence[Command]) -> list[Reply]:
        """Each command to the server that has its key, and after it where the key has moved."""
        replies: list[Reply] = [None] * len(commands)
        groups: dict[tuple[Node, bool], list[int]] = {}
        for at, one in enumerate(commands):
            groups.setdefault((await self._slots.owner(one.key), False), []).append(at)
        for _ in range(_HOPS):
            for (_, asking), places, answers in await self._asked(groups, commands):
                del asking
                for at, reply in zip(places, answers, strict=True):
                    replies[at] = reply
            groups = {}
            for at, reply in enumerate(replies):
                if isinstance(reply, AskError):
                    groups.setdefault(self._redirected(reply, commands[at]), []).append(at)
                elif isinstance(reply, ClusterDownError):
                    self._slots.doubt()
                    raise NoAnswer(f"the cluster is down: {reply}")
            if not groups:
                return replies
        raise NoAnswer("a slot moves in circles")

    def _redirected(self, reply: AskError, one: Command) -> tuple[Node, bool]:
        if not self.url.cluster:
            raise NoAnswer(f"this is a server of a cluster: write redis+cluster:// in {self.url.setting}")
        place = Place(reply.host or self.url.places[0].host, reply.port)
        if isinstance(reply, MovedError):
            return self._slots.moved(reply.slot_id, place), False
        return self._slots.node(place), True

    async def _asked(
        self, groups: dict[tuple[Node, bool], list[int]], commands: Sequence[Command]
    ) -> list[tuple[tuple[Node, bool], list[int], list[Reply]]]:
        async def one(node: Node, asking: bool, places: list[int]) -> list[Reply]:
            try:
                return await node.exchange([commands[at] for at in places], asking=asking)
            except NoAnswer:
                self._slots.doubt()
                raise

        if len(groups) == 1:
            ((target, places),) = groups.items()
            return [(target, places, await one(*target, places))]
        answers = await asyncio.gather(
            *(one(*target, places) for target, places in groups.items()), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return [
            (target, places, answer)
            for (target, places), answer in zip(groups.items(), answers, strict=True)
            if isinstance(answer, list)
        ]

    def _checked(self, reply: Reply) -> Reply:
        """What a server that is there says to a command."""
        if not isinstance(reply, ResponseError):
            return reply
        cannot = (ReadOnlyError, OutOfMemoryError, NoPermissionError, TryAgainError)
        if isinstance(reply, cannot) or str(reply).startswith(("BUSY ", "MISCONF ", "NOREPLICAS ")):
            raise SharedAway(f"{self.url.shown} cannot do it now: {reply}") from reply
        raise RedisRefused(f"{self.url.shown} refuses: {reply}") from reply
