"""A private server of the tests: its folder, its port, its process. Nothing of it outlives the test run."""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

#: Seconds a server may take for anything before the test fails.
DEADLINE = 60.0
#: Stands in every reason for a skip that the end of a test run repeats.
NOT_RUN = "tests were not run: "
#: Seconds between two looks at a condition.
INTERVAL = 0.01
#: Files here lie in memory, where making and removing them costs a fraction of what it does on a disk, and each
#: database is hundreds of them. Only where so many bytes are free there, and as many in the memory itself.
IN_MEMORY, ROOM = Path("/dev/shm"), 4 << 30
#: Below the ports that Linux gives to outgoing connections, so that a server that was killed finds its port free.
PORTS = range(15_000, 32_000)

# Waits for a word on its input. When the test process ends without one, however it ended, the server is still
# running and is stopped here. $1 folder, $2 file with the process id, $3 signal, $4 a mount in the folder.
_KEEPER = """
read -r word
pid=$(sed -n 1p "$2"); memory=$(sed -n '7s/.* //p' "$2")
if [ "$word" != stopped ] && [ -n "$pid" ]; then
    kill -"$3" "$pid"; looks=0
    while kill -0 "$pid" && [ -e "$2" ] && [ $looks -lt 200 ]; do sleep 0.05; looks=$((looks + 1)); done
fi
if [ -n "$memory" ]; then ipcrm -m "$memory"; fi
if [ -n "$4" ]; then umount -l "$4"; fi
rm -rf "$1"
"""


class NotInstalled(Exception):
    """A program is missing and cannot be installed from here; the message says what to install."""


class ServerFailed(Exception):
    """A private server did not do what a test needs; the message ends with the end of its log."""


def until(condition: Callable[[], bool], what: str, seconds: float = DEADLINE) -> None:
    """Return as soon as `condition` holds; a ServerFailed naming `what` after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise ServerFailed(f"not within {seconds:g} s: {what}")
        time.sleep(INTERVAL)


def free_port() -> int:
    """A port of 127.0.0.1 where nobody listens now; somebody else may still take it first."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def server_user() -> str | None:
    """Whom servers run as: PostgreSQL refuses root, so root starts them as ``postgres``; None is ourselves."""
    return "postgres" if os.geteuid() == 0 else None


