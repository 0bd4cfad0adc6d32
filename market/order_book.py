"""An order book that is right, or says that it is not.

It is put together as Binance describes under "How to manage a local order book correctly" (spot,
https://developers.binance.com/docs/binance-spot-api-docs/web-socket-streams; USD-M futures, the page of that name):
changes are kept first, a snapshot is asked for second, then what was kept is played on it and each change must
follow the one before. Books whose stream begins with the whole book (OKX, Bybit, Coinbase) skip the asking.

::

    SYNCING --snapshot, and all kept changes follow--> LIVE --hole, crossed, checksum, silence, disconnect--> STALE
       ^                                                 ^                                                     |
       +----- clear (a new connection) ------------------+---- a snapshot again, or the chain goes on ---------+

Only a LIVE book may be shown to anyone. While LIVE, it equals the exchange's book at `last_id`, as far as the
snapshot reached: REST snapshots are cut, and levels beyond the cut are not known until they change. What is there
is not served, and a best price there makes the book STALE.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import NamedTuple

from market.book_chain import Place, place
from market.book_message import BookChain, BookChange, BookSnapshot, BookStart, LevelText
from market.book_side import Asks, Bids
from market.errors import BadInput

#: From the best bids and asks (best first, as the exchange wrote them) to the number the exchange sends.
Checksum = Callable[[Sequence[LevelText], Sequence[LevelText]], int]
#: What a book kept while it waits for its snapshot may hold: 100 s at ten changes a second.
MOST_KEPT = 1000


class BookState(StrEnum):
    """Whether an order book may be relied on."""

    #: Waiting for its first snapshot on this connection.
    SYNCING = "syncing"
    #: Right up to its last change.
    LIVE = "live"
    #: It was right, or should have been, and is not any more.
    STALE = "stale"


class BookMark(NamedTuple):
    """A change of state, for those who record: changes before and after it do not make one book."""

    state: BookState
    #: In words.
    reason: str
    #: Times the book has begun anew.
    resyncs: int
    #: The exchange's number of the last change taken; 0 if there is none.
    last_id: int
    #: Epoch milliseconds of our clock.
    at: int


def ignore_mark(mark: BookMark) -> None:
    """Record nothing."""


class OrderBook:
    """One order book.

    :param snapshot_levels: levels of a REST snapshot; a side that has so many goes on beyond it. None where
        snapshots are whole.
    :param checksum: over the best `checksum_levels` of both sides; messages with a checksum are held against it.
    :param most_kept: changes kept while waiting for a snapshot. When full, all are dropped and it starts over.
    :param mark: told of each change of state and each new start, at once; never raises.
    :param taken: told of each change that went into the levels, LIVE or not; never raises.
    """

    def __init__(
        self,
        chain: BookChain,
        start: BookStart,
        *,
        snapshot_levels: int | None = None,
        checksum: Checksum | None = None,
        checksum_levels: int = 25,
        most_kept: int = MOST_KEPT,
        mark: Callable[[BookMark], None] = ignore_mark,
        taken: Callable[[BookChange], None] | None = None,
    ) -> None:
        if chain is BookChain.CONNECTION and start is BookStart.REST:
            raise BadInput("chain", str(chain), "numbered changes: without them a REST snapshot has no place")
        self._chain = chain
        self._start = start
        self._snapshot_levels = snapshot_levels
        self._checksum = checksum
        self._checksum_levels = checksum_levels
        self._most_kept = most_kept
        self._mark = mark
        self._taken = taken
        self._kept: deque[BookChange] = deque()
        self._bids, self._asks = Bids(), Asks()
        #: Levels stand on a snapshot and every change since.
        self._based = False
        self._after_snapshot = False
        #: The last number of the book that stood here before: a snapshot that ends before it is an old one.
        self._floor = 0
        self.state = BookState.SYNCING
        #: Why it is not LIVE, or how it became so.
        self.reason = "no snapshot yet"
        #: The exchange's number of the last change in it; 0 if there is none.
        self.last_id = 0
        #: Of the last message in it that says so, by the exchange; epoch milliseconds.
        self.event_time: int | None = None
        #: When the last message in it was received, epoch milliseconds of our clock; 0 if there is none.
        self.received_at = 0
        #: Times it began anew after it had been LIVE, or had dropped what it kept.
        self.resyncs = 0
        #: Changes that said nothing new, and were ignored.
        self.ignored = 0
        #: Snapshots that could not be used.
        self.refused = 0
        #: Times the levels were put down anew. While it stays the same, they differ by the changes `taken` only.
        self.bases = 0

    @property
    def wants_snapshot(self) -> bool:
        """Whether nothing but a new snapshot can make it LIVE."""
        return not self._based

    @property
    def kept(self) -> int:
        """Changes waiting for a snapshot."""
        return len(self._kept)

    @property
    def thin(self) -> bool:
        """Whether the market has moved so far that what is known beside the best price runs out."""
        return self._bids.thin or self._asks.thin

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """Levels worse than these prices (bid, ask) may be missing; None where all are known."""
        return self._bids.bound, self._asks.bound

    @property
    def best_bid(self) -> float | None:
        """Highest price of a buyer; None without one."""
        return self._bids.best

    @property
    def best_ask(self) -> float | None:
        """Lowest price of a seller; None without one."""
        return self._asks.best

    def top(self, levels: int) -> BookSnapshot:
        """The best levels of both sides, best first; fewer than `levels` where no more are surely known."""
        return BookSnapshot(
            self.last_id, self._bids.top(levels), self._asks.top(levels), self.event_time, self.received_at
        )

    def snapshot(self, snapshot: BookSnapshot) -> bool:
        """Begin with a whole book and play on it what was kept; true if the book is LIVE now.

        One that is older than the book, or than what was kept, changes nothing: ask again.
        """
        if self._start is BookStart.REST:
            if self._based and snapshot.last_id <= self.last_id:
                self.ignored += 1
                return self.state is BookState.LIVE
            # Without a change of this connection, what was seen before is all an answer can be held against.
            if not self._kept and snapshot.last_id < self._floor:
                return self._refuse(f"the snapshot ends at {snapshot.last_id}, but {self._floor} had been seen")
        self._take_over(snapshot)
        wrong = self._fault(snapshot.checksum)
        if wrong:
            return self._refuse(f"the snapshot is wrong: {wrong}")
        if not self._replay():
            return False
        if self.state is not BookState.LIVE:
            self._go_live("a snapshot, and every change since")
        return True

    def apply(self, change: BookChange) -> bool:
        """Take a change; true if the book is LIVE and new because of it."""
        if not self._based:
            self._keep(change)
            return False
        where = place(self._chain, change, self.last_id, self._after_snapshot)
        if where is Place.OLD:
            self.ignored += 1
            return False
        live = self.state is BookState.LIVE
        if where is Place.HOLE:
            self.lose(self._hole(change), change.received_at)
            self._keep(change)
            return False
        self._take(change)
        wrong = self._fault(change.checksum)
        if wrong:
            self.lose(wrong, change.received_at)
            return False
        if not live:
            if self._chain is BookChain.CONNECTION and (self._checksum is None or change.checksum is None):
                # Nothing in the change says that it is the next one.
                return False
            self._go_live("the changes go on where they stopped")
        return True

    def clear(self, reason: str, at: int) -> None:
        """Begin anew, for a new connection: nothing of the old one is left.

        :param at: epoch milliseconds of our clock.
        """
        last_id = self._empty()
        self._move(BookState.SYNCING, reason, at, last_id)

    def doubt(self, reason: str, at: int) -> None:
        """Make a LIVE book STALE, for it may have missed something.

        A change that surely follows, or has the right checksum, makes it LIVE again; without either,
        :meth:`confirm` does.
        """
        if self.state is BookState.LIVE:
            self._move(BookState.STALE, reason, at, self.last_id)

    def confirm(self, at: int) -> None:
        """Make a doubted book LIVE: someone has seen that it is right now.

        :param at: when, epoch milliseconds of our clock.
        """
        if self._based and self.state is BookState.STALE:
            self.received_at = max(self.received_at, at)
            self._go_live("REST shows the same")

    def lose(self, reason: str, at: int) -> None:
        """Make the book STALE because it is wrong; a snapshot is needed."""
        last_id = self._empty()
        self.resyncs += 1
        self._move(BookState.STALE, reason, at, last_id)

    def difference(self, other: OrderBook) -> str | None:
        """The first level that is not the same in `other`, in words; None if there is none.

        Only levels surely known to both count.
        """
        for name, mine, theirs in (("bid", self._bids, other._bids), ("ask", self._asks, other._asks)):
            for price in sorted(mine.levels.keys() | theirs.levels.keys()):
                here, there = mine.levels.get(price, 0.0), theirs.levels.get(price, 0.0)
                if here != there and mine.knows(price) and theirs.knows(price):
                    return f"{name} {price:.15g} has {here:.15g} here and {there:.15g} there"
        return None

    def adopt(self, other: OrderBook) -> None:
        """Take over the levels of a newer snapshot's book with the same last change: it reaches farther."""
        if {self.state, other.state} != {BookState.LIVE} or other.last_id != self.last_id:
            raise BadInput("other", other.last_id, f"a LIVE book at change {self.last_id}, as this one is")
        self._bids, self._asks = other._bids, other._asks
        self.bases += 1

    def _take_over(self, snapshot: BookSnapshot) -> None:
        cut = self._snapshot_levels
        self._bids, self._asks = Bids(snapshot.bids, cut), Asks(snapshot.asks, cut)
        self.bases += 1
        if self._checksum is not None and snapshot.bid_texts is not None and snapshot.ask_texts is not None:
            self._bids.write_down(snapshot.bids, snapshot.bid_texts)
            self._asks.write_down(snapshot.asks, snapshot.ask_texts)
        self.last_id = snapshot.last_id
        self._based = self._after_snapshot = True
        self._tell_time(snapshot)

    def _take(self, change: BookChange) -> None:
        self._bids.update(change.bids)
        self._asks.update(change.asks)
        if self._checksum is not None and change.bid_texts is not None and change.ask_texts is not None:
            self._bids.write_down(change.bids, change.bid_texts)
            self._asks.write_down(change.asks, change.ask_texts)
        self.last_id = change.last_id
        self._after_snapshot = False
        self._tell_time(change)
        if self._taken is not None:
            self._taken(change)

    def _tell_time(self, message: BookSnapshot | BookChange) -> None:
        if message.event_time is not None:
            self.event_time = message.event_time
        self.received_at = max(self.received_at, message.received_at)

    def _fault(self, checksum: int | None) -> str | None:
        """What is wrong with the levels, in words."""
        bid, ask = self._bids.best, self._asks.best
        if bid is not None and ask is not None and bid >= ask:
            return f"crossed: bid {bid:.15g}, ask {ask:.15g}"
        if not (self._bids.sure and self._asks.sure):
            return "the best price has left what the snapshot showed"
        if self._checksum is None or checksum is None:
            return None
        try:
            ours = self._checksum(
                self._bids.top_texts(self._checksum_levels), self._asks.top_texts(self._checksum_levels)
            )
        except KeyError as error:
            return f"checksum: the text of {error} is not known"
        return None if ours == checksum else f"checksum {ours} where the exchange has {checksum}"

    def _replay(self) -> bool:
        """Play what was kept; false, and what is left kept, where it does not follow."""
        waiting, self._kept = self._kept, deque()
        while waiting:
            change = waiting[0]
            where = place(self._chain, change, self.last_id, self._after_snapshot)
            if where is Place.OLD:
                waiting.popleft()
                continue
            wrong = self._hole(change) if where is Place.HOLE else None
            if wrong is None:
                waiting.popleft()
                self._take(change)
                wrong = self._fault(change.checksum)
            if wrong is not None:
                self._kept = waiting
                return self._refuse(wrong)
        return True

    def _keep(self, change: BookChange) -> None:
        if self._start is BookStart.STREAM:
            # The whole book comes after it on the same connection, or on the next.
            self.ignored += 1
            return
        if len(self._kept) >= self._most_kept:
            self._kept.clear()
            self.resyncs += 1
            self._move(
                self.state, f"{self._most_kept} changes waited for a snapshot in vain", change.received_at, 0
            )
        self._kept.append(change)

    def _hole(self, change: BookChange) -> str:
        before = change.previous_id if change.previous_id is not None else change.first_id - 1
        what = "the snapshot ends" if self._after_snapshot else "the changes end"
        return f"hole: {what} at {self.last_id}, and the next follows {before}"

    def _refuse(self, reason: str) -> bool:
        """Stand without levels; what was kept stays."""
        self.refused += 1
        self._drop_levels()
        if self.state is BookState.LIVE:
            self.resyncs += 1
            self._move(BookState.STALE, reason, self.received_at, 0)
        self.reason = reason
        return False

    def _go_live(self, reason: str) -> None:
        self._move(BookState.LIVE, reason, self.received_at, self.last_id)

    def _empty(self) -> int:
        """Keep nothing; returns the number of the last change that was right."""
        last_id = self.last_id
        if self._based:
            self._floor = last_id
        self._kept.clear()
        self._drop_levels()
        return last_id

    def _drop_levels(self) -> None:
        self._bids, self._asks = Bids(), Asks()
        self.bases += 1
        self._based = self._after_snapshot = False
        self.last_id = 0

    def _move(self, state: BookState, reason: str, at: int, last_id: int) -> None:
        self.state, self.reason = state, reason
        self._mark(BookMark(state, reason, self.resyncs, last_id, at))
