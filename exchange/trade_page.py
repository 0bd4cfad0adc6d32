"""One answer of an exchange to a question about the trades after a known one."""

from __future__ import annotations

from dataclasses import dataclass

from market.trade import Trade


@dataclass(frozen=True, kw_only=True)
class TradePage:
    """Trades that follow the last known one, and what the answer says about those before and after them."""

    #: Oldest first, each once. None of them is the last known one, or older.
    trades: list[Trade]
    #: By this answer there was nothing newer when it was asked. An answer that was cut short says so too.
    complete: bool
    #: The first trade does not follow the last known one: what lies between is not served (any more).
    missing: bool
