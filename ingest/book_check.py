"""Holding a LIVE order book against a new REST snapshot.

Two books can only be compared at the same change. A snapshot is never of just the change the book stands at, so a
second book begins with it and takes the same changes: from the first one after the snapshot on, both stand at the
same.
"""

from __future__ import annotations

from ingest.book_rules import BookRules
from market.book_message import BookChain, BookChange, BookSnapshot, BookStart
from market.order_book import BookState, OrderBook


def same_book(book: OrderBook, snapshot: BookSnapshot) -> bool:
    """Whether a book that the stream has left alone is still what REST shows now, as far as that reaches."""
    if snapshot.last_id and book.last_id:
        return snapshot.last_id <= book.last_id
    # Some exchanges answer with fewer levels than were asked for: never take the last one for the end of the book.
    shown = OrderBook(BookChain.FIRST_ID, BookStart.REST, snapshot_levels=1)
    return shown.snapshot(snapshot) and book.difference(shown) is None


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


class BookChecks:
    """All comparisons of one book: when they are due, and how they went.

    :param chain: of a book that begins over REST.
    """

    def __init__(self, book: OrderBook, chain: BookChain, rules: BookRules, now_ms: int) -> None:
        self._book = book
        self._chain = chain
        self._rules = rules
        self._current: BookCheck | None = None
        self._until = 0
        self._checked_at = now_ms
        #: Comparisons that found a difference, that found none, and that did not come about.
        self.differences = 0
        self.agreements = 0
        self.missed = 0

    def began(self, at: int) -> None:
        """The book has just begun with a snapshot, which is as good as a comparison."""
        self._checked_at = at

    def due(self, now_ms: int) -> bool:
        """Whether it is time for one."""
        live = self._book.state is BookState.LIVE
        return live and self._current is None and now_ms - self._checked_at >= self._every_ms()

    def begin(self, now_ms: int) -> BookCheck:
        """Before a snapshot is asked for."""
        self._current = BookCheck(self._book, self._chain, self._rules.levels)
        self._checked_at = now_ms
        self._until = now_ms + self._rules.compare_within_ms
        return self._current

    def answered(self, check: BookCheck, snapshot: BookSnapshot | None, now_ms: int) -> str | None:
        """The snapshot for `check` has come, or none; a difference, in words, if one is seen already."""
        if check is not self._current:
            return None
        if snapshot is None or not check.begin(snapshot):
            self._miss(now_ms)
            return None
        return self._compare(now_ms)

    def apply(self, change: BookChange, now_ms: int) -> str | None:
        """A change that the book has taken; a difference, in words, if one is seen."""
        if self._current is None:
            return None
        self._current.apply(change)
        return self._compare(now_ms)

    def pass_time(self, now_ms: int) -> None:
        """Give up what has taken too long, or has lost its book."""
        if self._current is not None and (now_ms >= self._until or self._book.state is not BookState.LIVE):
            self._miss(now_ms)

    def _compare(self, now_ms: int) -> str | None:
        check = self._current
        if check is None:
            return None
        if check.ready:
            self._current = None
            difference = check.end()
            self.agreements += difference is None
            self.differences += difference is not None
            return difference
        if check.hopeless:
            self._miss(now_ms)
        return None

    def _miss(self, now_ms: int) -> None:
        self._current = None
        self.missed += 1
        # Not at once, and not only after the whole time.
        self._checked_at = now_ms - self._every_ms() + self._rules.renew_ms

    def _every_ms(self) -> int:
        return self._rules.renew_ms if self._book.thin else self._rules.compare_ms
