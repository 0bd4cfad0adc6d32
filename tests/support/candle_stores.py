"""Every implementation of a candle store, by name; a new one joins all contract tests by being named here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from store.hybrid.side import Place
from store.hybrid.store import HybridStore
from store.postgres.address import DatabaseUrl
from store.postgres.mode import Mode
from store.postgres.store import PostgresStore
from store.sqlite.store import DATABASE_NAME, SqliteStore
from tests.support import servers

#: The file of the secondary store of a hybrid one.
SECOND = "second.sqlite3"


def sqlite(folder: Path, clock: Any) -> AbstractAsyncContextManager[SqliteStore]:
    return SqliteStore.opened(folder / DATABASE_NAME, clock)


@contextlib.asynccontextmanager
async def postgres(mode: Mode, clock: Any, refresh: bool = False) -> AsyncIterator[PostgresStore]:
    server = servers.timescaledb() if mode is Mode.TIMESCALEDB else servers.postgres()

    async def make(url: str) -> None:
        # Opened once, so that the partitions of the clock's months are there already.
        async with PostgresStore.opened(DatabaseUrl.parse(url), clock, mode=mode, refresh=False):
            pass

    name = await asyncio.to_thread(servers.database_from, f"opened_{mode.value}", make)
    try:
        async with PostgresStore.opened(DatabaseUrl.parse(server.url(name)), clock, refresh=refresh) as store:
            yield store
    finally:
        await asyncio.to_thread(server.drop_database, name)


def plain(folder: Path, clock: Any) -> AbstractAsyncContextManager[PostgresStore]:
    return postgres(Mode.PLAIN, clock)


def timescaledb(folder: Path, clock: Any) -> AbstractAsyncContextManager[PostgresStore]:
    return postgres(Mode.TIMESCALEDB, clock)


def hybrid(folder: Path, clock: Any) -> AbstractAsyncContextManager[HybridStore]:
    return HybridStore.opened(
        sqlite_place(folder / DATABASE_NAME, clock), sqlite_place(folder / SECOND, clock), clock
    )


def sqlite_place(path: Path, clock: Any) -> Place:
    """A file as one of the two stores of a hybrid one."""
    return Place(location=str(path), open=lambda: SqliteStore.opened(path, clock))


#: Name of an implementation -> how to open an empty one.
STORES: dict[str, Callable[[Path, Any], AbstractAsyncContextManager[Any]]] = {
    "sqlite": sqlite,
    "postgresql": plain,
    "timescaledb": timescaledb,
    "hybrid": hybrid,
}
