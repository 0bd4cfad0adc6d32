"""Moving-average cross: in the market while the fast average stands above the slow one."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from market.errors import BadInput
from market.timeframe import Timeframe
from trading.order import buy, sell
from trading.portfolio import Portfolio
from trading.strategy import Candle, Decision, Strategy, Subscription, parameter

#: Two averages that differ by a smaller share than this are equal.
_NOISE = 1e-11


class SmaCross(Strategy):
    """Buy when the fast average of the closes is above the slow one, sell all when it is below."""

    fast: int = parameter(10, at_least=1, about="candles in the fast average")
    slow: int = parameter(30, at_least=2, about="candles in the slow average; more than fast")
    stake: float = parameter(1.0, at_least=0.0001, at_most=1.0, about="share of the free cash to buy with")

    def start(self) -> None:
        if self.fast >= self.slow:
            raise BadInput("parameter fast", self.fast, f"fewer candles than slow ({self.slow})")

    def required_subscriptions(self, symbols: Sequence[str], timeframe: Timeframe) -> Sequence[Subscription]:
        # The average of `slow` closes stands at a candle with slow - 1 others behind it.
        return [Subscription(symbol, timeframe, warm_up=self.slow - 1) for symbol in symbols]

    def populate_indicators(self, frame: pl.DataFrame) -> pl.DataFrame:
        close = pl.col("close")
        fast, slow = close.rolling_mean(self.fast), close.rolling_mean(self.slow)
        # Averages of decimal prices are often exactly equal; the noise of adding floats must not make a cross.
        level = (fast - slow).abs() <= slow * _NOISE
        return frame.with_columns(fast=pl.when(level).then(slow).otherwise(fast), slow=slow)

    def on_data(self, candle: Candle, portfolio: Portfolio) -> Decision:
        held = portfolio.positions[candle.symbol].quantity
        if candle.fast > candle.slow:
            return None if held else buy(candle.symbol, fraction=self.stake)
        if held and candle.fast < candle.slow:
            return sell(candle.symbol, fraction=1.0)
        return None
