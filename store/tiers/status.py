"""How the tiers of a process fare, for people and programs that watch it."""

from __future__ import annotations

from dataclasses import dataclass

from store.cache.statistics import TierCounts
from store.control import OperatingState, SafetyState


@dataclass(frozen=True, kw_only=True)
class TierStatus:
    """The tiers of this process since its start."""

    safety: SafetyState
    operating: OperatingState
    #: Bytes that process memory holds, and the most it may.
    memory_bytes: int
    memory_limit_bytes: int
    #: By tier and kind of values.
    counts: tuple[TierCounts, ...]
    #: Hits per question to process memory, 0 to 1; None before the first.
    hit_rate: float | None
