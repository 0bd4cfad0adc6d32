"""Connections to the SQLite file: one writer on a thread of its own, a few readers, errors in our words."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from market.errors import BadInput, ChandleryError, NotFound, StoreBusy, StoreUnusable

_T = TypeVar("_T")

#: How long a connection waits for another process to finish its transaction.
BUSY_TIMEOUT_MS = 5000
_READERS = 4
#: STRICT tables came with 3.37.
_OLDEST_SQLITE = (3, 37, 0)


def connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    """A connection in autocommit mode; transactions are written out.

    synchronous=FULL: in the WAL mode that the schema sets, a commit that returned survives a power cut. Nothing is
    written to the file here: it may be another program's.

    :raises StoreUnusable: the file cannot be opened, or is not a database.
    """
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise StoreUnusable(f"SQLite {sqlite3.sqlite_version} is too old; 3.37 or newer is needed")
    uri = f"file:{quote(str(path.absolute()))}?mode={'ro' if read_only else 'rwc'}"
    if read_only and frozen(path):
        uri += "&immutable=1"
    with translated(path):
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        try:
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
            if read_only:
                connection.execute("PRAGMA query_only = ON")
            else:
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA cache_size = -65536")
        except BaseException:
            connection.close()
            raise
        return connection


def frozen(path: Path) -> bool:
    """True where the folder has no place for the WAL's index, and no WAL that would have to be read with it."""
    wal = path.with_name(path.name + "-wal")
    return not os.access(path.parent, os.W_OK) and not (wal.exists() and wal.stat().st_size)


def sqlite_version() -> str:
    """The version of the SQLite library in use."""
    return sqlite3.sqlite_version


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """SQLite's errors in the words of :mod:`market.errors`, naming the file."""
    try:
        yield
    except sqlite3.Error as error:
        raise _in_our_words(error, path) from error


def _in_our_words(error: sqlite3.Error, path: Path) -> ChandleryError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        waited = BUSY_TIMEOUT_MS / 1000
        return StoreBusy(
            f"{path} is locked by another process for more than {waited:g} s; nothing was written, try again"
        )
    if code == sqlite3.SQLITE_FULL:
        return StoreUnusable(f"no space left for {path}; nothing of this batch was written")
    if code == sqlite3.SQLITE_READONLY:
        return StoreUnusable(f"{path} is read-only; nothing was written")
    if code == sqlite3.SQLITE_CANTOPEN:
        return StoreUnusable(f"{path} cannot be opened; check that the folder exists and may be written")
    if code == sqlite3.SQLITE_IOERR:
        return StoreUnusable(f"{path}: input/output error ({error}); nothing of this batch was written")
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return StoreUnusable(f"{path} is damaged or not a Chandlery database ({error}); restore it from a backup")
    return StoreUnusable(f"{path}: {error}")


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """One write transaction: all of it or none. Takes the write lock at once, so it cannot fail half-way for it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        # The pages are written here, so this is where a disk turns out to be full.
        connection.execute("COMMIT")
    except BaseException:
        # A full disk may already have rolled back by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


class Database:
    """The threads that talk to one SQLite file. Open with :meth:`open`, close with :meth:`close`.

    Writes queue up on one thread, in order; each caller waits for its own commit, so the queue is as long as the
    number of callers. Reads run on a few threads, each with a connection of its own.
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self.path = path
        self.read_only = read_only
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="sqlite-writer")
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="sqlite-reader")
        self._write_connection: sqlite3.Connection | None = None
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self._lock = threading.Lock()

    async def write(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run `work` on the writer thread. It opens its own transaction.

        :raises StoreUnusable: opened for reading only, or the file cannot be written.
        """
        if self.read_only:
            raise StoreUnusable(f"{self.path} was opened for reading only")
        return await asyncio.get_running_loop().run_in_executor(self._writer, partial(self._on_writer, work))

    async def read(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run `work` on a reader thread."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, partial(self._on_reader, work))

    def _on_writer(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        with translated(self.path):
            if self._write_connection is None:
                self._write_connection = connect(self.path, read_only=False)
            return work(self._write_connection)

    def _on_reader(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        with translated(self.path):
            connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
            if connection is None:
                connection = connect(self.path, read_only=True)
                self._local.connection = connection
                with self._lock:
                    self._opened.append(connection)
            # One snapshot for all statements of one read.
            connection.execute("BEGIN")
            try:
                return work(connection)
            finally:
                # A damaged page may already have ended it.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    async def close(self) -> None:
        """Wait for what is under way and close every connection; the last one tidies the WAL away."""
        # Waited for here and not on a thread: at the end of the interpreter there are no new threads to be had.
        self._writer.shutdown()
        self._readers.shutdown()
        for connection in self._opened:
            connection.close()
        if self._write_connection is not None:
            self._write_connection.close()


def check_home(path: Path, read_only: bool) -> None:
    """Make sure the folder of `path` exists and may be written; for reading, that the file is there.

    :raises BadInput: naming ``home``.
    """
    folder = path.parent
    if read_only:
        if not path.exists():
            raise NotFound(
                "home", str(folder), hint=f"a home with a {path.name} in it; run a backfill or an import first"
            )
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput("home", str(folder), f"a folder that can be made and written ({error.strerror})") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadInput("home", str(folder), "a folder that may be written; this one is read-only")
