"""Cells: the columns of a candle file as exact numbers and instants, and what is wrong with the others.

A number becomes the float64 next to its decimal text. Arrow's cast of text rounds correctly; its cast of decimals
does not (it multiplies by a power of ten), so decimals, and float32, go by way of their text.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from market.candle import INSTANT, Bools
from market.clock import EARLIEST_MS, LATEST_MS, to_ms
from market.errors import BadInput

_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_INTEGER = r"^[+-]?\d{1,18}(\.0*)?$"
_EPOCH = r"^\d{1,18}$"

_INSTANT_RULE = "an instant from 2000 to 2099: epoch milliseconds, or ISO 8601 with a zone"


def cell(column: pa.Array | pa.ChunkedArray, row: int) -> object:
    """One cell for a message; instants as the integer in the file, because Python knows no year 10000."""
    scalar = column[row]
    return scalar.value if pa.types.is_temporal(column.type) else scalar.as_py()


@dataclass
class Faults:
    """The first fault of each row of a batch."""

    size: int
    #: True where a row has a fault.
    rows: Bools = field(init=False)
    reasons: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rows = np.zeros(self.size, np.bool_)

    def add(self, bad: Bools, column: pa.Array, name: str, rule: str) -> None:
        """Every row in `bad` that has no fault yet breaks `rule` in `column`."""
        for row in np.flatnonzero(bad & ~self.rows):
            value = cell(column, int(row))
            shown = "empty" if value is None or value == "" else repr(value)
            self.reasons[int(row)] = f"{name} is {shown}: {rule}"
        self.rows |= bad


def numbers(column: pa.Array, name: str, faults: Faults, *, required: bool, type_: pa.DataType) -> pa.Array:
    """A column as float64 or int64 (`type_`); a cell that is no finite number becomes null and a fault.

    An empty cell is a fault where the column is required, and null elsewhere; so is NaN in a file that knows
    null and NaN apart from text.
    """
    whole = type_ == pa.int64()
    rule = "not a whole number" if whole else "not a finite number"
    if pa.types.is_null(column.type):
        column = column.cast(type_)
    if _is_text(column):
        return _text_numbers(column, name, faults, required=required, type_=type_)
    if pa.types.is_integer(column.type) and whole:
        found = column.cast(pa.int64())
    elif pa.types.is_decimal(column.type) or pa.types.is_float32(column.type):
        found = column.cast(pa.string()).cast(pa.float64())
    elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        found = column.cast(pa.float64())
    else:
        raise BadInput("file", f"{name}: {column.type}", f"numbers in column {name}")
    if pa.types.is_floating(found.type):
        found = pc.if_else(pc.is_nan(found), pa.scalar(None, pa.float64()), found)
        unusable = _numpy(found)
        broken = np.isinf(unusable)
        if whole:
            with np.errstate(invalid="ignore"):
                broken |= ~np.isnan(unusable) & (np.floor(unusable) != unusable) | (np.abs(unusable) >= 2**53)
        faults.add(broken, column, name, rule)
        found = pc.if_else(pa.array(broken), pa.scalar(None, pa.float64()), found).cast(type_)
    if required:
        faults.add(_mask(found.is_null()), column, name, rule)
    return found


def _text_numbers(column: pa.Array, name: str, faults: Faults, *, required: bool, type_: pa.DataType) -> pa.Array:
    whole = type_ == pa.int64()
    text = column.cast(pa.string())
    empty = _mask(pc.equal(text, "")) | _mask(text.is_null())
    readable = _mask(pc.match_substring_regex(text, _INTEGER if whole else _NUMBER))
    rule = "not a whole number" if whole else "not a finite number"
    faults.add((empty & required) | (~empty & ~readable), column, name, rule)
    clean = pc.if_else(pa.array(readable), text, pa.scalar(None, pa.string()))
    if whole:
        return pc.replace_substring_regex(clean, r"(^\+)|(\.0*$)", "").cast(pa.int64())
    found = clean.cast(pa.float64())
    infinite = np.isinf(_numpy(found))  # 1e400 is well written and too large
    faults.add(infinite, column, name, rule)
    return pc.if_else(pa.array(infinite), pa.scalar(None, pa.float64()), found)


def instants(
    column: pa.Array, name: str, faults: Faults, *, required: bool, microseconds: bool = False
) -> pa.Array:
    """A column as epoch milliseconds (int64, null where there is none).

    Reads timestamps with a zone, UTC dates, epoch milliseconds and ISO 8601 text with a zone.

    :param microseconds: epoch values may be microseconds too, told apart by their size (a microsecond count of
        2000 to 2099 is no millisecond count of those years).
    :raises BadInput: a column of another type, or of timestamps that have no zone.
    """
    kind = column.type
    if pa.types.is_timestamp(kind):
        if kind.tz is None:
            raise BadInput("file", f"{name}: {kind}", f"timestamps with a zone in column {name}; these have none")
        found = _milliseconds(column)
    elif pa.types.is_date(kind):
        found = column.cast(pa.timestamp("ms")).cast(pa.int64())
    elif _is_text(column):
        return _text_instants(column.cast(pa.string()), name, faults, required=required, microseconds=microseconds)
    elif pa.types.is_integer(kind):
        found = _epochs(column.cast(pa.int64()), microseconds=microseconds)
    else:
        raise BadInput("file", f"{name}: {kind}", f"epoch milliseconds or timestamps with a zone in column {name}")
    return _checked(found, column, name, faults, required=required)


def _milliseconds(column: pa.Array) -> pa.Array:
    per_ms = {"s": 0, "ms": 1, "us": 1_000, "ns": 1_000_000}[column.type.unit]
    if not per_ms:
        return column.cast(INSTANT).cast(pa.int64())
    return pc.divide(column.cast(pa.int64()), per_ms)


def _epochs(values: pa.Array, *, microseconds: bool) -> pa.Array:
    if not microseconds:
        return values
    large = pc.greater_equal(values, EARLIEST_MS * 1000)
    return pc.if_else(large, pc.divide(values, 1000), values)


def _text_instants(text: pa.Array, name: str, faults: Faults, *, required: bool, microseconds: bool) -> pa.Array:
    epoch = pc.match_substring_regex(text, _EPOCH)
    epochs = pc.if_else(epoch, text, pa.scalar(None, pa.string())).cast(pa.int64())
    found = _epochs(epochs, microseconds=microseconds)
    worded = _mask(pc.and_(pc.invert(epoch), pc.not_equal(text, "")))
    if worded.any():
        found = pc.coalesce(found, _worded(text, worded))
    return _checked(found, text, name, faults, required=required)


def _worded(text: pa.Array, worded: Bools) -> pa.Array:
    """ISO 8601 text as epoch milliseconds; null where it cannot be read or has no zone."""
    wanted = pc.if_else(pa.array(worded), text, pa.scalar(None, pa.string()))
    try:
        return wanted.cast(INSTANT).cast(pa.int64())
    except pa.ArrowInvalid:  # one odd cell fails the whole column: ask one by one
        return pa.array([_one(one) for one in wanted.to_pylist()], pa.int64())


def _one(text: str | None) -> int | None:
    try:
        return None if text is None else to_ms(text)
    except BadInput:
        return None


def _checked(found: pa.Array, column: pa.Array, name: str, faults: Faults, *, required: bool) -> pa.Array:
    inside = _mask(pc.and_(pc.greater_equal(found, EARLIEST_MS), pc.less(found, LATEST_MS)))
    empty = _mask(column.is_null())
    if _is_text(column):
        empty |= _mask(pc.equal(column, ""))
    faults.add(~inside & (~empty | required), column, name, "not " + _INSTANT_RULE)
    return pc.if_else(pa.array(inside), found, pa.scalar(None, pa.int64()))


def _is_text(column: pa.Array) -> bool:
    return bool(pa.types.is_string(column.type) or pa.types.is_large_string(column.type))


def _mask(values: pa.Array) -> Bools:
    """A boolean column as numpy; null counts as false."""
    mask: Bools = values.fill_null(False).to_numpy(zero_copy_only=False)
    return mask


def _numpy(values: pa.Array) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = values.to_numpy(zero_copy_only=False).astype(np.float64)
    return found
