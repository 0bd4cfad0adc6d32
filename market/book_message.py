"""Messages of order books: whole ones and changes. `market.order_book` puts them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

#: Price (quote per base) and quantity there (base). In a change, a quantity of zero removes the level.
Level = tuple[float, float]
#: The same as the exchange wrote it, for checksums that are made of text.
LevelText = tuple[str, str]


class BookSnapshot(NamedTuple):
    """A whole book, or its best levels."""

    #: The exchange's number of the last change in it; 0 where it has none.
    last_id: int
    #: Best first.
    bids: Sequence[Level]
    asks: Sequence[Level]
    #: When the exchange sent it, epoch milliseconds; None where it does not say.
    event_time: int | None
    #: When we received it, epoch milliseconds of our clock.
    received_at: int
    #: The exchange's checksum over its best levels, and the levels as text; None where it offers none.
    checksum: int | None = None
    bid_texts: Sequence[LevelText] | None = None
    ask_texts: Sequence[LevelText] | None = None


class BookChange(NamedTuple):
    """Levels that changed since the message before."""

    #: Numbers of the first and last change in it. An exchange without numbers: both 0.
    first_id: int
    last_id: int
    #: The last number of the message before, where the exchange says it (Binance futures, OKX); else None.
    previous_id: int | None
    bids: Sequence[Level]
    asks: Sequence[Level]
    event_time: int | None
    received_at: int
    checksum: int | None = None
    bid_texts: Sequence[LevelText] | None = None
    ask_texts: Sequence[LevelText] | None = None
