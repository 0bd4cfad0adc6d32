"""Names of live data in Redis."""

from __future__ import annotations

from urllib.parse import quote

_SAFE = "/-_.~+@=,"
#: Counts up when what is written changes its form: values of another version have other names.
_VERSION = 1


def live_key(exchange: str, symbol: str, *parts: str) -> str:
    """``chandlery:1:{binance|BTC/USDT}:ticker``. The braces keep all keys of one symbol in one slot of a cluster."""
    named = ":".join(quote(part, safe=_SAFE) for part in parts)
    return f"chandlery:{_VERSION}:{{{quote(exchange, safe=_SAFE)}|{quote(symbol, safe=_SAFE)}}}:{named}"


def exchange_key(exchange: str, *parts: str) -> str:
    """``chandlery:1:{binance}:symbols``: what belongs to an exchange as a whole."""
    named = ":".join(quote(part, safe=_SAFE) for part in parts)
    return f"chandlery:{_VERSION}:{{{quote(exchange, safe=_SAFE)}}}:{named}"
