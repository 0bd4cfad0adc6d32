"""Larger candles answered from stored minutes: which windows are whole, and which lack minutes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from market.candle import open_times_ms
from market.interval import Interval, IntervalSet
from market.rollup import roll_up
from market.timeframe import Int64s, Timeframe


@dataclass(frozen=True)
class DerivedCandles:
    """Rolled-up candles, and for each how many of its base candles are missing."""

    #: Candle schema, sorted.
    table: pa.Table
    #: int32 per row: base candles neither stored nor known to be empty.
    missing: Int64s


def derive(
    base: pa.Table, known: IntervalSet, base_timeframe: Timeframe, timeframe: Timeframe, origin_ms: int
) -> DerivedCandles:
    """Roll `base` up and count what each window lacks.

    :param known: what is stored or known to be empty, at least over every window.
    """
    rolled = roll_up(base, timeframe, origin_ms)
    starts = open_times_ms(rolled.table)
    ends = timeframe.next_all(starts)
    missing = np.zeros(len(starts), np.int64)
    expected = (ends - starts) // base_timeframe.milliseconds
    for at in np.flatnonzero(rolled.parts < expected):
        window = IntervalSet([Interval(int(starts[at]), int(ends[at]))])
        missing[at] = (window - known.clip(int(starts[at]), int(ends[at]))).duration // base_timeframe.milliseconds
    return DerivedCandles(rolled.table, missing)


def prefer(derived: DerivedCandles, native: pa.Table) -> tuple[pa.Table, Int64s]:
    """One candle per bucket: the derived one where it is whole, else the exchange's own where stored.

    :return: candles, sorted, and their `missing` counts.
    """
    if not native.num_rows:
        return derived.table, derived.missing
    native_times, derived_times = open_times_ms(native), open_times_ms(derived.table)
    whole = derived_times[derived.missing == 0]
    use_native = ~np.isin(native_times, whole)
    use_derived = ~np.isin(derived_times, native_times[use_native])
    table = pa.concat_tables([derived.table.filter(pa.array(use_derived)), native.filter(pa.array(use_native))])
    missing = np.concatenate((derived.missing[use_derived], np.zeros(int(use_native.sum()), np.int64)))
    order = np.argsort(open_times_ms(table), kind="stable")
    return table.take(pa.array(order)), missing[order]
