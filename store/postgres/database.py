"""The connections of one PostgreSQL database: one transaction per call, errors in our words."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

import asyncpg

from market.errors import StoreUnusable
from store.postgres.address import DatabaseUrl
from store.postgres.errors import translated
from store.postgres.pool import Connection, Pool, PoolRules, ServerFacts, connect, facts

_T = TypeVar("_T")
Work = Callable[[Connection], Awaitable[_T]]


class Database:
    """One database. Open with :meth:`opened`; each call is one transaction."""

    def __init__(self, url: DatabaseUrl, rules: PoolRules, *, read_only: bool) -> None:
        self.url = url
        #: For people: the URL without its password.
        self.location = url.shown
        self.read_only = read_only
        self._rules = rules
        self._facts: ServerFacts | None = None
        self._pool = Pool(self._connect, rules)

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(
        cls,
        url: DatabaseUrl,
        rules: PoolRules = PoolRules(),  # noqa: B008 - frozen
        *,
        replicas: Sequence[DatabaseUrl] = (),
        read_only: bool = False,
    ) -> AsyncIterator[Database]:
        """Connect, and close everything at the end.

        :raises BadInput: naming the URL's setting where the server refuses what it says.
        :raises StoreUnavailable: the server does not answer.
        """
        database = cls(url, rules, read_only=read_only)
        with translated(url, opening=True):
            connection = await database._pool.take(url.shown)
        database._pool.put(connection, sound=True)
        try:
            yield database
        finally:
            await database._pool.close()

    async def write(self, work: Work[_T]) -> _T:
        """Run `work` in one transaction on the primary; committed and durable when this returns.

        :raises StoreUnusable: opened for reading only, disk full, read-only server, missing right.
        :raises StoreBusy: no free connection, a lock or a statement that took too long.
        """
        if self.read_only:
            raise StoreUnusable(f"{self.location} was opened for reading only")
        return await self._transaction(self._rules.begin_write, work)

    async def read(self, work: Work[_T]) -> _T:
        """Run `work` in one transaction that sees one snapshot."""
        return await self._transaction(self._rules.begin_read, work)

    async def outside(self, work: Work[_T]) -> _T:
        """Run `work` on a connection of its own, without a transaction and without a time limit."""
        with translated(self.url):
            connection = await connect(self.url, self._rules, cached=0, limited=False)
            try:
                return await work(connection)
            finally:
                connection.terminate()

    async def _transaction(self, begin: str, work: Work[_T]) -> _T:
        with translated(self.url):
            connection = await self._pool.take(self.location)
            sound = False
            try:
                await connection.execute(begin)
                try:
                    done = await work(connection)
                except asyncpg.PostgresError:
                    await connection.execute("ROLLBACK")
                    sound = True
                    raise
                await connection.execute("COMMIT")
                sound = True
                return done
            finally:
                self._pool.put(connection, sound=sound)

    async def _connect(self) -> Connection:
        if self._facts is None:
            # Without prepared statements first: a pooler would mix them up.
            connection = await connect(self.url, self._rules, cached=0)
            self._facts = await facts(connection)
            if self._facts.pooled or not self._rules.cached_statements:
                return connection
            connection.terminate()
        cached = 0 if self._facts.pooled else self._rules.cached_statements
        return await connect(self.url, self._rules, cached=cached)
