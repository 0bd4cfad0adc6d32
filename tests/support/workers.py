"""Starting processes that work on a store, and talking with them over their input and output."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
#: Seconds a process may take for anything before the test fails.
DEADLINE = 120.0


class Worker:
    """One process; see ``store_worker.py`` for what it says."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self._input, self._output = process.stdin, process.stdout

    def hear(self) -> str:
        """The next line; empty when the process has ended."""
        return self._output.readline().strip()

    def go(self) -> None:
        """Let it work."""
        with contextlib.suppress(BrokenPipeError):
            self._input.write("go\n")
            self._input.flush()

    def rest(self) -> list[str]:
        """Everything it still says, to its end."""
        said = [line.strip() for line in self._output]
        self.process.wait(DEADLINE)
        return said


@contextlib.contextmanager
def worker(
    *arguments: object, env: Mapping[str, str] | None = None, script: Path | None = None
) -> Iterator[Worker]:
    """A started process that is ready; killed at the end if it still runs."""
    path = os.pathsep.join([str(ROOT), str(HERE)])
    process = subprocess.Popen(
        [sys.executable, str(script or HERE / "store_worker.py"), *(str(one) for one in arguments)],
        env=os.environ | {"PYTHONPATH": path} | (env or {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        one = Worker(process)
        assert one.hear() == "ready"
        yield one
    finally:
        process.kill()
        process.wait(DEADLINE)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
