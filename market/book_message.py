"""Messages of order books: whole ones and changes. `market.order_book` puts them together."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
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


class BookStart(StrEnum):
    """Where an order book begins."""

    #: The stream sends changes only; the book itself is asked for over REST.
    REST = "rest"
    #: The stream sends the whole book first.
    STREAM = "stream"


class BookChain(StrEnum):
    """How one change of an order book says which one it follows."""

    #: first_id <= last seen + 1 <= last_id, for the first change after a snapshot and for those after it, where it
    #: is last seen + 1 unless two connections overlap. (Binance spot)
    FIRST_ID = "first_id"
    #: The first change has previous_id <= snapshot's last_id <= last_id, then previous_id == last seen.
    #: (Binance USD-M futures)
    PREVIOUS_ID = "previous_id"
    #: previous_id == last seen from the snapshot on. (OKX since 2023)
    SNAPSHOT_CHAIN = "snapshot_chain"
    #: first_id == last seen + 1 from the snapshot on. (Bybit)
    COUNTED = "counted"
    #: Nothing but the connection says so. (Coinbase's level2, OKX before 2023: that has checksums)
    CONNECTION = "connection"
