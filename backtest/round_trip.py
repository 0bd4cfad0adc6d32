"""Round trips: from flat to a holding and back to flat, told from the fills."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from trading.order import Side
from trading.portfolio import Fill


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTrip:
    """One entry and its exit; several fills of either side are averaged by quantity."""

    symbol: str
    #: First buy and last sale, epoch milliseconds.
    entered_at: int
    exited_at: int
    #: Base units bought in all.
    quantity: float
    #: Quote per base, slippage included, fees not.
    entry_price: float
    exit_price: float
    #: Quote, of all its fills.
    fees: float
    #: Quote received minus quote paid, fees taken off.
    profit: float
    #: `profit` as percent of what was paid for the entry, its fees included.
    return_percent: float


@dataclass
class _Open:
    entered_at: int
    held: float = 0.0
    bought: float = 0.0
    sold: float = 0.0
    #: Quote, without fees.
    paid: float = 0.0
    received: float = 0.0
    entry_fees: float = 0.0
    exit_fees: float = 0.0


def round_trips(fills: Iterable[Fill]) -> list[RoundTrip]:
    """Closed round trips in the order of their exits. A holding still open at the end is none."""
    found: list[RoundTrip] = []
    opened: dict[str, _Open] = {}
    for fill in fills:
        one = opened.setdefault(fill.symbol, _Open(fill.filled_at))
        if fill.side is Side.BUY:
            one.held += fill.quantity
            one.bought += fill.quantity
            one.paid += fill.quantity * fill.price
            one.entry_fees += fill.fee
            continue
        # The same subtraction as the portfolio's, so that flat is exactly zero here too.
        one.held -= fill.quantity
        one.sold += fill.quantity
        one.received += fill.quantity * fill.price
        one.exit_fees += fill.fee
        if not one.held:
            found.append(_closed(opened.pop(fill.symbol), fill))
    return found


def _closed(one: _Open, last: Fill) -> RoundTrip:
    cost = one.paid + one.entry_fees
    profit = one.received - one.exit_fees - cost
    return RoundTrip(
        symbol=last.symbol,
        entered_at=one.entered_at,
        exited_at=last.filled_at,
        quantity=one.bought,
        entry_price=one.paid / one.bought,
        exit_price=one.received / one.sold,
        fees=one.entry_fees + one.exit_fees,
        profit=profit,
        return_percent=100 * profit / cost,
    )
