"""Router memory inside one process: the forming candle of each series, never stored."""

from __future__ import annotations

import pyarrow as pa

from market.candle_row import plain_rows
from market.candle_update import CandleUpdate
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
        # The candle (a row, or as a stream sent it), exchange time, our time.
        self._held: dict[Series, tuple[pa.Table | CandleUpdate, int, int]] = {}
        self._heard_of: dict[Series, None] | None = None

    def put(self, series: Series, row: pa.Table, exchange_now_ms: int) -> None:
        """Hold `row` (one row, candle schema) as the forming candle at that exchange time."""
        held = self._held.get(series)
        if held is None or exchange_now_ms >= held[1]:
            self._held[series] = (row, exchange_now_ms, self._clock.now_ms())
            if self._heard_of is not None:
                self._heard_of[series] = None

    def heard(self, series: Series, update: CandleUpdate) -> None:
        """Hold what a stream says of the forming candle."""
        held = self._held.get(series)
        if held is None or update.event_time >= held[1]:
            self._held[series] = (update, update.event_time, update.received_at)
            if self._heard_of is not None:
                self._heard_of[series] = None

    def tell(self, heard_of: dict[Series, None]) -> None:
        """From now on, put every series that is heard of into `heard_of`; whoever reads it empties it."""
        self._heard_of = heard_of

    def update(self, series: Series) -> CandleUpdate | None:
        """The forming candle as a plain tuple, which costs a fraction of a table; None as :meth:`get`."""
        held = self._held.get(series)
        if held is None or self._clock.now_ms() - held[2] > self._lifetime_ms:
            return None
        candle, event_time, received_at = held
        if isinstance(candle, CandleUpdate):
            return candle
        (row,) = plain_rows(candle)
        return CandleUpdate._make((*row, False, event_time, received_at))

    def get(self, series: Series) -> tuple[pa.Table, int] | None:
        """The forming candle and when we received it (epoch milliseconds of our clock), or None."""
        held = self._held.get(series)
        if held is None or self._clock.now_ms() - held[2] > self._lifetime_ms:
            return None
        candle = held[0]
        return (candle.table() if isinstance(candle, CandleUpdate) else candle), held[2]
