"""A PostgreSQL whose disk is small and can be filled."""

from __future__ import annotations

import errno
import pwd
from collections.abc import Sequence
from pathlib import Path

from tests.support.places import mount
from tests.support.postgres_server import PrivatePostgres
from tests.support.server_process import server_user

#: Bytes that are written to the ballast at once.
BLOCK = 65_536
SETTINGS: dict[str, object] = {
    "wal_keep_size": 0,
    "max_wal_size": "32MB",
    # Shared memory must not be what does not fit.
    "dynamic_shared_memory_type": "posix",
}


class SmallDiskPostgres(PrivatePostgres):
    """A server whose data folder is a file system of `megabytes` in memory; skips where mounting is not allowed.

    A new cluster takes about 45 MB, each database 8 MB (with TimescaleDB 15 MB). The write-ahead log lies
    elsewhere: a full disk then fails the statement that needs room, and the server goes on. With `log_inside` it is
    the log that finds no room, and the server stops.
    """

    def __init__(self, megabytes: int = 160, *, log_inside: bool = False) -> None:
        super().__init__(settings=SETTINGS)
        self._megabytes = megabytes
        self._log_inside = log_inside

    def fill(self, left: int = 0) -> None:
        """Take all room but `left` bytes."""
        try:
            with self._ballast.open("ab", buffering=0) as file:
                while True:
                    file.write(b"\0" * BLOCK)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        with self._ballast.open("ab") as file:
            file.truncate(max(file.tell() - left, 0))

    def clear(self) -> None:
        """Give the room back."""
        self._ballast.unlink(missing_ok=True)

    @property
    def _ballast(self) -> Path:
        return self.data / "ballast"

    def _mount(self) -> str:
        return "data"

    def _prepare(self) -> None:
        user = server_user()
        entry = pwd.getpwnam(user) if user else None
        owner = f",uid={entry.pw_uid},gid={entry.pw_gid}" if entry else ""
        mount(self.data, "-t", "tmpfs", "-o", f"size={self._megabytes}m,mode=0700{owner}", "tmpfs")
        super()._prepare()

    def _places(self) -> Sequence[str | Path]:
        elsewhere: list[str | Path] = [] if self._log_inside else ["--waldir", self.folder / "wal"]
        return [*super()._places(), *elsewhere]
