"""Names of instruments, and what to say to a wrong one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from market.errors import NotFound


def unknown_symbol(exchange: str, symbol: str, known: Iterable[str]) -> NotFound:
    """The error for a symbol that `exchange` does not trade, with the nearest ones it does."""
    near = get_close_matches(symbol.upper(), list(known), 5, 0.6)
    accepted = f"a symbol that {exchange} trades"
    return NotFound("symbol", symbol, hint=accepted + (", such as " + ", ".join(near) if near else ""))
