"""One PostgreSQL server as we use it: its connections, whether it answers, how far it has followed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias, TypeVar

import asyncpg
import structlog

from market.errors import StoreUnavailable, StoreUnusable
from sql import queries
from store.postgres.address import DatabaseUrl
from store.postgres.connection import Connection, PoolRules, ServerFacts, facts
from store.postgres.errors import connection_lost
from store.postgres.pool import Pool

_T = TypeVar("_T")
Work: TypeAlias = Callable[[Connection], Awaitable[_T]]
#: How a connection is made: to where, by which rules, how many statements it caches, whether time is limited.
Connect: TypeAlias = Callable[[DatabaseUrl, PoolRules, int, bool], Awaitable[Connection]]

_QUERIES = queries("postgres_connection")
_FOREIGN = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

log = structlog.get_logger(__name__)


class Server:
    """A server and the pool of connections to it. Errors are the driver's unless said otherwise."""

    def __init__(self, url: DatabaseUrl, rules: PoolRules, make: Connect) -> None:
        self.url = url
        self.rules = rules
        #: Transactions and questions under way or waiting for a connection.
        self.in_flight = 0
        #: What it said of itself at the first connection.
        self.facts: ServerFacts | None = None
        #: Where it was seen in the primary's log, as :meth:`Server.replayed` gives it; -1 where nothing is known.
        self.seen_at = -1
        self.pool = Pool(self._connect, rules)
        self._make = make
        self._away_until = self._silent_until = 0.0
        self._told_away = False

    @property
    def away(self) -> bool:
        """True for some seconds after it did not answer."""
        return time.monotonic() < self._away_until

    @property
    def silent(self) -> bool:
        """True for some seconds after it kept us waiting in vain: asking again would take as long."""
        return time.monotonic() < self._silent_until

    async def open(self, connections: int = 1) -> None:
        """Connect now, and keep so many connections ready. Fails where not even one can be had."""
        try:
            async with self._connection():
                pass
        except _FOREIGN as error:
            # Told by whoever opens; only its return is news.
            self._told_away = True
            self._note(error)
            raise
        await self.pool.fill(min(connections, self.rules.most) - self.pool.size)

    async def transaction(self, begin: str, work: Work[_T], after: Work[None] | None = None) -> _T:
        """Run `work` between `begin` and COMMIT on one connection; rolled back on any error.

        `after` is run on the same connection after COMMIT; where it fails, the transaction has still succeeded.

        Where the connection had lain in the pool and turns out to be dead before COMMIT, all is done once more on a
        new one: the server has restarted, or a firewall forgot us.

        :raises StoreUnavailable: the server was lost during COMMIT: nobody knows what became of it.
        """
        self.in_flight += 1
        try:
            for last in (False, True):
                reused = False
                try:
                    async with self._connection() as (connection, reused):
                        done = await self._run(connection, begin, work)
                        if after is not None:
                            await self._run_after(connection, after)
                        return done
                except _FOREIGN as error:
                    stale = reused and connection_lost(error) and not isinstance(error, TimeoutError)
                    if last or not stale:
                        self._note(error)
                        raise
            raise AssertionError("the second turn returns or raises")
        finally:
            self.in_flight -= 1

    async def outside(self, work: Work[_T]) -> _T:
        """Run `work` on a new connection, without a transaction and without a time limit of ours."""
        connection = await self._make(self.url, self.rules, 0, False)
        try:
            return await work(connection)
        finally:
            connection.terminate()

    async def written(self, connection: Connection | None = None) -> int:
        """How far the primary's log is written, in bytes; asked on `connection` where there is one."""
        if connection is None:
            return int(await self._asked("written_position") or 0)
        return int(await connection.fetchval(_QUERIES["written_position"], timeout=self.rules.connect_seconds) or 0)

    async def replayed(self) -> int:
        """How far this replica has followed; -1 where it follows nobody."""
        position = await self._asked("replayed_position")
        self.seen_at = -1 if position is None else int(position)
        return self.seen_at

    async def cluster(self) -> int | None:
        """What a primary and its replicas have in common; None where we may not know."""
        try:
            return await self._asked("cluster")
        except asyncpg.InsufficientPrivilegeError:
            return None

    async def close(self) -> None:
        """Close every connection."""
        await self.pool.close()

    async def _asked(self, query: str) -> int | None:
        self.in_flight += 1
        try:
            async with self._connection() as (connection, _):
                value: int | None = await connection.fetchval(_QUERIES[query], timeout=self.rules.connect_seconds)
                return value
        except _FOREIGN as error:
            self._note(error)
            raise
        finally:
            self.in_flight -= 1

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[tuple[Connection, bool]]:
        """A connection and whether it was used before; kept only where what was done with it ended well."""
        connection, reused = await self.pool.take(self.url.shown)
        sound = False
        try:
            yield connection, reused
            sound = True
        except asyncio.CancelledError:
            # In the middle of an answer: the rest of it is still to come.
            raise
        except Exception as error:
            sound = not connection_lost(error)
            if not sound:
                # Those that wait in the pool have lost the server too.
                self.pool.drop_idle()
            raise
        finally:
            self.pool.put(connection, sound=sound)
        self._away_until = self._silent_until = 0.0
        if self._told_away:
            self._told_away = False
            log.warning("database answers again", database=self.url.shown)

    def _note(self, error: Exception) -> None:
        """Remember that the server was lost, if it was."""
        if not connection_lost(error):
            return
        now = time.monotonic()
        self.seen_at = -1
        self._away_until = now + self.rules.away_seconds
        if isinstance(error, TimeoutError):
            self._silent_until = now + self.rules.away_seconds
        if not self._told_away:
            self._told_away = True
            log.warning("database does not answer", database=self.url.shown, error=type(error).__name__)

    async def _run(self, connection: Connection, begin: str, work: Work[_T]) -> _T:
        try:
            await connection.execute(begin, timeout=self.rules.connect_seconds)
            done = await work(connection)
        except (asyncio.CancelledError, TimeoutError):
            # The answer may still come; the connection is dropped, and the server rolls back.
            raise
        except BaseException:
            try:
                await connection.execute("ROLLBACK", timeout=self.rules.connect_seconds)
            except _FOREIGN:
                # The server rolls back by itself; what failed first is what matters.
                connection.terminate()
            raise
        try:
            ended = await connection.execute("COMMIT")
        except _FOREIGN as error:
            if not connection_lost(error):
                raise
            connection.terminate()
            self._note(error)
            raise StoreUnavailable(
                f"{self.url.shown} was lost while it committed: whether this batch was written is not known; "
                "writing the same again is safe"
            ) from error
        if ended != "COMMIT":
            # A statement failed and `work` went on as if it had not.
            raise StoreUnusable(f"{self.url.shown}: a statement of this transaction failed; nothing was written")
        return done

    async def _run_after(self, connection: Connection, after: Work[None]) -> None:
        try:
            await after(connection)
        except _FOREIGN as error:
            connection.terminate()
            self._note(error)

    async def _connect(self) -> Connection:
        if self.facts is None:
            # Without prepared statements first: a pooler would mix them up.
            connection = await self._make(self.url, self.rules, 0, True)
            try:
                self.facts = await facts(connection)
            except BaseException:
                connection.terminate()
                raise
            if self.facts.pooled or not self.rules.cached_statements:
                return connection
            connection.terminate()
        return await self._make(
            self.url, self.rules, 0 if self.facts.pooled else self.rules.cached_statements, True
        )
