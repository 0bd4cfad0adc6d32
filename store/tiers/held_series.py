"""What process memory knows of a series as of one revision, and how it is brought to the next one."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from market.candle import open_times_ms
from market.clock import LATEST_MS
from market.coverage import Covered
from market.instrument import Series
from market.interval import Interval
from store.candle_store import SeriesDelta, SeriesFacts
from store.ledger import clip
from store.merge import chunk_end, chunk_start
from store.tiers.periods import Period, period_of, periods_of
from store.tiers.tail import Tail

#: Changes remembered, for those who keep something made of candles.
_MOST_CHANGES = 64
#: A tail of more rows is cut, where whole periods can take the place of its beginning.
_LONG_TAIL = 50_000
#: Rows that are left of it at least.
_SHORT_TAIL = 5_000


@dataclass(frozen=True)
class Ledger:
    """All coverage entries of a series, sorted and disjoint."""

    entries: tuple[Covered, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, entries: Sequence[Covered]) -> Ledger:
        """From entries as a store gives them."""
        starts = tuple(one.interval.start for one in entries)
        return cls(tuple(entries), starts, tuple(one.interval.end for one in entries))

    def inside(self, interval: Interval) -> list[Covered]:
        """The parts of entries inside `interval`."""
        first = bisect_right(self.ends, interval.start)
        last = bisect_left(self.starts, interval.end, lo=first)
        return clip(self.entries[first:last], interval)


@dataclass(frozen=True)
class HeldSeries:
    """A series as of one moment of the database. Immutable: who reads it goes on with what it was."""

    series: Series
    facts: SeriesFacts
    ledger: Ledger
    #: All periods that have candles, by their start, oldest first. Of those in `unknown` something has changed
    #: since their digests were read.
    periods: Mapping[int, Period] = field(default_factory=dict)
    unknown: frozenset[int] = frozenset()
    tail: Tail | None = None
    #: Before this instant candles are in the archive alone, so that no tail can start there.
    tail_from: int = 0
    #: Revisions, newest last, and the first instant that changed with each.
    changes: tuple[tuple[int, int], ...] = ()
    #: The revision that `changes` go back to: nothing is known of earlier ones.
    since: int = 0

    @classmethod
    def read(cls, series: Series, delta: SeriesDelta) -> HeldSeries:
        """From everything there is: all chunks, whatever the rows."""
        return cls(
            series=series,
            facts=delta.facts,
            ledger=Ledger.of(delta.coverage),
            periods=periods_of(series, delta.chunks),
            tail_from=_archived_to(series, delta),
            since=delta.facts.revision,
        )

    @property
    def revision(self) -> int:
        """The series' revision."""
        return self.facts.revision

    @property
    def bytes(self) -> int:
        """What it takes in memory, about."""
        tail = 0 if self.tail is None else self.tail.bytes
        return 1500 + 400 * len(self.ledger.entries) + 300 * len(self.periods) + tail

    @property
    def first(self) -> int:
        """Nothing is stored before."""
        return min(self._order[0] if self._order else LATEST_MS, LATEST_MS)

    @property
    def newest_period(self) -> int | None:
        """The start of the last period that has candles."""
        return self._order[-1] if self._order else None

    @cached_property
    def _order(self) -> tuple[int, ...]:
        return tuple(self.periods)

    def known_again(self, delta: SeriesDelta) -> HeldSeries:
        """With the digests of all periods; `delta` has every chunk, and no rows."""
        after = self.after(delta)
        return replace(
            after,
            periods=periods_of(self.series, delta.chunks),
            unknown=frozenset(),
            tail_from=_archived_to(self.series, delta),
        )

    def with_tail(self, start: int, delta: SeriesDelta) -> HeldSeries:
        """With the tail from `start` on; `delta` has every chunk, and all rows from there on."""
        known = replace(self, tail=None).known_again(delta)
        # What is in the archive alone is not among the rows.
        start = max(start, known.tail_from)
        rows = delta.rows
        if rows.num_rows:
            rows = rows.slice(int(np.searchsorted(open_times_ms(rows), start)))
        return replace(known, tail=Tail.read(start, rows, delta.chunks))

    def after(self, delta: SeriesDelta) -> HeldSeries:
        """With what has changed since. The tail may be wrong: see :attr:`whole`.

        :param delta: the chunks changed since this revision, and the rows after the tail's last one.
        """
        changed = [one for one in delta.chunks if one.revision > self.revision]
        periods, unknown = dict(self.periods), set(self.unknown)
        for chunk in changed:
            period = period_of(chunk.start, self.series.timeframe)
            periods.setdefault(period.start, period)
            unknown.add(period.start)
        if len(periods) > len(self.periods):
            periods = dict(sorted(periods.items()))
        from_ms = min((one.start for one in changed), default=None)
        tail = self.tail
        if tail is not None:
            beginning = tail.start
            tail, grown_from = _grown(self, delta, tail)
            if grown_from is not None and all(one.start >= beginning for one in changed):
                from_ms = grown_from
        changes = self.changes
        if delta.facts.revision > self.revision and from_ms is not None:
            changes = (*changes, (delta.facts.revision, from_ms))
        since = self.since if len(changes) <= _MOST_CHANGES else changes[-_MOST_CHANGES - 1][0]
        found = replace(
            self,
            facts=delta.facts,
            ledger=Ledger.of(delta.coverage),
            periods=periods,
            unknown=frozenset(unknown),
            tail=tail,
            tail_from=max(self.tail_from, _archived_to(self.series, delta)),
            changes=changes[-_MOST_CHANGES:],
            since=since,
        )
        return found._cut()

    @property
    def whole(self) -> bool:
        """Whether the tail, if there is one, is what the database says."""
        return self.tail is None or self.tail.first_wrong() is None

    def repaired(self) -> HeldSeries:
        """With a tail that ends before its first wrong row."""
        wrong = None if self.tail is None else self.tail.first_wrong()
        if self.tail is None or wrong is None:
            return self
        return replace(self, tail=self.tail.before(wrong))

    def changed_since(self, revision: int) -> int | None:
        """The first instant whose candles changed after `revision`; -1 where that is not known any more, None where
        nothing has."""
        if revision < self.since:
            return -1
        return min((instant for at, instant in self.changes if at > revision), default=None)

    def coverage(self, interval: Interval) -> list[Covered]:
        """The ledger inside `interval`."""
        return self.ledger.inside(interval)

    def between(self, start: int, end: int) -> list[Period]:
        """The periods that have candles and overlap ``[start, end)``, oldest first."""
        first = max(bisect_right(self._order, start) - 1, 0)
        last = bisect_left(self._order, end)
        return [one for one in map(self.periods.__getitem__, self._order[first:last]) if one.end > start]

    def _cut(self) -> HeldSeries:
        """Without the beginning of a tail that has become too long."""
        tail, newest = self.tail, self.newest_period
        if tail is None or newest is None or len(tail.times) <= _LONG_TAIL:
            return self
        start = min(chunk_start(int(tail.times[-_SHORT_TAIL]), self.series.timeframe), newest)
        return self if start <= tail.start else replace(self, tail=tail.since(start))


def _grown(held: HeldSeries, delta: SeriesDelta, tail: Tail) -> tuple[Tail | None, int | None]:
    """The tail with new rows, and the first of them where it was only grown."""
    told = tail.told(one for one in delta.chunks if one.revision > held.revision)
    if delta.more or any(one.archived.rows for one in delta.chunks if one.start >= tail.start):
        return None, None
    grown = told.grown(delta.rows, held.series.timeframe)
    if grown.first_wrong() is not None:
        return grown, None
    return grown, int(grown.times[len(tail.times)]) if len(grown.times) > len(tail.times) else None


def _archived_to(series: Series, delta: SeriesDelta) -> int:
    """After the last of these chunks of which a part is in the archive alone."""
    last = max((one.start for one in delta.chunks if one.archived.rows), default=None)
    return 0 if last is None else chunk_end(last, series.timeframe)
