"""Public trades, as every part of the house hands them on."""

from __future__ import annotations

from typing import NamedTuple


class Trade(NamedTuple):
    """One public trade, or several that the exchange added up to one (an aggregated trade).

    A tuple, because a busy market has thousands a second.
    """

    #: The exchange's id of it. Whole numbers where the exchange counts; text where it does not.
    id: int | str
    #: Quote per base.
    price: float
    #: In base.
    quantity: float
    #: When it was traded, by the exchange; epoch milliseconds.
    event_time: int
    #: True if the taker bought (the maker sold).
    taker_buys: bool
    #: When we received it, epoch milliseconds of our clock.
    received_at: int
    #: Single trades in it: 1, or more for an aggregated trade.
    trades: int = 1
