"""The version of the SQLite schema: made, upgraded in order, refused when newer."""

from __future__ import annotations

import random
import sqlite3
import time
from pathlib import Path

import sql
from market.errors import SchemaTooNew, StoreUnusable
from store.sqlite.database import BUSY_TIMEOUT_MS, transaction

#: Marks the file as ours ("CHND"), so that another program's database is not taken for one.
APPLICATION_ID = 0x43484E44
MIGRATIONS = sql.migrations("sqlite")
LATEST = MIGRATIONS[-1][0]


def version(connection: sqlite3.Connection) -> int:
    """The version of an open database; 0 for a new file."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def check(connection: sqlite3.Connection, path: Path) -> int:
    """The version of the database, if it is one of ours and not from the future.

    :raises SchemaTooNew: written by a newer release.
    :raises StoreUnusable: another program's database.
    """
    # One snapshot: another process may be making the tables at this moment.
    snapshot = not connection.in_transaction
    if snapshot:
        connection.execute("BEGIN")
    try:
        tables = int(connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])
        application_id = int(connection.execute("PRAGMA application_id").fetchone()[0])
        found = version(connection)
    finally:
        if snapshot and connection.in_transaction:
            connection.execute("ROLLBACK")
    if application_id != APPLICATION_ID and tables:
        raise StoreUnusable(f"{path} is an SQLite database of another program; choose another home")
    if found > LATEST:
        raise SchemaTooNew(
            f"{path} has schema version {found}, this release knows {LATEST}; "
            "use the release that wrote it, or a newer one"
        )
    return found


def check_current(connection: sqlite3.Connection, path: Path) -> None:
    """:meth:`check` for those who cannot upgrade: the version has to be the latest.

    :raises StoreUnusable: older, or without any tables.
    """
    found = check(connection, path)
    if found < LATEST:
        raise StoreUnusable(
            f"{path} has schema version {found}, reading needs {LATEST}; run `chandlery db upgrade` first"
        )


def upgrade(connection: sqlite3.Connection, path: Path) -> list[int]:
    """Bring the database to the latest version, each step in one transaction.

    Safe to run from several processes at once: each step looks at the version again under the write lock.

    :return: the versions this call applied.
    """
    applied: list[int] = []
    found = check(connection, path)
    # Only after the check, so that nobody else's file is changed.
    _use_wal(connection)
    if found == LATEST:
        return applied
    for number, _, text in MIGRATIONS:
        with transaction(connection):
            if check(connection, path) >= number:
                continue
            for statement in _statements(text):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {number}")
        applied.append(number)
    return applied


def _use_wal(connection: sqlite3.Connection) -> None:
    """Readers beside a writer, kept in the file; a file that is in this mode already stays as it is.

    SQLite does not wait for others here where both would wait for each other: one of them has to try again.
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(0.001, 0.02))
        else:
            return


def _statements(text: str) -> list[str]:
    """Single statements: `executescript` would commit the open transaction."""
    found, pending = [], ""
    for line in text.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            found.append(pending.strip())
            pending = ""
    return found
