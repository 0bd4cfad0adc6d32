"""A bounded number of connections to one PostgreSQL server, kept ready."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

import asyncpg

from market.errors import StoreBusy
from store.postgres.connection import Connection, PoolRules


class Pool:
    """A bounded number of connections, the last used first. Errors of making one are the driver's.

    The driver has a pool too; ours knows a full pool from a dead server, gives out the connections themselves and
    resets nothing: what is set, is set for one transaction.
    """

    def __init__(self, make: Callable[[], Awaitable[Connection]], rules: PoolRules) -> None:
        self._make = make
        self._rules = rules
        self._places = asyncio.Semaphore(rules.most)
        #: (connection, when it was put back), the longest unused first.
        self._idle: list[tuple[Connection, float]] = []
        self._taken: set[Connection] = set()
        self._closed = False

    async def take(self, shown: str) -> tuple[Connection, bool]:
        """A connection, and whether it was used before; give it back with :meth:`put`.

        :param shown: the server, for the error.
        :raises StoreBusy: all are in use for too long.
        """
        rules = self._rules
        try:
            async with asyncio.timeout(rules.acquire_seconds):
                await self._places.acquire()
        except TimeoutError:
            raise StoreBusy(
                f"{shown}: all {rules.most} connections are in use for more than {rules.acquire_seconds:g} s; "
                "nothing was done, try again, or raise pool_max"
            ) from None
        try:
            reused = self._last_idle()
            connection = reused or await self._make()
        except BaseException:
            self._places.release()
            raise
        self._taken.add(connection)
        return connection, reused is not None

    def _last_idle(self) -> Connection | None:
        while self._idle:
            connection, _ = self._idle.pop()
            if not connection.is_closed():
                return connection
        return None

    async def fill(self, connections: int) -> None:
        """Make so many more connections ready, at once; as many as the server gives."""
        made = await asyncio.gather(*(self._make() for _ in range(connections)), return_exceptions=True)
        now = time.monotonic()
        self._idle += [(one, now) for one in made if not isinstance(one, BaseException)]

    def put(self, connection: Connection, *, sound: bool) -> None:
        """Take a connection back; one that is not `sound` is dropped."""
        self._taken.discard(connection)
        self._places.release()
        if self._closed or not sound or connection.is_closed() or connection.is_in_transaction():
            connection.terminate()
            return
        now = time.monotonic()
        self._idle.append((connection, now))
        while len(self._idle) > self._rules.least and now - self._idle[0][1] > self._rules.idle_seconds:
            self._idle.pop(0)[0].terminate()

    def drop_idle(self) -> None:
        """Forget the connections not in use: their server is gone, or has started anew."""
        while self._idle:
            self._idle.pop()[0].terminate()

    @property
    def size(self) -> int:
        """Connections there are, in use or not."""
        return len(self._idle) + len(self._taken)

    @property
    def idle(self) -> int:
        """Connections not in use."""
        return len(self._idle)

    async def close(self, seconds: float = 2.0) -> None:
        """Close every connection: politely where the server answers within `seconds`, else at once."""
        self._closed = True
        connections = [*(one for one, _ in self._idle), *self._taken]
        self._idle.clear()
        await asyncio.gather(*(_closed(one, seconds) for one in connections))


async def _closed(connection: Connection, seconds: float) -> None:
    with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
        await connection.close(timeout=seconds)
    # Nothing where it is closed already.
    connection.terminate()
