"""``kill -9`` of processes that keep two stores: whatever was under way, the second one still gets there."""

from __future__ import annotations

import random
import signal
import threading
from pathlib import Path

import pytest

from market.clock import SystemClock
from tests.support.failing_store import Pair, Switch
from tests.support.made_candles import BTC, ETH, START, absence, at, batch, made
from tests.support.proof import prove
from tests.support.workers import worker

pytestmark = pytest.mark.crash

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "hybrid_worker.py"


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path, SystemClock(), Switch(), Switch())


def killed(action: str, pair: Pair, kill_at: str, version: int = 0) -> bool:
    """Let a process work until it kills itself; true if it did not get done before."""
    with worker(action, pair.folder, version, env={"KILL_AT": kill_at}, script=SCRIPT) as one:
        one.go()
        said = one.rest()
        assert one.process.returncode == (0 if said[-1:] == ["done"] else -signal.SIGKILL)
        return one.process.returncode != 0


async def caught_up(pair: Pair) -> None:
    for path in pair.paths:
        prove(path)
    async with pair.opened() as store:
        await store.catch_up()
        assert not store.status.behind
        assert store.status.differing == ()
    await pair.assert_agree()


@pytest.mark.parametrize("after", ["", "+"], ids=["before a write", "after a write"])
async def test_killed_again_and_again_while_it_catches_up(pair: Pair, after: str) -> None:
    async with pair.each() as (first, second):
        gone = [absence(one, one + 7) for one in range(20_000, 30_000, 100)]
        await first.write(batch(made(range(20_000)), absences=gone))
        await first.write(batch(made(range(5000), version=1)))
        await first.write(batch(made(range(50)), series=ETH))
        await second.write(batch(made(range(0, 10_000, 3), version=2)))
    kills = 0
    # Each time it gets a little further, since what it copied is not copied again.
    while killed("catch up", pair, f"4{after}"):
        kills += 1
        assert kills < 20
        prove(pair.paths[1])
    assert kills >= 4
    await pair.assert_agree()
    async with pair.each() as (first, second):
        assert await second.read(BTC, START, at(100_000)) == await first.read(BTC, START, at(100_000))


@pytest.mark.parametrize("kill_at", ["1", "1+", "7", "7+", "33"])
async def test_killed_between_the_two_writes_of_a_batch(pair: Pair, kill_at: str) -> None:
    assert killed("write", pair, kill_at)
    assert killed("write", pair, kill_at, version=1)
    await caught_up(pair)


async def test_two_processes_that_write_and_copy_are_killed_at_any_moment(pair: Pair) -> None:
    rng = random.Random(5)
    for version in range(4):
        with (
            worker("write", pair.folder, version, script=SCRIPT) as one,
            worker("write", pair.folder, version + 1, script=SCRIPT) as other,
        ):
            one.go()
            other.go()
            for _ in range(rng.randrange(1, 10)):
                assert one.hear().startswith("written")
            timer = threading.Timer(rng.uniform(0, 0.05), other.process.kill)
            timer.start()
            one.process.kill()
            one.rest()
            other.rest()
            timer.join()
    await caught_up(pair)
