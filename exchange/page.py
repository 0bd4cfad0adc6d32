"""One answer of an exchange to a question about candles."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class CandlePage:
    """Candles from an asked start on, and how far the answer can be trusted to be whole."""

    #: Candle schema, sorted by open time, inside the asked range; the forming candle may be the last row.
    table: pa.Table
    #: Epoch milliseconds. Inside ``[asked start, reaches)`` the answer is conclusive: a bucket that is not in
    #: `table` is not at the exchange. Equal to the asked start where nothing can be concluded; rows may still
    #: follow then (an exchange that serves only its newest candles).
    reaches: int
