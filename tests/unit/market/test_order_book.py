"""The order book, rule by rule. Random histories are in test_order_book_properties.py."""

from __future__ import annotations

import pytest

from market.book_checksum import okx_checksum
from market.book_message import BookChain, BookChange, BookSnapshot, BookStart, Level, LevelText
from market.errors import BadInput
from market.order_book import BookMark, BookState, OrderBook

#: When everything is received here, epoch milliseconds.
AT = 1_700_000_000_000


def change(
    first_id: int,
    last_id: int,
    bids: list[Level] | None = None,
    asks: list[Level] | None = None,
    previous_id: int | None = None,
) -> BookChange:
    return BookChange(first_id, last_id, previous_id, bids or [], asks or [], AT + last_id, AT + last_id)


def snapshot(last_id: int, bids: list[Level] | None = None, asks: list[Level] | None = None) -> BookSnapshot:
    return BookSnapshot(last_id, bids or [(99.0, 1.0), (98.0, 2.0)], asks or [(101.0, 1.0)], None, AT + last_id)


def live(last_id: int = 10, **options: int) -> OrderBook:
    book = OrderBook(BookChain.FIRST_ID, BookStart.REST, **options)  # type: ignore[arg-type]
    assert book.snapshot(snapshot(last_id))
    return book


def test_changes_before_the_snapshot_are_kept_and_played_on_it() -> None:
    book = OrderBook(BookChain.FIRST_ID, BookStart.REST)
    assert (book.state, book.wants_snapshot) == (BookState.SYNCING, True)
    assert not book.apply(change(8, 9, bids=[(97.0, 9.0)]))
    assert not book.apply(change(10, 12, bids=[(98.5, 3.0), (99.0, 0.0)]))
    assert not book.apply(change(13, 13, asks=[(100.5, 4.0)]))
    assert book.kept == 3
    assert book.snapshot(snapshot(10))
    assert (book.state, book.last_id, book.kept) == (BookState.LIVE, 13, 0)
    # Change 8 to 9 is in the snapshot already: its 97 must not come back.
    top = book.top(5)
    assert top == BookSnapshot(13, [(98.5, 3.0), (98.0, 2.0)], [(100.5, 4.0), (101.0, 1.0)], AT + 13, AT + 13)
    assert (book.best_bid, book.best_ask) == (98.5, 100.5)


def test_a_snapshot_older_than_what_was_kept_is_asked_for_again() -> None:
    book = OrderBook(BookChain.FIRST_ID, BookStart.REST)
    book.apply(change(20, 22))
    assert not book.snapshot(snapshot(18))
    assert (book.state, book.wants_snapshot, book.refused, book.kept) == (BookState.SYNCING, True, 1, 1)
    assert book.reason == "hole: the snapshot ends at 18, and the next follows 19"
    assert book.snapshot(snapshot(19))
    assert (book.state, book.last_id) == (BookState.LIVE, 22)


def test_a_hole_among_what_was_kept_needs_a_snapshot_beyond_it() -> None:
    book = OrderBook(BookChain.FIRST_ID, BookStart.REST)
    for one in (change(11, 12), change(15, 16), change(17, 17)):
        book.apply(one)
    assert not book.snapshot(snapshot(10))
    assert (book.state, book.kept) == (BookState.SYNCING, 2)
    assert book.snapshot(snapshot(15))
    assert (book.state, book.last_id) == (BookState.LIVE, 17)


def test_a_hole_makes_it_stale_at_once_and_a_snapshot_makes_it_live_again() -> None:
    marks: list[BookMark] = []
    book = OrderBook(BookChain.FIRST_ID, BookStart.REST, mark=marks.append)
    book.snapshot(snapshot(10))
    assert not book.apply(change(13, 14, bids=[(99.5, 1.0)]))
    assert (book.state, book.wants_snapshot, book.resyncs) == (BookState.STALE, True, 1)
    # Nothing of the old book is left; the change that showed the hole is kept.
    assert (book.best_bid, book.best_ask, book.kept) == (None, None, 1)
    assert book.snapshot(snapshot(12))
    assert (book.state, book.best_bid) == (BookState.LIVE, 99.5)
    assert marks == [
        BookMark(BookState.LIVE, "a snapshot, and every change since", 0, 10, AT + 10),
        BookMark(BookState.STALE, "hole: the snapshot ends at 10, and the next follows 12", 1, 10, AT + 14),
        BookMark(BookState.LIVE, "a snapshot, and every change since", 1, 14, AT + 14),
    ]


