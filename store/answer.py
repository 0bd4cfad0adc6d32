"""What a read gives back: the candles, what is known of their completeness, and where they came from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from market.candle import COLUMNS
from market.coverage import Covered
from market.fingerprint import dataset_fingerprint, digest
from market.instrument import Series
from market.interval import Interval, IntervalSet


@dataclass(frozen=True, kw_only=True)
class CandleAnswer:
    """Candles of one series over one interval."""

    series: Series
    #: What was asked, ``[start, end)``, after defaults were filled in; ends at the last row where a limit cut it.
    interval: Interval
    #: Candle schema plus ``missing`` (int32: base candles absent and not known to be empty; 0 for a candle
    #: stored in its own timeframe) and, where forming candles were asked for, ``closed`` (bool). Sorted.
    table: pa.Table
    #: The ledger inside `interval`; of the base series where candles are derived.
    coverage: tuple[Covered, ...]
    #: Parts of `interval` that are in no state of the ledger, up to now.
    gaps: IntervalSet
    #: Where the next page starts (epoch milliseconds), or None at the end of the interval.
    next_start: int | None
    #: ``memory``, ``router``, ``disk``, ``database`` or ``archive``.
    tier: str
    #: Milliseconds since the answer's tier last agreed with the database; 0 for the database itself.
    age_ms: int = 0
    #: The timeframe the rows were rolled up from; None where they are stored as they are.
    derived_from: str | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Equal rows give equal fingerprints; over the closed candles of the answer. Made when it is asked for."""
        table = self.table
        if "closed" in table.column_names and table.num_rows and not table.column("closed")[-1].as_py():
            table = table.slice(0, table.num_rows - 1)
        return dataset_fingerprint([(self.series, digest(table.select(COLUMNS)))])

    @property
    def complete(self) -> bool:
        """True if no gap lies inside the interval."""
        return not self.gaps


@dataclass(frozen=True, kw_only=True)
class SeriesInfo:
    """Metadata of one stored series (A11). Times are epoch milliseconds; None for a series without candles."""

    series: Series
    rows: int
    first_open: int | None
    last_open: int | None
    #: Our clock at the last write that changed something.
    last_write: int | None
    #: Counts up by one with each change; equal revisions mean equal data.
    revision: int
    #: Sources in the ledger, sorted.
    sources: tuple[str, ...]
    corrections: int
    quarantined: int
    #: Buckets between the first and last known instant in no state of the ledger.
    missing: int
    verified_empty: int
