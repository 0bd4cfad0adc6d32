"""Several processes write, correct and break a home; every read through the tiers is what the database says.

``CHANDLERY_TEST_TIERS_OPERATIONS`` makes the run longer, ``CHANDLERY_TEST_TIERS_SEED`` chooses another one
(``random`` for one that nobody chose).
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tests.support.redis_server import PrivateRedis
from tests.support.tiers_fleet import Fleet, ModelFailed
from tests.support.tiers_model import Choices, Operation, Planner, Seeded, listed, shrunk
from tests.support.tiers_worker import Place

LOG = logging.getLogger(__name__)
OPERATIONS = int(os.environ.get("CHANDLERY_TEST_TIERS_OPERATIONS", "1500"))
SEED = os.environ.get("CHANDLERY_TEST_TIERS_SEED", "1")
#: Operations in one home.
CHAPTER = 500
#: Seconds to make a failing schedule shorter.
SHRINK = float(os.environ.get("CHANDLERY_TEST_TIERS_SHRINK", "60"))
KINDS = frozenset({"disk", "safety", "processes", "restore"})
#: Bytes of process memory: for all, for some, for a series or two, for nothing; and of the disk tier.
MEMORY = (1 << 28, 1 << 28, 300_000, 100_000, 30_000, 8_000, 0)
DISK = (1 << 30, 1 << 30, 400_000, 60_000, 0)


def places(choose: Choices, settings: Mapping[str, Any] = MappingProxyType({})) -> list[Place]:
    """What the processes open; the less memory, the oftener they go to the disk."""
    disk, preload = choose.one_of(DISK), choose.one_of((50, 0))
    return [
        Place(
            settings={
                **settings,
                "cache_memory_bytes": choose.one_of(MEMORY),
                "cache_disk_bytes": disk,
                "cache_preload": preload,
            },
            role=role,
        )
        for role in ("served", "together", "served")
    ]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """Three processes."""
    with Fleet(tmp_path) as opened:
        yield opened


def test_every_read_through_the_tiers_is_what_the_database_says(fleet: Fleet) -> None:
    seed = random.randrange(10**9) if SEED == "random" else int(SEED)
    counts: Counter[str] = Counter()
    started, used = time.monotonic(), time.process_time()
    for chapter in range(max(1, OPERATIONS // CHAPTER)):
        choose = Seeded(seed * 1000 + chapter)
        fleet.places = places(choose)
        schedule = Planner(choose, KINDS).plan(min(CHAPTER, OPERATIONS))
        counts += checked(fleet, schedule, f"seed {seed}, chapter {chapter}")
    took, used = time.monotonic() - started, time.process_time() - used + counts.pop("processor ms") / 1000
    figures = f"{counts['operations']} operations in {took:.1f} s, {used:.1f} s of processor"
    LOG.info("seed %s: %s: %s", seed, figures, dict(sorted(counts.items())))
    assert counts["Read"] > counts["Write"] > 0


def test_redis_comes_and_goes_and_no_read_of_candles_fails(tmp_path: Path) -> None:
    choose = Seeded(7)
    with PrivateRedis() as redis, Fleet(tmp_path, redis=redis, places=places(choose)) as fleet:
        schedule = Planner(choose, KINDS | {"redis"}).plan(OPERATIONS // 10)
        counts = checked(fleet, schedule, "seed 7 with Redis")
    LOG.info("with Redis: %s", dict(sorted(counts.items())))
    assert counts["Broker"] > 0


def checked(fleet: Fleet, schedule: Sequence[Operation], name: str) -> Counter[str]:
    """Run a schedule; a failing one fails the test with a short one that fails as well."""
    try:
        return fleet.run(schedule)
    except ModelFailed as error:
        said = [str(error)]

        def fails(shorter: Sequence[Operation]) -> bool:
            try:
                fleet.run(shorter)
            except ModelFailed as again:
                said.append(str(again))
                return True
            return False

        opened = "\n".join(f"  {one.role} {one.settings}" for one in fleet.places)
        short = shrunk(schedule[: number_of(error) + 1], fails, SHRINK)
        pytest.fail(f"{name}: {said[0]}\n\nshortened to\n{opened}\n{listed(short)}\n{said[-1]}", pytrace=False)


def number_of(error: ModelFailed) -> int:
    """The operation that failed."""
    words = str(error).split()
    return int(words[1].rstrip(",")) if words[0] == "operation" else 10**9
