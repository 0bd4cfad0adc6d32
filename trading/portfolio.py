"""What a strategy owns: cash, positions and the fills that made them. Spot: nothing is ever negative.

The numbers are float64. This is the account of a simulation and the view that a strategy decides on; no money
moves here. The ledger of live trading keeps exact decimals and shows a strategy this same class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from trading.order import Order, Side


@dataclass(slots=True)
class Position:
    """The net holding of one symbol."""

    symbol: str
    #: Base units held; 0 when flat, never negative on spot.
    quantity: float = 0.0
    #: Average price paid per base unit, fees not included; 0 when flat.
    entry_price: float = 0.0
    #: When the holding last went from nothing to something, epoch milliseconds; None when flat.
    opened_at: int | None = None


class Fill(NamedTuple):
    """One execution of one of our orders. A tuple, because a run may make very many."""

    symbol: str
    side: Side
    #: Base units, above zero.
    quantity: float
    #: Quote per base, slippage included.
    price: float
    #: Quote; paid on top by a buyer and taken off the proceeds of a seller.
    fee: float
    #: When the order was decided, epoch milliseconds.
    decided_at: int
    #: When it was filled, epoch milliseconds; never before `decided_at`.
    filled_at: int
    tag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedOrder:
    """An order that a spot account cannot carry out; nothing was changed."""

    order: Order
    decided_at: int
    refused_at: int
    #: One sentence with the numbers.
    reason: str


class Positions(dict[str, Position]):
    """Positions by symbol; a symbol never traded is a flat position."""

    def __missing__(self, symbol: str) -> Position:
        position = self[symbol] = Position(symbol)
        return position


class Portfolio:
    """Cash and positions. Strategies read it; only an engine calls :meth:`fill`.

    :param cash: quote units to begin with.
    :param price: the latest known price of a symbol (quote per base), for :attr:`equity`.
    """

    __slots__ = ("_price", "cash", "fees", "positions")

    def __init__(self, cash: float, price: Callable[[str], float]) -> None:
        #: Free quote units, never negative.
        self.cash = cash
        #: Every symbol ever traded; unknown symbols are flat.
        self.positions = Positions()
        #: Quote units paid in fees so far.
        self.fees = 0.0
        self._price = price

    @property
    def equity(self) -> float:
        """Cash plus every position at its latest known price, in quote."""
        return self.cash + sum(
            one.quantity * self._price(one.symbol) for one in self.positions.values() if one.quantity
        )

    def fill(
        self, order: Order, *, price: float, fee_rate: float, decided_at: int, filled_at: int
    ) -> Fill | RefusedOrder:
        """Carry out a market order at `price`.

        :param price: quote per base, above zero, slippage included.
        :param fee_rate: fee as a share of the notional (0.001 is 0.1 %).
        :return: the fill; or, where cash or holding does not suffice, a refusal that changed nothing.
        """
        position = self.positions[order.symbol]
        buying = order.side is Side.BUY
        sized = self._buy_size(order, price, fee_rate) if buying else _sell_size(order, price, position.quantity)
        if isinstance(sized, str):
            return RefusedOrder(order=order, decided_at=decided_at, refused_at=filled_at, reason=sized)
        if buying:
            quantity, spent = sized
            fee = spent - spent / (1 + fee_rate)
            held = position.quantity + quantity
            if position.opened_at is None:
                position.opened_at = filled_at
            position.entry_price = (position.entry_price * position.quantity + price * quantity) / held
            position.quantity = held
            self.cash -= spent
        else:
            quantity, _ = sized
            fee = quantity * price * fee_rate
            position.quantity -= quantity
            if not position.quantity:
                position.entry_price, position.opened_at = 0.0, None
            self.cash += quantity * price - fee
        self.fees += fee
        return Fill(
            symbol=order.symbol,
            side=order.side,
            quantity=quantity,
            price=price,
            fee=fee,
            decided_at=decided_at,
            filled_at=filled_at,
            tag=order.tag,
        )

    def _buy_size(self, order: Order, price: float, fee_rate: float) -> tuple[float, float] | str:
        """Base units to buy and quote units to pay, fee included; or why not."""
        if order.quantity is not None:
            quantity = order.quantity
            spent = quantity * price * (1 + fee_rate)
        else:
            # What is spent is exact, so that spending all cash leaves exactly nothing.
            spent = order.notional if order.notional is not None else self.cash * (order.fraction or 0.0)
            quantity = spent / (1 + fee_rate) / price
        if spent > self.cash:
            return f"buying {quantity:g} {order.symbol} costs {spent:g} with fee, and {self.cash:g} is free"
        if quantity <= 0:
            return f"there is no cash to buy {order.symbol} with"
        return quantity, spent


def _sell_size(order: Order, price: float, held: float) -> tuple[float, float] | str:
    """Base units to sell and their notional; or why not."""
    if order.quantity is not None:
        quantity = order.quantity
    elif order.notional is not None:
        quantity = order.notional / price
    else:
        quantity = held * (order.fraction or 0.0)
    if quantity > held:
        return f"selling {quantity:g} {order.symbol} needs more than the {held:g} held"
    if quantity <= 0:
        return f"there is no {order.symbol} to sell"
    return quantity, quantity * price
