"""Four processes that share one budget against the simulated exchange's limit, and one that is killed."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from typing import NamedTuple

import pytest

from exchange.budget import Limit, Purpose
from exchange.shared_budget import SharedBudget
from tests.support.notes import eventually
from tests.support.simulated import simulated_exchange
from tests.support.workers import worker

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "budget_worker.py"
#: A limit that a slow machine uses up, too, and the seconds for which it counts.
WEIGHT, SECONDS = 240, 4
RUN = 20.0
BAN_SECONDS = 4
#: The ban comes with this request for candles: after two windows, of which asking for the markets takes the first.
BANNED_AT = 120
#: A request that was let through before the ban was known may be this late on a busy machine, milliseconds.
UNDER_WAY = 2000
#: From the budget's note of an answer to the worker's, milliseconds.
NOTED_BEFORE = 1000


class Report(NamedTuple):
    #: Epoch milliseconds of sending and answer, HTTP status.
    sent: list[tuple[int, int, int]]
    #: Epoch milliseconds of asking, milliseconds until it was sent.
    waits: list[tuple[int, int]]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[Report]:
    """Three greedy backfills and, last, one that is live."""
    folder = tmp_path_factory.mktemp("budget")
    ban = {"path": "/api/v3/klines", "from": BANNED_AT, "count": 1, "do": "status", "status": 418}
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(
            simulated_exchange(
                seed=1,
                faults=[ban | {"retry_after": BAN_SECONDS}],
                folder=folder,
                weight_limit=WEIGHT,
                weight_seconds=SECONDS,
            )
        )
        actions = "backfill,backfill,backfill,live"
        one = stack.enter_context(worker(actions, url, folder / "limits", RUN, script=SCRIPT))
        one.go()
        return [
            Report([tuple(row) for row in said["sent"]], [tuple(row) for row in said["waits"]])
            for said in json.loads(one.rest()[-1])
        ]


def banned_from(reports: list[Report]) -> int:
    """When the one banned was told, epoch milliseconds."""
    (told,) = [answered for one in reports for _, answered, status in one.sent if status == 418]
    return told


def test_nobody_is_banned_but_by_the_fault_and_hardly_anyone_is_asked_to_slow_down(reports: list[Report]) -> None:
    statuses = [status for one in reports for _, _, status in one.sent]
    assert statuses.count(418) == 1
    assert statuses.count(429) <= 3
    assert set(statuses) <= {200, 418, 429}


def test_the_limit_is_made_use_of(reports: list[Report]) -> None:
    """A page is two weight, and 60 % of the limit are for backfills: who is held up sees them used."""
    pages = [len(one.sent) for one in reports[:3]]
    told = banned_from(reports)
    # The last who waited for another window.
    let_go = max(at + wait for one in reports[:3] for at, wait in one.waits if wait > 1000 and at + wait < told)
    before = [at for one in reports[:3] for at, _, _ in one.sent if let_go - SECONDS * 1000 <= at < let_go]
    assert len(before) * 2 > 0.5 * 0.6 * WEIGHT
    assert min(pages) > 0.05 * sum(pages)


def test_live_requests_are_not_held_up_by_backfills(reports: list[Report]) -> None:
    told = banned_from(reports)
    before = sorted(wait for at, wait in reports[3].waits if at < told - 500)
    assert len(before) >= 5
    # Who is held up waits for the next window, as backfills do; a busy machine takes its time for each.
    held_up = sorted(wait for one in reports[:3] for at, wait in one.waits if at < told)
    assert held_up[-1] > 1000
    assert before[int(0.9 * len(before))] <= 1000
    assert before[len(before) // 2] <= 100
    # After the ban everyone is more careful.
    after = sorted(wait for at, wait in reports[3].waits if at > told + BAN_SECONDS * 1000)
    assert after
    assert after[len(after) // 2] <= 1000


def test_a_ban_is_obeyed_by_all_until_its_end(reports: list[Report]) -> None:
    told = banned_from(reports)
    end = told + BAN_SECONDS * 1000
    for one in reports:
        # The ban counts from the answer, which the budget notes a moment before the worker writes the time down.
        assert [at - end for at, _, _ in one.sent if told + UNDER_WAY < at < end - NOTED_BEFORE] == []
        # They all were at it before, and went on after.
        assert [at for at, _, _ in one.sent if at <= told]
        assert [at for at, _, _ in one.sent if at >= end - NOTED_BEFORE]


async def test_killed_in_the_middle_of_anything_leaves_a_budget_that_works(tmp_path: Path) -> None:
    delays = random.Random(3)
    budget = SharedBudget(tmp_path, "hammered", Limit(weight=1e9), longest_wait=5.0)
    for _ in range(3):
        with worker("hammer", tmp_path, script=SCRIPT) as one:
            one.go()
            used = budget.status().used
            more = used + delays.randint(50, 200)

            async def at_it(more: float = more) -> bool:
                return budget.status().used > more

            await eventually(at_it, "the other process counts requests")
            one.process.kill()
            one.process.wait()
        before = budget.status().used
        await budget.spend(1, Purpose.BACKFILL)
        # What the killed one had counted still counts.
        assert budget.status().used >= before >= used + 50