def test_old_and_repeated_changes_are_ignored_and_counted() -> None:
    book = live()
    assert book.apply(change(11, 12, bids=[(99.5, 1.0)]))
    assert not book.apply(change(11, 12, bids=[(99.5, 7.0)]))
    assert not book.apply(change(5, 8, bids=[(97.0, 7.0)]))
    assert (book.state, book.ignored, book.top(5).bids) == (
        BookState.LIVE,
        2,
        [(99.5, 1.0), (99.0, 1.0), (98.0, 2.0)],
    )


def test_a_change_that_overlaps_is_taken() -> None:
    """Two connections cut the same changes into different messages."""
    book = live()
    assert book.apply(change(11, 14))
    assert book.apply(change(13, 16, bids=[(99.5, 1.0)]))
    assert (book.last_id, book.best_bid) == (16, 99.5)


def test_removing_the_best_finds_the_next_best() -> None:
    book = live()
    assert book.apply(change(11, 11, bids=[(99.0, 0.0)], asks=[(101.0, 0.0)]))
    assert (book.best_bid, book.best_ask) == (98.0, None)
    assert book.apply(change(12, 12, bids=[(98.0, 0.0), (97.5, 0.0)], asks=[(103.0, 1.0), (102.0, 1.0)]))
    assert (book.best_bid, book.best_ask) == (None, 102.0)


def test_levels_may_cross_within_a_change_but_not_after_it() -> None:
    book = live()
    # The market moves up: the new bid is above the old ask, which goes in the same message.
    assert book.apply(change(11, 11, bids=[(102.0, 1.0)], asks=[(101.0, 0.0), (103.0, 1.0)]))
    assert not book.apply(change(12, 12, bids=[(103.0, 1.0)]))
    assert (book.state, book.reason) == (BookState.STALE, "crossed: bid 103, ask 103")
    assert book.wants_snapshot


@pytest.mark.parametrize(
    "chain, start", [(BookChain.FIRST_ID, BookStart.REST), (BookChain.CONNECTION, BookStart.STREAM)]
)
def test_a_crossed_snapshot_is_refused(chain: BookChain, start: BookStart) -> None:
    book = OrderBook(chain, start)
    assert book.snapshot(snapshot(10))
    assert not book.snapshot(snapshot(11, bids=[(101.0, 1.0)]))
    assert (book.state, book.best_bid, book.wants_snapshot) == (BookState.STALE, None, True)
    assert book.snapshot(snapshot(12))


def test_a_snapshot_behind_a_live_book_changes_nothing() -> None:
    book = live()
    book.apply(change(11, 12, bids=[(99.5, 1.0)]))
    assert book.snapshot(snapshot(11))
    assert (book.state, book.last_id, book.best_bid, book.ignored) == (BookState.LIVE, 12, 99.5, 1)


def test_when_too_much_waits_it_starts_over() -> None:
    marks: list[BookMark] = []
    book = OrderBook(BookChain.FIRST_ID, BookStart.REST, most_kept=3, mark=marks.append)
    for id_ in range(11, 15):
        book.apply(change(id_, id_))
    assert (book.kept, book.resyncs, len(marks)) == (1, 1, 1)
    assert not book.snapshot(snapshot(11))
    assert book.snapshot(snapshot(13))
    assert (book.state, book.last_id) == (BookState.LIVE, 14)


def test_nothing_is_left_after_a_new_connection() -> None:
    book = live()
    book.clear("connected", AT)
    assert (book.state, book.best_bid, book.best_ask, book.last_id) == (BookState.SYNCING, None, None, 0)
    book.apply(change(31, 31, asks=[(105.0, 1.0)]))
    assert book.snapshot(snapshot(30, bids=[(90.0, 1.0)], asks=[(106.0, 1.0)]))
    assert book.top(9)[1:3] == ([(90.0, 1.0)], [(105.0, 1.0), (106.0, 1.0)])


def test_an_answer_from_before_the_last_book_is_refused_while_nothing_has_come_to_hold_it_against() -> None:
    book = live(last_id=50)
    book.clear("connected", AT)
    assert not book.snapshot(snapshot(40))
    assert book.reason == "the snapshot ends at 40, but 50 had been seen"
    assert book.snapshot(snapshot(50))


def test_numbers_may_begin_anew_after_a_new_connection() -> None:
    book = live(last_id=5_000_000)
    book.clear("connected", AT)
    book.apply(change(3, 4))
    assert book.snapshot(snapshot(2))
    assert (book.state, book.last_id) == (BookState.LIVE, 4)


