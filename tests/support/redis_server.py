"""A Redis of the tests' own: in memory only, small, gone with the run."""

from __future__ import annotations

import functools
import pwd
import shutil
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

from tests.support.postgres_programs import POSTGRES_PACKAGE, SYSTEM_PATH, install
from tests.support.server_process import NotInstalled, ServerProcess, server_user

REDIS_PACKAGE = "redis-server"


@functools.cache
def redis_program() -> Path:
    """:raises NotInstalled: there is none, and it cannot be installed from here."""
    return program("redis-server", REDIS_PACKAGE, "Redis 5 or newer")


def program(name: str, package: str, wanted: str) -> Path:
    """Where a server's program is, installed first where that is ours to do, and with a user to run it.

    :raises NotInstalled: there is none, and it cannot be installed from here.
    """
    found = shutil.which(name, path=SYSTEM_PATH)
    if found is None:
        install(package)
        found = shutil.which(name, path=SYSTEM_PATH)
    if found is None:
        raise NotInstalled(f"{name} was not found; install {wanted}")
    if (user := server_user()) and user not in {one.pw_name for one in pwd.getpwall()}:
        # Root starts no server as itself; this package brings the user.
        install(POSTGRES_PACKAGE)
    return Path(found)


class PrivateRedis(ServerProcess):
    """A server on a port of 127.0.0.1 that writes nothing to disk, so that killing it forgets everything.

    :param keeps: write every command to disk, so that killing it forgets nothing.
    """

    NAME = "Redis"
    PID_FILE = "redis.pid"
    STOP = signal.SIGTERM
    STOP_NOW = signal.SIGTERM

    def __init__(self, *, keeps: bool = False) -> None:
        super().__init__()
        self._keeps = keeps
        #: Between :meth:`pause` and :meth:`resume`.
        self.hangs = False

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def _find(self) -> None:
        redis_program()

    def _prepare(self) -> None:
        """Nothing: the folder is enough."""

    def _configure(self) -> None:
        lines = [
            "bind 127.0.0.1",
            f"port {self.port}",
            f"dir {self.folder}",
            f"pidfile {self.folder / self.PID_FILE}",
            'save ""',
            f"appendonly {'yes' if self._keeps else 'no'}",
            "appendfsync no",
            "maxmemory 256mb",
            "maxmemory-policy volatile-lru",
            "daemonize no",
        ]
        (self.folder / "redis.conf").write_text("\n".join([*lines, ""]))

    def _command(self) -> Sequence[str | Path]:
        return [redis_program(), self.folder / "redis.conf"]

    def pause(self) -> None:
        """Let it hang: connections stay, new ones are even taken, and nothing is answered."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)
            self.hangs = True

    def resume(self) -> None:
        """It goes on where it was, and answers first what it was asked meanwhile."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
        self.hangs = False

    def stop(self) -> None:
        self.resume()
        super().stop()

    def _ready(self) -> bool:
        return said(self.port, b"PING\r\n", b"+PONG")


def said(port: int, sent: bytes, answer: bytes) -> bool:
    """Whether a server on 127.0.0.1 answers `sent` with something that starts with `answer`."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(sent)
            return connection.recv(len(answer)) == answer
    except OSError:
        return False
