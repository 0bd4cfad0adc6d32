"""PgBouncer of the tests' own, in front of one of their servers."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.postgres_programs import pgbouncer_program
from tests.support.postgres_server import PASSWORD, USER, PostgresAddress, PostgresServer
from tests.support.server_process import ServerFailed

#: PgBouncer's own database, for SHOW POOLS, PAUSE and the like.
CONSOLE = "pgbouncer"
#: As the project's documentation tells people to set it.
SETTINGS: dict[str, object] = {
    "pool_mode": "transaction",
    "default_pool_size": 100,
    "min_pool_size": 10,
    "reserve_pool_size": 20,
    "query_timeout": 30,
    "max_client_conn": 1000,
    "auth_type": "scram-sha-256",
    "listen_addr": "127.0.0.1",
    "unix_socket_dir": "",
    "admin_users": USER,
}


class PgBouncer(PostgresAddress):
    """A pooler in transaction mode; ``url`` and ``sql`` are those of the server behind it.

    `settings` are added to ours; `users` are names and passwords that may connect besides the tests' superuser. It
    keeps connections open, so a database that was used through it is dropped by force.
    """

    NAME = "PgBouncer"
    PID_FILE = "pgbouncer.pid"
    STOP = signal.SIGTERM  # at once; SIGINT would wait for clients
    STOP_NOW = signal.SIGTERM

    def __init__(
        self,
        target: PostgresServer,
        *,
        settings: Mapping[str, object] | None = None,
        users: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self._target = target
        self._settings = dict(settings or {})
        self._users = {USER: PASSWORD} | dict(users or {})

    def _find(self) -> None:
        super()._find()
        pgbouncer_program()

    def _prepare(self) -> None:
        lines = [f"{_quoted(name)} {_quoted(password)}\n" for name, password in self._users.items()]
        (self.folder / "users.txt").write_text("".join(lines))

    def _configure(self) -> None:
        settings = SETTINGS | self._settings
        settings |= {
            "listen_port": self.port,
            "auth_file": self.folder / "users.txt",
            "pidfile": self.folder / self.PID_FILE,
        }
        lines = [f"{name} = {value}" for name, value in settings.items()]
        databases = ["[databases]", f"* = host=127.0.0.1 port={self._target.port}"]
        self._file.write_text("\n".join([*databases, "[pgbouncer]", *lines, ""]))

    def _command(self) -> Sequence[str | Path]:
        return [pgbouncer_program(), self._file]

    def _ready(self) -> bool:
        try:
            self.sql(CONSOLE, "SHOW VERSION")
        except ServerFailed:
            return False
        return True

    @property
    def _file(self) -> Path:
        return self.folder / "pgbouncer.ini"


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
