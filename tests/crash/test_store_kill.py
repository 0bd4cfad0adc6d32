"""``kill -9`` of writing processes at random moments: what was acknowledged is there, and nothing is half there."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pyarrow as pa
import pytest

from market.clock import SystemClock
from market.interval import Interval
from store.sqlite.store import DATABASE_NAME, SqliteStore
from tests.support.made_candles import BTC, ETH, START, at, made
from tests.support.proof import prove
from tests.support.workers import Worker, worker

pytestmark = pytest.mark.crash

KILLS = 10
STEP = 1500
WHOLE = Interval(START, at(10**6))


def heard_until_killed(one: Worker, rng: random.Random) -> int:
    """Let it write a few batches, then kill it somewhere inside the next one; how many it acknowledged."""
    one.go()
    count = rng.randrange(6)
    for _ in range(count):
        assert one.hear().startswith("written")
    until = time.perf_counter() + rng.uniform(0, 0.05)
    while time.perf_counter() < until:
        pass
    one.process.kill()
    count += len([line for line in one.rest() if line.startswith("written")])
    assert one.process.returncode == -signal.SIGKILL
    return count


async def test_a_killed_writer_leaves_whole_batches(tmp_path: Path) -> None:
    rng = random.Random(11)
    path = tmp_path / DATABASE_NAME
    before = made([])
    for version in range(KILLS):
        # Each run begins again, so that it rewrites what is there as another version, then goes on behind it.
        with worker("write", path, BTC.symbol, 0, 100_000, STEP, version) as writer:
            count = heard_until_killed(writer, rng)
        if path.exists():
            prove(path)
        async with SqliteStore.opened(path, SystemClock()) as store:
            assert await store.integrity() == []
            table = await store.read(BTC, WHOLE.start, WHOLE.end)
        # What was acknowledged is there; the batch under way is there whole or not at all.
        possible = [
            pa.concat_tables([made(range(written * STEP), version), before.slice(written * STEP)])
            for written in (count, count + 1)
        ]
        assert table in possible
        before = table
    assert prove(path) == before.num_rows > 3 * STEP


async def test_a_writer_goes_on_when_another_one_is_killed(tmp_path: Path) -> None:
    rng = random.Random(12)
    path = tmp_path / DATABASE_NAME
    with worker("write", path, ETH.symbol, 0, 60_000, 700, 0) as staying:
        staying.go()
        assert staying.hear() == "written 0"
        for version in range(3):
            with worker("write", path, BTC.symbol, 0, 100_000, STEP, version) as writer:
                heard_until_killed(writer, rng)
        assert staying.rest()[-1] == "done"
    prove(path)
    async with SqliteStore.opened(path, SystemClock()) as store:
        assert await store.read(ETH, WHOLE.start, WHOLE.end) == made(range(60_000))
