"""The commands as a user types them: processes for what serves or is killed, this process for the rest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from stamina import instrumentation

from chandlery.main import run

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Outcome]


@pytest.fixture
def chandlery(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """Runs a command line in this process, and takes back what it set for the whole of it."""
    for name in [name for name in os.environ if name.startswith("CHANDLERY_")]:
        monkeypatch.delenv(name)

    def call(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = 0
        try:
            run([str(one) for one in arguments])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        out, err = capfd.readouterr()
        return Outcome(code, out, err)

    yield call
    structlog.reset_defaults()
    instrumentation.set_on_retry_hooks(None)


@contextmanager
def started(
    *arguments: object, ready: str, deadline: float = 120.0, env: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A command as a process of its own; gives the line that contains `ready`. Interrupted at the end."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "chandlery", *[str(one) for one in arguments]],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("CHANDLERY_")} | (env or {}),
    )
    assert process.stdout is not None
    watchdog = threading.Timer(deadline, process.kill)
    watchdog.start()
    said: list[str] = []
    try:
        for line in process.stdout:
            said.append(line)
            if ready in line:
                break
        else:
            pytest.fail("it ended without being ready:\n" + "".join(said))
        yield process, line
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.stdout.read()
        process.wait()
        process.stdout.close()
        watchdog.cancel()


@pytest.fixture(scope="session")
def exchange_url() -> Iterator[str]:
    """A simulated exchange with a made-up market, whose time is 2024-06-01 and hardly moves."""
    arguments = ("simulate", "--seed", 7, "--now", "2024-06-01T00:00:30Z", "--speed", "0.001", "--port", 0)
    with started(*arguments, ready="ready", deadline=3600) as (_, line):
        yield line.split()[1]


@pytest.fixture(scope="session")
def recorded_exchange_url(recorded: Path) -> Iterator[str]:
    """A simulated exchange that serves the recorded candles of BTC/USDT and ETH/USDT."""
    arguments = ("simulate", "--data", recorded / "candles", "--symbols", "BTC/USDT,ETH/USDT", "--port", 0)
    with started(*arguments, ready="ready", deadline=3600) as (_, line):
        yield line.split()[1]
