"""Many ways of answering one question, each in its turn, so that a noisy machine is noisy for all of them."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.figures import Figures
from bench.paired import Measured

#: A plain function is timed as it is, a coroutine function until it has returned.
Work = Callable[[], object]


@dataclass
class Contender:
    """One way, and how long each turn of it took."""

    name: str
    work: Work
    #: Done before each turn, outside the time.
    before: Work | None = None
    #: It has a turn in every so many rounds: for those who are slow.
    every: int = 1
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds."""
        return float(np.median(self.seconds))

    async def turn(self) -> object:
        """What the work gave."""
        if self.before is not None:
            await _done(self.before)
        began = time.perf_counter()
        found = await _done(self.work)
        self.seconds.append(time.perf_counter() - began)
        return found


async def _done(work: Work) -> object:
    found = work()
    return await found if inspect.isawaitable(found) else found


async def in_turn(contenders: Sequence[Contender], rounds: int) -> None:
    """So many rounds, after one of warming up."""
    for one in contenders:
        await one.turn()
        one.seconds.clear()
    for count in range(rounds):
        for one in contenders:
            if count % one.every == 0:
                await one.turn()


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """The median, and what 99 of 100 stay within."""
    p50, p99 = np.percentile(seconds, (50, 99))
    return {"p50": round(float(p50) * 1000, 4), "p99": round(float(p99) * 1000, 4)}


def table(question: str, contenders: Sequence[Contender]) -> list[Figures]:
    """A line for each."""
    return [
        Figures(
            name=f"{question}: {one.name}",
            unit="ms",
            values=milliseconds(one.seconds),
            more={"turns": len(one.seconds)},
        )
        for one in contenders
    ]


def beside(
    question: str, units: int, ours: Contender, baseline: Contender, budget: float | None = None
) -> Measured:
    """Two of them, by their medians."""
    return Measured(
        name=f"{question}: {ours.name}",
        units=units,
        baseline=baseline.name,
        ours_seconds=ours.median,
        baseline_seconds=baseline.median,
        rounds=min(len(ours.seconds), len(baseline.seconds)),
        budget=budget,
    )
