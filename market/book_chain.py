"""Whether a change of an order book follows what has been seen.

The rules come from the exchanges' own descriptions: Binance's "How to manage a local order book correctly"
(spot, and the USD-M futures page of the same name, where ``pu`` names the message before), OKX's "Sequence ID"
of the order book channel, and Bybit's "Process snapshot/delta". A quantity in a change is what stands at that
price after it, not a difference, so a change that covers more than what was missing may be taken as well.
"""

from __future__ import annotations

from enum import Enum, auto

from market.book_message import BookChain, BookChange


class Place(Enum):
    """Where a change stands."""

    NEXT = auto()
    #: All of it has been seen; it says nothing new.
    OLD = auto()
    #: Something between what has been seen and this change is missing.
    HOLE = auto()


def place(chain: BookChain, change: BookChange, last_id: int, after_snapshot: bool) -> Place:
    """Where `change` stands for a book that is right up to `last_id`.

    :param after_snapshot: nothing but a snapshot has been seen. Its number may lie within the first change.
    """
    match chain:
        case BookChain.FIRST_ID:
            if change.last_id <= last_id:
                return Place.OLD
            return Place.NEXT if change.first_id <= last_id + 1 else Place.HOLE
        case BookChain.PREVIOUS_ID:
            before = change.previous_id
            if before == last_id:
                return Place.NEXT
            if change.last_id <= last_id:
                return Place.OLD
            # Binance writes U <= id <= u. Ids between `pu` and `U` belong to other symbols, so this says the same.
            return Place.NEXT if after_snapshot and before is not None and before <= last_id else Place.HOLE
        case BookChain.SNAPSHOT_CHAIN:
            if change.previous_id == last_id:
                return Place.NEXT
            # OKX may begin its numbers anew. A smaller number can therefore be an old message or one after such a
            # beginning that was lost; taking it for old would leave a wrong book.
            return Place.OLD if change.last_id == last_id else Place.HOLE
        case BookChain.COUNTED:
            if change.last_id <= last_id:
                return Place.OLD
            return Place.NEXT if change.first_id == last_id + 1 else Place.HOLE
        case BookChain.CONNECTION:
            return Place.NEXT
