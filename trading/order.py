"""Orders as a strategy states them: what to buy or sell, and how much."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from market.errors import BadInput


class Side(StrEnum):
    """Which way an order goes."""

    BUY = "buy"
    SELL = "sell"


@dataclass(frozen=True, slots=True)
class Order:
    """A market order. Exactly one of `quantity`, `notional` and `fraction` says how much.

    In a backtest it fills at the open of the symbol's next candle; a size that depends on the price is settled
    then. Other kinds of order will come as optional prices (limit, stop) beside the size.

    :raises BadInput: naming the part that is wrong.
    """

    #: ccxt unified.
    symbol: str
    side: Side
    #: Base units, above zero.
    quantity: float | None = None
    #: Quote units, above zero: what a buyer pays, fee included; what a seller's base is worth before the fee.
    notional: float | None = None
    #: Above 0, up to 1: of the free cash for a buy, of the holding for a sale.
    fraction: float | None = None
    #: The strategy's own word for why; comes back with the fill.
    tag: str = ""

    def __post_init__(self) -> None:
        if (self.quantity is None) + (self.notional is None) + (self.fraction is None) != 2:
            sizes = {"quantity": self.quantity, "notional": self.notional, "fraction": self.fraction}
            given = {name: size for name, size in sizes.items() if size is not None}
            raise BadInput("order", given, "exactly one of quantity, notional and fraction")
        if self.quantity is not None:
            _check_size("quantity", self.quantity)
        elif self.notional is not None:
            _check_size("notional", self.notional)
        elif self.fraction is not None and _check_size("fraction", self.fraction) > 1:
            raise BadInput("order fraction", self.fraction, "a share above 0, up to 1")


def _check_size(name: str, size: object) -> float:
    if not isinstance(size, float | int) or isinstance(size, bool) or not 0 < size < math.inf:
        raise BadInput(f"order {name}", size, "a finite number above zero")
    return size


def buy(
    symbol: str,
    *,
    quantity: float | None = None,
    notional: float | None = None,
    fraction: float | None = None,
    tag: str = "",
) -> Order:
    """A market order to buy; see :class:`Order` for the sizes."""
    return Order(symbol, Side.BUY, quantity, notional, fraction, tag)


def sell(
    symbol: str,
    *,
    quantity: float | None = None,
    notional: float | None = None,
    fraction: float | None = None,
    tag: str = "",
) -> Order:
    """A market order to sell; see :class:`Order` for the sizes."""
    return Order(symbol, Side.SELL, quantity, notional, fraction, tag)
