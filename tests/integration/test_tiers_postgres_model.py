"""The model checks of the tiers over a PostgreSQL server: plain, and with TimescaleDB where it is offered.

Here an answer may be behind what another process has written, by the age it declares and no more than the class
``price`` allows. ``CHANDLERY_TEST_TIERS_POSTGRES_OPERATIONS`` and ``CHANDLERY_TEST_TIERS_SECONDS`` make the runs
longer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from chandlery import wiring
from chandlery.settings import Settings
from store.postgres.address import DatabaseUrl
from store.postgres.mode import Mode
from store.postgres.store import PostgresStore
from tests.acceptance.test_tiers_model import checked, places
from tests.acceptance.test_tiers_races import race
from tests.support import servers
from tests.support.tiers_fleet import Fleet
from tests.support.tiers_model import Operation, Planner, Seeded

LOG = logging.getLogger(__name__)
OPERATIONS = int(os.environ.get("CHANDLERY_TEST_TIERS_POSTGRES_OPERATIONS", "200"))
SEED = int(os.environ.get("CHANDLERY_TEST_TIERS_POSTGRES_SEED", "1"))
CHAPTER = 200
KINDS = frozenset({"disk", "safety", "processes"})
POOL = {"pool_min": 1, "pool_max": 4}


@pytest.fixture(params=[Mode.PLAIN, Mode.TIMESCALEDB], ids=["postgresql", "timescaledb"])
def database(request: pytest.FixtureRequest) -> Iterator[Callable[[], str]]:
    """Makes new, empty databases; their URLs."""
    mode: Mode = request.param
    server = servers.timescaledb() if mode is Mode.TIMESCALEDB else servers.postgres()
    names: list[str] = []

    async def make(url: str) -> None:
        async with PostgresStore.opened(DatabaseUrl.parse(url), wiring.CLOCK, mode=mode, refresh=False):
            pass

    def new() -> str:
        names.append(servers.database_from(f"tiers_{mode.value}", make))
        return server.url(names[-1])

    yield new
    for name in names:
        server.drop_database(name)


class PostgresFleet(Fleet):
    """A fleet that has a new database for each schedule."""

    make: Callable[[], str]

    def run(self, schedule: Sequence[Operation]) -> Counter[str]:
        """See :meth:`Fleet.run`."""
        self.database_url = self.make()
        return super().run(schedule)


def test_every_read_is_what_the_database_says_or_said_by_its_age(
    tmp_path: Path, database: Callable[[], str]
) -> None:
    counts: Counter[str] = Counter()
    with PostgresFleet(tmp_path) as fleet:
        fleet.make = database
        for chapter in range(max(1, OPERATIONS // CHAPTER)):
            choose = Seeded(SEED * 1000 + chapter)
            fleet.places = places(choose, POOL)
            schedule = Planner(choose, KINDS).plan(min(CHAPTER, OPERATIONS))
            counts += checked(fleet, schedule, f"seed {SEED}, chapter {chapter}")
    LOG.info("%s", dict(sorted(counts.items())))
    assert counts["Read"] > counts["Write"] > 0


async def test_readers_never_see_what_was_never_there(tmp_path: Path, database: Callable[[], str]) -> None:
    url = await asyncio.to_thread(database)
    home = tmp_path / "home"

    async def trouble(rng: random.Random, store: Any) -> None:
        files = [one for one in (home / "cache").rglob("*.arrow") if one.is_file()]
        if files:
            rng.choice(files).unlink(missing_ok=True)

    settings = Settings(home=home, database_url=url, **POOL)
    counts = await race(tmp_path, settings.model_dump(include={"home", "database_url", *POOL}), True, trouble)
    LOG.info("%s", dict(sorted(counts.items())))
    assert counts["reads"] > 0
    assert counts["versions"] > 1
