"""A RabbitMQ of the tests' own, with an Erlang port mapper of its own: small, alone, gone with the run."""

from __future__ import annotations

import functools
import os
import shlex
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.redis_server import program, said
from tests.support.server_process import ServerProcess, free_port, until

RABBITMQ_PACKAGE = "rabbitmq-server"
#: Debian's program on the PATH wants to be root and to use the system's folders; this is the server itself.
PLACES = ("/usr/lib/rabbitmq/bin/rabbitmq-server",)


@functools.cache
def rabbitmq_program() -> Path:
    """:raises NotInstalled: there is none, and it cannot be installed from here."""
    found = program("rabbitmq-server", RABBITMQ_PACKAGE, "RabbitMQ 3.9 or newer")
    return next((Path(place) for place in PLACES if Path(place).exists()), found)


class _PortMapper(ServerProcess):
    """Erlang's epmd, without which RabbitMQ does not start. One of our own, so that it ends with us."""

    NAME = "epmd"
    PID_FILE = "epmd.pid"
    STOP = signal.SIGTERM
    STOP_NOW = signal.SIGTERM

    def _find(self) -> None:
        rabbitmq_program()

    def _prepare(self) -> None:
        """Nothing: the folder is enough."""

    def _configure(self) -> None:
        """Nothing: the command says it all."""

    def _command(self) -> Sequence[str | Path]:
        epmd = program("epmd", "erlang-base", "Erlang")
        return noting_its_id(self.PID_FILE, {"ERL_EPMD_ADDRESS": "127.0.0.1"}, [epmd, "-port", str(self.port)])

    def _ready(self) -> bool:
        # A request for all names: two bytes of length, and the letter n. The answer starts with its own port.
        return said(self.port, b"\x00\x01n", self.port.to_bytes(4, "big"))


class PrivateRabbitMq(ServerProcess):
    """A server on a port of 127.0.0.1, with no plugins, on disk: what it confirmed survives killing it."""

    NAME = "RabbitMQ"
    PID_FILE = "rabbitmq.pid"
    STOP = signal.SIGTERM
    STOP_NOW = signal.SIGKILL

    def __init__(self) -> None:
        super().__init__()
        self._mapper = _PortMapper()
        self._distribution_port = 0

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    def _find(self) -> None:
        rabbitmq_program()

    def _prepare(self) -> None:
        self._mapper.start()
        # In Erlang's own words: the usual form is compiled first, by a program that takes seconds to start.
        (self.folder / "advanced.config").write_text(
            "[{rabbit, [{vm_memory_high_watermark, {absolute, 268435456}}, {disk_free_limit, 1000000},\n"
            "  {collect_statistics_interval, 60000}]}].\n"
        )
        (self.folder / "plugins").write_text("[].\n")
        (self.folder / "environment.conf").write_text("")

    def _configure(self) -> None:
        self._distribution_port = free_port()

    def _command(self) -> Sequence[str | Path]:
        folder = self.folder
        variables = {
            "HOME": str(folder),
            "PATH": os.environ.get("PATH", os.defpath),
            "LC_ALL": "C.UTF-8",
            # Without a shell around the server, so that its process is the one we started.
            "RUNNING_UNDER_SYSTEMD": "true",
            "ERL_EPMD_PORT": str(self._mapper.port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP_SECONDS": "0",
            "RABBITMQ_NODENAME": f"chandlery{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONF_ENV_FILE": str(folder / "environment.conf"),
            "RABBITMQ_CONFIG_FILE": str(folder / "none.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            # Two schedulers that do not spin while they wait.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +A 8 +sbwt none +sbwtdcpu none +sbwtdio none",
        }
        return noting_its_id(self.PID_FILE, variables, [rabbitmq_program()])

    def _ready(self) -> bool:
        # The header of the protocol is answered with a method frame on channel 0.
        return said(self.port, b"AMQP\x00\x00\x09\x01", b"\x01\x00\x00")

    def settle(self) -> None:
        """Wait until the server has noted on disk that it has streams: killed before, it never finds them again.

        It does so half a second after the first one was made.
        """
        until(self._has_noted_streams, "RabbitMQ notes that it has streams")

    def _has_noted_streams(self) -> bool:
        notes = self.folder.glob("data/*/coordination/**/names.dets")
        return any(b"rabbit_stream_coordinator" in note.read_bytes() for note in notes)

    def close(self) -> None:
        # Nothing of it is wanted any more, and stopping in order takes seconds.
        self.kill()
        try:
            super().close()
        finally:
            self._mapper.close()


def noting_its_id(
    pid_file: str, variables: Mapping[str, str], command: Sequence[str | Path]
) -> Sequence[str | Path]:
    """A command that writes its process id into a file of the folder it is started in, as a server's own would."""
    words = " ".join(shlex.quote(str(word)) for word in command)
    settings = [f"{name}={value}" for name, value in variables.items()]
    return ["env", *settings, "sh", "-c", f"echo $$ > {shlex.quote(pid_file)}; exec {words}"]
