"""Measuring two ways of doing the same work, in turn, so that a noisy machine is noisy for both."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol


class Result(Protocol):
    """What a benchmark has found."""

    def to_json(self) -> dict[str, Any]:
        """As it is kept in ``bench/results``."""
        ...

    def line(self) -> str:
        """One line for people."""
        ...


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One piece of work, ours and the baseline's. Times are medians in seconds."""

    name: str
    #: What one run handles: rows, candles, requests.
    units: int
    baseline: str
    ours_seconds: float
    baseline_seconds: float
    rounds: int
    #: Ours must be at least this many times as fast as the baseline; None where no such budget is set.
    budget: float | None = None
    #: Units that ours must do in a second; None where no such budget is set.
    budget_per_second: float | None = None

    @property
    def ratio(self) -> float:
        """How many times as fast as the baseline; above 1 is faster."""
        return self.baseline_seconds / self.ours_seconds

    def to_json(self) -> dict[str, Any]:
        """As it is kept in ``bench/results``."""
        return asdict(self) | {
            "ratio": round(self.ratio, 4),
            "ours_per_second": round(self.units / self.ours_seconds),
            "baseline_per_second": round(self.units / self.baseline_seconds),
            "python": platform.python_version(),
            "machine": platform.machine(),
        }

    def line(self) -> str:
        """One line for people."""
        budget = "" if self.budget is None else f" (budget {self.budget:g} x)"
        budget += "" if self.budget_per_second is None else f" (budget {self.budget_per_second:,.0f}/s)"
        return (
            f"{self.name:42} {self.units / self.ours_seconds:>14,.0f}/s"
            f"   {self.baseline:38} {self.units / self.baseline_seconds:>14,.0f}/s   {self.ratio:8.3f} x{budget}"
        )


def paired(
    name: str,
    units: int,
    ours: Callable[[], object],
    baseline_name: str,
    baseline: Callable[[], object],
    *,
    rounds: int = 5,
    before: Callable[[], object] | None = None,
    budget: float | None = None,
    budget_per_second: float | None = None,
) -> Measured:
    """Time `ours` and `baseline` in turn, after one warm-up of each.

    :param before: run before each timed call, outside the time.
    """
    times: dict[Callable[[], object], list[float]] = {ours: [], baseline: []}
    for count in range(rounds + 1):
        for work in (ours, baseline):
            if before is not None:
                before()
            started = time.perf_counter()
            work()
            if count:
                times[work].append(time.perf_counter() - started)
    return Measured(
        name=name,
        units=units,
        baseline=baseline_name,
        ours_seconds=statistics.median(times[ours]),
        baseline_seconds=statistics.median(times[baseline]),
        rounds=rounds,
        budget=budget,
        budget_per_second=budget_per_second,
    )


def run(measure: Callable[[int, int], Sequence[Result]], description: str | None) -> None:
    """The command line of one benchmark: ``--candles``, ``--rounds``, ``--json``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--candles", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    found = measure(options.candles, options.rounds)
    if options.json:
        print(json.dumps([one.to_json() for one in found], indent=1))
        return
    for one in found:
        print(one.line())
