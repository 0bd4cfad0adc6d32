"""Names a caller may have meant: the nearest known one, or our word for what others call differently."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

#: Words that other services use for ours.
_OTHER_WORDS = {
    "tf": "timeframe",
    "interval": "timeframe",
    "pair": "symbol",
    "market": "symbol",
    "since": "start",
    "from": "start",
    "starttime": "start",
    "until": "end",
    "to": "end",
    "endtime": "end",
    "fields": "columns",
}


def close_match(name: str, known: Iterable[str]) -> str:
    """``; did you mean X?`` for the nearest known name, or nothing."""
    names = list(known)
    other = _OTHER_WORDS.get(name.lower())
    near = [other] if other in names else get_close_matches(name, names, 1, 0.5)
    return f"; did you mean {near[0]}?" if near else ""
