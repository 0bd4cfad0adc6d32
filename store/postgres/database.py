"""A PostgreSQL database: writes to its primary, reads from whoever can answer, one transaction per call."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import TypeVar

import asyncpg
import structlog

import sql
from market.errors import BadInput, Retryable, StoreBusy, StoreUnavailable, StoreUnusable
from store.postgres.address import DatabaseUrl
from store.postgres.cloud_sql import CloudSql
from store.postgres.connection import PoolRules, connect
from store.postgres.errors import CONFLICTS, translated
from store.postgres.replicas import Replicas
from store.postgres.server import Server, Work

_T = TypeVar("_T")

_QUERIES = sql.queries("postgres_connection")
#: How often work is done that others' transactions undo.
_TRIES = 5
#: Seconds to wait before the second try at most; doubled for each further one.
_FIRST_WAIT = 0.02

log = structlog.get_logger(__name__)


class Database:
    """One database. Open with :meth:`opened`; each call is one transaction, and may be made by many tasks at once.

    `work` is called with a connection and may be called again with another, when a server was lost or others undid
    its transaction: it must do nothing but ask this connection and compute. timestamptz values are int, epoch
    milliseconds, both ways; times beyond PostgreSQL's range are its infinity, which comes back as +-2**62.
    """

    def __init__(self, primary: Server, replicas: Sequence[Server], *, read_only: bool) -> None:
        self.url = primary.url
        #: For people: the URL without its password.
        self.location = primary.url.shown
        self.read_only = read_only
        #: Where writes go; then where reads may go.
        self.primary = primary
        self.replicas = replicas
        self._readers = Replicas(primary, replicas)
        #: Write transactions of this process that have ended.
        self.writes_ended = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(
        cls,
        url: DatabaseUrl,
        rules: PoolRules = PoolRules(),  # noqa: B008 - frozen
        *,
        replicas: Sequence[DatabaseUrl] = (),
        read_only: bool = False,
        cloud_sql: CloudSql | None = None,
    ) -> AsyncIterator[Database]:
        """Connect, and close everything at the end.

        A replica that does not answer is used as soon as it does. The primary must answer, unless a replica does.

        :param cloud_sql: an open connector; without it, one is opened where a URL names an instance of Cloud SQL.
        :raises BadInput: naming the URL's setting where the server refuses what it says.
        :raises StoreUnavailable: nobody answers.
        :raises StoreUnusable: the server is a standby, and not `read_only`.
        """
        async with contextlib.AsyncExitStack() as stack:
            instance = next((one for one in (url, *replicas) if one.instance), None)
            if instance is not None and cloud_sql is None:
                cloud_sql = await stack.enter_async_context(CloudSql.opened(instance))
            servers = []
            for one in (url, *replicas):
                server = Server(one, rules, cloud_sql.connect if cloud_sql and one.instance else connect)
                stack.push_async_callback(server.close)
                servers.append(server)
            database = cls(servers[0], servers[1:], read_only=read_only)
            await database._open()
            await stack.enter_async_context(database._readers.watched())
            yield database

    async def write(self, work: Work[_T]) -> _T:
        """Run `work` in one READ COMMITTED transaction on the primary; committed and durable when this returns.

        :raises StoreUnusable: opened for reading only; the server is full or read-only; a right is missing.
        :raises StoreBusy: no free connection; a lock or a statement took too long; others undid it again and again.
        :raises StoreUnavailable: the primary does not answer; the message says where the outcome is not known.
        """
        if self.read_only:
            raise StoreUnusable(f"{self.location} was opened for reading only")
        with translated(self.url):
            return await self._written(self._begin, work)

    async def write_data(self, work: Work[_T]) -> _T:
        """:meth:`write` of candles, trades, or what goes with them, in as many round trips.

        :raises StoreReadOnly: the safety state forbids it; nothing was written.
        """
        if self.read_only:
            raise StoreUnusable(f"{self.location} was opened for reading only")
        with translated(self.url):
            return await self._written(f"{self._begin}; {_QUERIES['check_writable']}", work)

    async def read(self, work: Work[_T]) -> _T:
        """Run `work` in one REPEATABLE READ, READ ONLY transaction: one snapshot, with this process's writes in it.

        :raises StoreUnavailable: neither the primary nor any replica answers.
        """
        failed: Exception | None = None
        async for server in self._readers.in_order():
            try:
                with translated(server.url):
                    return await server.transaction(server.rules.begin_read, work)
            except (Retryable, StoreUnusable) as error:
                # The primary has the last word; a statement that takes too long does so everywhere.
                too_long = isinstance(error.__cause__, asyncpg.QueryCanceledError)
                if too_long or (server is self.primary and not isinstance(error, StoreUnavailable)):
                    raise
                if failed is None or server is self.primary:
                    failed = error
        if failed is None:
            failed = StoreUnavailable(f"{self.location} does not answer; check that the server runs, try again")
        raise failed

    async def outside(self, work: Work[_T]) -> _T:
        """Run `work` on a new connection to the primary, without a transaction and without a statement time-out.

        For what cannot run inside a transaction. Behind a pooler, statements with arguments belong into
        :meth:`write`: each statement may reach another session.
        """
        with translated(self.url):
            return await self.primary.outside(work)

    async def _written(self, begin: str, work: Work[_T]) -> _T:
        after = self._readers.committed if self.replicas else None
        try:
            for tried in range(1, _TRIES + 1):
                try:
                    return await self.primary.transaction(begin, work, after)
                except CONFLICTS:
                    if tried == _TRIES:
                        raise
                    # Those who met would meet again if they waited equally long.
                    await asyncio.sleep(random.uniform(0, _FIRST_WAIT * 2**tried))
        finally:
            # However it ended: of a connection that was cut nobody knows.
            self.writes_ended += 1
        raise AssertionError("the last try returns or raises")

    @property
    def _begin(self) -> str:
        rules, facts = self.primary.rules, self.primary.facts
        return rules.begin_durable if facts is not None and facts.forgetful else rules.begin_write

    async def _open(self) -> None:
        async with asyncio.TaskGroup() as group:
            opening = [group.create_task(_opened(one)) for one in (self.primary, *self.replicas)]
        failed = [one.result() for one in opening]
        for error, server in zip(failed[1:], self.replicas, strict=True):
            if isinstance(error, BadInput) and not isinstance(error.__cause__, socket.gaierror):
                raise error
            if error is not None:
                log.warning("a replica is not there", database=server.url.shown, error=str(error))
        if failed[0] is not None and (
            not isinstance(failed[0], StoreUnavailable | StoreBusy) or None not in failed[1:]
        ):
            raise failed[0]
        facts = self.primary.facts
        if facts is not None and facts.standby and not self.read_only:
            raise StoreUnusable(
                f"{self.location} is a standby and takes no writes; {self.url.setting} must name the primary"
            )
        if self.replicas and failed[0] is None:
            await self._check_replicas(error is None for error in failed[1:])

    async def _check_replicas(self, there: Iterable[bool]) -> None:
        """Positions in the log of another server mean nothing, and its data are not ours."""
        with translated(self.url):
            ours = await self.primary.cluster()
        for server in itertools.compress(self.replicas, there):
            with translated(server.url):
                theirs = await server.cluster()
            if None not in (ours, theirs) and ours != theirs:
                raise server.url.refused(f"a replica of {self.location}; this is another server")


async def _opened(server: Server) -> Exception | None:
    """What went wrong, if anything did: one server must not end the opening of another."""
    try:
        with translated(server.url, opening=True):
            await server.open(server.rules.least)
    except (BadInput, Retryable, StoreUnusable) as error:
        return error
    return None
