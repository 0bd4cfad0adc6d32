"""Whatever the network does, a LIVE order book equals the true one, and it becomes LIVE again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.book_checksum import okx_checksum
from market.book_message import BookChain, BookChange, BookStart
from market.order_book import BookState, OrderBook
from tests.unit.market.true_market import AT, Event, TrueMarket, assert_true

#: Prices from 1 to 30 ticks: sides meet, run out and move beyond cut snapshots all the time.
EVENTS = st.lists(
    st.builds(Event, buys=st.booleans(), price=st.integers(1, 30), quantity=st.integers(0, 3)),
    min_size=1,
    max_size=4,
)
CHANGES = st.tuples(st.just("change"), EVENTS)
FAULTS = st.one_of(
    st.tuples(st.just("lost"), EVENTS),
    st.tuples(st.just("twice"), EVENTS),
    st.tuples(st.just("late"), EVENTS),
    st.tuples(st.just("disconnect"), EVENTS),
    st.tuples(st.just("silent"), EVENTS),
    st.tuples(st.just("snapshot"), st.integers(0, 30)),
)
SNAPSHOTS = st.tuples(st.just("snapshot"), st.integers(0, 8))
HISTORIES = st.lists(st.one_of(CHANGES, CHANGES, SNAPSHOTS, FAULTS), min_size=5, max_size=60)
NUMBERED = [chain for chain in BookChain if chain is not BookChain.CONNECTION]
FROM_REST = (BookChain.FIRST_ID, BookChain.PREVIOUS_ID)


class FaultyStream:
    """Brings what happens on a market to a book, not always well. Checks the book after every message."""

    def __init__(self, chain: BookChain, levels: int | None) -> None:
        self.market = TrueMarket(chain)
        self.from_rest = chain in FROM_REST
        self.levels = levels if self.from_rest else None
        self.book = OrderBook(
            chain,
            BookStart.REST if self.from_rest else BookStart.STREAM,
            snapshot_levels=self.levels,
            checksum=okx_checksum,
            most_kept=8,
        )
        self._held: BookChange | None = None
        self.was_live = False

    def play(self, kind: str, what: Any) -> None:
        if kind == "snapshot":
            # A stream's whole book is never old; REST answers may be.
            self.begin(what if self.from_rest else 0)
            return
        change = self.market.happen(what)
        if kind == "disconnect":
            self._held = None
            self.book.lose("disconnected", AT)
            assert self.book.top(5)[1:3] == ([], [])
            self.book.clear("connected", AT)
            if not self.from_rest:
                self.begin(0)
        elif kind == "late":
            # It comes after the next one.
            self.deliver(self._held)
            self._held = change
        elif kind != "lost":
            if kind == "silent":
                self.book.doubt("silent", AT)
            self.deliver(change)
            self.deliver(change if kind == "twice" else self._held)
            self._held = self._held if kind == "twice" else None

    def deliver(self, change: BookChange | None) -> None:
        if change is not None:
            self.book.apply(change)
            self.verify()

    def begin(self, age: int) -> None:
        snapshot = self.market.snapshot(age, self.levels)
        self.book.snapshot(snapshot)
        self.verify()

    def verify(self) -> None:
        if self.book.state is BookState.LIVE:
            self.was_live = True
            number = self.book.last_id or self.market.now
            assert_true(self.book, self.market.books[number])
        assert self.book.kept <= 8

    def recover(self) -> None:
        """No more faults: the next change, and the snapshot that is asked for."""
        self._held = None
        self.play("change", [Event(True, 5, 1)])
        if self.book.wants_snapshot:
            self.begin(0)
        if self.book.state is not BookState.LIVE:
            # Doubted while nothing came: the next change tells.
            self.play("change", [Event(True, 5, 2)])
            if self.book.wants_snapshot:
                self.begin(0)


@pytest.mark.parametrize("chain", NUMBERED)
@given(levels=st.one_of(st.none(), st.integers(1, 4)), history=HISTORIES)
def test_while_live_it_is_the_true_book_and_it_always_becomes_live_again(
    chain: BookChain, levels: int | None, history: list[tuple[str, Any]]
) -> None:
    stream = FaultyStream(chain, levels)
    stream.begin(0)
    for kind, what in history:
        stream.play(kind, what)
    stream.recover()
    assert stream.book.state is BookState.LIVE
    assert stream.was_live
    assert stream.book.last_id == stream.market.now


@given(history=HISTORIES)
def test_checksums_do_for_numbers(history: list[tuple[str, Any]]) -> None:
    """Without numbers, the checksum shows what was lost or came late, as long as it covers the whole book.

    What comes twice changes nothing: quantities are not differences.
    """
    stream = FaultyStream(BookChain.CONNECTION, None)
    stream.begin(0)
    for kind, what in history:
        # A late message has the checksum of its own time: true then, but not now, which no receiver can tell.
        stream.play("lost" if kind == "late" else kind, what)
        if stream.book.wants_snapshot:
            stream.begin(0)
    stream.recover()
    assert stream.book.state is BookState.LIVE


@pytest.mark.parametrize("chain", NUMBERED)
@given(history=st.lists(CHANGES, min_size=1, max_size=60))
@settings(max_examples=30)
def test_without_faults_it_never_begins_anew(chain: BookChain, history: list[tuple[str, list[Event]]]) -> None:
    stream = FaultyStream(chain, None)
    stream.begin(0)
    for kind, what in history:
        stream.play(kind, what)
        assert stream.book.state is BookState.LIVE
    assert (stream.book.resyncs, stream.book.ignored, stream.book.refused) == (0, 0, 0)
