"""PostgreSQL servers of the tests' own: a primary, its streaming replicas, and databases cloned from templates."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from tests.support.postgres_programs import PostgresPrograms, postgres_programs
from tests.support.server_process import DEADLINE, ServerProcess, children, is_alive, run, until

#: The superuser that tests connect as. The password shows who does not quote it in a URL.
USER, PASSWORD = "chandlery", "s3cret/with@signs"
#: The database that is always there.
MAINTENANCE = "postgres"
#: Neither UTC nor a whole hour from it, so that mistakes with time zones show.
TIME_ZONE = "Asia/Kolkata"
#: Settings of every server.
SETTINGS: dict[str, object] = {
    "listen_addresses": "127.0.0.1",
    "max_connections": 200,
    "wal_level": "replica",
    "hot_standby": "on",
    "max_wal_senders": 10,
    "wal_keep_size": "256MB",
    # A replica looks for a primary that came back as soon as that.
    "wal_retrieve_retry_interval": "100ms",
    "timezone": TIME_ZONE,
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %d ",
    # Files in the data folder: what a killed server leaves behind is removed with it.
    "dynamic_shared_memory_type": "mmap",
}
#: Enough for the server to survive the end of a process; not for a power cut.
NOT_DURABLE: dict[str, object] = {"fsync": "off", "full_page_writes": "off"}
#: A database with the extension takes one worker, and each job that runs another.
TIMESCALEDB: dict[str, object] = {
    "shared_preload_libraries": "timescaledb",
    "timescaledb.telemetry_level": "off",
    "timescaledb.max_background_workers": 64,
    "max_worker_processes": 96,
}


class PostgresAddress(ServerProcess):
    """What speaks PostgreSQL's protocol on a port: a server, or a pooler in front of one."""

    @property
    def programs(self) -> PostgresPrograms:
        return postgres_programs()

    def url(self, database: str, user: str | None = None, password: str | None = None) -> str:
        """The address of a database, as the tests' superuser or as another user (no password unless given)."""
        if user is None:
            user, password = USER, PASSWORD if password is None else password
        secret = "" if password is None else ":" + quote(password, safe="")
        return f"postgresql://{quote(user, safe='')}{secret}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def sql(self, database: str, text: str) -> str:
        """Run statements, each in a transaction of its own; the rows as lines of values with ``|`` between.

        :raises ServerFailed: with the server's message.
        """
        options = ["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1", "--file=-"]
        return run([self.programs / "psql", *options], text, variables=self.connection(database)).strip()

    def connection(self, database: str) -> dict[str, str]:
        """The variables by which PostgreSQL's programs find and enter a database here."""
        return {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGUSER": USER,
            "PGPASSWORD": PASSWORD,
            "PGDATABASE": database,
            "PGCONNECT_TIMEOUT": str(int(DEADLINE)),
        }

    def _find(self) -> None:
        postgres_programs()


class PostgresServer(PostgresAddress):
    """What a primary and a replica have in common."""

    NAME = "PostgreSQL"
    PID_FILE = "data/postmaster.pid"
    STOP = signal.SIGINT  # fast: clients are disconnected
    STOP_NOW = signal.SIGQUIT

    def __init__(self, settings: Mapping[str, object]) -> None:
        super().__init__()
        self._settings = dict(settings)

    @property
    def offers_timescaledb(self) -> bool:
        """Whether ``CREATE EXTENSION timescaledb`` works here."""
        return self.programs.offers_timescaledb

    @property
    def data(self) -> Path:
        """The server's data folder."""
        return self.folder / "data"

    def reload(self, setting: str, value: object | None) -> None:
        """Change a setting of the whole server without a restart; None takes the change back.

        New connections have it when this returns; others take it before their next statement.
        """
        loaded = self.sql(MAINTENANCE, "SELECT pg_conf_load_time()")
        change = (
            f"ALTER SYSTEM RESET {setting}" if value is None else f"ALTER SYSTEM SET {setting} = {_text(value)}"
        )
        self.sql(MAINTENANCE, f"{change}; SELECT pg_reload_conf()")
        until(lambda: self.sql(MAINTENANCE, "SELECT pg_conf_load_time()") != loaded, f"{setting} is taken")

    def kill(self) -> None:
        """SIGKILL for the server and all its processes at once, as when the machine loses power."""
        if self._process is None:
            return
        orphans: list[int] = []
        if self.running:
            # Stopped first, so that it starts no process that we do not see.
            os.kill(self._process.pid, signal.SIGSTOP)
            orphans = children(self._process.pid)
            for pid in orphans:
                os.kill(pid, signal.SIGKILL)
        super().kill()
        until(lambda: not any(is_alive(pid) for pid in orphans), "the killed processes are gone")

    def _configure(self) -> None:
        settings = SETTINGS | (TIMESCALEDB if self.offers_timescaledb else {}) | self._settings
        settings |= {"port": self.port, "unix_socket_directories": self.folder}
        lines = [f"{name} = {_text(value)}\n" for name, value in settings.items()]
        # The last line of a setting counts; a replica finds its primary's settings here.
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(["\n", *lines])

    def _command(self) -> Sequence[str | Path]:
        return [self.programs / "postgres", "-D", self.data]

    def _ready(self) -> bool:
        """Whether the server that we started says so in its file of the process id."""
        assert self._process is not None
        try:
            lines = (self.folder / self.PID_FILE).read_text().splitlines()
        except OSError:
            return False
        return len(lines) > 7 and lines[0] == str(self._process.pid) and lines[7].strip() == "ready"


