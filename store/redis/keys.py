"""The names of our values in Redis. One symbol's have one hash tag, so that in a cluster they lie together.

``chandlery:1:{binance|BTC/USDT}:ticker``, ``chandlery:1:{binance|BTC/USDT}:candles:1m``,
``chandlery:1:query:7f3a``. The 1 is the version of the format. Parts are percent-escaped
(:attr:`store.cache.key.CacheKey.text`), so neither a brace nor a star nor a bar of theirs means anything here.
"""

from __future__ import annotations

from market.errors import BadInput
from store.cache.key import CacheKey, check_pattern

PREFIX = "chandlery:1:"


def redis_key(key: CacheKey) -> str:
    """Under which name Redis has this value.

    :raises BadInput: a part is no text that can be written as UTF-8.
    """
    kind, *parts = key.text.split(":")
    if len(parts) < 2:
        return PREFIX + ":".join((kind, *parts))
    return PREFIX + ":".join((f"{{{parts[0]}|{parts[1]}}}", kind, *parts[2:]))


def tag(exchange: str, symbol: str) -> str:
    """What the names of one symbol's values begin with: ``chandlery:1:{binance|BTC/USDT}:``."""
    return redis_key(CacheKey("", (exchange, symbol)))


def cache_key(name: bytes) -> CacheKey | None:
    """The key whose value has this name in Redis; None if it is none of ours."""
    try:
        text = name.decode("ascii")
        if not text.startswith(PREFIX):
            return None
        text = text.removeprefix(PREFIX)
        if text.startswith("{"):
            market, mark, rest = text[1:].partition("}:")
            parts = market.split("|")
            if not mark or len(parts) != 2:
                return None
            kind, *others = rest.split(":")
            text = ":".join((kind, *parts, *others))
        elif text.count(":") > 1:
            return None
        return CacheKey.parse(text)
    except (UnicodeDecodeError, BadInput):
        return None


def match(pattern: str) -> str:
    """A pattern of Redis (``SCAN … MATCH``) for the names of all values whose keys match `pattern`, and some more.

    Where `pattern` says the exchange, or exchange and symbol, so does the answer.

    :raises BadInput: `pattern` is none.
    """
    literal = check_pattern(pattern).partition("*")[0].partition("?")[0]
    pieces = literal.split(":")
    if len(pieces) < 3:
        return f"{PREFIX}*"
    if literal == pattern or len(pieces) == 3:
        return f"{PREFIX}{{{pieces[1]}|{pieces[2]}*"
    return f"{PREFIX}{{{pieces[1]}|{pieces[2]}}}:*"
