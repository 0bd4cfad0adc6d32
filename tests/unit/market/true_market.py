"""An exchange's order book as it truly was after every event, and the messages that tell of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from market.book_checksum import okx_checksum
from market.book_message import BookChain, BookChange, BookSnapshot, Level, LevelText
from market.order_book import OrderBook

#: Epoch milliseconds of the event number 0; one event a millisecond.
AT = 1_700_000_000_000


class Event(NamedTuple):
    """One order: a level set, or taken away with a quantity of 0. It takes what it crosses off the other side."""

    buys: bool
    #: In ticks, 1 to 30.
    price: int
    quantity: int


Sides = tuple[dict[float, float], dict[float, float]]


class TrueMarket:
    """The book after each event, by number, and the changes that were sent."""

    def __init__(self, chain: BookChain) -> None:
        self._chain = chain
        # Ids of futures and of OKX leave numbers out.
        self._step = 3 if chain in (BookChain.PREVIOUS_ID, BookChain.SNAPSHOT_CHAIN) else 1
        self.now = 100
        self._sent = 100
        self._touched: tuple[set[float], set[float]] = (set(), set())
        #: The true book at every number that a message can end with, or a snapshot can have.
        self.books: dict[int, Sides] = {100: ({10.0: 1.0, 9.0: 2.0, 8.0: 1.0}, {20.0: 1.0, 21.0: 2.0, 22.0: 1.0})}

    def happen(self, events: Sequence[Event]) -> BookChange:
        """Events, told in one change."""
        first = self.now + 1
        for event in events:
            self._one(event)
        bids, asks = self.books[self.now]
        changes = [
            [(price, side.get(price, 0.0)) for price in sorted(touched)]
            for side, touched in zip((bids, asks), self._touched, strict=True)
        ]
        counted = self._chain in (BookChain.FIRST_ID, BookChain.COUNTED)
        change = BookChange(
            0 if self._chain is BookChain.CONNECTION else first,
            0 if self._chain is BookChain.CONNECTION else self.now,
            None if counted or self._chain is BookChain.CONNECTION else self._sent,
            changes[0],
            changes[1],
            None,
            AT + self.now,
        )
        self._sent = self.now
        self._touched = (set(), set())
        if self._chain is not BookChain.CONNECTION:
            return change
        return change._replace(
            checksum=self._checksum(), bid_texts=_texts(changes[0]), ask_texts=_texts(changes[1])
        )

    def snapshot(self, age: int = 0, levels: int | None = None) -> BookSnapshot:
        """The book as it was `age` numbers ago, cut to its best `levels`."""
        number = max(one for one in self.books if one <= max(self.now - age, 100))
        bids, asks = self.books[number]
        best_bids = sorted(bids.items(), reverse=True)[:levels]
        best_asks = sorted(asks.items())[:levels]
        if self._chain is BookChain.CONNECTION:
            whole = BookSnapshot(0, best_bids, best_asks, None, AT + self.now)
            return whole._replace(
                checksum=self._checksum(), bid_texts=_texts(best_bids), ask_texts=_texts(best_asks)
            )
        return BookSnapshot(number, best_bids, best_asks, None, AT + self.now)

    def _one(self, event: Event) -> None:
        bids, asks = (dict(side) for side in self.books[self.now])
        price = float(event.price)
        own, other = (bids, asks) if event.buys else (asks, bids)
        taken = [one for one in other if (one <= price if event.buys else one >= price)] if event.quantity else []
        for one in taken:
            del other[one]
        if event.quantity:
            own[price] = float(event.quantity)
        else:
            own.pop(price, None)
        self._touched[0 if event.buys else 1].add(price)
        self._touched[1 if event.buys else 0].update(taken)
        self.now += self._step
        self.books[self.now] = (bids, asks)

    def _checksum(self) -> int:
        bids, asks = self.books[self.now]
        return okx_checksum(_texts(sorted(bids.items(), reverse=True)), _texts(sorted(asks.items())))


def assert_true(book: OrderBook, sides: Sides) -> None:
    """Everything that the book shows is so in `sides`, and nothing is missing as far as it shows anything."""
    shown = book.top(1000)
    for levels, true, best, sign in (
        (shown.bids, sides[0], book.best_bid, -1),
        (shown.asks, sides[1], book.best_ask, 1),
    ):
        ordered = sorted(true.items(), key=lambda level: sign * level[0])
        assert list(levels) == ordered[: len(levels)]
        assert best == (ordered[0][0] if ordered else None)
        # A side may be cut short, but never to nothing while there is something.
        assert bool(levels) == bool(ordered)
    assert book.best_bid is None or book.best_ask is None or book.best_bid < book.best_ask


def _texts(levels: Sequence[Level]) -> list[LevelText]:
    return [(f"{price:g}", f"{quantity:g}") for price, quantity in levels]
