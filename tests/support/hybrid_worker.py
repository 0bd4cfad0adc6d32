"""A process that writes to two stores as one, or brings the second up to the first; see ``store_worker.py``.

With KILL_AT it kills itself with SIGKILL just before its KILL_AT-th write to the second store, or, where KILL_AT
ends with ``+``, just after it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from market.clock import SystemClock
from tests.support.failing_store import QUICK, Pair, Switch
from tests.support.made_candles import absence, batch, made
from tests.support.store_worker import say


class _Deadly(Switch):
    """A switch that counts the writes down."""

    def __init__(self, kill_at: str) -> None:
        super().__init__()
        self._left = int(kill_at.rstrip("+"))
        self._after = kill_at.endswith("+")
        self.before_write = self._count
        self.after_write = self._count_after

    async def _count(self, _: Any) -> None:
        self._left -= 1
        if self._left == 0 and not self._after:
            os.kill(os.getpid(), signal.SIGKILL)

    async def _count_after(self, _: Any) -> None:
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


async def work(action: str, folder: Path, version: int) -> None:
    pair = Pair(folder, SystemClock(), Switch(), _Deadly(os.environ.get("KILL_AT", "1000000")))
    pair.rules = replace(QUICK, rows_at_once=1440)
    async with pair.opened() as store:
        if action == "write":
            for start in range(0, 40_000, 500):
                gone = [absence(start + 50_000, start + 50_100, evidence=f"look {version}")]
                await store.write(batch(made(range(start, start + 400), version), absences=gone))
                say(f"written {start}")
        await store.catch_up()


def main() -> None:
    action, folder, version = sys.argv[1:]
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    say("ready")
    sys.stdin.readline()
    asyncio.run(work(action, Path(folder), int(version)))
    say("done")


if __name__ == "__main__":
    main()
