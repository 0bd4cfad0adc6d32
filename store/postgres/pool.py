"""Connections to one PostgreSQL server: how one is made, and a bounded number of them kept ready."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import urlencode

import asyncpg

from market.errors import StoreBusy
from sql import queries
from store.postgres.address import DatabaseUrl

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

_QUERIES = queries("postgres_connection")
#: Milliseconds from 1970 to 2000, where PostgreSQL counts microseconds from.
_PG_EPOCH_MS = 946_684_800_000
#: Times at and beyond this many milliseconds are PostgreSQL's infinity.
FAR_MS = 2**62
_INFINITY, _MINUS_INFINITY = 2**63 - 1, -(2**63)
#: The last and first instants of a timestamptz, in microseconds from 2000; beyond them there is only infinity.
_LAST_US, _FIRST_US = 9_223_371_331_199_999_999, -211_813_488_000_000_000


@dataclass(frozen=True, kw_only=True)
class PoolRules:
    """How many connections, and how long to wait for what. Seconds."""

    #: Connections kept ready once there was work for them.
    least: int = 5
    #: Most connections to one server.
    most: int = 20
    #: Longest wait for a free one of them.
    acquire_seconds: float = 5.0
    connect_seconds: float = 5.0
    #: Longest run of one statement; the server stops it.
    command_seconds: float = 5.0
    #: Longest wait for a lock of another transaction; the server gives up.
    lock_seconds: float = 4.0
    #: A transaction in which nothing is asked for this long is ended by the server.
    idle_in_transaction_seconds: float = 60.0
    #: Connections above `least` that nobody used for this long are closed.
    idle_seconds: float = 300.0
    #: Statements a connection keeps prepared; none behind a pooler.
    cached_statements: int = 100

    @property
    def begin_write(self) -> str:
        """Opens a transaction that may write, with its limits, in one round trip."""
        return f"BEGIN ISOLATION LEVEL READ COMMITTED; {self._limits}"

    @property
    def begin_read(self) -> str:
        """Opens a transaction that sees one snapshot, with its limits, in one round trip."""
        return f"BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; {self._limits}"

    @property
    def _limits(self) -> str:
        # SET takes no parameters, and SET LOCAL is all that is left behind nowhere by a pooler.
        return (
            "SET LOCAL timezone = 'UTC'; "
            f"SET LOCAL statement_timeout = {_ms(self.command_seconds)}; "
            f"SET LOCAL lock_timeout = {_ms(self.lock_seconds)}; "
            f"SET LOCAL idle_in_transaction_session_timeout = {_ms(self.idle_in_transaction_seconds)}"
        )

    @property
    def answer_seconds(self) -> float:
        """When the client gives up by itself: a server within reach has ended the statement before."""
        return self.command_seconds + 2.0


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


@dataclass(frozen=True)
class ServerFacts:
    """What a server says of itself to a new connection."""

    #: True where a pooler such as PgBouncer hands each transaction to another session.
    pooled: bool
    standby: bool
    #: True where the server's settings would let a committed transaction be lost in a crash.
    forgetful: bool
    #: 150004 for 15.4.
    version: int
    #: The same for a primary and its replicas, and for no other server.
    cluster: int


async def connect(url: DatabaseUrl, rules: PoolRules, *, cached: int, limited: bool = True) -> Connection:
    """A connection whose timestamptz values are epoch milliseconds. Errors are the driver's.

    :param cached: statements it keeps prepared.
    :param limited: whether an answer may take :attr:`PoolRules.answer_seconds` at most.
    """
    # Files of certificates can be given to the driver in a URL only; this one has nothing else in it.
    files = {"sslmode": url.sslmode, "sslrootcert": url.sslrootcert, "sslcert": url.sslcert, "sslkey": url.sslkey}
    query = urlencode({name: value for name, value in files.items() if value})
    connection = await asyncpg.connect(
        f"postgresql:///?{query}" if query else None,
        host=url.host,
        port=url.port,
        user=url.user,
        password=url.password,
        database=url.database,
        timeout=rules.connect_seconds,
        command_timeout=rules.answer_seconds if limited else None,
        statement_cache_size=cached,
        server_settings={"application_name": url.application_name},
    )
    try:
        await prepare(connection)
    except BaseException:
        connection.terminate()
        raise
    return connection


async def prepare(connection: Connection) -> None:
    """Make timestamptz an int of epoch milliseconds, both ways."""
    await connection.set_type_codec(
        "timestamptz", schema="pg_catalog", encoder=_to_postgres, decoder=_from_postgres, format="tuple"
    )


def _to_postgres(time_ms: int) -> tuple[int]:
    microseconds = (time_ms - _PG_EPOCH_MS) * 1000
    if microseconds > _LAST_US:
        return (_INFINITY,)
    return (microseconds if microseconds >= _FIRST_US else _MINUS_INFINITY,)


def _from_postgres(value: tuple[int]) -> int:
    (microseconds,) = value
    if microseconds == _INFINITY:
        return FAR_MS
    if microseconds == _MINUS_INFINITY:
        return -FAR_MS
    return microseconds // 1000 + _PG_EPOCH_MS


async def facts(connection: Connection) -> ServerFacts:
    """Ask a connection whom it speaks with."""
    (row,) = await connection.fetch(_QUERIES["server_facts"])
    return ServerFacts(
        pooled=row["process"] != connection.get_server_pid(),
        standby=row["standby"],
        forgetful=row["synchronous_commit"] == "off",
        version=row["version"],
        cluster=row["cluster"],
    )


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

    async def take(self, shown: str) -> Connection:
        """A connection; give it back with :meth:`put`.

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
            while self._idle:
                connection, _ = self._idle.pop()
                if not connection.is_closed():
                    break
            else:
                connection = await self._make()
        except BaseException:
            self._places.release()
            raise
        self._taken.add(connection)
        return connection

    def put(self, connection: Connection, *, sound: bool) -> None:
        """Take a connection back; one that is not `sound` is dropped."""
        self._taken.discard(connection)
        self._places.release()
        if not sound or connection.is_closed() or connection.is_in_transaction():
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
        """Close every connection: politely where the server answers, else at once."""
        connections = [*(one for one, _ in self._idle), *self._taken]
        self._idle.clear()
        for connection in connections:
            with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await connection.close(timeout=seconds)
