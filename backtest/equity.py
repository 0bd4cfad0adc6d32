"""Equity over time: recorded in bounded memory while a run goes on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from backtest.blocks import Block
from market.candle import Bools, Float64s
from market.interval import Interval
from market.timeframe import TIMEFRAMES, Int64s, Timeframe

#: Points of an equity curve, at most about.
CURVE_POINTS = 10_000
_DAY = TIMEFRAMES["1d"]
_DAYS_A_YEAR = 365


def curve_step(interval: Interval, finest: Timeframe) -> Timeframe:
    """How far apart the points of a curve stand: every candle, else every hour, else every day."""
    for step in (finest, TIMEFRAMES["1h"]):
        if step >= finest and interval.duration // step.milliseconds <= CURVE_POINTS:
            return step
    return max(_DAY, finest)


class Booking(NamedTuple):
    """What was owned after a fill."""

    #: The instant from which it counts: when the candle whose open was taken became available.
    at: int
    symbol: str
    #: Free quote units.
    cash: float
    #: Base units held.
    quantity: float


@dataclass(frozen=True, slots=True)
class Holdings:
    """What is owned at one instant."""

    cash: float
    #: Base units by symbol.
    quantities: Mapping[str, float]


@dataclass
class EquityRecorder:
    """Equity at each instant, after the fills and at the closes known then.

    Keeps the last value of each step and of each UTC day, the deepest drawdown and the time in the market.
    """

    cash: float
    step: Timeframe
    #: Instant of the last value inside each step, epoch milliseconds, and that value in quote.
    times: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    #: Deepest fall from an earlier high, as a share of that high: 0.2 is 20 %.
    drawdown: float = 0.0
    #: Instants seen, and those with something held.
    instants: int = 0
    held_instants: int = 0
    _peak: float = field(init=False)
    _step_open: int | None = None
    _days: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._peak = self.cash

    @property
    def last(self) -> float:
        """Equity at the last instant; the cash to begin with before any."""
        return self.values[-1] if self.values else self.cash

    @property
    def sharpe(self) -> float | None:
        """Mean over standard deviation (n - 1) of the returns from one UTC day's last equity to the next, times
        the square root of 365; no risk-free rate. The first day starts from the cash. None for fewer than two
        days or no variation."""
        values = np.array([self.cash, *self._days.values()])
        returns = values[1:] / values[:-1] - 1
        if len(returns) < 2:
            return None
        spread = math.sqrt(math.fsum((returns - returns.mean()) ** 2) / (len(returns) - 1))
        return float(returns.mean()) / spread * math.sqrt(_DAYS_A_YEAR) if spread > 0 else None

    def add(
        self,
        times: Int64s,
        before: Holdings,
        bookings: Sequence[Booking],
        marks: Mapping[str, float],
        closes: Mapping[str, Block],
    ) -> None:
        """Add one chunk.

        :param times: its instants.
        :param before: what was owned before the chunk.
        :param bookings: of the chunk, in order.
        :param marks: last close of each symbol before the chunk.
        :param closes: closes inside the chunk, of each symbol's shortest timeframe.
        """
        equity = _steps(times, before.cash, [(one.at, one.cash) for one in bookings])
        invested = np.zeros(len(times), np.bool_)
        for symbol in sorted({*before.quantities, *(one.symbol for one in bookings)}):
            changes = [(one.at, one.quantity) for one in bookings if one.symbol == symbol]
            quantity = _steps(times, before.quantities.get(symbol, 0.0), changes)
            if quantity.any():
                worth = quantity * _marks_at(times, marks.get(symbol, math.nan), closes.get(symbol))
                equity = equity + np.where(quantity > 0, worth, 0.0)
                invested |= quantity > 0
        self._record(times, equity, invested)

    def _record(self, times: Int64s, equity: Float64s, invested: Bools) -> None:
        peaks = np.maximum.accumulate(np.concatenate(([self._peak], equity)))[1:]
        self.drawdown = max(self.drawdown, float((1 - equity / peaks).max()))
        self._peak = float(peaks[-1])
        self.instants += len(times)
        self.held_instants += int(invested.sum())
        # What becomes available at midnight is the last of the day before.
        for rows, bucket in _lasts(self.step.floor_all(times - 1)):
            if bucket == self._step_open:
                self.times.pop()
                self.values.pop()
            self._step_open = bucket
            self.times.append(int(times[rows]))
            self.values.append(float(equity[rows]))
        for rows, bucket in _lasts(_DAY.floor_all(times - 1)):
            self._days[bucket] = float(equity[rows])


def _steps(times: Int64s, before: float, changes: Sequence[tuple[int, float]]) -> Float64s:
    """A value at each of `times` that is `before` until the first change."""
    if not changes:
        return np.full(len(times), before)
    at = np.searchsorted(times, [time for time, _ in changes])
    values = np.array([before, *(value for _, value in changes)])
    return np.repeat(values, np.diff(np.concatenate(([0], at, [len(times)]))))


def _marks_at(times: Int64s, before: float, block: Block | None) -> Float64s:
    """The latest close at each of `times`."""
    if block is None:
        return np.full(len(times), before)
    at = np.searchsorted(block.times, times, side="right")
    return np.concatenate(([before], block.closes))[at]


def _lasts(buckets: Int64s) -> Iterator[tuple[int, int]]:
    """The last row of each run of equal buckets, and the bucket."""
    rows = np.flatnonzero(np.concatenate((buckets[1:] != buckets[:-1], [True])))
    return zip(rows.tolist(), buckets[rows].tolist(), strict=True)
