"""Something is written between any two steps of a read: the answer is what the database said at one moment of it.

And what the read has left in memory is right: nobody who comes after it, with nothing written any more, gets
anything but what the database says. ``CHANDLERY_TEST_TIERS_SCHEDULES`` makes the run longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market.instrument import Series
from market.timeframe import ONE_MINUTE
from store.cache.statistics import TierStatistics
from store.cache.time_to_live import TimesToLive
from store.live_source import LocalMarket
from store.market_data import MarketData
from store.sqlite.store import DATABASE_NAME, SqliteStore
from store.tiers.disk import DiskTier
from store.tiers.process_memory import ProcessMemory
from store.tiers.tiered_views import TieredViews
from tests.support.made_candles import DAY, HOUR
from tests.support.tiers_model import BEGIN, DAYS, SYMBOLS, Planner, Read, Write
from tests.support.tiers_worker import SetClock, differing, outcome, to_batch

SCHEDULES = int(os.environ.get("CHANDLERY_TEST_TIERS_SCHEDULES", "12"))
#: What a read asks the store for; before and after each of them something may happen.
STEPS = frozenset({"facts", "page", "rolled", "coverage", "versions", "delta", "read", "series", "chunks"})


class Drawn:
    """Choices that Hypothesis makes, and makes simpler."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw

    def number(self, low: int, high: int) -> int:
        return self._draw(st.integers(low, high))

    def one_of(self, options: Sequence[Any]) -> Any:
        return self._draw(st.sampled_from(list(options)))


@dataclass(frozen=True)
class Meanwhile:
    """A write that happens so many steps after the last one."""

    steps: int
    write: Write


class Interleaved:
    """A store, and what happens between its steps."""

    def __init__(self, store: SqliteStore, other: SqliteStore, plain: MarketData) -> None:
        self._store = store
        self._other = other
        self._plain = plain
        self._coming: deque[Meanwhile] = deque()
        self._steps = 0
        self._asking: Any = None
        #: What the database has said since the read began.
        self.said: list[Any] = []

    @contextlib.asynccontextmanager
    async def during(self, coming: Sequence[Meanwhile], ask: Any) -> AsyncIterator[None]:
        """While this lasts, that happens."""
        self._coming, self._steps, self._asking = deque(coming), 0, ask
        self.said = [await ask(self._plain)]
        yield
        self._coming.clear()

    def change_mark(self) -> int | None:
        return self._store.change_mark()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name not in STEPS:
            return found

        async def step(*arguments: Any, **named: Any) -> Any:
            await self._happens()
            given = await found(*arguments, **named)
            await self._happens()
            return given

        return step

    async def _happens(self) -> None:
        self._steps += 1
        while self._coming and self._coming[0].steps <= self._steps:
            self._steps = 0
            await self._other.write(to_batch(self._coming.popleft().write))
            self.said.append(await self._asking(self._plain))


@contextlib.asynccontextmanager
async def opened(folder: Path, memory: int, disk: bool) -> AsyncIterator[tuple[Interleaved, Any, Any, Any]]:
    """The interleaved store, one to write to, and readers through the tiers and past them."""
    clock = SetClock()
    clock.time_ms = BEGIN
    statistics = TierStatistics(clock.now_ms)
    path = folder / DATABASE_NAME
    async with SqliteStore.opened(path, clock) as other, SqliteStore.opened(path, clock, read_only=True) as store:
        plain = MarketData(other, LocalMarket.empty(clock), clock)
        between = Interleaved(store, other, plain)
        tier = DiskTier(folder / "cache", 1 << 28, statistics, clock) if disk else None
        views = TieredViews(
            between,  # type: ignore[arg-type]
            None,
            clock,
            entries=ProcessMemory(memory, statistics),
            disk=tier,
            times=TimesToLive(),
            statistics=statistics,
        )
        try:
            yield between, other, MarketData(between, LocalMarket.empty(clock), clock, None, views), plain  # type: ignore[arg-type]
        finally:
            views.close()


@dataclass(frozen=True)
class Step:
    """A write, a read that is disturbed, and reads that are not."""

    before: Write
    read: Read
    meanwhile: tuple[Meanwhile, ...]
    after: tuple[Read, ...]

    def __str__(self) -> str:
        disturbed = "".join(f"\n      after {one.steps} steps {one.write}" for one in self.meanwhile)
        return "\n".join((f"  {self.before}", f"  {self.read}{disturbed}", *(f"  {one}" for one in self.after)))


