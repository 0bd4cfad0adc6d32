"""One side of an order book: quantities by price.

A dict and the best price beside it. Measured with CPython 3.11 on the recorded BTCUSDT sessions (spot, 46
levels a message, 2,000 and 3,000 levels in the book; USD-M, 68 levels a message, 5,000 in the book), both sides
and their best prices after each message:

=============================  ==========  ===========
microseconds a message         spot        USD-M
=============================  ==========  ===========
dict and best price             9.6        13.7
dict and heap, cleaned late    12.4        14.9
sortedcontainers.SortedDict    37.9        39.1
=============================  ==========  ===========

The price: the best 20 levels take 63 to 126 microseconds here (a SortedDict: 1 to 2), and so does finding the
next best price when the best is removed (29 to 75). The first is asked for ten times a second, the second is in
the numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from heapq import nlargest, nsmallest

from market.book_message import Level, LevelText


class BookSide(ABC):
    """Levels of one side.

    :param cut: a snapshot of so many levels ends there although the book goes on; None where it is always whole.
    """

    def __init__(self, levels: Sequence[Level] = (), cut: int | None = None) -> None:
        #: Quantity (base) by price.
        self.levels: dict[float, float] = {price: quantity for price, quantity in levels if quantity}
        #: None if there is none.
        self.best: float | None = self._first()
        #: As the exchange wrote them; only kept for books with checksums.
        self.texts: dict[float, LevelText] = {}
        #: Levels worse than this price may be missing; None if all are known.
        self.bound: float | None = self._last() if cut is not None and len(levels) >= cut else None
        #: From the best price to the bound, when the snapshot was made.
        self._span = 0.0 if self.best is None or self.bound is None else abs(self.best - self.bound)

    @property
    def sure(self) -> bool:
        """Whether the best price is surely the best: a snapshot's bound has not been passed."""
        return self.bound is None or (self.best is not None and self.knows(self.best))

    @property
    def thin(self) -> bool:
        """Whether the best price has come three quarters of the way to the bound of what is known."""
        if self.bound is None or self.best is None:
            return not self.sure
        return abs(self.best - self.bound) < self._span / 4 or not self.sure

    @abstractmethod
    def update(self, changes: Iterable[Level]) -> None:
        """Take over changed levels; a quantity of zero removes one, or does nothing."""

    def write_down(self, changes: Sequence[Level], texts: Sequence[LevelText]) -> None:
        """Keep the text of changed levels."""
        kept = self.texts
        for (price, quantity), text in zip(changes, texts, strict=True):
            if quantity:
                kept[price] = text
            else:
                kept.pop(price, None)

    def top(self, count: int) -> list[Level]:
        """The best `count` of the levels surely known, best first."""
        levels = self.levels
        return [(price, levels[price]) for price in self._prices(count) if self.knows(price)]

    def top_texts(self, count: int) -> list[LevelText]:
        """The best `count` levels as the exchange wrote them.

        :raises KeyError: where a text was not kept.
        """
        return [self.texts[price] for price in self._prices(count)]

    @abstractmethod
    def knows(self, price: float) -> bool:
        """Whether it would be known if there were a level at `price`."""

    @abstractmethod
    def _first(self) -> float | None:
        """The best price."""

    @abstractmethod
    def _last(self) -> float | None:
        """The worst price."""

    @abstractmethod
    def _prices(self, count: int) -> list[float]:
        """The best `count` prices, best first."""


class Bids(BookSide):
    """Who wants to buy: the highest price is best."""

    def update(self, changes: Iterable[Level]) -> None:
        levels, best = self.levels, self.best
        for price, quantity in changes:
            if quantity:
                levels[price] = quantity
                if best is None or price > best:
                    best = price
            else:
                levels.pop(price, None)
        # Looked for once a message, not at each level that goes.
        self.best = best if best is None or best in levels else self._first()

    def knows(self, price: float) -> bool:
        return self.bound is None or price >= self.bound

    def _first(self) -> float | None:
        return max(self.levels, default=None)

    def _last(self) -> float | None:
        return min(self.levels, default=None)

    def _prices(self, count: int) -> list[float]:
        return nlargest(count, self.levels)


class Asks(BookSide):
    """Who wants to sell: the lowest price is best."""

    def update(self, changes: Iterable[Level]) -> None:
        levels, best = self.levels, self.best
        for price, quantity in changes:
            if quantity:
                levels[price] = quantity
                if best is None or price < best:
                    best = price
            else:
                levels.pop(price, None)
        self.best = best if best is None or best in levels else self._first()

    def knows(self, price: float) -> bool:
        return self.bound is None or price <= self.bound

    def _first(self) -> float | None:
        return min(self.levels, default=None)

    def _last(self) -> float | None:
        return max(self.levels, default=None)

    def _prices(self, count: int) -> list[float]:
        return nsmallest(count, self.levels)
