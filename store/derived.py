"""Larger candles answered from stored minutes: which windows are whole, and which lack minutes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from market.candle import open_times_ms
from market.interval import Interval, IntervalSet
from market.rollup import roll_up
from market.timeframe import Int64s, Timeframe
from store.candle_store import StoredPage

#: Base candles in memory at a time, about.
_MOST_AT_ONCE = 100_000


@dataclass(frozen=True)
class DerivedCandles:
    """Rolled-up candles, and for each how many of its base candles are missing."""

    #: Candle schema, sorted.
    table: pa.Table
    #: int32 per row: base candles neither stored nor known to be empty.
    missing: Int64s


def rolled_page(page: StoredPage, timeframe: Timeframe, origin_ms: int) -> StoredPage:
    """Candles of whole buckets rolled up, beside the ledger they came with."""
    return replace(page, table=roll_up(page.table, timeframe, origin_ms).table)


def counted(rolled: pa.Table, known: IntervalSet, base: Timeframe, timeframe: Timeframe) -> DerivedCandles:
    """Count what the window of each rolled-up candle lacks.

    :param known: what is stored or known to be empty of the `base` candles, at least over every window.
    """
    starts = open_times_ms(rolled)
    ends = timeframe.next_all(starts)
    absent = ends - starts - (known_before(known, ends) - known_before(known, starts))
    return DerivedCandles(rolled, absent // base.milliseconds)


def windows(
    timeframe: Timeframe,
    base: Timeframe,
    origin_ms: int,
    known: Interval,
    asked: Interval,
    count: int | None,
    newest: bool,
) -> Iterator[Interval]:
    """Runs of whole, closed buckets that open inside `asked`, in the order they are wanted.

    A bucket is closed once something is known at or after its end: the clock is not asked, because a simulated
    exchange may live in another time than we do.

    :param known: from the first to the last instant the ledger says anything of.
    :param count: candles wanted. Windows without trades give none, so the runs grow while they are being asked for.
    """
    first = timeframe.ceil(max(asked.start, timeframe.floor(known.start, origin_ms)), origin_ms)
    last = min(timeframe.floor(known.end, origin_ms), timeframe.ceil(asked.end, origin_ms))
    most = max(1, _MOST_AT_ONCE * base.seconds // timeframe.seconds)
    run = most if count is None else min(count, most)
    while first < last:
        if newest:
            start = max(first, timeframe.next(last, -run))
            yield Interval(start, last)
            last = start
        else:
            end = min(last, timeframe.next(first, run))
            yield Interval(first, end)
            first = end
        run = min(run * 2, most)


def known_before(known: IntervalSet, instants: Int64s) -> Int64s:
    """For each instant, how many milliseconds before it are in `known`."""
    bounds = np.array([(one.start, one.end) for one in known], np.int64).reshape(-1, 2)
    ends_before = np.searchsorted(bounds[:, 1], instants, side="right")
    whole = np.concatenate(([0], np.cumsum(bounds[:, 1] - bounds[:, 0])))
    # The interval that an instant lies in counts up to the instant.
    starts = np.append(bounds[:, 0], np.iinfo(np.int64).max // 2)[ends_before]
    before: Int64s = whole[ends_before] + np.maximum(instants - starts, 0)
    return before


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
