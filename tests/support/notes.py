"""A table of notes, for tests of connections and of servers that fail."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from market.errors import StoreUnavailable
from store.postgres.connection import Connection, PoolRules
from store.postgres.database import Database

TABLE = "CREATE TABLE notes (note text PRIMARY KEY)"
#: As patient as a busy machine needs for work that shall succeed.
RULES = PoolRules(
    acquire_seconds=10.0,
    connect_seconds=10.0,
    command_seconds=10.0,
    lock_seconds=5.0,
    watch_seconds=0.05,
    away_seconds=0.5,
)
#: Where a limit is what is tested, and waited for.
IMPATIENT = replace(RULES, acquire_seconds=3.0, connect_seconds=3.0, command_seconds=3.0)
#: Replicas look for their primary all the time.
QUICK = {"wal_retrieve_retry_interval": "100ms", "wal_receiver_status_interval": "1s"}
#: Seconds for what must happen by itself.
DEADLINE = 90.0


async def port(connection: Connection) -> int:
    """Which server this is."""
    found: int = await connection.fetchval("SELECT inet_server_port()")
    return found


async def notes(connection: Connection) -> list[str]:
    """All notes, in order."""
    return [row["note"] for row in await connection.fetch("SELECT note FROM notes ORDER BY note")]


def note(text: str) -> Callable[[Connection], Awaitable[None]]:
    """Work that adds a note; adding it again changes nothing."""

    async def work(connection: Connection) -> None:
        await connection.execute("INSERT INTO notes VALUES ($1) ON CONFLICT DO NOTHING", text)

    return work


async def writable(database: Database, text: str) -> bool:
    """Whether this note could be added now."""
    with contextlib.suppress(StoreUnavailable):
        await database.write(note(text))
        return True
    return False


async def eventually(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Return as soon as `condition` holds; the test fails, naming `what`, after DEADLINE."""
    end = asyncio.get_running_loop().time() + DEADLINE
    while not await condition():
        if asyncio.get_running_loop().time() > end:
            pytest.fail(f"not within {DEADLINE:g} s: {what}")
        await asyncio.sleep(0.02)
