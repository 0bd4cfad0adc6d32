"""The simulated exchange as a process of its own, for tests that talk to it over a real socket."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_SERVE = """
import json, sys
from pathlib import Path

import uvloop
from exchange.simulator.server import SimulatorConfig, serve_simulator

given = json.loads(sys.argv[1])
for name in ("data", "faults", "replay"):
    given[name] = given[name] and Path(given[name])
given["symbols"] = given["symbols"] and tuple(given["symbols"])
uvloop.run(serve_simulator(SimulatorConfig(**given), lambda url: print("ready", url, flush=True)))
"""


@contextmanager
def simulated_exchange(
    *,
    data: Path | None = None,
    seed: int | None = None,
    symbols: Sequence[str] | None = None,
    delisted: Mapping[str, int] | None = None,
    now_ms: int | None = None,
    speed: float = 1.0,
    faults: Sequence[dict[str, Any]] = (),
    folder: Path | None = None,
    replay: Path | None = None,
    resume: bool = False,
    weight_limit: int = 6000,
    weight_seconds: int = 60,
    deadline: float = 60.0,
) -> Iterator[str]:
    """A running simulated exchange; its address. `faults` need a `folder` to be written to.

    With `replay` it plays a recorded session, at an infinite `speed` as fast as the client reads.
    """
    path = None
    if faults:
        assert folder is not None
        path = folder / "faults.json"
        path.write_text(json.dumps(list(faults)))
    config = {
        "data": None if data is None else str(data),
        "seed": seed,
        "symbols": symbols,
        "delisted": dict(delisted or {}),
        "now_ms": now_ms,
        "speed": speed,
        "port": 0,
        "faults": None if path is None else str(path),
        "replay": None if replay is None else str(replay),
        "resume": resume,
        "weight_limit": weight_limit,
        "weight_seconds": weight_seconds,
    }
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE, json.dumps(config)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    # A process that never gets ready is killed, which ends the read below.
    watchdog = threading.Timer(deadline, process.kill)
    watchdog.start()
    try:
        words = process.stdout.readline().split()
        watchdog.cancel()
        assert words[:1] == ["ready"], f"the simulated exchange did not start: {words}"
        yield words[1]
    finally:
        watchdog.cancel()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        process.stdout.close()
