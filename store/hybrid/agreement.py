"""How far the secondary is known to hold what the primary holds."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from market.clock import Clock
from market.instrument import Series
from store.difference import ChunkDifference, LedgerDifference
from store.hybrid.side import Outage

#: Tiers of answers that the secondary gave because the primary is away. As far as this process knows ...
#: ... it holds what the primary holds,
SECONDARY = "secondary"
#: ... it lacks something of this series,
SECONDARY_BEHIND = "secondary_behind"
#: ... or nobody has compared yet, or it holds what the primary never had.
SECONDARY_UNPROVEN = "secondary_unproven"

Item = ChunkDifference | LedgerDifference


@dataclass(frozen=True, kw_only=True)
class HybridStatus:
    """What one process knows of its two stores. Times are epoch milliseconds of our clock."""

    #: None while it answers.
    primary_outage: Outage | None
    secondary_outage: Outage | None
    #: Series of which the secondary lacks something, and since when that is known.
    behind: dict[Series, int]
    #: Series of which the secondary holds something that the primary has not, or that it cannot take;
    #: ``chandlery check`` lists it.
    differing: tuple[Series, ...]
    #: When all series were last compared; None for not yet.
    compared_at: int | None

    @property
    def answering(self) -> bool:
        """True if neither store is away, as far as is known."""
        return self.primary_outage is None and self.secondary_outage is None

    @property
    def current(self) -> bool:
        """True if both stores answer and the secondary is known to lack nothing."""
        return self.answering and not self.behind and self.compared_at is not None


class Agreement:
    """What this process has seen of both stores. It is lost with the process, and found again by comparing."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._opened_at = clock.now_ms()
        self._doubtful: dict[Series, None] = {}
        self._behind: dict[Series, int] = {}
        self._settled: dict[Series, frozenset[Item]] = {}
        self._agreed_at: dict[Series, int] = {}
        #: One lock per series: what is written to both goes to both in one order, and nothing is written between
        #: the comparison that finds a series equal and the end of its being behind.
        self._locks: dict[Series, asyncio.Lock] = {}
        #: Set when the instruments of the secondary may lack something.
        self.instruments_doubtful = True
        self.compared_at: int | None = None

    def lock(self, series: Series) -> asyncio.Lock:
        """Held while the series is written to both stores, or compared."""
        return self._locks.setdefault(series, asyncio.Lock())

    def doubt(self, series: Series) -> None:
        """The series must be compared some time: somebody writes it."""
        self._doubtful[series] = None

    def fell_behind(self, series: Series) -> None:
        """The secondary lacks something; from now on it is only copied to, until it agrees."""
        self._doubtful[series] = None
        self._behind.setdefault(series, self._clock.now_ms())

    def mirrored(self, series: Series) -> None:
        """A write changed both stores alike; what was equal before is equal now."""
        if series in self._agreed_at and series not in self._behind and series not in self._settled:
            self._agreed_at[series] = self._clock.now_ms()

    def agreed(self, series: Series) -> None:
        """Compared, under the lock, and equal."""
        self._doubtful.pop(series, None)
        self._behind.pop(series, None)
        self._settled.pop(series, None)
        self._agreed_at[series] = self._clock.now_ms()

    def settled_for(self, series: Series, items: frozenset[Item]) -> bool:
        """Compared, under the lock: nothing is left but what copying does not change.

        :return: true if that is news.
        """
        self._doubtful.pop(series, None)
        self._behind.pop(series, None)
        news = series not in self._settled
        self._settled[series] = items
        return news

    def settled(self, series: Series) -> frozenset[Item]:
        """What copying does not change."""
        return self._settled.get(series, frozenset())

    def is_behind(self, series: Series) -> bool:
        return series in self._behind

    @property
    def doubtful(self) -> list[Series]:
        """The series to compare, the ones that are behind first."""
        return sorted(self._doubtful, key=lambda one: one not in self._behind)

    @property
    def behind(self) -> dict[Series, int]:
        """Since when each is known to be behind, epoch milliseconds."""
        return dict(self._behind)

    @property
    def differing(self) -> tuple[Series, ...]:
        """The series that no copying makes equal."""
        return tuple(sorted(self._settled))

    def tier(self, series: Series) -> tuple[str, int]:
        """What an answer of the secondary is called, and the milliseconds since it agreed with the primary."""
        now = self._clock.now_ms()
        age = max(0, now - self._agreed_at.get(series, self._opened_at))
        if series in self._behind:
            return SECONDARY_BEHIND, age
        proven = series in self._agreed_at and series not in self._settled
        return (SECONDARY if proven else SECONDARY_UNPROVEN), age
