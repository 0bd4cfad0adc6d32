"""Names of live data in Redis, beside those of cached values and never the same."""

from __future__ import annotations

from store.cache.key import CacheKey
from store.redis.keys import PREFIX, tag

_LIVE = "live"


def live_key(exchange: str, symbol: str, *parts: str) -> str:
    """``chandlery:1:{binance|BTC/USDT}:live:ticker``: all of one symbol lie in one slot of a cluster."""
    return tag(exchange, symbol) + CacheKey(_LIVE, parts).text


def symbols_key(exchange: str) -> str:
    """``chandlery:1:{binance}:live:symbols``: of which symbols there may be a ticker."""
    return f"{PREFIX}{{{CacheKey('', (exchange,)).text[1:]}}}:{_LIVE}:symbols"
