"""The name of a cached value, and the patterns that name many."""

from __future__ import annotations

import fnmatch
import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, unquote

from market.errors import BadInput
from store.cache.time_to_live import class_of

#: Characters of a part that stay as they are, beside letters and digits. All others would mean something in a
#: key, in a pattern or to Redis.
_SAFE = "/-_.~+@=,"
_TEXT = re.compile(r"[A-Za-z0-9/\-_.~+@=,%:]+\Z")
_PATTERN = re.compile(r"[A-Za-z0-9/\-_.~+@=,%:*?]+\Z")


class CacheKey(NamedTuple):
    """What a value is, and of what: ``CacheKey.of("ticker", "binance", "BTC/USDT")``.

    The parts of a value that belongs to a market begin with its exchange and its symbol: that is what an
    invalidation of a series goes by, and what keeps one symbol's keys together in a cluster.
    """

    #: One of :data:`store.cache.time_to_live.KINDS`.
    kind: str
    parts: tuple[str, ...]

    @classmethod
    def of(cls, kind: str, *parts: str) -> CacheKey:
        """The key; raises BadInput naming ``kind`` if there is no such kind."""
        class_of(kind)
        return cls(kind, parts)

    @property
    def text(self) -> str:
        """``ticker:binance:BTC/USDT``; in the parts, what means something in a key or a pattern is ``%``-escaped.

        :raises BadInput: a part is no text that can be written as UTF-8.
        """
        return _text(self)

    @classmethod
    def parse(cls, text: str) -> CacheKey:
        """The key that has this text.

        :raises BadInput: there is none.
        """
        if _TEXT.match(text):
            kind, *parts = text.split(":")
            try:
                key = cls.of(kind, *(unquote(part, errors="strict") for part in parts))
            except UnicodeDecodeError:
                key = None
            if key is not None and key.text == text:
                return key
        raise BadInput("key", text, "a key such as ticker:binance:BTC/USDT, parts escaped by %XX")


@lru_cache(maxsize=10_000)
def _text(key: CacheKey) -> str:
    try:
        return ":".join((key.kind, *(quote(part, safe=_SAFE) for part in key.parts)))
    except UnicodeEncodeError:
        raise BadInput("key", key.parts, "parts in text that UTF-8 can write") from None


def check_pattern(pattern: str, field: str = "pattern") -> str:
    """`pattern` if it is one: the text of a key with ``*`` for any characters and ``?`` for one.

    A star goes over colons too: ``ticker:binance:*`` names all tickers of that exchange.

    :raises BadInput: naming `field`; for instance for brackets and braces, which mean something elsewhere.
    """
    if not isinstance(pattern, str) or len(pattern) > 1_000 or not _PATTERN.match(pattern):
        raise BadInput(field, pattern, "the text of a key, * and ? standing for any characters and for one")
    return pattern


@lru_cache(maxsize=1_000)
def pattern_regex(pattern: str) -> re.Pattern[str]:
    """What matches the texts of the keys that a pattern names; raises BadInput as :func:`check_pattern`."""
    # The library's translation never backtracks over a star, so no pattern takes long; what it knows beyond * and ?
    # are brackets, which are refused.
    return re.compile(fnmatch.translate(check_pattern(pattern)))
