"""The file of a shared budget: made, damaged, deleted, locked, and obeyed by everyone who opens it."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from exchange.budget import MOST, SIZE, Limit, Purpose
from exchange.shared_budget import SharedBudget
from market.errors import RateLimited, StoreUnusable
from tests.conftest import ManualClock
from tests.support.notes import eventually

LIVE, BACKFILL = Purpose.LIVE, Purpose.BACKFILL
NAME = "127.0.0.1:9900 spot"
LIMIT = Limit(weight=1000)


class Shared:
    """Budgets on one folder, in a time that passes only while someone waits."""

    def __init__(self, folder: Path, clock: ManualClock) -> None:
        self.folder = folder
        self.clock = clock
        self.slept: list[float] = []

    def budget(self, longest_wait: float = 120.0, name: str = NAME) -> SharedBudget:
        return SharedBudget(
            self.folder, name, LIMIT, clock=self.clock, sleep=self._sleep, longest_wait=longest_wait
        )

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.clock.advance(max(1, round(seconds * 1000)))
        await asyncio.sleep(0)


@pytest.fixture
def shared(tmp_path: Path, clock: ManualClock) -> Shared:
    return Shared(tmp_path / "not" / "there yet", clock)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Held by someone else."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


async def fill(budget: SharedBudget, purpose: Purpose) -> None:
    while budget.status().used + 50 <= budget.status().allowed[purpose]:
        await budget.spend(50, purpose)


async def test_two_that_open_the_same_name_share(shared: Shared) -> None:
    one, two = shared.budget(), shared.budget()
    await one.spend(300, BACKFILL)
    await two.spend(300, BACKFILL)
    assert one.status().used == two.status().used == 600
    assert one.status() == two.status()
    assert shared.slept == []
    assert [path.name for path in shared.folder.iterdir()] == ["127.0.0.1_9900_spot.limit"]
    await shared.budget(name="127.0.0.1:9900 usdm").spend(600, BACKFILL)
    assert shared.slept == []


async def test_who_finds_no_room_waits_until_there_is(shared: Shared) -> None:
    one, two = shared.budget(), shared.budget()
    await fill(one, BACKFILL)
    began = shared.clock.now_ms()
    await two.spend(10, BACKFILL)
    assert 60_000 <= shared.clock.now_ms() - began <= 62_000
    assert two.status().waiting == {LIVE: 0, BACKFILL: 0}


async def test_a_request_that_never_finds_room_is_given_back_with_the_time_left(shared: Shared) -> None:
    budget = shared.budget(longest_wait=5.0)
    await fill(budget, LIVE)
    with pytest.raises(RateLimited, match="left no room for 5 s") as refusal:
        await budget.spend(10, LIVE)
    assert 55 <= refusal.value.retry_after <= 57
    assert not refusal.value.banned
    assert sum(shared.slept) == pytest.approx(5)
    assert budget.status().waiting == {LIVE: 0, BACKFILL: 0}


async def test_a_ban_that_one_was_told_is_obeyed_by_all_at_once(shared: Shared) -> None:
    one, two = shared.budget(), shared.budget()
    await two.spend(1, LIVE)
    one.refused(300.0, banned=True)
    for purpose in Purpose:
        with pytest.raises(RateLimited, match=r"banned; 300\.0 s are left") as refusal:
            await two.spend(1, purpose)
        assert (refusal.value.retry_after, refusal.value.banned) == (300.0, True)
    assert shared.slept == []
    assert two.status().banned_until == shared.clock.now_ms() + 300_000
    assert two.status().share < MOST
    shared.clock.advance(300_000)
    await two.spend(1, LIVE)


async def test_a_short_refusal_is_waited_for(shared: Shared) -> None:
    one, two = shared.budget(), shared.budget()
    one.refused(7.0, banned=False)
    began = shared.clock.now_ms()
    await asyncio.gather(one.spend(1, LIVE), two.spend(1, BACKFILL))
    assert 7000 <= shared.clock.now_ms() - began < 7200


async def test_a_limit_that_one_was_told_is_known_to_all(shared: Shared) -> None:
    one, two = shared.budget(), shared.budget()
    one.learn(Limit(weight=100, window_ms=5000, told=True))
    assert (two.status().limit, two.status().window_ms) == (100, 5000)
    await two.spend(1, LIVE)
    assert one.status().limit == 100


@pytest.mark.parametrize("damage", [b"x", b"\0" * SIZE, b"y" * SIZE, b"z" * (SIZE * 3), "half"])
async def test_a_damaged_record_is_made_anew_and_carefully(shared: Shared, damage: bytes | str) -> None:
    budget = shared.budget()
    await fill(budget, LIVE)
    whole = budget.path.read_bytes()
    assert len(whole) == SIZE
    budget.path.write_bytes(damage if isinstance(damage, bytes) else whole[: SIZE // 2])
    await budget.spend(10, LIVE)
    assert budget.status().used == 410
    assert budget.path.stat().st_size == SIZE


async def test_a_deleted_file_is_begun_again(shared: Shared) -> None:
    one, two = shared.budget(), shared.budget()
    await one.spend(10, LIVE)
    one.path.unlink()
    one.path.parent.rmdir()
    await one.spend(20, LIVE)
    assert two.status().used == 20


async def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    budget = SharedBudget(tmp_path / "file", NAME, LIMIT)
    with pytest.raises(StoreUnusable, match=r"file/127\.0\.0\.1_9900_spot\.limit: Not a directory"):
        await budget.spend(1, LIVE)


async def test_a_lock_that_another_keeps_holds_up_the_request_and_not_the_loop(tmp_path: Path) -> None:
    budget = SharedBudget(tmp_path, NAME, LIMIT)
    await budget.spend(1, LIVE)
    with locked(budget.path):
        asking = asyncio.create_task(budget.spend(1, LIVE))
        loop = asyncio.get_running_loop()
        slowest, last = 0.0, loop.time()
        for _ in range(50):
            await asyncio.sleep(0.001)
            slowest, last = max(slowest, loop.time() - last), loop.time()
        assert not asking.done()
        # A blocking lock would keep the loop until the end.
        assert slowest < 0.5
    await asyncio.wait_for(asking, 60)
    assert budget.status().used == 2


async def test_a_lock_that_is_never_given_back_ends_in_a_refusal(tmp_path: Path) -> None:
    budget = SharedBudget(tmp_path, NAME, LIMIT, longest_wait=0.1)
    await budget.spend(1, LIVE)
    with locked(budget.path), pytest.raises(RateLimited):
        await budget.spend(1, LIVE)


async def test_what_was_told_while_the_lock_was_away_is_not_lost(shared: Shared) -> None:
    one, two = shared.budget(), shared.budget()
    await one.spend(1, LIVE)
    with locked(one.path):
        one.refused(300.0, banned=True)
        shared.clock.advance(100_000)
    assert two.status().banned_until is None
    one.status()
    # It ends when the exchange said, not later.
    assert two.status().banned_until == shared.clock.now_ms() + 200_000


async def test_requests_of_one_process_go_in_the_order_they_came(tmp_path: Path) -> None:
    budget = SharedBudget(tmp_path, NAME, Limit(weight=10, window_ms=300))
    await budget.spend(8, LIVE)
    went: list[int] = []

    async def ask(number: int) -> None:
        await budget.spend(4, LIVE)
        went.append(number)

    await asyncio.wait_for(asyncio.gather(*(ask(number) for number in range(6))), 90)
    assert went == list(range(6))


async def test_one_that_gives_up_is_not_waited_for(tmp_path: Path) -> None:
    limit = Limit(weight=1000, window_ms=3_600_000)
    one, two = SharedBudget(tmp_path, NAME, limit), SharedBudget(tmp_path, NAME, limit)
    await one.spend(600, LIVE)
    # Dearer than the rest: it waits, and backfills with it.
    asking = asyncio.create_task(one.spend(800, LIVE))

    async def waits() -> bool:
        return two.status().waiting[LIVE] == 1

    await eventually(waits, "the request waits")
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert two.status().waiting == {LIVE: 0, BACKFILL: 0}
