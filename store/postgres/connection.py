"""One connection to PostgreSQL: how it is made, its limits, and what its server says of itself."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import urlencode

import asyncpg

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
#: The driver has no setting for this, and no public way to its socket.
_TRANSPORT = "_transport"
#: After 30 s of silence the way to the server is tried three times; so is what it does not acknowledge.
_KEEPALIVE = (
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 30),
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 10),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
    (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 60_000),
)


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
    #: A replica that shows what the primary had so long ago at best is not asked while the primary answers.
    replica_lag_seconds: float = 10.0
    #: A server that did not answer is left alone for so long by reads that have another one.
    away_seconds: float = 5.0
    #: How often replicas are looked at: are they there, how far are they.
    watch_seconds: float = 1.0

    @property
    def begin_write(self) -> str:
        """Opens a transaction that may write, with its limits, in one round trip."""
        return f"BEGIN ISOLATION LEVEL READ COMMITTED; {self._limits}"

    @property
    def begin_durable(self) -> str:
        """The same where the server is set to forget commits in a crash: not this one."""
        return f"{self.begin_write}; SET LOCAL synchronous_commit = on"

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


async def connect(url: DatabaseUrl, rules: PoolRules, cached: int, limited: bool) -> Connection:
    """A connection whose timestamptz values are epoch milliseconds. Errors are the driver's.

    :param cached: statements it keeps prepared.
    :param limited: whether an answer may take :attr:`PoolRules.answer_seconds` at most.
    """
    # Files of certificates can be given to the driver in a URL only; this one has nothing else in it.
    files = {"sslmode": url.sslmode, "sslrootcert": url.sslrootcert, "sslcert": url.sslcert, "sslkey": url.sslkey}
    query = urlencode({name: value for name, value in files.items() if value})
    for path in (url.sslrootcert, url.sslcert, url.sslkey):
        if path is not None and not os.access(path, os.R_OK):
            raise asyncpg.ClientConfigurationError(f"the file {path} cannot be read")
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
    """Make timestamptz an int of epoch milliseconds, both ways; notice a server that has vanished."""
    transport: asyncio.Transport | None = getattr(connection, _TRANSPORT, None)
    tcp = transport.get_extra_info("socket") if transport is not None else None
    if tcp is not None and tcp.family != getattr(socket, "AF_UNIX", None):
        for level, name, value in _KEEPALIVE:
            if hasattr(socket, name):
                tcp.setsockopt(level, getattr(socket, name), value)
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
    )
