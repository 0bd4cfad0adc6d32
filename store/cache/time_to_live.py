"""How long a value may be served without asking again, by what it is."""

from __future__ import annotations

from enum import StrEnum


class TtlClass(StrEnum):
    """The classes of values that age alike (D3)."""

    PRICE = "price"
    ORDER_BOOK = "order_book"
    POSITION = "position"
    RISK = "risk"
    ORDER = "order"
    STRATEGY = "strategy"
    QUERY_RESULT = "query_result"
