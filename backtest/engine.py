"""The event loop: show a strategy each candle once it is available, and fill its orders afterwards.

Rules of filling. A market order decided at one instant fills at the open of the symbol's next candle, of the
shortest timeframe subscribed for that symbol, that opens at or after that instant; a buyer pays the slippage on
top, a seller gets it taken off. All fills of an instant are booked before any strategy call of that instant. Over a
hole in the data a position is kept, valued at the last close, and waiting orders fill at the first open after it.
Orders still waiting at the end are not filled.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from backtest.blocks import Block, Chunk
from backtest.equity import Booking, EquityRecorder, Holdings
from market.errors import BadInput, StrategyFailed
from market.timeframe import Timeframe
from trading.catalogue import blamed, method_line
from trading.order import Order, Side
from trading.portfolio import Fill, Portfolio, RefusedOrder
from trading.strategy import Candle, Decision, Strategy


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What trading costs."""

    #: Percent of the notional; 0.1 is 0.1 %.
    fee: float = 0.1
    #: Basis points (hundredths of a percent) that each fill is worse than the candle's open.
    slippage: float = 0.0

    def __post_init__(self) -> None:
        for name, value, most in (("fee", self.fee, 100.0), ("slippage", self.slippage, 10_000.0)):
            if not 0 <= value < most:
                raise BadInput(name, value, f"a number from 0 to below {most:g}")

    def price(self, open_price: float, side: Side) -> float:
        """What a fill at this open costs."""
        worse = self.slippage / 10_000
        return open_price * (1 + worse if side is Side.BUY else 1 - worse)


class Decided(NamedTuple):
    """An order and when it was decided."""

    decided_at: int
    order: Order


@dataclass(kw_only=True)
class Ledger:
    """Everything that happened in a run, oldest first."""

    decisions: list[Decided] = field(default_factory=list)
    fills: list[Fill] = field(default_factory=list)
    refused: list[RefusedOrder] = field(default_factory=list)


class Engine:
    """One run of one strategy.

    :param strategy: a fresh one; it is changed by running.
    :param finest: the shortest timeframe of each symbol.
    :param cash: quote units to begin with.
    """

    def __init__(
        self, strategy: Strategy, finest: Mapping[str, Timeframe], costs: Costs, cash: float, equity: EquityRecorder
    ) -> None:
        self._strategy = strategy
        self._decide = _decider(strategy)
        self._line = method_line(strategy, "on_data")
        self._finest = finest
        self._costs = costs
        self._equity = equity
        self.portfolio = Portfolio(cash, self._price)
        self.ledger = Ledger()
        self._pending: list[Decided] = []
        #: The candles of the instant being shown, the latest marks of earlier chunks, and this chunk's closes.
        self._instant: Sequence[Candle] = ()
        self._marks: dict[str, float] = {}
        self._closes: dict[str, Block] = {}
        self._bookings: list[Booking] = []
        #: Candles shown, those of the warm-up included.
        self.candles = 0

    def run(self, chunks: Iterable[Chunk], until_ms: int | None = None) -> None:
        """Show every chunk; with `until_ms`, up to that instant inclusive.

        :raises StrategyFailed: the strategy raised, or gave back what is no order; what happened before stays.
        """
        with blamed(self._strategy):
            for chunk in chunks:
                self._show(chunk, until_ms)
                if until_ms is not None and int(chunk.times[-1]) > until_ms:
                    return

    def _show(self, chunk: Chunk, until_ms: int | None) -> None:
        self._closes = {
            block.kinds[1].symbol: block
            for block in chunk.blocks
            if block.kinds[1].timeframe == self._finest[block.kinds[1].symbol]
        }
        before = self._holdings()
        self._bookings.clear()
        # Looking names up once matters here: this loop runs for every candle.
        decide, portfolio, pending = self._decide, self.portfolio, self._pending
        shown = len(chunk.times) if until_ms is None else int(np.searchsorted(chunk.times, until_ms, side="right"))
        for candles in islice(chunk.instants, shown):
            self._instant = candles
            if pending:
                self._fill(candles)
            for candle in candles:
                if candle.ready:
                    decision = decide(candle, portfolio)
                    if decision is not None:
                        self._accept(decision, candle)
        if shown < len(chunk.times):
            return
        self.candles += sum(len(block) for block in chunk.blocks)
        self._equity.add(chunk.times, before, self._bookings, self._marks, self._closes)
        for symbol, block in self._closes.items():
            self._marks[symbol] = float(block.closes[-1])
        self._closes = {}

    def _holdings(self) -> Holdings:
        owned = self.portfolio.positions.values()
        return Holdings(self.portfolio.cash, {one.symbol: one.quantity for one in owned})

    def _price(self, symbol: str) -> float:
        """The latest close of a symbol at the instant being shown."""
        block = self._closes.get(symbol)
        if block is not None:
            at = int(np.searchsorted(block.times, self._instant[0].available_at, side="right")) - 1
            if at >= 0:
                return float(block.closes[at])
        return self._marks[symbol]

    def _fill(self, candles: Sequence[Candle]) -> None:
        """Fill what waits for one of these candles."""
        for candle in candles:
            if candle.timeframe is not self._finest[candle.symbol]:
                continue
            waiting = list[Decided]()
            for one in self._pending:
                if one.order.symbol == candle.symbol and one.decided_at <= candle.open_time:
                    self._execute(one, candle)
                else:
                    waiting.append(one)
            self._pending[:] = waiting

    def _execute(self, one: Decided, candle: Candle) -> None:
        outcome = self.portfolio.fill(
            one.order,
            price=self._costs.price(candle.open, one.order.side),
            fee_rate=self._costs.fee / 100,
            decided_at=one.decided_at,
            filled_at=candle.open_time,
        )
        if isinstance(outcome, Fill):
            self.ledger.fills.append(outcome)
            held = self.portfolio.positions[candle.symbol].quantity
            self._bookings.append(Booking(candle.available_at, candle.symbol, self.portfolio.cash, held))
        else:
            self.ledger.refused.append(outcome)

    def _accept(self, decision: object, candle: Candle) -> None:
        """Take the orders of one `on_data` call.

        :raises StrategyFailed: it is not None, an order or a sequence of orders for subscribed symbols.
        """
        orders: Sequence[object] = decision if isinstance(decision, list | tuple) else (decision,)
        at = candle.available_at
        for order in orders:
            if not isinstance(order, Order):
                raise StrategyFailed(
                    f"{self._line} returned {decision!r:.100}; expected None, an Order or a list of Orders"
                )
            if order.symbol not in self._finest:
                raise StrategyFailed(
                    f"{self._line} ordered {order.symbol}, and the strategy subscribed to "
                    + ", ".join(sorted(self._finest))
                )
            decided = Decided(at, order)
            self.ledger.decisions.append(decided)
            self._pending.append(decided)


def _decider(strategy: Strategy) -> Callable[[Candle, Portfolio], Any]:
    """`on_data` as a plain function; an ``async def`` is driven to its end, which it must reach without waiting."""
    if not inspect.iscoroutinefunction(strategy.on_data):
        return strategy.on_data
    start: Any = strategy.on_data

    def decide(candle: Candle, portfolio: Portfolio) -> Decision:
        coroutine = start(candle, portfolio)
        try:
            coroutine.send(None)
        except StopIteration as finished:
            decision: Decision = finished.value
            return decision
        coroutine.close()
        raise StrategyFailed(
            f"{method_line(strategy, 'on_data')} waited for something; in a backtest there is nothing to wait for"
        )

    return decide
