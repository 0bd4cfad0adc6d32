"""Holding a LIVE order book against a new REST snapshot.

Two books can only be compared at the same change. A snapshot is never of just the change the book stands at, so a
second book begins with it and takes the same changes: from the first one after the snapshot on, both stand at the
same.
"""

from __future__ import annotations

from market.book_message import BookChain, BookChange, BookSnapshot, BookStart
from market.order_book import BookState, OrderBook


class BookCheck:
    """One comparison, begun before the snapshot is asked for.

    :param levels: levels that are asked for.
    """

    def __init__(self, book: OrderBook, chain: BookChain, levels: int) -> None:
        self._book = book
        self._other = OrderBook(chain, BookStart.REST, snapshot_levels=levels)

    def apply(self, change: BookChange) -> None:
        """A change that the book has been given too."""
        self._other.apply(change)

    def begin(self, snapshot: BookSnapshot) -> bool:
        """The snapshot has come; false where it is older than the book was when it was asked for."""
        return self._other.snapshot(snapshot)

    @property
    def ready(self) -> bool:
        """Whether both stand at the same change."""
        book, other = self._book, self._other
        return book.state is other.state is BookState.LIVE and book.last_id == other.last_id

    @property
    def hopeless(self) -> bool:
        """Whether one of them has been lost, or the other is behind for good."""
        return self._book.state is not BookState.LIVE or (
            self._other.state is BookState.LIVE and self._other.last_id < self._book.last_id
        )

    def end(self) -> str | None:
        """Once ready: the first difference, in words, or None.

        Where there is none, the book takes over the levels of the snapshot, which reach as far as they did when the
        book began, from where the market is now.
        """
        difference = self._book.difference(self._other)
        if difference is None:
            self._book.adopt(self._other)
        return difference
