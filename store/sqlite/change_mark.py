"""Whether anything was committed to an SQLite file, by whomever, in microseconds."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from market.errors import ChandleryError
from store.sqlite.database import connect, frozen

#: `PRAGMA data_version` has 32 bits.
_BITS = 32


class ChangeMark:
    """SQLite's own count of the commits of others, on a connection that never writes. For one thread.

    All writes are those of other connections, ours too. The file is looked at as well: another one of the same name
    (a restored backup) starts its count anew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        #: Counts are those of one connection: another one makes all numbers different.
        self._connections = 0
        self._file: tuple[int, int] | None = None

    def now(self) -> int | None:
        """The number that holds now; None where it cannot be told, for example while a lock is in the way."""
        try:
            found = os.stat(self._path)
            file = (found.st_ino, found.st_dev)
            if self._connection is None or file != self._file:
                self._open(file)
            assert self._connection is not None
            count: int = self._connection.execute("PRAGMA data_version").fetchone()[0]
        except (OSError, ChandleryError):
            self.close()
            return None
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                self.close()
            return None
        return self._connections << _BITS | count

    def close(self) -> None:
        """Close the connection; the next question opens another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self, file: tuple[int, int]) -> None:
        self.close()
        if frozen(self._path):
            # Such a connection takes it that nobody writes, and does not look.
            raise PermissionError(f"{self._path.parent} may not be written")
        connection = connect(self._path, read_only=True)
        connection.execute("PRAGMA busy_timeout = 0")
        self._connection, self._file = connection, file
        self._connections += 1
