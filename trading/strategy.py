"""The strategy contract: one class that runs in a backtest, on paper and live.

A strategy says what it needs (:meth:`Strategy.required_subscriptions`), adds columns to frames of candles
(:meth:`Strategy.populate_indicators`) and decides, one available candle at a time (:meth:`Strategy.on_data`)::

    class Breakout(Strategy):
        length: int = parameter(20, at_least=2)

        def required_subscriptions(self, symbols, timeframe):
            return [Subscription(symbol, timeframe, warm_up=self.length) for symbol in symbols]

        def populate_indicators(self, frame):
            return frame.with_columns(top=pl.col("high").rolling_max(self.length).shift(1))

        def on_data(self, candle, portfolio):
            held = portfolio.positions[candle.symbol].quantity
            if candle.close > candle.top and not held:
                return buy(candle.symbol, fraction=1.0)

Public annotated class attributes are the parameters. Anything else a strategy keeps, it sets on itself in
:meth:`Strategy.start`. A strategy sees floats: it decides, and whoever moves money turns its orders into decimals.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import namedtuple
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from keyword import iskeyword
from typing import Any, ClassVar, Protocol, Self, get_origin, get_type_hints

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from market.clock import iso
from market.errors import BadInput
from market.instrument import Series, check_symbol
from market.timeframe import Timeframe
from trading.order import Order
from trading.portfolio import Portfolio

#: What `on_data` may give back.
Decision = Order | Sequence[Order] | None

#: The columns of the archive's candle that every candle carries, in this order, before the indicators.
CANDLE_FIELDS = ("open_time", "open", "high", "low", "close", "volume")


class Candle(Protocol):
    """One available candle with its indicators, immutable.

    Columns added by `populate_indicators` are attributes of the same name; null in a number column is NaN, which
    compares false with everything. The real classes are named tuples made for each series by :func:`candle_type`:
    reading an attribute of one is what a backtest does most.
    """

    exchange: ClassVar[str]
    #: ccxt unified.
    symbol: ClassVar[str]
    timeframe: ClassVar[Timeframe]
    #: False while the series has fewer candles behind it than the strategy's warm-up; `on_data` never sees those.
    ready: ClassVar[bool]

    @property
    def open_time(self) -> int:
        """Start of the bucket, epoch milliseconds."""

    @property
    def available_at(self) -> int:
        """End of the bucket, epoch milliseconds: the first instant at which anyone can know this candle."""

    @property
    def open(self) -> float:
        """Quote per base, as `high`, `low` and `close`."""

    @property
    def high(self) -> float: ...

    @property
    def low(self) -> float: ...

    @property
    def close(self) -> float: ...

    @property
    def volume(self) -> float:
        """Base units."""

    def __getattr__(self, name: str) -> Any:
        """An indicator column."""


#: Names an indicator cannot have: a candle uses them itself.
_TAKEN = frozenset({*dir(tuple), "exchange", "symbol", "timeframe", "ready", "available_at"})


def candle_type(series: Series, indicators: Sequence[str], *, ready: bool = True) -> type[Candle]:
    """The class of one series' candles; build rows of it with :func:`candle_rows`.

    :raises BadInput: for an indicator name that is no attribute name or is taken.
    """
    for name in indicators:
        if not name.isidentifier() or name.startswith("_") or iskeyword(name) or name in _TAKEN:
            raise BadInput(
                "indicator column",
                name,
                "a Python name without a leading underscore, and none of " + ", ".join(sorted(_OWN_NAMES)),
            )
    make: Callable[[str, list[str]], type] = namedtuple
    fields = make("fields", [*CANDLE_FIELDS, *indicators])
    timeframe = series.timeframe
    length = timeframe.milliseconds

    def available_at(candle: Candle) -> int:
        # Months alone differ in length; the sum is the short way for all others.
        return timeframe.next(candle.open_time) if timeframe.name == "1M" else candle.open_time + length

    def shown(candle: Candle) -> str:
        values = ", ".join(f"{name}={getattr(candle, name)}" for name in (*CANDLE_FIELDS[1:], *indicators))
        return f"Candle({series} {iso(candle.open_time)}: {values})"

    body = {
        "__slots__": (),
        "exchange": series.exchange,
        "symbol": series.symbol,
        "timeframe": timeframe,
        "ready": ready,
        "available_at": property(available_at),
        "__repr__": shown,
    }
    made: Any = type("Candle", (fields,), body)
    kind: type[Candle] = made
    return kind


_OWN_NAMES = _TAKEN - {name for name in dir(tuple) if name.startswith("_")}


def candle_rows(kind: type[Candle], columns: Sequence[Iterable[Any]]) -> Iterator[Candle]:
    """Candles of `kind` from columns in its field order."""
    new: Callable[..., Candle] = tuple.__new__
    return map(new, repeat(kind), zip(*columns, strict=True))


@dataclass(frozen=True, slots=True)
class Subscription:
    """Candles a strategy wants to see."""

    symbol: str
    #: May be given by its name.
    timeframe: Timeframe
    #: How many earlier candles of the series the indicators need before the first decision. Live, a frame holds
    #: at least this many and the newest; let a recursive indicator (EMA) have several times its length.
    warm_up: int = 0

    def __post_init__(self) -> None:
        check_symbol(self.symbol)
        given: object = self.timeframe
        if not isinstance(given, Timeframe):
            # The name will do: a strategy's author writes "4h".
            object.__setattr__(self, "timeframe", Timeframe.parse(str(given), "subscription timeframe"))
        if not isinstance(self.warm_up, int) or not 0 <= self.warm_up <= 1_000_000:
            raise BadInput("subscription warm_up", self.warm_up, "a whole number of candles from 0 to 1000000")


def parameter(
    default: Any = ..., *, at_least: float | None = None, at_most: float | None = None, about: str | None = None
) -> Any:
    """A parameter of a strategy: its default and bounds (inclusive). The type is the annotation's."""
    return Field(default, ge=at_least, le=at_most, description=about)


