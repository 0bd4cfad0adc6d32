"""Router memory of order books: only what may be relied on comes out."""

from __future__ import annotations

from market.book_message import BookSnapshot
from store.live_books import LiveBooks
from tests.conftest import ManualClock


class HeldBook:
    """A book that says of itself what the test wants."""

    def __init__(self, received_at: int) -> None:
        self.book = BookSnapshot(7, [(1.0, 2.0), (0.5, 1.0)], [(2.0, 3.0)], None, received_at)
        self.live = True

    def top(self, levels: int) -> BookSnapshot | None:
        return self.book._replace(bids=self.book.bids[:levels]) if self.live else None

    def why(self) -> str:
        return "live (stream)" if self.live else "stale: a hole"


def test_a_live_book_comes_out_with_its_age(clock: ManualClock) -> None:
    books = LiveBooks(clock)
    books.put("binance", "BTC/USDT", HeldBook(clock.now_ms()))
    clock.advance(1_500)
    found = books.get("binance", "BTC/USDT", 1)
    assert found is not None
    assert (found.book.bids, found.age_ms) == ([(1.0, 2.0)], 1_500)


def test_a_book_that_is_not_live_does_not_come_out(clock: ManualClock) -> None:
    books, source = LiveBooks(clock), HeldBook(clock.now_ms())
    books.put("binance", "BTC/USDT", source)
    source.live = False
    assert books.get("binance", "BTC/USDT", 5) is None
    assert books.why("binance", "BTC/USDT") == "stale: a hole"


def test_an_old_book_does_not_come_out_even_if_it_calls_itself_live(clock: ManualClock) -> None:
    books = LiveBooks(clock)
    books.put("binance", "BTC/USDT", HeldBook(clock.now_ms()))
    clock.advance(30_000)
    assert books.get("binance", "BTC/USDT", 5) is not None
    clock.advance(1)
    assert books.get("binance", "BTC/USDT", 5) is None
    assert books.why("binance", "BTC/USDT") == "not heard of for 30001 ms; 30000 ms would be accepted"


def test_books_are_told_apart_and_can_be_removed(clock: ManualClock) -> None:
    books = LiveBooks(clock)
    books.put("binance", "BTC/USDT", HeldBook(clock.now_ms()))
    assert books.get("okx", "BTC/USDT", 5) is None
    assert books.why("okx", "BTC/USDT") == "no order book of BTC/USDT is kept here for okx"
    books.remove("binance", "BTC/USDT")
    books.remove("binance", "BTC/USDT")
    assert books.get("binance", "BTC/USDT", 5) is None


def test_a_message_from_a_clock_that_is_ahead_has_no_negative_age(clock: ManualClock) -> None:
    books = LiveBooks(clock)
    books.put("binance", "BTC/USDT", HeldBook(clock.now_ms() + 50))
    found = books.get("binance", "BTC/USDT", 5)
    assert found is not None
    assert found.age_ms == 0
