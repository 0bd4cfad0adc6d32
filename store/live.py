"""Router memory inside one process: the forming candle of each series, never stored."""

from __future__ import annotations

import pyarrow as pa

from market.clock import Clock
from market.instrument import Series


class LiveCandles:
    """The newest forming candle of each series. A later one replaces an earlier one; older ones are ignored.

    :param clock: our clock, for the age of what is held.
    :param lifetime_ms: a forming candle not heard of for this long is no longer served.
    """

    def __init__(self, clock: Clock, lifetime_ms: int = 5 * 60_000) -> None:
        self._clock = clock
        self._lifetime_ms = lifetime_ms
        self._held: dict[Series, tuple[pa.Table, int, int]] = {}

    def put(self, series: Series, row: pa.Table, exchange_now_ms: int) -> None:
        """Hold `row` (one row, candle schema) as the forming candle at that exchange time."""
        held = self._held.get(series)
        if held is None or exchange_now_ms >= held[1]:
            self._held[series] = (row, exchange_now_ms, self._clock.now_ms())

    def get(self, series: Series) -> tuple[pa.Table, int] | None:
        """The forming candle and when we received it (epoch milliseconds of our clock), or None."""
        held = self._held.get(series)
        if held is None or self._clock.now_ms() - held[2] > self._lifetime_ms:
            return None
        return held[0], held[2]
