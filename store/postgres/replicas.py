"""Which server answers a read: the least busy replica that has seen enough, else the primary."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence

import structlog

from market.errors import ChandleryError
from store.postgres.connection import Connection
from store.postgres.errors import translated
from store.postgres.server import Server

#: More than any position in a log.
_NOWHERE = 2**63

log = structlog.get_logger(__name__)


class Replicas:
    """The servers that reads may go to.

    Positions are bytes of the primary's log. A replica answers when it has followed up to the last write of this
    process, and up to where the primary was `replica_lag_seconds` ago. When the primary does not answer, a replica
    that is behind is better than none.
    """

    def __init__(self, primary: Server, replicas: Sequence[Server]) -> None:
        self._primary = primary
        self._replicas = replicas
        self._rules = primary.rules
        #: Commits of this process; how many of them lie before `_wrote_at`; how many must, for callers have seen
        #: them return.
        self._commits = self._covered = self._owed = 0
        self._wrote_at = 0
        #: (monotonic seconds, position of the primary), the oldest first.
        self._samples: deque[tuple[float, int]] = deque()
        self._told_behind = False

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Keep looking at every server, so that a dead one is known to be back and reads need not ask."""
        if not self._replicas:
            yield
            return
        tasks = [asyncio.create_task(self._watch(server)) for server in (self._primary, *self._replicas)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def committed(self, connection: Connection) -> None:
        """To be called after each commit, on its connection: from now on reads show it."""
        self._commits += 1
        commit = self._commits
        try:
            await self._sample(connection)
        finally:
            if self._covered < commit:
                # Until the primary says how far its log is, it is the only one that is known to have this write.
                self._owed = max(self._owed, commit)

    async def in_order(self) -> AsyncIterator[Server]:
        """The servers to try for one read, the best first."""
        behind = []
        for replica in sorted((one for one in self._replicas if not one.away), key=lambda one: one.in_flight):
            if await self._has_seen_enough(replica):
                self._told_behind = False
                yield replica
            elif replica.seen_at >= 0:
                behind.append(replica)
        if not (behind and self._primary.silent):
            yield self._primary
        # Nobody answered. One that was away a moment ago may be back before it was looked at again.
        for replica in (one for one in self._replicas if one.away):
            if await self._has_seen_enough(replica) or not replica.away:
                behind.append(replica)
        for replica in sorted(behind, key=lambda one: -one.seen_at):
            if not self._told_behind:
                self._told_behind = True
                log.warning(
                    "the primary does not answer; a replica may lack its last writes", database=replica.url.shown
                )
            yield replica

    @property
    def _needed(self) -> int:
        """The least position that a replica must have reached."""
        if self._covered < self._owed:
            return _NOWHERE
        before = time.monotonic() - self._rules.replica_lag_seconds
        while len(self._samples) > 1 and self._samples[1][0] <= before:
            self._samples.popleft()
        old = self._samples[0][1] if self._samples and self._samples[0][0] <= before else 0
        return max(old, self._wrote_at)

    async def _has_seen_enough(self, replica: Server) -> bool:
        needed = self._needed
        if replica.seen_at >= needed:
            return True
        if needed == _NOWHERE and replica.seen_at >= 0:
            return False
        with contextlib.suppress(ChandleryError), translated(replica.url):
            # The position is taken before the snapshot: a snapshot may be older than a position asked for in it.
            return await replica.replayed() >= needed
        return False

    async def _sample(self, connection: Connection | None = None) -> None:
        # What commits while the primary answers may lie behind the answer.
        commits = self._commits
        position = await self._primary.written(connection)
        self._samples.append((time.monotonic(), position))
        if commits > self._covered:
            self._covered, self._wrote_at = commits, max(self._wrote_at, position)

    async def _watch(self, server: Server) -> None:
        while True:
            with contextlib.suppress(ChandleryError), translated(server.url):
                if server is self._primary:
                    await self._sample()
                else:
                    await server.replayed()
            await asyncio.sleep(self._rules.watch_seconds)