class PrivatePostgres(PostgresServer):
    """A server with a cluster of its own. ``with PrivatePostgres() as server: ...``

    `durable` keeps the settings that survive a power cut; without them everything is faster, and what was committed
    still survives ``kill()``. `settings` are added to ours.
    """

    def __init__(self, *, durable: bool = False, settings: Mapping[str, object] | None = None) -> None:
        super().__init__(({} if durable else NOT_DURABLE) | dict(settings or {}))
        self._numbers = itertools.count(1)
        self._templates: dict[str, str] = {}

    def create_database(self, template: str | None = None) -> str:
        """A new database, empty or a copy of another that nobody is connected to; its name."""
        name = f"test_{next(self._numbers)}"
        self.sql(MAINTENANCE, f"CREATE DATABASE {name}" + (f" TEMPLATE {_name(template)}" if template else ""))
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, disconnecting whoever uses it; nothing when it is gone."""
        self.sql(MAINTENANCE, f"DROP DATABASE IF EXISTS {_name(name)} WITH (FORCE)")

    def database_from(self, template: str, make: Callable[[str], Awaitable[object] | object]) -> str:
        """A new database, copied from what `make` made at the URL it was given; its name.

        `make` (plain or async) runs once per server for each name of a template.
        """
        if template not in self._templates:
            name = self.create_database()
            _run_anywhere(make, self.url(name))
            self._seal(name)
            self._templates[template] = name
        return self.create_database(self._templates[template])

    def close(self) -> None:
        super().close()
        self._templates.clear()

    def _seal(self, name: str) -> None:
        """Keep everybody out of a template: one with a connection cannot be copied.

        TimescaleDB's scheduler comes back to every database that may be connected to, so that must go first.
        """
        self.sql(MAINTENANCE, f"ALTER DATABASE {_name(name)} WITH ALLOW_CONNECTIONS false")
        connected = f"FROM pg_stat_activity WHERE datname = {_text(name)}"
        self.sql(MAINTENANCE, f"SELECT pg_terminate_backend(pid) {connected}")
        until(
            lambda: self.sql(MAINTENANCE, f"SELECT count(*) {connected}") == "0", f"nobody is connected to {name}"
        )

    def _prepare(self) -> None:
        password = self.folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        options = ["--auth=scram-sha-256", f"--username={USER}", f"--pwfile={password}", "--encoding=UTF8"]
        # An order of words that is not the order of bytes, so that who relies on the one or the other shows.
        language = ["--locale-provider=icu", "--icu-locale=en-US"] if self.programs.offers_icu else []
        command: list[str | Path] = [self.programs / "initdb", "--no-sync", "--locale=C", *options, *language]
        run([*command, *self._places()], as_server=True)
        password.unlink()

    def _places(self) -> Sequence[str | Path]:
        """The options of initdb that say where the files lie."""
        return ["-D", self.data]


class StreamingReplica(PostgresServer):
    """A read-only copy that follows a running primary. ``with StreamingReplica(primary) as replica: ...``"""

    def __init__(self, primary: PrivatePostgres, settings: Mapping[str, object] | None = None) -> None:
        super().__init__(settings or {})
        self._primary = primary

    def caught_up(self, seconds: float = DEADLINE) -> None:
        """Wait until everything that is committed on the primary now is seen here."""
        position = self._primary.sql(MAINTENANCE, "SELECT pg_current_wal_flush_lsn()")
        replayed = f"SELECT pg_last_wal_replay_lsn() >= {_text(position)}::pg_lsn"
        until(lambda: self.sql(MAINTENANCE, replayed) == "t", f"the replica is at {position}", seconds)

    def pause_replay(self) -> None:
        """Stand still from now on: receive, but show nothing newer."""
        self.sql(MAINTENANCE, "SELECT pg_wal_replay_pause()")
        paused = "SELECT pg_get_wal_replay_pause_state()"
        until(lambda: self.sql(MAINTENANCE, paused) == "paused", "replay is paused")

    def resume_replay(self) -> None:
        """Follow the primary again."""
        self.sql(MAINTENANCE, "SELECT pg_wal_replay_resume()")

    def _prepare(self) -> None:
        options = [
            "--write-recovery-conf",
            "--checkpoint=fast",
            "--wal-method=stream",
            "--no-sync",
            "--no-password",
        ]
        run(
            [self.programs / "pg_basebackup", *options, "-D", self.data],
            as_server=True,
            variables=self._primary.connection(MAINTENANCE),
        )


def _text(value: object) -> str:
    """A text of SQL and of the configuration file."""
    return "'" + str(value).replace("'", "''") + "'"


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _run_anywhere(make: Callable[[str], Awaitable[object] | object], url: str) -> None:
    """Call `make` and, when it is async, await it in a loop of its own: the caller's may be running."""

    async def finished(made: Awaitable[object]) -> None:
        await made

    def work() -> None:
        made = make(url)
        if inspect.isawaitable(made):
            asyncio.run(finished(made))

    with ThreadPoolExecutor(1, "template") as thread:
        thread.submit(work).result()
