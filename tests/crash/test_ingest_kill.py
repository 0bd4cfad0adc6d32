"""``kill -9`` of a whole ingest at random moments: what it called durable is there once, the rest is refilled."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import pytest

from market.clock import SystemClock
from store.sqlite.store import DATABASE_NAME, SqliteStore
from tests.support import market_kept, workers
from tests.support.failing_store import until
from tests.support.market_kept import Told
from tests.support.proof import prove
from tests.support.simulated import simulated_exchange
from tests.support.workers import Worker

pytestmark = pytest.mark.crash

KILLS = int(os.environ.get("CHANDLERY_TEST_KILLS", "12"))
WORKER = workers.HERE / "ingest_worker.py"
#: Exchange seconds per real second.
SPEED = 40
FAULTS = [
    {"stream": "*", "every": 6.0, "do": "disconnect"},
    {"stream": "*@trade", "every": 0.5, "do": "lose", "n": 3},
    {"stream": "*@trade", "every": 0.4, "do": "duplicate", "n": 3},
    {"stream": "*@trade", "every": 0.6, "do": "reorder", "n": 2},
    {"stream": "*@kline_1m", "every": 1.5, "do": "lose", "n": 2},
    {"path": "/api/v3/historicalTrades", "every": 1.0, "do": "partial"},
    {"path": "/api/v3/", "every": 2.0, "do": "status", "status": 503},
]
log = logging.getLogger(__name__)


class Moment(StrEnum):
    """When an ingest is killed."""

    START = "start"
    REFILL = "refill"
    WRITING = "writing"
    SPILLING = "spilling"
    REPLAYING = "replaying"
    CLOSING = "closing"


class Notes:
    """What the children say, read as it comes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "none"
        self._read = 0
        self.told = Told()
        #: Lines of the newest child, by what they begin with.
        self.heard: Counter[str] = Counter()

    def of(self, number: int) -> None:
        """Read the file of another child from now on."""
        self.read()
        self._file, self._read = self._folder / str(number), 0
        self.heard.clear()

    def read(self) -> None:
        """Take in the whole lines that are new."""
        with contextlib.suppress(FileNotFoundError), self._file.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                self._take(line.decode().split())

    def has(self, *said: str) -> bool:
        """Whether the newest child has said one of these."""
        self.read()
        assert not self.heard["end"], "it ended by itself"
        return any(self.heard[one] for one in said)

    def _take(self, words: list[str]) -> None:
        self.heard[" ".join(words[:2])] += 1
        match words:
            case ["trades", landed, symbol, first, last]:
                self.told.trades.setdefault(symbol, set()).update(range(int(first), int(last) + 1))
                self.told.landed[landed] += 1
            case ["candle", landed, symbol, open_time]:
                self.told.candles.setdefault(symbol, set()).add(int(open_time))
                self.told.landed[landed] += 1


@contextlib.contextmanager
def write_lock(path: Path) -> Iterator[None]:
    """Another program that writes to the file, and takes its time."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=60)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def tell(one: Worker, line: str) -> None:
    assert one.process.stdin is not None
    one.process.stdin.write(line + "\n")
    one.process.stdin.flush()


def killed(one: Worker, seconds: float) -> bool:
    """Kill the child after so many seconds; False where it had ended by itself, in order."""
    tell(one, f"kill {seconds}")
    code = one.hear()
    assert code in (f"ended {-signal.SIGKILL}", "ended 0")
    return code != "ended 0"


async def run_and_kill(one: Worker, notes: Notes, home: Path, moment: Moment, rng: random.Random) -> bool:
    """Let a child run up to such a moment and kill it; says whether it was killed."""
    if moment is Moment.START:
        return killed(one, rng.uniform(0, 0.25))
    await until(lambda: notes.has("open"))
    if moment is Moment.REFILL:
        return killed(one, rng.uniform(0, 0.2))
    # The first rows may be from the journal. Streams begin when the markets are known, which takes a store that can
    # be written.
    await until(lambda: notes.has("round"))
    before = notes.heard["trades store"]
    await until(lambda: notes.has("trades store") and notes.heard["trades store"] > before)
    if moment is Moment.WRITING:
        return killed(one, rng.uniform(0, 0.6))
    path = home / DATABASE_NAME
    if moment is Moment.CLOSING:
        with write_lock(path) if rng.random() < 0.5 else contextlib.nullcontext():
            tell(one, "stop")
            return killed(one, rng.uniform(0, 0.2))
    with write_lock(path):
        await until(lambda: notes.has("trades journal", "candle journal"))
        if moment is Moment.SPILLING:
            return killed(one, rng.uniform(0, 0.3))
    return killed(one, rng.uniform(0, 0.6))


async def test_what_a_killed_ingest_called_durable_is_there_once(tmp_path: Path) -> None:
    rng = random.Random(20_240_621)
    home, said = tmp_path / "home", tmp_path / "said"
    said.mkdir()
    notes = Notes(said)
    kills: Counter[Moment] = Counter()
    left_behind = in_time = 0
    running = simulated_exchange(
        seed=market_kept.SEED,
        symbols=market_kept.SYMBOLS,
        now_ms=market_kept.BEGIN_MS,
        speed=SPEED,
        faults=FAULTS,
        folder=tmp_path,
        # Its minute is over sooner.
        weight_limit=6000 * SPEED,
    )
    with running as url, workers.worker(home, url, said, script=WORKER) as one:
        moments: list[Moment] = []
        number = 0
        while kills.total() < KILLS:
            if not moments:
                moments = rng.sample(list(Moment), len(Moment))
            moment = moments.pop()
            number += 1
            notes.of(number)
            tell(one, f"go {number}")
            if await run_and_kill(one, notes, home, moment, rng):
                kills[moment] += 1
            else:
                in_time += 1
            left_behind += bool(market_kept.journal_files(home))
        notes.of(number + 1)
        tell(one, f"go {number + 1}")
        await until(lambda: notes.has("open"))
        cut = await market_kept.exchange_time(url)
        clock = SystemClock()
        async with SqliteStore.opened(home / DATABASE_NAME, clock, read_only=True) as store:
            await market_kept.all_kept(store, market_kept.SYMBOLS, cut)
        tell(one, "stop")
        tell(one, "wait")
        assert one.hear() == "ended 0"
    notes.read()
    async with SqliteStore.opened(home / DATABASE_NAME, clock) as store:
        missing, doubled = await market_kept.check_told(store, notes.told)
        rows = await market_kept.check_kept(store, market_kept.SYMBOLS, cut)
    journal = market_kept.journal_files(home)
    log.info(
        "ingest killed %d times (%s), ended in time %d; journal left behind %d times; acknowledged %d rows "
        "(batches: %s), missing %d, doubled %d, equal to the exchange's %d; journal at the end %s",
        kills.total(), dict(kills), in_time, left_behind, notes.told.rows, dict(notes.told.landed), missing,
        doubled, rows, journal,
    )  # fmt: skip
    assert (missing, doubled, journal) == (0, 0, [])
    assert prove(home / DATABASE_NAME) > 0
    # Or this test shows nothing.
    assert set(notes.told.landed) == {"store", "journal"}
    assert left_behind > 0 or len(Moment) * 2 > KILLS
    assert in_time < max(3, KILLS)
