"""Candles as plain Python rows: for a handful of them, Arrow and numpy cost more in calls than in work."""

from __future__ import annotations

from collections.abc import Sequence
from math import copysign, inf
from typing import Any, TypeAlias

import pyarrow as pa

from market.candle import CANDLE_SCHEMA, INSTANT
from market.clock import EARLIEST_MS, LATEST_MS
from market.timeframe import Timeframe

#: The values of one candle in the order of the candle schema; instants are epoch milliseconds.
CandleRow: TypeAlias = tuple[Any, ...]

#: Up to so many rows, going through them one by one is faster than by columns.
FEW_ROWS = 8
#: For each column, whether it holds instants.
_INSTANTS = tuple(field.type == INSTANT for field in CANDLE_SCHEMA)
#: So many columns come first that must not hold a null.
_REQUIRED = 6


def plain_rows(table: pa.Table) -> list[CandleRow]:
    """The rows of a table with exactly the candle schema."""
    if not table.num_rows:
        return []
    columns = []
    for instant, column in zip(_INSTANTS, table.columns, strict=True):
        if instant:
            # A view costs nothing, a cast goes through the compute engine.
            columns.append([ms for chunk in column.chunks for ms in chunk.view(pa.int64()).to_pylist()])
        else:
            columns.append(column.to_pylist())
    return list(zip(*columns, strict=True))


def all_storable(rows: Sequence[CandleRow], timeframe: Timeframe, now_ms: int, origin_ms: int) -> bool:
    """True if :func:`market.candle.check` takes every row and none has to be changed or moved.

    So in ascending order, no open time twice, no quantity of -0.0. False says nothing but to ask the check, which
    alone knows the reasons.
    """
    last = EARLIEST_MS - 1
    for row in rows:
        if None in row[:_REQUIRED] or not _sound(row):
            return False
        open_time = row[0]
        if not last < open_time < LATEST_MS:
            return False
        if timeframe.floor(open_time, origin_ms) != open_time or timeframe.next(open_time) > now_ms:
            return False
        last = open_time
    return True


def _sound(row: CandleRow) -> bool:
    """True if no price and no quantity breaks a rule; comparisons with NaN are false."""
    _, opened, high, low, close, volume, quote_volume, trades, taker_buy_volume, taker_buy_quote_volume, _ = row
    return (
        0 < low <= opened <= high < inf
        and low <= close <= high
        and _plain(volume)
        and (quote_volume is None or _plain(quote_volume))
        and (trades is None or trades >= 0)
        and (taker_buy_volume is None or _plain(taker_buy_volume))
        and (taker_buy_quote_volume is None or _plain(taker_buy_quote_volume))
    )


def _plain(quantity: float) -> bool:
    """True for a finite number that is not negative, as -0.0 is."""
    return quantity < inf and copysign(1.0, quantity) > 0