@dataclass(frozen=True)
class Plan:
    """What happens in one home; said a line each, which Hypothesis would not do of a dataclass."""

    memory: int
    disk: bool
    steps: tuple[Step, ...]

    def __repr__(self) -> str:
        return f"{self.memory} bytes, disk {self.disk}\n" + "\n".join(str(one) for one in self.steps)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    choose = Drawn(draw)
    planner = Planner(choose)
    # More than there is: past the tiers an answer takes several looks at the database.
    memory, disk = choose.one_of((1 << 28, 300_000)), choose.one_of((False, True))
    return Plan(memory, disk, tuple(_step(choose, planner) for _ in range(choose.number(2, 10))))


def _step(choose: Drawn, planner: Planner) -> Step:
    before, read = planner.write(0), now_only(planner.read(0))
    minutes = read.series[0].at(ONE_MINUTE)
    # Of one series, so that the answer is of one moment.
    series = choose.one_of((minutes, minutes, read.series[0]))
    meanwhile = tuple(
        Meanwhile(choose.number(1, 6), aligned(replace(planner.write(0), series=series)))
        for _ in range(choose.number(0, 3))
    )
    return Step(before, read, meanwhile, (read, *(now_only(planner.read(0)) for _ in range(2))))


def aligned(one: Write) -> Write:
    """With an open time of its timeframe."""
    return replace(one, first=one.series.timeframe.floor(one.first))


def now_only(one: Read) -> Read:
    """Of what is known now: what will have been known later, the database says anew at every step."""
    return replace(one, as_of=None if one.as_of is None else BEGIN - 1)


def asked(one: Read, place: int) -> Any:
    """How to ask for one of the series of a read."""

    async def ask(market_data: Any) -> Any:
        return await outcome(
            market_data.candles(
                one.series[place], start_ms=one.start, end_ms=one.end, limit=one.limit, as_of_ms=one.as_of
            )
        )

    return ask


@settings(max_examples=SCHEDULES, suppress_health_check=list(HealthCheck))
@given(plan=plans())
def test_an_answer_is_what_the_database_said_at_one_moment_of_the_read(plan: Plan) -> None:
    async def run(folder: Path) -> None:
        async with opened(folder, plan.memory, plan.disk) as (between, other, tiered, plain):
            for step in plan.steps:
                await other.write(to_batch(step.before))
                ask = asked(step.read, 0)
                async with between.during(step.meanwhile, ask):
                    given = await ask(tiered)
                found = [differing([given], [one]) for one in between.said]
                assert None in found, f"{step}\n" + "\n".join(str(one) for one in found)
                await settled(step, tiered, plain)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder)))


async def settled(step: Step, tiered: Any, plain: Any) -> None:
    """With nothing written any more, every reader gets what the database says."""
    for one in step.after:
        for place in range(len(one.series)):
            ask = asked(one, place)
            wrong = differing([await ask(tiered)], [await ask(plain)])
            assert wrong is None, f"afterwards: {one}\n{wrong}"


@pytest.mark.parametrize("steps", range(1, 9))
async def test_a_correction_while_digests_are_read_again_leaves_no_hole_in_the_newest_candles(
    tmp_path: Path, steps: int
) -> None:
    minutes = Series("binance", SYMBOLS[0], ONE_MINUTE)
    old = Write(worker=0, series=minutes, first=DAYS[6], count=40)
    new = Write(worker=0, series=minutes, first=DAYS[0], count=40)
    newest = asked(Read(worker=0, series=(minutes,), limit=20), 0)
    january = asked(Read(worker=0, series=(minutes,), start=DAYS[6], end=DAYS[6] + DAY), 0)
    march = asked(Read(worker=0, series=(minutes,), start=DAYS[0], end=DAYS[0] + DAY), 0)
    async with opened(tmp_path, 1 << 28, False) as (between, other, tiered, plain):
        for one in (old, new):
            await other.write(to_batch(one))
        await newest(tiered)
        # From now on nobody knows the digest of January, and the newest candles are in memory.
        await other.write(to_batch(replace(old, count=1, version=1)))
        await newest(tiered)
        async with between.during([Meanwhile(steps, replace(new, first=DAYS[0] + HOUR // 2, version=2))], january):
            given = await january(tiered)
        assert None in [differing([given], [one]) for one in between.said]
        for ask in (march, newest, january):
            assert differing([await ask(tiered)], [await ask(plain)]) is None
