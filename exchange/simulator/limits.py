"""Request weights and the limit on them, as Binance spot has them.

6,000 weight in each minute of the machine's clock and for each address (unless told otherwise); it protects the
machine, so exchange time has no say in it. The request that goes over gets 429 with ``Retry-After``; who keeps on
asking is banned (418), for two minutes at first and twice as long each time after.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from market.clock import Clock

WEIGHT_LIMIT = 6000
#: Requests answered with 429 in one minute before a ban.
PATIENCE = 10
FIRST_BAN_MS = 120_000
_LONGEST_BAN_MS = 3 * 86_400_000
_MINUTE_MS = 60_000
_SECOND_MS = 1000


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """How much weight an address may use in each window of the machine's clock."""

    weight: int = WEIGHT_LIMIT
    #: Whole seconds; Binance's is a minute.
    window_ms: int = _MINUTE_MS

    def rule(self) -> dict[str, Any]:
        """As an entry of exchangeInfo's ``rateLimits``."""
        whole = self.window_ms % _MINUTE_MS == 0
        return {
            "rateLimitType": "REQUEST_WEIGHT",
            "interval": "MINUTE" if whole else "SECOND",
            "intervalNum": self.window_ms // (_MINUTE_MS if whole else _SECOND_MS),
            "limit": self.weight,
        }


@dataclass
class _Address:
    minute: int = -1
    used: int = 0
    refused: int = 0
    bans: int = 0
    banned_until_ms: int = 0


@dataclass(frozen=True)
class Verdict:
    """What the limit says of one request."""

    #: Weight used in this minute, this request included.
    used: int
    #: 200, 429 or 418.
    status: int = 200
    #: Seconds to wait; 0 when allowed.
    retry_after: int = 0
    #: Epoch milliseconds at which a ban ends; 0 without one.
    banned_until_ms: int = 0


@dataclass
class WeightLimit:
    """Counts the weight of each address."""

    clock: Clock
    limit: int = WEIGHT_LIMIT
    window_ms: int = _MINUTE_MS
    _addresses: dict[str, _Address] = field(default_factory=dict)

    def spend(self, address: str, weight: int) -> Verdict:
        """Count `weight` against `address`, and say whether the request may go on."""
        now_ms = self.clock.now_ms()
        one = self._addresses.setdefault(address, _Address())
        if now_ms < one.banned_until_ms:
            return Verdict(one.used, 418, _seconds(one.banned_until_ms - now_ms), one.banned_until_ms)
        minute = now_ms // self.window_ms
        if minute != one.minute:
            one.minute, one.used, one.refused = minute, 0, 0
        one.used += weight
        if one.used <= self.limit:
            return Verdict(one.used)
        one.refused += 1
        if one.refused <= PATIENCE:
            return Verdict(one.used, 429, _seconds((minute + 1) * self.window_ms - now_ms))
        length = min(FIRST_BAN_MS * 2**one.bans, _LONGEST_BAN_MS)
        one.bans += 1
        one.refused = 0
        one.banned_until_ms = now_ms + length
        return Verdict(one.used, 418, _seconds(length), one.banned_until_ms)


def _seconds(milliseconds: int) -> int:
    return max(1, -(-milliseconds // 1000))


def depth_weight(limit: int) -> int:
    """Weight of an order book of `limit` levels."""
    return next(weight for levels, weight in ((100, 5), (500, 25), (1000, 50), (5000, 250)) if limit <= levels)


def ticker_weight(symbols: int | None) -> int:
    """Weight of the 24-hour statistics of so many symbols; None for all."""
    if symbols is None or symbols > 100:
        return 80
    return 2 if symbols <= 20 else 40
