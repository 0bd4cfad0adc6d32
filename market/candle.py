"""Candles: their columns as an Arrow schema, the rules a row must keep, and the states of a candle.

A batch of candles is an Arrow table with :data:`CANDLE_SCHEMA`, sorted by open time. Prices are in quote per
base, ``volume`` in base, ``quote_volume`` in quote. Numbers are float64, which brings back the same decimal text
for every value of up to 15 digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from market.clock import EARLIEST_MS, LATEST_MS
from market.errors import BadInput
from market.timeframe import DEFAULT_ORIGIN_MS, Int64s, Timeframe

Float64s = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

INSTANT = pa.timestamp("ms", tz="UTC")

#: The columns of a candle, in order.
#:
#: open_time               start of the bucket (inclusive)
#: open high low close     first, highest, lowest and last traded price
#: volume                  base quantity traded
#: quote_volume            quote notional traded; null where the exchange does not say
#: trades                  number of trades; null where the exchange does not say
#: taker_buy_volume        part of `volume` bought by takers; null likewise
#: taker_buy_quote_volume  part of `quote_volume` bought by takers; null likewise
#: early_close_time        last millisecond covered, where the exchange ended the candle before its bucket's
#:                         end (an outage); null for a candle of full length
CANDLE_SCHEMA = pa.schema(
    [
        pa.field("open_time", INSTANT, nullable=False),
        pa.field("open", pa.float64(), nullable=False),
        pa.field("high", pa.float64(), nullable=False),
        pa.field("low", pa.float64(), nullable=False),
        pa.field("close", pa.float64(), nullable=False),
        pa.field("volume", pa.float64(), nullable=False),
        pa.field("quote_volume", pa.float64()),
        pa.field("trades", pa.int64()),
        pa.field("taker_buy_volume", pa.float64()),
        pa.field("taker_buy_quote_volume", pa.float64()),
        pa.field("early_close_time", INSTANT),
    ]
)
COLUMNS: tuple[str, ...] = tuple(CANDLE_SCHEMA.names)
PRICES = ("open", "high", "low", "close")
#: Quantities that add up when candles are rolled up.
QUANTITIES = ("volume", "quote_volume", "taker_buy_volume", "taker_buy_quote_volume")


class CandleState(IntEnum):
    """How final a candle is. A lower state never replaces a higher one."""

    #: The bucket has not ended; kept in memory only, never stored.
    FORMING = 0
    #: Ended by the exchange's own flag, or by exchange time past its end plus the settle delay.
    CLOSED = 1
    #: Read again after closing, and the same.
    VERIFIED = 2


@dataclass(frozen=True)
class Refusal:
    """Why one row of a batch cannot be stored."""

    #: Position in the batch (0-based).
    row: int
    #: Epoch milliseconds, or None where the row had no readable open time.
    open_time: int | None
    #: One sentence that names the column, the value and the rule.
    reason: str
    #: The row as it came.
    raw: str


def candles(columns: Mapping[str, Any]) -> pa.Table:
    """An Arrow table with :data:`CANDLE_SCHEMA` from columns by name; absent nullable columns are null.

    ``open_time`` may be int64 epoch milliseconds.

    :raises BadInput: naming a column that is missing or unknown.
    """
    unknown = set(columns) - set(COLUMNS)
    if unknown:
        raise BadInput("columns", ", ".join(sorted(unknown)), "some of " + ", ".join(COLUMNS))
    size = len(columns["open_time"]) if "open_time" in columns else 0
    arrays = []
    for field in CANDLE_SCHEMA:
        if field.name in columns:
            arrays.append(_column(columns[field.name], field.type))
        elif field.nullable:
            arrays.append(pa.nulls(size, field.type))
        else:
            raise BadInput("columns", ", ".join(columns), f"a column {field.name}")
    return pa.Table.from_arrays(arrays, schema=CANDLE_SCHEMA)


def _column(values: Any, type_: pa.DataType) -> pa.Array | pa.ChunkedArray:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        if values.type == type_:
            return values
        return values.cast(pa.int64()).cast(type_) if type_ == INSTANT else values.cast(type_)
    if isinstance(values, np.ndarray) and type_ == INSTANT:
        return pa.array(values.astype(np.int64, copy=False)).cast(type_)
    return pa.array(values, type_)


def no_candles() -> pa.Table:
    """An empty table with the candle schema."""
    return CANDLE_SCHEMA.empty_table()


def open_times_ms(table: pa.Table) -> Int64s:
    """The open times of a table as epoch milliseconds."""
    return instants_ms(table.column("open_time"))


def instants_ms(column: pa.ChunkedArray) -> Int64s:
    """A timestamp column without nulls as epoch milliseconds."""
    values: Int64s = column.cast(pa.int64()).to_numpy()
    return values


def floats(table: pa.Table, name: str) -> Float64s:
    """A float64 column as numpy; nulls are NaN."""
    values: Float64s = table.column(name).to_numpy()
    return values


def unsigned_zeros(table: pa.Table) -> pa.Table:
    """`table` with 0.0 where a quantity is -0.0: one number, which every store and format must bring back alike."""
    for name in QUANTITIES:
        values = floats(table, name)
        if (np.signbit(values) & (values == 0)).any():
            place = table.schema.get_field_index(name)
            plain = pa.array(values + 0.0, mask=np.isnan(values))
            table = table.set_column(place, table.schema.field(place), plain)
    return table


def by_open_time(table: pa.Table) -> pa.Table:
    """`table` sorted by open time, rows of one open time in their given order."""
    times = open_times_ms(table)
    if len(times) < 2 or bool((times[1:] > times[:-1]).all()):
        return table
    return table.take(pa.array(np.argsort(times, kind="stable")))


def traded(table: pa.Table) -> Bools:
    """True where the candle holds at least one trade.

    Where the exchange gives a trade count it decides; elsewhere a positive volume does.
    """
    counts = table.column("trades").to_numpy().astype(np.float64)
    volume = floats(table, "volume")
    return np.where(np.isnan(counts), volume > 0, counts > 0)


def check(
    table: pa.Table, timeframe: Timeframe, now_ms: int, origin_ms: int = DEFAULT_ORIGIN_MS
) -> tuple[Bools, list[Refusal]]:
    """Which rows may be stored, and why the others may not.

    :param table: candles in any order.
    :param now_ms: exchange time; a bucket that has not ended by then is refused.
    :return: a mask of good rows, and one refusal for each other row (its first broken rule).
    """
    times = open_times_ms(table)
    good = np.ones(len(times), np.bool_)
    refusals: list[Refusal] = []

    def refuse(broken: Bools, reason: str) -> None:
        for row in np.flatnonzero(broken & good):
            values = {name: table.column(name)[int(row)].as_py() for name in COLUMNS if name not in _INSTANTS}
            refusals.append(
                Refusal(
                    row=int(row),
                    open_time=int(times[row]),
                    reason=reason.format(**values),
                    raw=repr({"open_time": int(times[row]), **values}),
                )
            )
        np.logical_and(good, ~broken, out=good)

    price = {name: floats(table, name) for name in PRICES}
    for name in (*PRICES, "volume"):
        values = price.get(name) if name in price else floats(table, name)
        assert values is not None
        refuse(~np.isfinite(values), f"{name} is {{{name}}}: not a finite number")
    for name in QUANTITIES[1:]:
        unknown = table.column(name).is_null().to_numpy()
        refuse(~np.isfinite(floats(table, name)) & ~unknown, f"{name} is {{{name}}}: not a finite number")
    for name in PRICES:
        refuse(price[name] <= 0, f"{name} is {{{name}}}: a price must be above zero")
    refuse(price["high"] < price["low"], "high {high} is below low {low}")
    refuse(
        price["high"] < np.maximum(price["open"], price["close"]),
        "high {high} is below open {open} or close {close}",
    )
    refuse(
        price["low"] > np.minimum(price["open"], price["close"]), "low {low} is above open {open} or close {close}"
    )
    for name in (*QUANTITIES, "trades"):
        values = table.column(name).to_numpy().astype(np.float64)
        refuse(values < 0, f"{name} is {{{name}}}: must not be negative")
    refuse(
        (times < EARLIEST_MS) | (times >= LATEST_MS),
        "open_time is not from 2000 to 2099: seconds or microseconds where milliseconds are meant?",
    )
    refuse(
        timeframe.floor_all(times, origin_ms) != times, f"open_time is not the start of a {timeframe} bucket (UTC)"
    )
    refuse(
        timeframe.next_all(times) > now_ms,
        "the candle is not closed yet at exchange time: its bucket ends in the future",
    )
    _refuse_repeated(table, times, good, refuse)
    return good, refusals


def _refuse_repeated(table: pa.Table, times: Int64s, good: Bools, refuse: Any) -> None:
    """Refuse rows whose open time an earlier good row of the batch holds with other values.

    Exact repeats are dropped without a refusal: they say nothing new.
    """
    order = np.argsort(times, kind="stable")
    order = order[good[order]]
    first = np.concatenate(([True], times[order[1:]] != times[order[:-1]])) if len(order) else np.empty(0, np.bool_)
    repeated = order[~first]
    if not len(repeated):
        return
    # For each sorted row, the place of the first one with its open time.
    earliest = order[np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))][~first]
    differs = np.zeros(len(times), np.bool_)
    differs[repeated] = ~_equal(table.take(pa.array(repeated)), table.take(pa.array(earliest)))
    exact = np.zeros(len(times), np.bool_)
    exact[repeated] = True
    exact &= ~differs
    refuse(differs, "another row of this batch has the same open_time and other values; the first one was kept")
    np.logical_and(good, ~exact, out=good)


def _equal(ours: pa.Table, theirs: pa.Table) -> Bools:
    """Row by row equality over all columns, nulls equal to nulls."""
    equal = np.ones(ours.num_rows, np.bool_)
    for a, b in zip(ours.columns, theirs.columns, strict=True):
        same = pc.equal(a, b).fill_null(False).to_numpy()
        equal &= same | (a.is_null().to_numpy() & b.is_null().to_numpy())
    return equal


_INSTANTS = ("open_time", "early_close_time")
