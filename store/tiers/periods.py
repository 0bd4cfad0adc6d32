"""Periods: the pieces in which closed candles are kept in memory and on disk, and what the digests say of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from market.fingerprint import Digest
from market.instrument import Series
from market.interval import Interval
from market.timeframe import DAY_MS, TIMEFRAMES, Int64s, Timeframe
from store.candle_store import Chunk

_MONTH = TIMEFRAMES["1M"]
_HOUR_SECONDS = 3600


@dataclass(frozen=True)
class Period:
    """The candles of one period, as the digests of its chunks say."""

    #: Epoch milliseconds.
    start: int
    #: Exclusive.
    end: int
    #: The series' revision at the last change in it.
    revision: int = 0
    #: Of all its rows.
    digest: Digest = field(default_factory=Digest)

    @property
    def interval(self) -> Interval:
        """From its first to after its last instant."""
        return Interval(self.start, self.end)

    def with_chunk(self, chunk: Chunk) -> Period:
        """One chunk more."""
        return Period(self.start, self.end, max(self.revision, chunk.revision), self.digest + chunk.digest)


def period_of(instant: int, timeframe: Timeframe) -> Period:
    """The period that `instant` lies in, empty: a month of candles shorter than an hour, a year of those shorter
    than a day, ten years of longer ones. Each is made of whole chunks (:func:`store.merge.chunk_starts`)."""
    if timeframe.seconds < _HOUR_SECONDS:
        start = _MONTH.floor(instant)
        return Period(start, _MONTH.next(start))
    years = 1 if timeframe.milliseconds < DAY_MS else 10
    year = datetime.fromtimestamp(instant // 1000, UTC).year // years * years
    return Period(_new_year(max(year, 1)), _new_year(year + years))


def _new_year(year: int) -> int:
    return int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) * 1000


def periods_of(series: Series, chunks: Iterable[Chunk]) -> dict[int, Period]:
    """The periods that `chunks`, all there are of a series, make; by their start, oldest first."""
    found: dict[int, Period] = {}
    current: Period | None = None
    for chunk in sorted(chunks, key=lambda one: one.start):
        if current is None or chunk.start >= current.end:
            current = period_of(chunk.start, series.timeframe)
        current = found[current.start] = current.with_chunk(chunk)
    return found


def opening_in(table: pa.Table, times: Int64s, interval: Interval) -> pa.Table:
    """The rows that open in `interval`, without copying.

    :param times: open times of the rows, sorted.
    """
    first, last = np.searchsorted(times, [interval.start, interval.end])
    return table.slice(int(first), int(last - first))
