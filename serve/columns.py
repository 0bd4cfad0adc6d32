"""The columns a reader may choose from."""

from __future__ import annotations

from collections.abc import Sequence

from market.candle import COLUMNS
from market.errors import BadInput
from serve.words import close_match

#: False in the row of a candle that has not closed; there only where forming candles were asked for.
CLOSED = "closed"
#: The columns of a candle, and how many base candles are missing inside a derived one.
READABLE = (*COLUMNS, "missing")


def chosen_columns(names: Sequence[str] | None, include_forming: bool) -> tuple[str, ...]:
    """The columns of an answer: those named, ``open_time`` first, each once; all by default.

    :raises BadInput: naming the first unknown one and listing the known.
    """
    known = (*READABLE, CLOSED) if include_forming else READABLE
    if names is None:
        return known
    for name in names:
        if name not in known:
            raise BadInput("columns", name, f"some of {', '.join(known)}{close_match(name, known)}")
    return tuple(dict.fromkeys(["open_time", *names]))
