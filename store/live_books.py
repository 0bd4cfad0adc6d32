"""Router memory inside one process: the order books that may be relied on."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from market.book_message import BookSnapshot
from market.clock import Clock


class BookSource(Protocol):
    """Whoever keeps an order book right."""

    def top(self, levels: int) -> BookSnapshot | None:
        """The best levels of both sides, best first; None unless the book is LIVE."""
        ...

    def why(self) -> str:
        """The state of the book, and why, in words."""
        ...


class BookEdition(NamedTuple):
    """Which levels a book shows, for those who keep the same elsewhere. Equal ones differ by changes only."""

    #: Another one whenever the levels were put down anew.
    number: int
    #: Whether changes go into it; else it stays as it is until the next.
    changes: bool
    #: Levels worse than these prices may be missing, and are not shown; None where all are known.
    bid_bound: float | None = None
    ask_bound: float | None = None


class FollowedBook(BookSource, Protocol):
    """A book that can be kept elsewhere by its changes."""

    def edition(self) -> BookEdition | None:
        """What :meth:`top` shows; None unless the book is LIVE."""
        ...


class LiveBook(NamedTuple):
    """An order book, and how old it is."""

    book: BookSnapshot
    #: Since the last message in it was received, milliseconds of our clock.
    age_ms: int
    #: ``router``; ``memory`` where a copy in this process answered.
    tier: str = "router"


class LiveBooks:
    """The order books of this process. Only a LIVE book that has been heard of lately is handed out.

    :param clock: our clock, for the age of what is held.
    :param lifetime_ms: a book not heard of for this long is not served, whatever it says of itself.
    """

    def __init__(self, clock: Clock, lifetime_ms: int = 30_000) -> None:
        self._clock = clock
        self._lifetime_ms = lifetime_ms
        self._held: dict[tuple[str, str], BookSource] = {}

    def put(self, exchange: str, symbol: str, source: BookSource) -> None:
        """Serve the book of `source`, in place of any before."""
        self._held[exchange, symbol] = source

    def remove(self, exchange: str, symbol: str) -> None:
        """Serve it no longer; nothing happens if it was not."""
        self._held.pop((exchange, symbol), None)

    def get(self, exchange: str, symbol: str, levels: int) -> LiveBook | None:
        """The best `levels` of both sides, or None; :meth:`why` says why not."""
        source = self._held.get((exchange, symbol))
        book = None if source is None else source.top(levels)
        if book is None:
            return None
        age_ms = self._clock.now_ms() - book.received_at
        return None if age_ms > self._lifetime_ms else LiveBook(book, max(age_ms, 0))

    def why(self, exchange: str, symbol: str) -> str:
        """Why :meth:`get` gives None, or how the book that it gives fares, in words."""
        source = self._held.get((exchange, symbol))
        if source is None:
            return f"no order book of {symbol} is kept here for {exchange}"
        book = source.top(1)
        if book is not None:
            age_ms = self._clock.now_ms() - book.received_at
            if age_ms > self._lifetime_ms:
                return f"not heard of for {age_ms} ms; {self._lifetime_ms} ms would be accepted"
        return source.why()
