"""Half-open intervals of time and the algebra that coverage, gaps and backfill are written in."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime

import numpy as np
import numpy.typing as npt

from market.clock import iso, to_ms
from market.errors import BadInput
from market.timeframe import Int64s, Timeframe


@dataclass(frozen=True, order=True)
class Interval:
    """``[start, end)`` in epoch milliseconds; never empty."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if self.start >= self.end:
            raise BadInput("interval", f"{self.start}..{self.end}", "a start before the end (half-open)")

    @property
    def duration(self) -> int:
        """Milliseconds."""
        return self.end - self.start

    def __contains__(self, ms: int) -> bool:
        return self.start <= ms < self.end

    def __str__(self) -> str:
        return f"[{iso(self.start)}, {iso(self.end)})"


class IntervalSet:
    """A set of instants as sorted, disjoint, non-touching intervals. Immutable."""

    __slots__ = ("_intervals",)

    def __init__(self, intervals: Iterable[Interval] = ()) -> None:
        merged: list[Interval] = []
        for one in sorted(intervals):
            if merged and one.start <= merged[-1].end:
                if one.end > merged[-1].end:
                    merged[-1] = Interval(merged[-1].start, one.end)
            else:
                merged.append(one)
        self._intervals = tuple(merged)

    @classmethod
    def of(cls, *bounds: tuple[int, int]) -> IntervalSet:
        """From pairs of bounds; empty pairs are left out."""
        return cls(Interval(start, end) for start, end in bounds if start < end)

    @classmethod
    def of_candles(cls, open_times: Int64s, timeframe: Timeframe) -> IntervalSet:
        """The instants covered by candles with these sorted open times."""
        if not len(open_times):
            return cls()
        ends = timeframe.next_all(open_times)
        breaks = np.flatnonzero(open_times[1:] > ends[:-1])
        starts = open_times[np.concatenate(([0], breaks + 1))]
        stops = ends[np.concatenate((breaks, [len(ends) - 1]))]
        return cls(Interval(int(a), int(b)) for a, b in zip(starts, stops, strict=True))

    def __iter__(self) -> Iterator[Interval]:
        return iter(self._intervals)

    def __len__(self) -> int:
        return len(self._intervals)

    def __bool__(self) -> bool:
        return bool(self._intervals)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IntervalSet) and self._intervals == other._intervals

    def __hash__(self) -> int:
        return hash(self._intervals)

    def __repr__(self) -> str:
        return "IntervalSet(" + ", ".join(str(one) for one in self._intervals) + ")"

    def __contains__(self, ms: int) -> bool:
        at = bisect_right(self._intervals, ms, key=lambda one: one.start) - 1
        return at >= 0 and ms < self._intervals[at].end

    def contains_all(self, instants: Int64s) -> npt.NDArray[np.bool_]:
        """For each instant, whether it lies in the set."""
        starts = np.array([one.start for one in self._intervals], np.int64)
        ends = np.array([one.end for one in self._intervals], np.int64)
        # An instant inside has passed one start more than ends.
        inside: npt.NDArray[np.bool_] = np.searchsorted(starts, instants, "right") > np.searchsorted(
            ends, instants, "right"
        )
        return inside

    @property
    def duration(self) -> int:
        """Milliseconds in all intervals together."""
        return sum(one.duration for one in self._intervals)

    @property
    def hull(self) -> Interval | None:
        """The smallest interval that holds the whole set; None when empty."""
        return Interval(self._intervals[0].start, self._intervals[-1].end) if self._intervals else None

    def __or__(self, other: IntervalSet) -> IntervalSet:
        return IntervalSet((*self._intervals, *other._intervals))

    def __and__(self, other: IntervalSet) -> IntervalSet:
        found: list[Interval] = []
        mine, theirs = iter(self._intervals), iter(other._intervals)
        a, b = next(mine, None), next(theirs, None)
        while a is not None and b is not None:
            start, end = max(a.start, b.start), min(a.end, b.end)
            if start < end:
                found.append(Interval(start, end))
            if a.end <= b.end:
                a = next(mine, None)
            else:
                b = next(theirs, None)
        return IntervalSet(found)

    def __sub__(self, other: IntervalSet) -> IntervalSet:
        left: list[Interval] = []
        cuts = list(other._intervals)
        at = 0
        for one in self._intervals:
            start = one.start
            while at < len(cuts) and cuts[at].end <= start:
                at += 1
            look = at
            while look < len(cuts) and cuts[look].start < one.end:
                if cuts[look].start > start:
                    left.append(Interval(start, cuts[look].start))
                start = max(start, cuts[look].end)
                look += 1
            if start < one.end:
                left.append(Interval(start, one.end))
        return IntervalSet(left)

    def clip(self, start: int, end: int) -> IntervalSet:
        """The part inside ``[start, end)``."""
        if start >= end:
            return IntervalSet()
        first = bisect_right(self._intervals, start, key=lambda one: one.end)
        last = bisect_left(self._intervals, end, lo=first, key=lambda one: one.start)
        inside = self._intervals[first:last]
        return IntervalSet(Interval(max(one.start, start), min(one.end, end)) for one in inside)


def parse_interval(
    start: datetime | date | str | int,
    end: datetime | date | str | int,
    start_field: str = "start",
    end_field: str = "end",
) -> Interval:
    """An interval from outside values (see :func:`market.clock.to_ms`).

    :raises BadInput: naming the field that is wrong; reversed or empty ranges name the end.
    """
    start_ms, end_ms = to_ms(start, start_field), to_ms(end, end_field)
    if start_ms >= end_ms:
        raise BadInput(
            end_field, iso(end_ms), f"an instant after {start_field} ({iso(start_ms)}); ranges are [start, end)"
        )
    return Interval(start_ms, end_ms)
