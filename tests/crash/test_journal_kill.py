"""``kill -9`` of a process that writes, its store coming and going: what it called safe is safe, and there once."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from pathlib import Path

import pytest

from ingest.writer import Writer
from ingest.writer_status import WriterState
from market.clock import SystemClock
from store.sqlite.store import DATABASE_NAME, SqliteStore
from tests.support import workers
from tests.support.failing_store import until
from tests.support.journal_worker import CHUNK, RULES
from tests.support.made_candles import BTC, START, at, made
from tests.support.proof import prove
from tests.support.scripted_writes import trade
from tests.support.stored_trades import ALWAYS, LONG_AGO
from tests.support.workers import Worker

pytestmark = pytest.mark.crash

KILLS = int(os.environ.get("CHANDLERY_TEST_JOURNAL_KILLS", "15"))
WORKER = workers.HERE / "journal_worker.py"


def tell(one: Worker, line: str) -> None:
    assert one.process.stdin is not None
    one.process.stdin.write(line + "\n")
    one.process.stdin.flush()


def safe_until_killed(one: Worker, first: int, seed: int, rng: random.Random, states: Counter[str]) -> int:
    """Up to which id a child called everything safe before it was killed at a random moment."""
    tell(one, f"go {first} {seed}")
    # Some are killed before they are open or have written anything, or while they take up the journal. Counted in
    # what they say and not in time alone, so that a slow machine sees the same.
    wait_for = rng.choice((0, 1, 2, 4, 8))
    safe = first
    timer = threading.Timer(rng.uniform(0, 0.03), tell, (one, "kill"))
    if not wait_for:
        timer.start()
    heard = 0
    while (said := one.hear().split())[0] != "killed":
        heard += 1
        if said[0] == "safe":
            safe = int(said[1])
            states[said[2]] += 1
        if heard == wait_for:
            timer.start()
    timer.join()
    assert said == ["killed", str(-signal.SIGKILL)]
    return safe


async def test_what_a_killed_process_called_safe_is_safe(tmp_path: Path) -> None:
    rng = random.Random(21)
    states: Counter[str] = Counter()
    safe = 0
    with workers.worker(tmp_path, script=WORKER) as one:
        for seed in range(KILLS):
            # The exchange is asked again from the last trade that was safe; some of them may be there already.
            safe = safe_until_killed(one, safe, seed, rng, states)
    clock = SystemClock()
    async with SqliteStore.opened(tmp_path / DATABASE_NAME, clock) as store:
        async with Writer.opened(store, tmp_path / "journal", clock, rules=RULES) as writer:
            await until(lambda: writer.status().state is WriterState.DIRECT)
            assert writer.status().set_aside_rows == 0
        trades = await store.trades("binance", "BTC/USDT", LONG_AGO, ALWAYS)
        assert trades == [trade(number) for number in range(len(trades))]
        # Of the last round, what was not called safe may be there too.
        assert safe <= len(trades) <= safe + CHUNK
        candles = await store.read(BTC, START, at(10**6))
        assert safe // CHUNK <= candles.num_rows <= safe // CHUNK + 1
        assert candles == made(range(candles.num_rows))
    assert [path.name for path in (tmp_path / "journal").iterdir() if path.suffix] == []
    prove(tmp_path / DATABASE_NAME)
    # Both ways to safety were taken.
    assert states["direct"] > 0
    assert states["spilling"] + states["replaying"] > 0
    assert safe > KILLS * CHUNK
