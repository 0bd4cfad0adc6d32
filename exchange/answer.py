"""Reading REST answers: of the documented form, or no answer at all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeVar

import msgspec

from market.book_message import Level
from market.errors import ExchangeUnavailable

Wire = TypeVar("Wire")


def as_documented(answer: Any, kind: type[Wire], what: str) -> Wire:
    """A decoded JSON answer as a typed one; numbers may come as text.

    :raises ExchangeUnavailable: naming `what` and the field that is not as documented.
    """
    try:
        return msgspec.convert(answer, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ExchangeUnavailable(f"{what}: the answer is not as documented: {error}") from error


def best_first(levels: Sequence[Level], *, falling: bool, what: str) -> list[Level]:
    """The levels of one side of a book, if each price is worse than the one before.

    :param falling: true for bids.
    :raises ExchangeUnavailable: naming `what`.
    """
    for better, worse in pairwise(levels):
        if better[0] == worse[0] or (better[0] > worse[0]) is not falling:
            raise ExchangeUnavailable(f"{what}: price {worse[0]} follows {better[0]}")
    return list(levels)
