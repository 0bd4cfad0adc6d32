"""What became of a backfill, series by series, and what is told while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from market.errors import ChandleryError
from market.instrument import Series
from market.interval import IntervalSet


@dataclass(frozen=True, kw_only=True)
class SeriesReport:
    """One series after a backfill. Counts of buckets unless said otherwise."""

    series: Series
    #: Candles in the wanted range, after this run.
    stored: int
    #: Rows inserted or corrected by this run.
    written: int
    #: Buckets of the wanted range in which the exchange has no candle, read twice.
    verified_empty: int
    #: Buckets still unknown, and where they are.
    missing: int
    missing_intervals: IntervalSet
    #: Rows that broke a rule and went to quarantine in this run.
    refused: int
    #: Requests sent for this series, repeats included.
    requests: int
    #: Why the series is incomplete, or None.
    error: ChandleryError | None

    @property
    def symbol(self) -> str:
        return self.series.symbol

    @property
    def timeframe(self) -> str:
        return self.series.timeframe.name

    @property
    def complete(self) -> bool:
        """True if nothing is missing."""
        return self.error is None and not self.missing


class Progress(Protocol):
    """Who is told how far a backfill is. Calls come from one event loop and must return at once."""

    def planned(self, series: Series, buckets: int) -> None:
        """`buckets` of `series` are unknown and will be asked for."""
        ...

    def advanced(self, series: Series, buckets: int, rows: int) -> None:
        """`buckets` more have been settled and committed; `rows` of them changed the store."""
        ...

    def finished(self, report: SeriesReport) -> None:
        """A series is done, complete or not."""
        ...


class NoProgress:
    """Tells nobody."""

    def planned(self, series: Series, buckets: int) -> None: ...

    def advanced(self, series: Series, buckets: int, rows: int) -> None: ...

    def finished(self, report: SeriesReport) -> None: ...
