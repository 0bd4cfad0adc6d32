"""The breaker: five failures open it, after a minute one trial decides, and an outage is told once."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from market.errors import BadInput
from market.system_event import BROKER_DISCONNECT, BROKER_RECONNECT, Severity, SystemEvent
from store.cache.breaker import BreakerState, CircuitBreaker
from tests.conftest import ManualClock


class Bench:
    """A breaker on a clock that is moved by hand, and what it told."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.told: list[SystemEvent] = []
        self.breaker = CircuitBreaker(
            "redis", self.clock, self.told.append, monotonic=lambda: self.clock.time_ms / 1000
        )

    def fail(self, times: int) -> None:
        for _ in range(times):
            assert self.breaker.allows()
            self.breaker.failed(ConnectionError("refused"))

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.told]


def test_an_outage_from_begin_to_end() -> None:
    bench = Bench()
    bench.fail(4)
    bench.breaker.succeeded()
    bench.fail(4)
    assert (bench.breaker.state, bench.told) == (BreakerState.CLOSED, [])
    bench.fail(1)
    assert bench.breaker.state is BreakerState.OPEN
    (event,) = bench.told
    assert event[:3] == (BROKER_DISCONNECT, Severity.CRITICAL, bench.clock.now_ms())
    assert event.details == {"broker": "redis", "error": "ConnectionError: refused", "failures": 5}

    bench.clock.advance(59_999)
    assert not bench.breaker.allows()
    assert bench.breaker.seconds_to_trial == pytest.approx(0.001, abs=1e-6)
    bench.clock.advance(1)
    assert bench.breaker.state is BreakerState.HALF_OPEN
    assert [bench.breaker.allows() for _ in range(3)] == [True, False, False]
    # The trial fails: another rest, and no second event for the same outage.
    bench.breaker.failed("no answer")
    assert bench.breaker.state is BreakerState.OPEN
    bench.clock.advance(60_000)
    assert bench.breaker.allows()
    bench.breaker.succeeded()
    assert (bench.breaker.state, bench.names) == (BreakerState.CLOSED, [BROKER_DISCONNECT, BROKER_RECONNECT])
    assert bench.told[1].details == {"broker": "redis", "away_seconds": 120.0}
    # And it takes five again.
    bench.fail(4)
    assert bench.breaker.state is BreakerState.CLOSED
    bench.fail(1)
    assert bench.names.count(BROKER_DISCONNECT) == 2
    counts = bench.breaker.counts
    assert (counts.successes, counts.failures, counts.refused, counts.outages) == (2, 15, 3, 2)


def test_late_answers_to_calls_from_before_do_not_shorten_the_rest() -> None:
    bench = Bench()
    bench.fail(5)
    bench.breaker.succeeded()
    bench.breaker.failed("late too")
    assert bench.breaker.state is BreakerState.OPEN
    bench.clock.advance(60_000)
    assert bench.breaker.state is BreakerState.HALF_OPEN


def test_a_trial_that_is_never_heard_of_again_is_followed_by_another() -> None:
    bench = Bench()
    bench.fail(5)
    bench.clock.advance(60_000)
    assert bench.breaker.allows()
    bench.clock.advance(59_999)
    assert not bench.breaker.allows()
    bench.clock.advance(1)
    assert bench.breaker.allows()
    bench.breaker.abandoned()
    assert bench.breaker.allows()
    bench.breaker.succeeded()
    assert bench.breaker.state is BreakerState.CLOSED


@pytest.mark.parametrize("wrong", [{"failures": 0}, {"open_seconds": 0}, {"open_seconds": float("nan")}])
def test_wrong_limits_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(BadInput) as caught:
        CircuitBreaker("redis", ManualClock(), lambda event: None, **wrong)  # type: ignore[arg-type]
    assert caught.value.field == next(iter(wrong))


class BreakerModel(RuleBasedStateMachine):
    """The breaker beside a plain model: a state's name, a count and a time."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.state = "closed"
        self.failures = 0
        self.until = 0
        self.expected: list[str] = []

    @rule(milliseconds=st.sampled_from([1, 1_000, 59_999, 60_000, 90_000]))
    def wait(self, milliseconds: int) -> None:
        self.bench.clock.advance(milliseconds)

    @rule()
    def ask(self) -> None:
        now = self.bench.clock.now_ms()
        if self.state == "closed":
            expected = True
        else:
            expected = now >= self.until
            if expected:
                self.state, self.until = "trial", now + 60_000
        assert self.bench.breaker.allows() == expected

    @rule()
    def succeed(self) -> None:
        if self.state == "closed":
            self.failures = 0
        elif self.state == "trial" or self.bench.clock.now_ms() >= self.until:
            self.state, self.failures = "closed", 0
            self.expected.append(BROKER_RECONNECT)
        self.bench.breaker.succeeded()

    @rule(times=st.integers(1, 6))
    def fail(self, times: int) -> None:
        for _ in range(times):
            if self.state == "closed":
                self.failures += 1
                if self.failures == 5:
                    self.state, self.until = "open", self.bench.clock.now_ms() + 60_000
                    self.expected.append(BROKER_DISCONNECT)
            elif self.state == "trial":
                self.state, self.until = "open", self.bench.clock.now_ms() + 60_000
            self.bench.breaker.failed("no")

    @rule()
    def abandon(self) -> None:
        if self.state == "trial":
            self.state, self.until = "open", self.bench.clock.now_ms()
        self.bench.breaker.abandoned()

    @invariant()
    def same(self) -> None:
        state = self.state
        if state == "trial" or (state == "open" and self.bench.clock.now_ms() >= self.until):
            state = "half_open"
        assert self.bench.breaker.state == state
        assert self.bench.names == self.expected


BreakerModel.TestCase.settings = settings(max_examples=40, stateful_step_count=40)
TestBreakerModel = BreakerModel.TestCase
