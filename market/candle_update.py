"""One message about one candle, forming or closed, before it becomes a row."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa

from market.candle import candles


class CandleUpdate(NamedTuple):
    """A candle as a stream, or our own builder, last described it. Units as in the candle schema."""

    #: Epoch milliseconds.
    open_time: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    quote_volume: float | None
    trades: int | None
    taker_buy_volume: float | None
    taker_buy_quote_volume: float | None
    #: Last millisecond of it where it ended before its bucket; else None.
    early_close_time: int | None
    #: True if the exchange said that nothing will be added to it.
    closed: bool
    #: When the exchange sent it, epoch milliseconds.
    event_time: int
    #: When we received it, epoch milliseconds of our clock.
    received_at: int

    def table(self) -> pa.Table:
        """One row in the candle schema."""
        return candle_rows([self])


def candle_rows(updates: list[CandleUpdate]) -> pa.Table:
    """A row in the candle schema for each of `updates`, in their order."""
    columns = list(zip(*updates, strict=True))
    table = {
        name: pa.array(values, pa.float64()) if name in _FLOATS else pa.array(values, pa.int64())
        for name, values in zip(_COLUMNS, columns[: len(_COLUMNS)], strict=True)
    }
    return candles(table)


_COLUMNS = CandleUpdate._fields[:11]
_FLOATS = frozenset(_COLUMNS) - {"open_time", "trades", "early_close_time"}
