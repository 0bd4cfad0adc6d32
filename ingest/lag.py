"""How long it takes from receiving a row to having it safe."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Lag:
    """Milliseconds from receipt to durable, over the latest rows looked at; None before the first."""

    p50: int | None = None
    p99: int | None = None
    #: Since the start.
    longest: int | None = None


class LagWindow:
    """The latest lags. Adding one is cheap; the order is made when somebody asks."""

    def __init__(self, size: int = 4096) -> None:
        self._latest: deque[int] = deque(maxlen=size)
        self._longest: int | None = None

    def add(self, milliseconds: int) -> None:
        """A row became durable so long after it was received."""
        self._latest.append(milliseconds)
        if self._longest is None or milliseconds > self._longest:
            self._longest = milliseconds

    def lag(self) -> Lag:
        """What they come to."""
        if not self._latest:
            return Lag()
        ordered = sorted(self._latest)
        last = len(ordered) - 1
        return Lag(p50=ordered[round(last * 0.5)], p99=ordered[round(last * 0.99)], longest=self._longest)
