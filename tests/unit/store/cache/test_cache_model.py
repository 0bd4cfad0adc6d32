"""The cache beside the database, in every order of events: no value is older than it says, or than it may be.

All that the cache waits for (loads, saves, calls of the shared tier) stands still until a step lets it go on, fails
it before or after it had its effect, or cancels whoever waits. So the steps are the interleaving.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from market.errors import Retryable, StoreReadOnly
from store.cache.cache import Cache
from store.cache.cached import Cached
from store.cache.invalidation import Invalidation
from store.cache.key import CacheKey
from store.cache.shared_values import SharedAway
from store.control import Control, SafetyState
from tests.conftest import ManualClock
from tests.support.shared_values import FakeSharedValues

EXAMPLES = int(os.environ.get("CHANDLERY_CACHE_EXAMPLES", "60"))
KEYS = [CacheKey.of("position", "binance", "BTC/USDT"), CacheKey.of("position", "binance", "ETH/USDT")]
#: Milliseconds; of positions.
TTL = 1_000


async def settled() -> None:
    """All tasks have run as far as they can."""
    for _ in range(40):
        await asyncio.sleep(0)


class World:
    """A database, a shared tier and some processes, each with its cache."""

    def __init__(self, processes: int, *, shared: bool = True) -> None:
        self.clock = ManualClock()
        self.control = Control()
        self.shared = FakeSharedValues(self.clock)
        self.shared.before = self.shared.after = self.park
        #: What stands still, oldest first, and what it is.
        self.parked: dict[asyncio.Future[None], str] = {}
        #: Key -> (commit time, value) in order of commit.
        self.history: dict[CacheKey, list[tuple[int, int]]] = {key: [(0, 0)] for key in KEYS}
        self.written = 0
        self.caches = [
            Cache(
                limit_bytes=100_000,
                clock=self.clock,
                control=lambda: self.control,
                shared=self.shared if shared else None,
                monotonic_ms=self.clock.now_ms,
                sender=str(number),
            )
            for number in range(processes)
        ]
        self.inboxes: list[list[Invalidation]] = [[] for _ in self.caches]
        for inbox in self.inboxes:
            self.shared.listeners.append(inbox.append)
        #: By process: the least that a read may answer, as a place in the history.
        self.floors = [dict.fromkeys(KEYS, 0) for _ in self.caches]
        self.tasks: list[asyncio.Task[None]] = []
        self.states = 0
        self.reads = self.hits = 0
        #: How much goes on by itself before the next step.
        self.flowing = 0
        self.found: list[str] = []

    async def park(self, name: str) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.parked[future] = name
        try:
            await future
        finally:
            del self.parked[future]

    def place(self, key: CacheKey, value: int) -> int:
        return [one for _, one in self.history[key]].index(value)

    def place_at(self, key: CacheKey, time: int) -> int:
        """Of what the database answered just before a time."""
        return sum(committed < time for committed, _ in self.history[key]) - 1

    def commit(self, key: CacheKey, value: int) -> int:
        if not self.control.safety.writes:
            raise StoreReadOnly("the database too")
        self.history[key].append((self.clock.now_ms(), value))
        return len(self.history[key]) - 1

    async def read(self, process: int, key: CacheKey, *, load: bool) -> None:
        floor, began, states = self.floors[process][key], self.clock.now_ms(), self.states
        lockdown = self.control.safety is SafetyState.LOCKDOWN

        async def loaded() -> int:
            await self.park("load")
            value = self.history[key][-1][1]
            await self.park("loaded")
            return value

        cache = self.caches[process]
        try:
            answer = await cache.cache_aside(key, loaded) if load else await cache.get(key)
        except SharedAway as error:
            # Nothing of the shared tier's troubles may be seen by a reader.
            self.found.append(f"{error}")
            return
        if answer is None:
            return
        self.reads += 1
        self.hits += answer.tier != "database"
        self.judge(key, answer, floor, began)
        if lockdown and states == self.states and answer.tier != "database":
            self.found.append(f"{answer} in lockdown")

    def judge(self, key: CacheKey, answer: Cached[int], floor: int, began: int) -> None:
        place, now = self.place(key, answer.value), self.clock.now_ms()
        if place < self.place_at(key, now - answer.age_ms):
            self.found.append(f"{answer} is older than it says: {self.history[key]} at {now}")
        if place < self.place_at(key, began - TTL):
            self.found.append(f"{answer} is older than it may be: {self.history[key]}, asked at {began}")
        if answer.tier != "database" and answer.age_ms >= TTL:
            self.found.append(f"{answer} was served after its time")
        if len(self.caches) == 1 and place < floor:
            self.found.append(f"{answer} was invalidated before the read: {self.history[key]}, not before {floor}")

    async def write(self, process: int, key: CacheKey) -> None:
        self.written += 1
        value, place = self.written, -1

        async def save() -> None:
            nonlocal place
            await self.park("save")
            place = self.commit(key, value)
            await self.park("saved")

        with contextlib.suppress(StoreReadOnly):
            await self.caches[process].write_through(key, value, save)
        if place >= 0:
            self.know(process, key, place)

    async def change(self, process: int, key: CacheKey, *, matching: bool) -> None:
        """A change past the cache, which is then told."""
        self.written += 1
        with contextlib.suppress(StoreReadOnly):
            place = self.commit(key, self.written)
            if matching:
                await self.caches[process].invalidate_matching("position:binance:*")
            else:
                await self.caches[process].invalidate(key)
            self.know(process, key, place)

    def know(self, process: int, key: CacheKey, place: int) -> None:
        self.floors[process][key] = max(place, self.floors[process][key])

    def step(self, name: str, process: int, number: int) -> None:
        process, key = process % len(self.caches), KEYS[number % 2]
        match name:
            case "read" | "get":
                self.start(self.read(process, key, load=name == "read"))
            case "write":
                self.start(self.write(process, key))
            case "change":
                self.start(self.change(process, key, matching=number % 3 == 0))
            case "settle":
                self.start(self.settle(process))
            case "flow":
                self.flowing = 30
            case "go" | "fail":
                self.let_go(number, fail=name == "fail")
            case "cancel" if self.tasks:
                self.tasks[number % len(self.tasks)].cancel()
            case _:
                self.happen(name, process, number)

    def let_go(self, number: int, *, fail: bool) -> None:
        waiting = [one for one in self.parked if not one.done()]
        if not waiting:
            return
        one = waiting[number % len(waiting)]
        if not fail:
            one.set_result(None)
        elif self.parked[one] in ("load", "loaded", "save", "saved"):
            one.set_exception(Retryable("failed"))
        else:
            one.set_exception(SharedAway("failed"))

    def happen(self, name: str, process: int, number: int) -> None:
        match name:
            case "hear":
                for invalidation in self.inboxes[process]:
                    self.caches[process].apply(invalidation)
                self.inboxes[process].clear()
            case "lose":
                self.inboxes[process].clear()
            case "advance":
                self.clock.advance((1, 100, 600, 999, 1_000)[number % 5])
            case "away":
                self.shared.away = number % 2 == 0
            case "evict":
                self.caches[process]._memory.entries.clear()
            case "state":
                states = [SafetyState.NORMAL, *SafetyState]
                self.control = Control(safety=states[number % len(states)])
                self.states += 1

    async def settle(self, process: int) -> None:
        await self.caches[process].settle()

    def start(self, work: Any) -> None:
        async def quiet() -> None:
            # A failed load or save is its caller's business.
            with contextlib.suppress(Retryable):
                await work

        self.tasks.append(asyncio.create_task(quiet()))

    async def play(self, steps: list[tuple[str, int, int]]) -> None:
        for name, process, number in steps:
            self.step(name, process, number)
            await settled()
            while self.flowing:
                self.let_go(0, fail=False)
                self.flowing -= 1
                await asyncio.sleep(0)
        self.shared.away = False
        for _ in range(400):
            if all(task.done() for task in self.tasks) and not self.parked:
                break
            while [one for one in self.parked if not one.done()]:
                self.let_go(0, fail=False)
            await settled()
        assert [task for task in self.tasks if not task.done()] == []
        assert self.found == []
        for cache in self.caches:
            assert (cache._leases._held, cache._leases._writers, cache._flights.loading) == ({}, {}, 0)


STEP = st.tuples(
    st.sampled_from(
        ["read"] * 4
        + ["go"] * 8
        + ["get", "write", "write", "change", "fail", "cancel", "hear", "lose", "advance", "away", "evict", "state"]
        + ["settle"]
        + ["flow"] * 4
    ),
    st.integers(0, 1),
    st.integers(0, 29),
)
STEPS = st.lists(STEP, min_size=10, max_size=80)


@settings(max_examples=EXAMPLES)
@given(STEPS, st.booleans())
def test_one_process_never_serves_what_it_invalidated(steps: list[tuple[str, int, int]], shared: bool) -> None:
    asyncio.run(World(1, shared=shared).play(steps))


@settings(max_examples=EXAMPLES)
@given(STEPS)
def test_two_processes_never_serve_what_is_older_than_it_may_be(steps: list[tuple[str, int, int]]) -> None:
    asyncio.run(World(2).play(steps))
