"""A circuit breaker: after some failures a server is left alone for a while, then tried once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from market.clock import Clock
from market.errors import BadInput
from market.system_event import BROKER_DISCONNECT, BROKER_RECONNECT, EventSink, Severity, SystemEvent


class BreakerState(StrEnum):
    """Whether calls go through."""

    #: All of them.
    CLOSED = "closed"
    #: None, until the time is over.
    OPEN = "open"
    #: One, as a trial.
    HALF_OPEN = "half_open"


@dataclass(frozen=True, kw_only=True)
class BreakerCounts:
    """What a breaker has seen since it was made."""

    successes: int
    failures: int
    #: Calls it did not let through.
    refused: int
    #: Outages: how often it opened from closed.
    outages: int


class CircuitBreaker:
    """Says whether a server should be asked at all (D7).

    Ask :meth:`allows` before each call, and tell how it ended by :meth:`succeeded`, :meth:`failed` or, when it
    was cancelled and says nothing about the server, :meth:`abandoned`. It never waits.

    :param name: of the server, as people know it; goes into the events.
    :param clock: for the time of the events.
    :param sink: told BROKER_DISCONNECT when an outage begins and BROKER_RECONNECT when it is over.
    :param failures: so many in a row open it.
    :param open_seconds: how long it stays open before a trial.
    :param monotonic: seconds that only go forward.
    :raises BadInput: naming ``failures`` or ``open_seconds``.
    """

    def __init__(
        self,
        name: str,
        clock: Clock,
        sink: EventSink,
        *,
        failures: int = 5,
        open_seconds: float = 60.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if failures < 1:
            raise BadInput("failures", failures, "at least 1")
        if not 0 < open_seconds <= 86_400:
            raise BadInput("open_seconds", open_seconds, "seconds, more than 0 and at most a day")
        self.name = name
        self._clock = clock
        self._sink = sink
        self._failures_to_open = failures
        self._open_seconds = open_seconds
        self._monotonic = monotonic
        self._closed = True
        #: While not closed: when a trial may go through.
        self._trial_at = 0.0
        #: A trial is under way; if it is never heard of again, another may go through at `_trial_at`.
        self._trying = False
        self._outage_began = 0.0
        self._in_a_row = 0
        self._successes = self._failures = self._refused = self._outages = 0

    @property
    def state(self) -> BreakerState:
        """The state now; half open as soon as a trial may go through."""
        if self._closed:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self._trying or self._due() else BreakerState.OPEN

    @property
    def counts(self) -> BreakerCounts:
        """What it has seen so far."""
        return BreakerCounts(
            successes=self._successes, failures=self._failures, refused=self._refused, outages=self._outages
        )

    @property
    def seconds_to_trial(self) -> float:
        """How long until a call may go through; 0 when it may now."""
        return 0.0 if self._closed else max(0.0, self._trial_at - self._monotonic())

    def allows(self) -> bool:
        """Whether to make the call. True while half open makes it the trial, so it must be made."""
        if self._closed:
            return True
        if not self._due():
            self._refused += 1
            return False
        self._trying = True
        self._trial_at = self._monotonic() + self._open_seconds
        return True

    def succeeded(self) -> None:
        """The server answered."""
        self._successes += 1
        if self._closed:
            self._in_a_row = 0
        elif self._trying or self._due():
            self._close()
        # While open, it is the late answer to a call from before: the server gets its rest all the same.

    def failed(self, error: BaseException | str) -> None:
        """The server did not answer, or said that it cannot; `error` goes into the event, so no secrets in it."""
        self._failures += 1
        if self._closed:
            self._in_a_row += 1
            if self._in_a_row >= self._failures_to_open:
                self._open(error)
        elif self._trying:
            self._trying = False
            self._trial_at = self._monotonic() + self._open_seconds

    def abandoned(self) -> None:
        """The call ended without saying anything about the server; another may be the trial."""
        if self._trying:
            self._trying = False
            self._trial_at = self._monotonic()

    def _due(self) -> bool:
        return self._monotonic() >= self._trial_at

    def _open(self, error: BaseException | str) -> None:
        now = self._monotonic()
        self._closed, self._trying = False, False
        self._outage_began, self._trial_at = now, now + self._open_seconds
        self._outages += 1
        why = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        self._tell(BROKER_DISCONNECT, Severity.CRITICAL, error=why[:300], failures=self._in_a_row)

    def _close(self) -> None:
        self._closed, self._trying, self._in_a_row = True, False, 0
        away = self._monotonic() - self._outage_began
        self._tell(BROKER_RECONNECT, Severity.INFO, away_seconds=round(away, 3))

    def _tell(self, name: str, severity: Severity, **details: str | int | float) -> None:
        self._sink(SystemEvent(name, severity, self._clock.now_ms(), {"broker": self.name, **details}))
