"""Processes that ask an exchange through the shared budget; the tests start them and kill them.

It says ``ready``, waits for a line on its input, does its work and says what it did as one line of JSON. To ask an
exchange it becomes several processes, because each that begins for itself imports ccxt for seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog

from exchange.budget import Limit, Purpose
from exchange.shared_budget import SharedBudget
from market.clock import SystemClock
from market.errors import RateLimited
from market.timeframe import ONE_MINUTE

CLOCK = SystemClock()
DAY = 86_400_000
#: Requests that a backfill has under way at a time.
ABREAST = 4


class Log:
    """What was sent when, and what became of it."""

    def __init__(self) -> None:
        #: Epoch milliseconds at which a request was sent and answered, its status.
        self.sent: list[tuple[int, int, int]] = []
        #: When something was asked for, and how long it then waited to be sent, milliseconds.
        self.waits: list[tuple[int, int]] = []

    def watch(self, client: Any) -> None:
        """Note every HTTP request of a ccxt client, and how long it had to wait before."""
        fetch, throttle, answer = client.fetch, client.throttle, client.on_rest_response

        async def watched(url: str, *rest: Any, **more: Any) -> Any:
            began = CLOCK.now_ms()
            client.noted = 0
            try:
                return await fetch(url, *rest, **more)
            finally:
                self.sent.append((began, CLOCK.now_ms(), client.noted))

        async def waited(cost: Any = None) -> None:
            asked = CLOCK.now_ms()
            await throttle(cost)
            self.waits.append((asked, CLOCK.now_ms() - asked))

        def answered(code: int, *rest: Any) -> Any:
            client.noted = code
            return answer(code, *rest)

        client.fetch, client.throttle, client.on_rest_response = watched, waited, answered


@asynccontextmanager
async def opened(url: str, folder: str, purpose: Purpose, log: Log) -> AsyncIterator[Any]:
    # Importing ccxt takes a second, which the other work here does not need.
    from exchange.history import open_history

    history = open_history("binance", url, limits=Path(folder), purpose=purpose)
    log.watch(history._ccxt)
    try:
        yield history
    finally:
        await history.close()


async def backfill(url: str, folder: str, seconds: float) -> Log:
    """As many pages of candles as can be had."""
    log = Log()
    end = time.monotonic() + seconds
    async with opened(url, folder, Purpose.BACKFILL, log) as history:

        async def pages() -> None:
            start = CLOCK.now_ms() - 30 * DAY
            while time.monotonic() < end:
                await allowed(lambda: history.candles("BTC/USDT", ONE_MINUTE, start, start + 60_000))

        async with asyncio.TaskGroup() as group:
            for _ in range(ABREAST):
                group.create_task(pages())
    return log


async def live(url: str, folder: str, seconds: float) -> Log:
    """Every half of a second a ticker."""
    log = Log()
    end = time.monotonic() + seconds
    async with opened(url, folder, Purpose.LIVE, log) as history:
        due = time.monotonic()
        while due < end:
            await allowed(lambda: history.ticker("BTC/USDT"))
            due += 0.5
            await asyncio.sleep(max(0.0, due - time.monotonic()))
    return log


async def allowed(ask: Callable[[], Awaitable[Any]]) -> None:
    """Ask; a refusal is in the log, and the budget holds back what follows."""
    try:
        await ask()
    except RateLimited:
        return


async def hammer(folder: str) -> None:
    """Look at the record all the time, until killed."""
    budget = SharedBudget(Path(folder), "hammered", Limit(weight=1e9))
    while True:
        sent = await budget.spend(1, Purpose.BACKFILL)
        budget.answered(1, sent)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def several(actions: str, url: str, folder: str, seconds: str) -> None:
    """One process for each action; what each did, in their order."""
    kinds = {"backfill": backfill, "live": live}
    children = []
    for action in actions.split(","):
        readable, writable = os.pipe()
        child = os.fork()
        if not child:
            log = asyncio.run(kinds[action](url, folder, float(seconds)))
            with os.fdopen(writable, "w") as output:
                json.dump({"sent": log.sent, "waits": log.waits}, output)
            os._exit(0)
        os.close(writable)
        children.append((child, readable))
    reports = []
    for child, readable in children:
        with os.fdopen(readable) as told:
            reports.append(json.load(told))
        os.waitpid(child, 0)
    say(json.dumps(reports))


def main() -> None:
    action, *rest = sys.argv[1:]
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    if action != "hammer":
        import exchange.history  # noqa: F401  (before anyone waits for us)
    say("ready")
    sys.stdin.readline()
    if action == "hammer":
        asyncio.run(hammer(rest[0]))
    else:
        several(action, *rest)


if __name__ == "__main__":
    main()