def environment() -> dict[str, str]:
    """Our environment without what the user set for PostgreSQL's programs, which speak plain English."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
    return ours | {"LC_ALL": "C"}


def parent_folder() -> Path:
    """Where the folders of servers are made: in memory where there is room, else on the disk.

    Not in TMPDIR: the server's user must reach it, and the path of a socket must stay short.
    """
    if IN_MEMORY.is_mount() and os.access(IN_MEMORY, os.W_OK):
        with Path("/proc/meminfo").open() as lines:
            memory = {line.partition(":")[0]: line.split()[1] for line in lines}
        if min(shutil.disk_usage(IN_MEMORY).free, int(memory["MemAvailable"]) << 10) >= ROOM:
            return IN_MEMORY
    return Path("/tmp")


class ServerFolder:
    """A temporary folder of the server's user, removed, with what still runs in it, when this process ends.

    A small shell process keeps watch, so that this holds for Ctrl-C, an exception at exit and SIGKILL alike.
    """

    def __init__(self, name: str, pid_file: str, stop_signal: str, mount: str | None = None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=f"chandlery-{name}-", dir=parent_folder()))
        if user := server_user():
            shutil.chown(self.path, user, pwd.getpwnam(user).pw_gid)
        mounted = "" if mount is None else str(self.path / mount)
        self._keeper = subprocess.Popen(
            ["sh", "-c", _KEEPER, "keeper", str(self.path), str(self.path / pid_file), stop_signal, mounted],
            cwd="/",
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )

    def remove(self) -> None:
        """Remove the folder of a server that does not run any more."""
        self._keeper.communicate("stopped\n", timeout=DEADLINE)


class ServerProcess:
    """A server in the foreground, on a port of 127.0.0.1, as a user that is not root; a context manager.

    The subclass says how to prepare the folder, the command, and when the server is ready.
    """

    #: What people call it, and the name of its process-id file, relative to the folder.
    NAME: str
    PID_FILE: str
    #: Signal with which it stops at once, and orderly, without waiting for its clients.
    STOP_NOW: signal.Signals
    STOP: signal.Signals

    def __init__(self) -> None:
        self.port = 0
        self._home: ServerFolder | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()

    # What a subclass fills in.

    def _find(self) -> None:
        """Find the programs, before anything is made; may install them, or raise NotInstalled."""

    def _prepare(self) -> None:
        """Make what the server needs in its new folder."""
        raise NotImplementedError

    def _configure(self) -> None:
        """Write the settings; called again when another port must be tried."""
        raise NotImplementedError

    def _command(self) -> Sequence[str | Path]:
        raise NotImplementedError

    def _ready(self) -> bool:
        raise NotImplementedError

    def _mount(self) -> str | None:
        """A folder inside ours on which something will be mounted."""
        return None

    # Life.

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """Where everything of this server lies; only after the first start."""
        if self._home is None:
            raise ServerFailed(f"{self.NAME} was never started")
        return self._home.path

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start and wait until it answers; the first time, make its folder and choose its port.

        Skips the test, loudly, where the server's programs are missing and cannot be installed.
        """
        if self.running:
            return
        if self._home is not None:
            self._launch()
            return
        try:
            self._find()
        except NotInstalled as error:
            pytest.skip(f"{self.NAME} {NOT_RUN}{error}")
        self._home = ServerFolder(self.NAME.lower(), self.PID_FILE, self.STOP_NOW.name[3:], self._mount())
        try:
            self._prepare()
            self._launch_on_a_free_port()
        except BaseException:
            self.close()
            raise

    def _launch_on_a_free_port(self) -> None:
        for attempt in range(5):
            self.port = free_port()
            self._configure()
            try:
                self._launch()
            except ServerFailed:
                if attempt == 4 or "address already in use" not in self.log_tail().lower():
                    raise
            else:
                return

    def _launch(self) -> None:
        with self._log.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal reaches the tests, which stop the server in order.
            self._process = subprocess.Popen(
                self._command(),
                cwd=self.folder,
                env=environment(),
                user=server_user(),
                group=_group(),
                extra_groups=[] if server_user() else None,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            until(lambda: not self.running or self._ready(), f"{self.NAME} answers")
        except ServerFailed:
            self.kill()
            raise self.failed("does not answer") from None
        if not self.running:
            raise self.failed("did not start")

    def stop(self) -> None:
        """Stop in order, without waiting for clients; nothing when it does not run."""
        if self._process is None:
            return
        if self.running:
            self._process.send_signal(self.STOP)
        try:
            self._process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise self.failed("did not stop") from None
        self._process = None

    def kill(self) -> None:
        """SIGKILL: nothing of it runs any more when this returns, and nothing was put in order."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(DEADLINE)
            self._process = None

    def restart(self) -> None:
        """Stop and start, on the same port."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop, and remove everything; safe to call twice, and in a forked child, where it does nothing."""
        if os.getpid() != self._owner or self._home is None:
            return
        try:
            self.stop()
        finally:
            home, self._home = self._home, None
            home.remove()

    # Diagnostics.

    @property
    def _log(self) -> Path:
        return self.folder / "server.log"

    def log_tail(self, lines: int = 30) -> str:
        """The end of what the server wrote to its log."""
        if not self._log.exists():
            return ""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def failed(self, what: str) -> ServerFailed:
        return ServerFailed(f"{self.NAME} {what}; its log ends with\n{self.log_tail()}")


def run(
    command: Sequence[str | Path],
    text: str = "",
    *,
    as_server: bool = False,
    variables: Mapping[str, str] | None = None,
) -> str:
    """Run a program to its end with `text` as its input; its output.

    :raises ServerFailed: it failed; with what it said.
    """
    ran = subprocess.run(
        [str(one) for one in command],
        env=environment() | dict(variables or {}),
        cwd="/",
        user=server_user() if as_server else None,
        group=_group() if as_server else None,
        extra_groups=[] if as_server and server_user() else None,
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise ServerFailed(f"{Path(command[0]).name} failed: {ran.stderr.strip() or ran.stdout.strip()}")
    return ran.stdout


def _group() -> int | None:
    user = server_user()
    return None if user is None else pwd.getpwnam(user).pw_gid


def children(pid: int) -> list[int]:
    """The processes whose parent is `pid`."""
    if not Path("/proc/self/stat").exists():
        lines = run(["ps", "-A", "-o", "pid=,ppid="]).splitlines()
        return [int(line.split()[0]) for line in lines if int(line.split()[1]) == pid]
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        if (fields := _status(status)) and int(fields[1]) == pid:
            found.append(int(status.parent.name))
    return found


def is_alive(pid: int) -> bool:
    """Whether a process can still do anything: one that only waits to be reaped cannot."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    fields = _status(Path(f"/proc/{pid}/stat"))
    return not fields or fields[0] != "Z"


def _status(path: Path) -> list[str]:
    """State, parent and so on of a process; empty when it is gone."""
    try:
        # The name in brackets may hold spaces and brackets of its own.
        return path.read_text().rpartition(")")[2].split()
    except OSError:
        return []