def test_a_doubted_book_goes_on_if_nothing_was_missed() -> None:
    book = live()
    book.doubt("silent", AT)
    assert (book.state, book.wants_snapshot) == (BookState.STALE, False)
    assert not book.apply(change(9, 10))
    assert book.state is BookState.STALE
    assert book.apply(change(11, 11))
    assert (book.state, book.resyncs) == (BookState.LIVE, 0)
    book.doubt("silent", AT)
    assert not book.apply(change(13, 13))
    assert (book.state, book.wants_snapshot, book.resyncs) == (BookState.STALE, True, 1)


def test_a_doubted_book_without_numbers_goes_on_when_someone_has_seen_that_it_is_right() -> None:
    book = OrderBook(BookChain.CONNECTION, BookStart.STREAM)
    book.confirm(AT)
    assert book.state is BookState.SYNCING
    book.snapshot(snapshot(0))
    book.doubt("silent", AT)
    # Taken, for it may be right; but not believed.
    assert not book.apply(change(0, 0, bids=[(99.5, 1.0)]))
    assert (book.state, book.wants_snapshot, book.best_bid) == (BookState.STALE, False, 99.5)
    book.confirm(AT + 7)
    assert (book.state, book.received_at, book.best_bid) == (BookState.LIVE, AT + 7, 99.5)
    book.lose("wrong", AT)
    book.confirm(AT)
    assert book.state is BookState.STALE


def test_usd_m_futures_chain() -> None:
    book = OrderBook(BookChain.PREVIOUS_ID, BookStart.REST)
    book.apply(change(103, 105, previous_id=98))
    book.apply(change(110, 120, previous_id=105))
    # The snapshot's number lies within the first change: U <= id <= u.
    assert book.snapshot(snapshot(104))
    assert (book.last_id, book.state) == (120, BookState.LIVE)
    assert book.apply(change(130, 131, previous_id=120))
    assert not book.apply(change(130, 131, previous_id=120))
    assert book.state is BookState.LIVE
    # Numbers that fit are not enough: the message before must be the one that was seen.
    assert not book.apply(change(132, 140, previous_id=129))
    assert book.state is BookState.STALE


@pytest.mark.parametrize("last_id", [98, 100, 102, 105])
def test_usd_m_futures_take_a_snapshot_anywhere_between_two_messages(last_id: int) -> None:
    book = OrderBook(BookChain.PREVIOUS_ID, BookStart.REST)
    book.apply(change(103, 105, previous_id=98))
    book.apply(change(110, 120, previous_id=105))
    assert book.snapshot(snapshot(last_id))
    assert book.last_id == 120


def test_usd_m_futures_snapshot_before_the_first_change_is_refused() -> None:
    book = OrderBook(BookChain.PREVIOUS_ID, BookStart.REST)
    book.apply(change(103, 105, previous_id=98))
    assert not book.snapshot(snapshot(97))


def test_chain_from_the_snapshot_on() -> None:
    book = OrderBook(BookChain.SNAPSHOT_CHAIN, BookStart.STREAM)
    # What comes before the whole book cannot be placed and is not kept.
    assert not book.apply(change(0, 9, previous_id=8))
    assert (book.kept, book.ignored) == (0, 1)
    book.snapshot(snapshot(10))
    assert book.apply(change(0, 15, previous_id=10))
    # OKX sends the same number again when nothing has changed for a while ...
    assert book.apply(change(0, 15, previous_id=15))
    # ... and may begin its numbers anew, which only the chain shows.
    assert book.apply(change(0, 3, previous_id=15))
    assert book.apply(change(0, 5, previous_id=3))
    assert not book.apply(change(0, 4, previous_id=2))
    assert book.state is BookState.STALE
    assert book.snapshot(snapshot(2))


def test_counted_chain() -> None:
    book = OrderBook(BookChain.COUNTED, BookStart.STREAM)
    book.snapshot(snapshot(10))
    assert book.apply(change(11, 11))
    assert not book.apply(change(11, 11))
    assert book.state is BookState.LIVE
    assert not book.apply(change(13, 13))
    assert book.state is BookState.STALE
    # Bybit counts from 1 again after a restart, beginning with a whole book.
    assert book.snapshot(snapshot(1))
    assert book.apply(change(2, 2))


def test_a_rest_book_needs_numbers() -> None:
    with pytest.raises(BadInput, match="chain"):
        OrderBook(BookChain.CONNECTION, BookStart.REST)


