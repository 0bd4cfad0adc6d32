"""Strategies for tests: one that does as told, and some that look ahead."""

from __future__ import annotations

import polars as pl

from trading.order import Order, buy, sell
from trading.strategy import Strategy, Subscription


class Scripted(Strategy):
    """Gives back the orders of a script: lists by the instant at which a candle becomes available."""

    script: dict = {}  # noqa: RUF012 - a parameter's default
    warm_up: int = 0
    #: Timeframes beside the one asked for.
    extra: tuple = ()

    def start(self) -> None:
        self.seen = []

    def required_subscriptions(self, symbols, timeframe):
        return [
            Subscription(symbol, length, self.warm_up) for symbol in symbols for length in (timeframe, *self.extra)
        ]

    def on_data(self, candle, portfolio):
        position = portfolio.positions[candle.symbol]
        self.seen.append((candle.available_at, candle.timeframe.name, candle.symbol, position.quantity))
        return self.script.get((candle.available_at, candle.timeframe.name, candle.symbol))


class Momentum(Strategy):
    """Holds while the close is above the mean of the last closes. Clean."""

    length: int = 8

    def required_subscriptions(self, symbols, timeframe):
        return [Subscription(symbol, timeframe, self.length) for symbol in symbols]

    def populate_indicators(self, frame):
        return frame.with_columns(mean=pl.col("close").rolling_mean(self.length))

    def on_data(self, candle, portfolio) -> Order | None:
        held = portfolio.positions[candle.symbol].quantity
        if candle.close > candle.mean and not held:
            return buy(candle.symbol, notional=portfolio.cash * 0.5)
        if candle.close < candle.mean and held:
            return sell(candle.symbol, fraction=1.0)
        return None


class PeeksOneCandle(Momentum):
    def populate_indicators(self, frame):
        return frame.with_columns(mean=pl.col("close").shift(-1))


class NormalisesOverTheFrame(Momentum):
    def populate_indicators(self, frame):
        return frame.with_columns(mean=pl.col("close").mean())


class PeeksIntoTheLargerCandle(Momentum):
    """Joins the hour's close to its minutes without waiting for the hour to end."""

    def populate_indicators(self, frame):
        hour = pl.col("open_time").dt.truncate("1h")
        return frame.with_columns(mean=pl.col("close").last().over(hour))


class FillsBackwards(Momentum):
    def populate_indicators(self, frame):
        rare = pl.when(pl.int_range(pl.len()) % 7 == 0).then(pl.col("close"))
        return frame.with_columns(mean=rare.fill_null(strategy="backward"))


class KeepsTheFrame(Momentum):
    """Clean indicators, but reads ahead in the frame when it decides."""

    def populate_indicators(self, frame):
        self.frame = frame
        return super().populate_indicators(frame)

    def on_data(self, candle, portfolio):
        later = self.frame.filter(pl.col("open_time").dt.epoch("ms") > candle.open_time)["close"].head(1)
        held = portfolio.positions[candle.symbol].quantity
        if len(later) and later[0] > candle.close and not held:
            return buy(candle.symbol, fraction=1.0)
        return sell(candle.symbol, fraction=1.0) if held else None


LEAKY = [PeeksOneCandle, NormalisesOverTheFrame, PeeksIntoTheLargerCandle, FillsBackwards, KeepsTheFrame]
