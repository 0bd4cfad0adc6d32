"""Checksums that exchanges send with their order books, from the text of the best levels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice, zip_longest
from zlib import crc32

from market.book_message import LevelText

#: Levels of each side that OKX's checksum covers.
OKX_LEVELS = 25
_NOTHING: tuple[str, ...] = ()


def okx_checksum(bids: Sequence[LevelText], asks: Sequence[LevelText]) -> int:
    """OKX's checksum of a book: the CRC-32, as a signed number, of its best 25 levels of each side as text.

    A bid, then an ask, then the next bid; where one side has fewer levels, only the other one goes on::

        30250.1:2:30250.2:0.5:30250:1:30251:3.2

    :param bids: price and size as OKX wrote them, best first; further levels are not looked at.
    :param asks: likewise.
    """
    pairs = zip_longest(islice(bids, OKX_LEVELS), islice(asks, OKX_LEVELS), fillvalue=_NOTHING)
    unsigned = crc32(":".join(chain.from_iterable(bid + ask for bid, ask in pairs)).encode())
    return unsigned - (1 << 32) if unsigned >= 1 << 31 else unsigned