class Strategy(ABC):
    """Base of every strategy. Made with its parameters by name; wrong ones raise :class:`BadInput`."""

    def __init__(self, **parameters: object) -> None:
        model = _parameter_model(type(self))
        try:
            checked = model(**parameters)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else "parameters"
            raise BadInput(f"parameter {name}", parameters.get(name), _accepted(model, name, first)) from None
        #: The checked parameters, by name.
        self.parameters: Mapping[str, Any] = {name: getattr(checked, name) for name in model.model_fields}
        for name, value in self.parameters.items():
            setattr(self, name, value)
        self.start()

    def start(self) -> None:  # noqa: B027 - optional on purpose
        """Check parameters against each other (raise BadInput) and set up what the strategy keeps. Optional."""

    def fresh(self) -> Self:
        """A new instance with the same parameters and none of the state."""
        return type(self)(**self.parameters)

    @abstractmethod
    def required_subscriptions(self, symbols: Sequence[str], timeframe: Timeframe) -> Sequence[Subscription]:
        """The candles to be fed, given the symbols and the timeframe the user asked for."""

    def populate_indicators(self, frame: pl.DataFrame) -> pl.DataFrame:
        """`frame` with indicator columns added; the rows and their order stay.

        The frame is a run of consecutive candles of one series: the archive's columns plus `symbol` and
        `timeframe` (the same in every row). It is one stretch of history, not all of it: the first `warm_up` rows
        may be there only to warm up. A value may depend on its own and earlier rows only. Minutes verified to be
        empty at the exchange are simply no rows; a hole in our data starts a new frame, so nothing bridges it.
        """
        return frame

    @abstractmethod
    def on_data(self, candle: Candle, portfolio: Portfolio) -> Decision | Coroutine[Any, Any, Decision]:
        """Decide at `candle.available_at`; orders go out after that instant.

        Several candles of one instant come longer timeframe first, then by symbol, after every fill that was known
        by then. May be an ``async def``: live it may wait for other things; a backtest runs it too, but has nothing
        to wait for and stops with a message if it does.
        """


@cache
def _parameter_model(kind: type[Strategy]) -> type[BaseModel]:
    """A pydantic model with the public annotated attributes of a strategy class."""
    fields: dict[str, Any] = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if name.startswith("_") or get_origin(hint) is ClassVar or hint is ClassVar or name == "parameters":
            continue
        fields[name] = (hint, getattr(kind, name, ...))
    return create_model(
        kind.__name__, __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=True), **fields
    )


def _accepted(model: type[BaseModel], name: str, problem: Mapping[str, Any]) -> str:
    if name not in model.model_fields:
        known = ", ".join(model.model_fields) or "none"
        return f"a parameter this strategy has ({known})"
    text = str(problem["msg"])
    hint = model.model_fields[name].annotation
    kind = getattr(hint, "__name__", str(hint))
    return f"a value of type {kind}: {text[0].lower()}{text[1:]}"
