"""Larger candles from smaller ones, equal to the exchange's own in every field.

Binance makes a coarse candle from trades, not from finer candles: a minute without trades is a flat candle at
the last price, and gives nothing to open, high, low or close unless the whole window is such minutes. Quantities
are added as decimals, because a float sum of volumes (0.1 + 0.2) is not the number the exchange publishes.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pyarrow as pa

from market.candle import (
    QUANTITIES,
    Bools,
    Float64s,
    candles,
    floats,
    no_candles,
    open_times_ms,
    traded,
)
from market.timeframe import DEFAULT_ORIGIN_MS, Int64s, Timeframe

#: Exchanges publish quantities with at most eight decimals.
_DECIMALS = 8
_SCALE = 10**_DECIMALS
#: A float64 brings back any decimal of this many digits.
_DIGITS = 15
_EXACT_INTEGERS = 2**53


@dataclass(frozen=True)
class Rolled:
    """Larger candles and how many smaller ones each was made of."""

    #: Candles with the candle schema, sorted.
    table: pa.Table
    #: int64, one per row: the smaller candles inside the window, flat ones included.
    parts: Int64s


def roll_up(table: pa.Table, timeframe: Timeframe, origin_ms: int = DEFAULT_ORIGIN_MS) -> Rolled:
    """Candles of `timeframe` from smaller candles.

    :param table: candles of one smaller timeframe, sorted by open time, without repeats.
    :param origin_ms: where three-day buckets count from.
    """
    if not table.num_rows:
        return Rolled(no_candles(), np.empty(0, np.int64))
    buckets = timeframe.floor_all(open_times_ms(table), origin_ms)
    starts = np.flatnonzero(np.concatenate(([True], buckets[1:] != buckets[:-1])))
    ends = np.concatenate((starts[1:], [len(buckets)]))
    parts = ends - starts

    # Only rows that traded speak for the price, unless the window has none.
    speaks = traded(table)
    silent = ~np.logical_or.reduceat(speaks, starts)
    speaks |= np.repeat(silent, parts)
    rows = np.arange(len(buckets))
    first = np.minimum.reduceat(np.where(speaks, rows, len(rows)), starts)
    last = np.maximum.reduceat(np.where(speaks, rows, -1), starts)

    columns: dict[str, object] = {
        "open_time": buckets[starts],
        "open": floats(table, "open")[first],
        "high": np.maximum.reduceat(np.where(speaks, floats(table, "high"), -np.inf), starts),
        "low": np.minimum.reduceat(np.where(speaks, floats(table, "low"), np.inf), starts),
        "close": floats(table, "close")[last],
        # An early end holds for the window when nothing came after it.
        "early_close_time": table.column("early_close_time").take(pa.array(ends - 1)),
    }
    for name in QUANTITIES:
        values = floats(table, name)
        unknown = np.logical_or.reduceat(np.isnan(values), starts)
        columns[name] = pa.array(decimal_sums(np.nan_to_num(values), starts), mask=unknown)
    counts = table.column("trades").to_numpy().astype(np.float64)
    unknown = np.logical_or.reduceat(np.isnan(counts), starts)
    added = np.add.reduceat(np.nan_to_num(counts).astype(np.int64), starts)
    columns["trades"] = pa.array(added, mask=unknown)
    return Rolled(candles(columns), parts.astype(np.int64))


def decimal_sums(values: Float64s, starts: Int64s) -> Float64s:
    """Sums of `values` over groups, added as decimals and rounded once at the end.

    :param values: finite numbers that stand for decimals of up to 15 digits and 8 decimals; groups that hold
        any other number are added one by one, each as the shortest decimal that stands for it. A database that
        adds ``value::text::numeric`` gets the same.
    :param starts: index of the first row of each group, strictly increasing, beginning with 0.
    """
    whole = np.floor(values)
    # A float of 10 integer digits knows only 5 decimals; what lies beyond them is noise of the binary form.
    digits = np.where(whole > 0, np.floor(np.log10(np.maximum(whole, 1))) + 1, 0)
    coarse = np.power(10.0, np.clip(digits + _DECIMALS - _DIGITS, 0, _DECIMALS))
    fraction = np.rint((values - whole) * _SCALE / coarse) * coarse
    # One division of exact integers is rounded correctly, so it tells whether the decimal was found.
    exact: Bools = (whole * (_SCALE / coarse) + fraction / coarse) / (_SCALE / coarse) == values
    carry, rest = np.divmod(np.add.reduceat(fraction.astype(np.int64), starts), _SCALE)
    wholes = np.add.reduceat(whole.astype(np.int64), starts) + carry
    unit = _common_unit(rest)
    scale = _SCALE // unit
    sums: Float64s = (wholes * scale + rest // unit) / scale
    # Past 2**53 the integers above are no longer exact as floats; Python's own division is.
    for group in np.flatnonzero(np.abs(wholes) >= _EXACT_INTEGERS // scale):
        sums[group] = (int(wholes[group]) * _SCALE + int(rest[group])) / _SCALE
    if not exact.all():
        ends = np.concatenate((starts[1:], [len(values)]))
        for group in np.flatnonzero(~np.logical_and.reduceat(exact, starts)):
            decimals = (Fraction(repr(value)) for value in values[starts[group] : ends[group]].tolist())
            sums[group] = float(sum(decimals))
    return sums


def _common_unit(fractions: Int64s) -> int:
    """The largest power of ten, up to the scale, that divides every fraction."""
    unit = 1
    while unit < _SCALE and not (fractions % (unit * 10)).any():
        unit *= 10
    return unit
