"""A process that forks children to be killed: each puts trades and candles into a writer and says what is safe.

It says ``ready``. ``go FIRST SEED`` makes it fork a child, which says ``open`` once its writer is, puts in trades
from id FIRST on, CHUNK at a time, with one candle each, and says ``safe N STATE`` once all ids below N are durable.
The store of the child comes and goes. ``kill`` kills the child with SIGKILL, after which ``killed CODE`` is said. A
fork of a warm process is quick. A child that nobody listens to any more ends by itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog

from ingest.waiting import WaitingRules
from ingest.writer import Writer, WriterRules
from market.clock import SystemClock
from market.errors import StoreUnavailable
from store.batch import CandleBatch, Written
from store.message_quarantine import QuarantinedMessage
from store.sqlite.store import DATABASE_NAME, SqliteStore
from store.trade_batch import TradeBatch, TradesWritten
from tests.support.made_candles import batch, made
from tests.support.scripted_writes import trade

CHUNK = 50
#: Small files and short pauses, so that much happens before the end.
RULES = WriterRules(
    waiting=WaitingRules(trades_every=0.002, trades_at_once=70),
    first_pause=0.001,
    longest_pause=0.004,
    segment_bytes=8_000,
)


class ComingAndGoing:
    """A store that is away for some calls, and now and then is lost after it has committed; with every third seed,
    always there."""

    def __init__(self, store: SqliteStore, seed: int) -> None:
        self._store = store
        self._rng = random.Random(seed)
        self._sound = seed % 3 == 0
        self._away = 0

    async def write_all(self, batches: Sequence[CandleBatch]) -> list[Written]:
        self._come_or_go()
        written = await self._store.write_all(batches)
        self._be_lost()
        return written

    async def write_trades(self, batches: Sequence[TradeBatch]) -> TradesWritten:
        self._come_or_go()
        written = await self._store.write_trades(batches)
        self._be_lost()
        return written

    async def refuse_messages(self, refused: Sequence[QuarantinedMessage]) -> None:
        await self._store.refuse_messages(refused)

    def _come_or_go(self) -> None:
        if self._away:
            self._away -= 1
            raise StoreUnavailable("away")
        if not self._sound and self._rng.random() < 0.2:
            self._away = self._rng.randrange(1, 6)

    def _be_lost(self) -> None:
        if not self._sound and self._rng.random() < 0.1:
            raise StoreUnavailable("lost while it committed")


async def put(folder: Path, first: int, seed: int) -> None:
    clock = SystemClock()
    async with (
        SqliteStore.opened(folder / DATABASE_NAME, clock) as store,
        Writer.opened(ComingAndGoing(store, seed), folder / "journal", clock, rules=RULES) as writer,
    ):
        os.write(1, b"open\n")
        sink = writer.trade_sink("binance", "BTC/USDT", True)
        while True:
            for number in range(first, first + CHUNK):
                sink(trade(number))
            writer.candles(batch(made([first // CHUNK])), clock.now_ms())
            first += CHUNK
            await writer.durable()
            # At once and whole: what was said counts.
            os.write(1, f"safe {first} {writer.status().state}\n".encode())


def main() -> None:
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
    )
    folder = Path(sys.argv[1])
    os.write(1, b"ready\n")
    child = 0
    for line in sys.stdin:
        match line.split():
            case ["go", first, seed]:
                child = os.fork()
                if not child:
                    asyncio.run(put(folder, int(first), int(seed)))
            case ["kill"]:
                os.kill(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                os.write(1, f"killed {os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    main()