def test_what_lies_beyond_a_cut_snapshot_is_not_served() -> None:
    book = OrderBook(BookChain.FIRST_ID, BookStart.REST, snapshot_levels=2)
    bids = [(99.0, 1.0), (98.0, 2.0)]
    # Two bids were asked for and came: there may be more. One ask came: there are no more.
    book.snapshot(snapshot(10, bids=bids, asks=[(101.0, 1.0)]))
    book.apply(change(11, 11, bids=[(95.0, 5.0)], asks=[(110.0, 1.0)]))
    assert book.top(9)[1:3] == (bids, [(101.0, 1.0), (110.0, 1.0)])
    book.apply(change(12, 12, bids=[(99.0, 0.0)]))
    assert book.thin
    # 95 is known, but a bid at 97 that has not changed would not be.
    assert not book.apply(change(13, 13, bids=[(98.0, 0.0)]))
    assert (book.state, book.reason) == (BookState.STALE, "the best price has left what the snapshot showed")


def test_a_side_that_ran_out_beyond_a_cut_snapshot_is_not_taken_for_empty() -> None:
    book = OrderBook(BookChain.FIRST_ID, BookStart.REST, snapshot_levels=1)
    book.snapshot(snapshot(10, bids=[(99.0, 1.0)]))
    assert not book.apply(change(11, 11, bids=[(99.0, 0.0)]))
    assert book.state is BookState.STALE


def texts(levels: list[Level]) -> list[LevelText]:
    return [(f"{price:g}", f"{quantity:g}") for price, quantity in levels]


def with_texts(message: BookChange, bids: list[Level], asks: list[Level], whole: BookSnapshot) -> BookChange:
    checksum = okx_checksum(texts(list(whole.bids)), texts(list(whole.asks)))
    return message._replace(checksum=checksum, bid_texts=texts(bids), ask_texts=texts(asks))


def test_checksums_are_held_against_the_exchange_s() -> None:
    book = OrderBook(BookChain.CONNECTION, BookStart.STREAM, checksum=okx_checksum)
    first = snapshot(0)
    bids, asks = list(first.bids), list(first.asks)
    checksum = okx_checksum(texts(bids), texts(asks))
    assert book.snapshot(first._replace(checksum=checksum, bid_texts=texts(bids), ask_texts=texts(asks)))
    new: list[Level] = [(99.0, 0.0), (98.5, 0.25)]
    whole = snapshot(0, bids=[(98.5, 0.25), (98.0, 2.0)])
    assert book.apply(with_texts(change(0, 0, bids=new), new, [], whole))
    # It is also proof that nothing was missed.
    book.doubt("silent", AT)
    assert book.apply(with_texts(change(0, 0), [], [], whole))
    assert book.state is BookState.LIVE
    # A lost change shows at the next one.
    wrong = snapshot(0, bids=[(98.5, 0.25), (98.25, 1.0), (98.0, 2.0)], asks=[(100.0, 1.0), (101.0, 1.0)])
    assert not book.apply(with_texts(change(0, 0, asks=[(100.0, 1.0)]), [], [(100.0, 1.0)], wrong))
    assert book.state is BookState.STALE
    assert book.reason.startswith("checksum ")


def test_a_checksum_without_texts_is_no_proof() -> None:
    book = OrderBook(BookChain.CONNECTION, BookStart.STREAM, checksum=okx_checksum)
    assert not book.snapshot(snapshot(0)._replace(checksum=1))
    assert (book.state, book.reason) == (
        BookState.SYNCING,
        "the snapshot is wrong: checksum: the text of 99.0 is not known",
    )


def test_difference_counts_only_levels_surely_known_to_both() -> None:
    mine = OrderBook(BookChain.FIRST_ID, BookStart.REST, snapshot_levels=2)
    mine.snapshot(snapshot(10, bids=[(99.0, 1.0), (98.0, 2.0)]))
    theirs = OrderBook(BookChain.FIRST_ID, BookStart.REST, snapshot_levels=3)
    theirs.snapshot(snapshot(10, bids=[(99.0, 1.0), (98.0, 2.0), (97.0, 3.0)]))
    assert mine.difference(theirs) is None
    mine.adopt(theirs)
    assert mine.top(9).bids == [(99.0, 1.0), (98.0, 2.0), (97.0, 3.0)]
    other = live()
    other.apply(change(11, 11, bids=[(98.0, 0.0)]))
    assert mine.difference(other) == "bid 97 has 3 here and 0 there"
    with pytest.raises(BadInput, match="a LIVE book at change 10"):
        mine.adopt(other)
