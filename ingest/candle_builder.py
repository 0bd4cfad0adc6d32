"""Candles from trades: the same numbers as the exchange's own, where no trade is missing.

Quantities are added as whole numbers of 1e-8 (what exchanges count in) and divided once at the end, so that the sum
of 0.1 and 0.2 is the 0.3 that the exchange publishes. A candle is *complete* when every trade of its bucket was
seen: the last one before it and all since, without a hole, up to the first one after it. Only such a candle can be
held against the exchange's. Time proves nothing here: a trade may be on its way for as long as a stream hangs. So a
candle ends with the next trade, and in a market where that is long in coming, REST has the candle before.
"""

from __future__ import annotations

from collections.abc import Callable

from market.candle_update import CandleUpdate
from market.timeframe import Timeframe
from market.trade import Trade

#: Prices and quantities have at most eight decimals.
_SCALE = 10**8
_SQUARE = _SCALE * _SCALE
#: From here on a float times the scale is no longer exact.
_EXACT_TO = 2**53 / _SCALE
#: Earlier than any trade.
_NEVER = -1


class CandleBuilder:
    """Builds the candles of one instrument from its trades, given in the order of the exchange.

    :param on_candle: told of each candle that has ended, and whether it is complete; must return at once.
    :param origin_ms: where three-day buckets count from.
    """

    def __init__(
        self, timeframe: Timeframe, on_candle: Callable[[CandleUpdate, bool], None], origin_ms: int
    ) -> None:
        self._timeframe = timeframe
        self._on_candle = on_candle
        self._origin_ms = origin_ms
        #: Trades of a bucket that had ended already; they are in no candle of ours.
        self.late = 0
        # Until the first trade was seen, the bucket it falls into may lack earlier ones.
        self._whole = False
        self._open_time = _NEVER
        # Where the bucket ends; earlier than any trade where the next trade has to be looked at closely.
        self._end = _NEVER
        self._end_before_hole = _NEVER
        self._clear()

    def _clear(self) -> None:
        self._trades = 0
        self._open = self._high = self._low = self._close = 0.0
        self._volume = self._quote = self._bought = self._bought_quote = 0
        self._received_at = 0
        self._event_time = 0

    def add(self, trade: Trade) -> None:
        """Take in the next trade."""
        _, price, quantity, event_time, taker_buys, received_at, trades = trade
        if event_time >= self._end:
            self._roll(event_time)
        elif event_time < self._open_time:
            self.late += 1
            return
        lots = round(quantity * _SCALE) if quantity < _EXACT_TO else _units(quantity)
        notional = lots * (round(price * _SCALE) if price < _EXACT_TO else _units(price))
        if self._trades:
            if price > self._high:
                self._high = price
            elif price < self._low:
                self._low = price
        else:
            self._open = self._high = self._low = price
        self._close = price
        self._trades += trades
        self._volume += lots
        self._quote += notional
        if taker_buys:
            self._bought += lots
            self._bought_quote += notional
        self._event_time = event_time
        self._received_at = received_at

    def broken(self) -> None:
        """Trades are missing before the next one: its bucket is not complete, nor is the present one."""
        self._whole = False
        if self._end != _NEVER:
            self._end, self._end_before_hole = _NEVER, self._end

    def forming(self) -> CandleUpdate | None:
        """The candle of the trades so far; None without one."""
        return self._candle(closed=False) if self._trades else None

    def _roll(self, event_time: int) -> None:
        """A trade of a later bucket: the present one has ended. Or the first one, at all or after a hole."""
        unknown_before = self._end == _NEVER
        if unknown_before:
            self._end, self._end_before_hole = self._end_before_hole, _NEVER
            if event_time < self._end:
                return
        self._finish()
        self._begin(event_time)
        if unknown_before:
            self._whole = False

    def _begin(self, ms: int) -> None:
        self._open_time = self._timeframe.floor(ms, self._origin_ms)
        self._end = self._timeframe.next(self._open_time)
        self._clear()

    def _finish(self) -> None:
        whole, self._whole = self._whole, True
        if self._trades:
            self._on_candle(self._candle(closed=True), whole)

    def _candle(self, *, closed: bool) -> CandleUpdate:
        return CandleUpdate(
            open_time=self._open_time,
            open=self._open,
            high=self._high,
            low=self._low,
            close=self._close,
            volume=self._volume / _SCALE,
            quote_volume=self._quote / _SQUARE,
            trades=self._trades,
            taker_buy_volume=self._bought / _SCALE,
            taker_buy_quote_volume=self._bought_quote / _SQUARE,
            early_close_time=None,
            closed=closed,
            event_time=self._event_time,
            received_at=self._received_at,
        )


def _units(value: float) -> int:
    """A large number in units of 1e-8, exactly."""
    whole = int(value)
    return whole * _SCALE + round((value - whole) * _SCALE)
