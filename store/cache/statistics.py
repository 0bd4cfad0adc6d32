"""What each tier did for each kind of value: hits, misses, errors, evictions, bytes (D9)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from market.system_event import METRIC_RECORD, EventSink, Severity, SystemEvent


@dataclass(frozen=True, kw_only=True)
class TierCounts:
    """The counts of one tier and one kind of values since the start."""

    tier: str
    kind: str
    hits: int = 0
    misses: int = 0
    #: Questions that the tier failed to answer: neither hits nor misses.
    errors: int = 0
    #: Entries dropped to make room for others.
    evictions: int = 0
    #: Kept now.
    bytes: int = 0

    @property
    def hit_rate(self) -> float | None:
        """Hits per question answered, 0 to 1; None before the first."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else None


class _Counts:
    """One tier and kind: plain numbers, since they are counted up at every access."""

    __slots__ = ("errors", "evictions", "hits", "misses", "size")

    def __init__(self) -> None:
        self.hits = self.misses = self.errors = self.evictions = self.size = 0


class TierStatistics:
    """Counts by (tier, kind). Counting costs a dict look-up; telling is the owner's business, on a timer.

    :param now_ms: epoch milliseconds, for the events.
    """

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._counts: dict[tuple[str, str], _Counts] = {}
        self._reported: dict[tuple[str, str], tuple[int, int, int, int]] = {}

    def hit(self, tier: str, kind: str, times: int = 1) -> None:
        """The tier had the value."""
        self._of(tier, kind).hits += times

    def miss(self, tier: str, kind: str, times: int = 1) -> None:
        """The tier said that it has no such value, or none that is fresh enough."""
        self._of(tier, kind).misses += times

    def error(self, tier: str, kind: str, times: int = 1) -> None:
        """The tier could not say."""
        self._of(tier, kind).errors += times

    def evicted(self, tier: str, kind: str, times: int = 1) -> None:
        """The tier dropped an entry to make room."""
        self._of(tier, kind).evictions += times

    def bytes_changed(self, tier: str, kind: str, change: int) -> None:
        """The tier keeps so many bytes more (or, negative, less) of this kind."""
        self._of(tier, kind).size += change

    def snapshot(self) -> list[TierCounts]:
        """All counts so far, by tier and kind."""
        return [
            TierCounts(
                tier=tier,
                kind=kind,
                hits=one.hits,
                misses=one.misses,
                errors=one.errors,
                evictions=one.evictions,
                bytes=one.size,
            )
            for (tier, kind), one in sorted(self._counts.items())
        ]

    def hit_rate(self, *tiers: str) -> float | None:
        """Hits per question answered, over all kinds and these tiers (none given: all); None before the first."""
        of = [one for (tier, _), one in self._counts.items() if not tiers or tier in tiers]
        hits, misses = sum(one.hits for one in of), sum(one.misses for one in of)
        return hits / (hits + misses) if hits + misses else None

    def report(self, sink: EventSink) -> int:
        """Tell what was counted since the last report, one METRIC_RECORD (low) per tier and kind; how many.

        Those of which nothing was counted since are left out.
        """
        told = 0
        for (tier, kind), one in sorted(self._counts.items()):
            now = one.hits, one.misses, one.errors, one.evictions
            before = self._reported.get((tier, kind), (0, 0, 0, 0))
            if now == before:
                continue
            self._reported[tier, kind] = now
            hits, misses, errors, evictions = (new - old for new, old in zip(now, before, strict=True))
            details: dict[str, str | int | float] = {
                "tier": tier,
                "kind": kind,
                "hits": hits,
                "misses": misses,
                "errors": errors,
                "evictions": evictions,
                "bytes": one.size,
            }
            if hits + misses:
                details["hit_rate"] = round(hits / (hits + misses), 4)
            sink(SystemEvent(METRIC_RECORD, Severity.LOW, self._now_ms(), details))
            told += 1
        return told

    def _of(self, tier: str, kind: str) -> _Counts:
        try:
            return self._counts[tier, kind]
        except KeyError:
            return self._counts.setdefault((tier, kind), _Counts())
