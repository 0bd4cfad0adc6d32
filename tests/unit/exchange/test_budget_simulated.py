"""Processes that share a budget against the simulated exchange's own limit, in a time of their own.

Requests are under way for a random time, and the exchange's clock is wrong by up to half a window.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from exchange.budget import Budget, Limit, Purpose, Waiter
from exchange.simulator.limits import WeightLimit
from tests.conftest import ManualClock

WINDOW = 10_000
WEIGHT = 600
START = 1_700_000_000_000
#: Looks come at most and at least so often, milliseconds.
SHORTEST, LONGEST = 5, 100


@dataclass
class Asker:
    """One process: requests of one purpose, the first of which looks at the record."""

    token: int
    purpose: Purpose
    #: Weights of its requests; taken at random.
    weights: tuple[int, ...]
    #: Milliseconds between two requests; 0 for as many as it may.
    pause: int
    #: When each request went, how long it had waited, its weight.
    went: list[tuple[int, int, int]] = field(default_factory=list)


class World:
    """Askers, their record and the exchange."""

    def __init__(self, askers: list[Asker], seed: int, skew: int, latency: int) -> None:
        self.random = random.Random(seed)
        self.clock = ManualClock(START + skew)
        self.exchange = WeightLimit(self.clock, WEIGHT, WINDOW)
        self.skew = skew
        self.latency = latency
        self.budget = Budget(limit=Limit(weight=WEIGHT, window_ms=WINDOW), changed_ms=START)
        self.statuses: list[int] = []
        self.served = dict.fromkeys(Purpose, 0)
        self._order = count()
        self._events: list[tuple[int, int, Iterator[int]]] = []
        for one in askers:
            self._push(START + self.random.randrange(500), self._asks(one))

    def run(self, milliseconds: int) -> None:
        while self._events and self._events[0][0] < START + milliseconds:
            self.now, _, what = heapq.heappop(self._events)
            later = next(what, None)
            if later is not None:
                self._push(self.now + later, what)

    def _push(self, at: int, what: Iterator[int]) -> None:
        heapq.heappush(self._events, (at, next(self._order), what))

    def _asks(self, one: Asker) -> Iterator[int]:
        while True:
            since, weight = self.now, self.random.choice(one.weights)
            while True:
                wait = self.budget.spend(self.now, weight, one.purpose, one.token, since)
                if not wait:
                    self.budget.leave(one.token)
                    break
                waiter = Waiter(purpose=one.purpose, count=1, since_ms=since, seen_ms=self.now)
                self.budget.wait(one.token, waiter)
                yield int(min(max(wait, SHORTEST), LONGEST))
            one.went.append((self.now, self.now - since, weight))
            self._push(self.now + self.random.randint(0, self.latency), self._travels(one, weight, self.now))
            yield self.random.randint(1, 2 * one.pause) if one.pause else 1

    def _travels(self, one: Asker, weight: int, sent: int) -> Iterator[int]:
        """A request arrives, and its answer comes back."""
        self.clock.time_ms = self.now + self.skew
        verdict = self.exchange.spend("here", weight)
        self.statuses.append(verdict.status)
        yield self.random.randint(0, self.latency)
        if verdict.status == 200:
            self.served[one.purpose] += weight
            self.budget.answered(self.now, weight, sent, float(verdict.used), True)
        else:
            self.budget.refused(self.now, verdict.retry_after * 1000, banned=verdict.status == 418)


SEEDS = st.integers(0, 2**32)
ASKERS = st.lists(
    st.builds(
        Asker,
        token=st.integers(1, 2**60),
        purpose=st.sampled_from(Purpose),
        weights=st.lists(st.sampled_from([1, 2, 4, 5, 20, 25, 50, 250]), min_size=1, max_size=3).map(tuple),
        pause=st.sampled_from([0, 20, 250]),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda one: one.token,
)


@settings(max_examples=20)
@given(ASKERS, SEEDS, st.integers(-WINDOW // 2, WINDOW // 2), st.sampled_from([0, 80, 3000]))
def test_whoever_asks_what_and_when_the_exchange_never_refuses(
    askers: list[Asker], seed: int, skew: int, latency: int
) -> None:
    world = World(askers, seed, skew, latency)
    world.run(3 * WINDOW)
    assert world.statuses
    assert set(world.statuses) == {200}


@settings(max_examples=10)
@given(SEEDS, st.sampled_from([0, 80, 400]))
def test_live_does_not_wait_for_greedy_backfills(seed: int, latency: int) -> None:
    """What live needs here is less than the fifth that backfills leave it."""
    backfills = [Asker(token=at, purpose=Purpose.BACKFILL, weights=(2, 5), pause=0) for at in (1, 2, 3)]
    live = Asker(token=4, purpose=Purpose.LIVE, weights=(1, 2), pause=250)
    world = World([*backfills, live], seed, 0, latency)
    world.run(3 * WINDOW)
    assert set(world.statuses) == {200}
    assert len(live.went) > 60
    assert max(wait for _, wait, _ in live.went) == 0
    # The backfills were greedy, and got three fifths of the limit: the most there is.
    assert world.served[Purpose.BACKFILL] > 2 * 0.55 * WEIGHT
    # No one of them was left out.
    shares = [sum(weight for _, _, weight in one.went) for one in backfills]
    assert min(shares) > 0.15 * sum(shares)


def test_backfills_give_way_while_live_wants_more_than_there_is() -> None:
    def world(purpose: Purpose) -> tuple[list[Asker], list[Asker]]:
        backfills = [Asker(token=at, purpose=purpose, weights=(2,), pause=0) for at in (1, 2, 3)]
        lives = [Asker(token=at, purpose=Purpose.LIVE, weights=(4,), pause=20) for at in (4, 5)]
        world = World([*backfills, *lives], 1, 0, 50)
        world.run(6 * WINDOW)
        assert set(world.statuses) == {200}
        return backfills, lives

    def got(askers: list[Asker]) -> int:
        return sum(weight for one in askers for at, _, weight in one.went if at > START + 2 * WINDOW)

    backfills, lives = world(Purpose.BACKFILL)
    greedy, others = world(Purpose.LIVE)
    assert got(lives) > 3 * got(backfills)
    assert got(others) < got(greedy)
    assert max(wait for one in lives for _, wait, _ in one.went) < WINDOW
