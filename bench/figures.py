"""Numbers of a benchmark that are no pair."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Numbers that nothing stands beside."""

    name: str
    unit: str
    values: dict[str, float]
    #: The value that has a budget, and the most it may be.
    budget: tuple[str, float] | None = None
    more: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As it is kept in ``bench/results``."""
        return asdict(self) | {"python": platform.python_version(), "machine": platform.machine()}

    def line(self) -> str:
        """One line for people."""
        values, more = (
            "   ".join(f"{name} {value:,.2f}" for name, value in part.items()) for part in (self.values, self.more)
        )
        budget = "" if self.budget is None else f" (budget {self.budget[0]} {self.budget[1]:g})"
        return f"{self.name:50} {values} {self.unit}   {more}{budget}"
