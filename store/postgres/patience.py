"""Transactions that may take long: they wait for nobody's lock for long, and no statement is stopped."""

from __future__ import annotations

from typing import Literal, TypeVar

import sql
from store.postgres.connection import Connection
from store.postgres.database import Database
from store.postgres.server import Work

_T = TypeVar("_T")

_QUERIES = sql.queries("postgres_maintenance")
_CONNECTION_QUERIES = sql.queries("postgres_connection")


async def patiently(database: Database, work: Work[_T], *, snapshot: bool = False, data: bool = False) -> _T:
    """Run `work` in one transaction on a connection of its own.

    :param snapshot: it only reads, and sees one moment.
    :param data: it writes data, which the safety state may forbid.
    :raises StoreReadOnly: it does; nothing was changed.
    :raises StoreBusy: somebody held a lock for longer than the rules of the connections say; nothing was changed.
    """
    lock_ms = str(round(database.primary.rules.lock_seconds * 1000))

    async def transaction(connection: Connection) -> _T:
        isolation: Literal["read_committed", "repeatable_read"] = (
            "repeatable_read" if snapshot else "read_committed"
        )
        async with connection.transaction(isolation=isolation, readonly=snapshot):
            await connection.execute(_QUERIES["bounded_waits"], lock_ms)
            if data:
                await connection.execute(_CONNECTION_QUERIES["check_writable"])
            return await work(connection)

    try:
        return await database.outside(transaction)
    finally:
        if data:
            database.writes_ended += 1
