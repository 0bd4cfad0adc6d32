"""A process that forks children to be killed: each is a whole ingest, and notes in a file what became durable.

Arguments: the home, the address of the simulated exchange, and a folder for the notes. It says ``ready``. ``go N``
forks a child, whose notes are the file ``N``; ``stop`` asks the child to end in order; ``kill S`` kills it with
SIGKILL after S seconds, and ``wait`` lets it end. Both of these say ``ended CODE``. A fork of a warm process is
quick: importing alone would take seconds. The notes are lines of text, each written at once; a killed
child's last one may be torn.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import structlog

from chandlery.live_feed import FeedPlan, opened_feed
from chandlery.options import run
from chandlery.settings import Settings
from chandlery.status_file import STATUS_NAME
from chandlery.wiring import CLOCK, Store, holding, opened_store
from market.candle import open_times_ms
from market.channel import Channel
from market.timeframe import ONE_MINUTE
from store.batch import CandleBatch, Written
from store.live_market import LiveMarket
from store.sqlite import database
from store.trade_batch import TradeBatch, TradesWritten
from tests.support.market_kept import BEGIN_MS, EXCHANGE, SYMBOLS

#: Milliseconds that a write waits for somebody else's lock: impatient, so that a test of the journal is short.
BUSY_MS = 40


class Notes:
    """Writes down what became durable."""

    def __init__(self, file: Path) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def say(self, line: str) -> None:
        os.write(self._file, f"{line}\n".encode())

    def durable(self, batch: object, landed: str) -> None:
        """Note the rows of a batch: runs of trade ids, or open times of candles."""
        if isinstance(batch, TradeBatch):
            for first, last in runs(int(one.id) for one in batch.trades):
                self.say(f"trades {landed} {batch.symbol} {first} {last}")
        elif isinstance(batch, CandleBatch):
            for open_time in open_times_ms(batch.table).tolist():
                self.say(f"candle {landed} {batch.series.symbol} {open_time}")


def runs(ids: Iterator[int]) -> Iterator[tuple[int, int]]:
    """First and last of each run of consecutive ids."""
    for _, group in itertools.groupby(enumerate(ids), key=lambda one: one[1] - one[0]):
        members = [id_ for _, id_ in group]
        yield members[0], members[-1]


class NotingStore:
    """A store whose every commit is noted, also of what REST brought."""

    def __init__(self, store: Store, notes: Notes) -> None:
        self._store = store
        self._notes = notes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def write(self, batch: CandleBatch) -> Written:
        written = await self._store.write(batch)
        self._notes.durable(batch, "store")
        return written

    async def write_trades(self, batches: Sequence[TradeBatch]) -> TradesWritten:
        written = await self._store.write_trades(batches)
        for batch in batches:
            self._notes.durable(batch, "store")
        return written


async def ingest(home: Path, url: str, notes: Notes, parent: int) -> None:
    """What the command `ingest` does.

    :param parent: a pipe that the parent holds open: with its end, however that comes, the child's comes too.
    """
    asyncio.get_running_loop().add_reader(parent, os._exit, 1)
    settings = Settings(
        home=home,
        channels=(Channel.CANDLES, Channel.TRADES),
        record_trades=True,
        silence=1.0,
        settle_ms=2000,
    )
    plan = FeedPlan(exchange=EXCHANGE, url=url, symbols=list(SYMBOLS), timeframe=ONE_MINUTE, since_ms=BEGIN_MS)
    with holding(settings, "ingest"):
        async with opened_store(settings) as store:
            noting: Any = NotingStore(store, notes)
            memory = LiveMarket(CLOCK)
            opening = opened_feed(
                plan, settings, noting, memory, lambda _: notes.say("round"), on_durable=notes.durable
            )
            async with opening as feed:
                notes.say("open")
                await feed.run(home / STATUS_NAME)


def ended(child: int) -> None:
    _, status = os.waitpid(child, 0)
    os.write(1, f"ended {os.waitstatus_to_exitcode(status)}\n".encode())


def main() -> None:
    structlog.configure(
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
    )
    database.BUSY_TIMEOUT_MS = BUSY_MS
    home, url, folder = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    os.write(1, b"ready\n")
    child, (parent, held) = 0, os.pipe()
    for line in sys.stdin:
        match line.split():
            case ["go", number]:
                child = os.fork()
                if not child:
                    os.close(held)
                    notes = Notes(folder / number)
                    try:
                        run(ingest(home, url, notes, parent))
                    except KeyboardInterrupt:
                        # In order. Taking all the imported modules apart would only take time.
                        os._exit(0)
                    finally:
                        notes.say("end")
            case ["stop"]:
                os.kill(child, signal.SIGTERM)
            case ["kill", seconds]:
                # Not waiting for anything: any moment will do, the test has drawn this one.
                time.sleep(float(seconds))
                os.kill(child, signal.SIGKILL)
                ended(child)
            case ["wait"]:
                ended(child)


if __name__ == "__main__":
    main()
