"""Order books rebuilt from recorded sessions, held against the best prices that the exchange sent beside them.

The messages go through the parsers of the live streams, and the books begin as they do live: changes are kept until
the recorded answer of REST comes, and are played on it.
"""

from __future__ import annotations

import gzip
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from exchange.binance.messages import read_book_ticker, read_depth
from exchange.binance.rest import parse_book
from market.book_message import BookChain, BookChange, BookSnapshot, BookStart
from market.order_book import BookMark, BookState, OrderBook
from market.ticker import Ticker

pytestmark = pytest.mark.recorded

SPOT = "ws/binance_spot_BTCUSDT_2024-08-08_2024-08-09.jsonl.gz"
USDM = "ws/binance_usdm_BTCUSDT_2024-08-08.jsonl.gz"
TEN_SYMBOLS = "ws/binance_spot_10symbols_2021-04-05.jsonl.gz"
FOUR_SYMBOLS = "ws/binance_spot_4symbols_kline_2021-08-14.jsonl.gz"


@dataclass
class Rebuilt:
    """The book of one symbol, and what it showed after each change."""

    book: OrderBook
    marks: list[BookMark]
    #: (first_id, last_id, previous_id) of every change as received.
    changes: list[tuple[int, int, int | None]] = field(default_factory=list)
    #: (first_id, last_id, best bid, best ask) after each change that was taken.
    bests: list[tuple[int, int, float | None, float | None]] = field(default_factory=list)
    #: (id, bid, ask) of each bookTicker, in order.
    tickers: list[tuple[int, float | None, float | None]] = field(default_factory=list)

    def take(self, message: BookSnapshot | BookChange | Best) -> None:
        """One message, in the order of arrival."""
        if isinstance(message, Best):
            self.tickers.append((message.last_id, message.ticker.bid, message.ticker.ask))
        elif isinstance(message, BookChange):
            self.changes.append((message.first_id, message.last_id, message.previous_id))
            if self.book.apply(message):
                self._look()
        else:
            self.book.snapshot(message)
            # What was kept is played at once: only the book after the last of it can be seen.
            if self.changes and self.book.last_id == self.changes[-1][1]:
                self._look()

    def _look(self) -> None:
        self.bests.append((self.changes[-1][0], self.book.last_id, self.book.best_bid, self.book.best_ask))


class Line(msgspec.Struct):
    """One line of a recorded session."""

    recv_ns: int
    src: str
    msg: msgspec.Raw
    url: str = ""


class Envelope(msgspec.Struct):
    """A message of a combined stream."""

    stream: str = ""
    data: msgspec.Raw = msgspec.Raw()


class Numbered(msgspec.Struct):
    """What a ticker does not keep of a bookTicker."""

    u: int


class Best(NamedTuple):
    """A bookTicker and its number."""

    last_id: int
    ticker: Ticker


Told = tuple[str, BookSnapshot | BookChange | Best]


def session(path: Path) -> Iterator[Told]:
    """(exchange symbol, message) of each order book and bookTicker message, in order."""
    with gzip.open(path) as lines:
        for raw in lines:
            if b"@depth" not in raw and b"@bookTicker" not in raw and b'"rest"' not in raw:
                continue
            line = msgspec.json.decode(raw, type=Line)
            received_at = line.recv_ns // 1_000_000
            if line.src == "rest":
                symbol = line.url.split("symbol=")[1].split("&")[0]
                yield symbol, parse_book(msgspec.json.decode(line.msg), 5000, received_at)
            elif line.src == "ws":
                envelope = msgspec.json.decode(line.msg, type=Envelope)
                name, _, kind = envelope.stream.partition("@")
                symbol, data = name.upper(), bytes(envelope.data)
                if kind.startswith("depth"):
                    yield symbol, read_depth(data, symbol, received_at)
                elif kind == "bookTicker":
                    best = read_book_ticker(data, symbol, received_at)
                    yield symbol, Best(msgspec.json.decode(data, type=Numbered).u, best)


def snapshot_first(told: Iterable[Told]) -> Iterator[Told]:
    """The first snapshot, then everything before it, then the rest."""
    before: list[Told] = []
    going_on = iter(told)
    for one in going_on:
        if isinstance(one[1], BookSnapshot):
            yield one
            break
        before.append(one)
    yield from chain(before, going_on)


def rebuild(told: Iterable[Told], chain: BookChain, cut: int | None = None) -> dict[str, Rebuilt]:
    """Every book of a session.

    :param cut: levels of the recorded REST answers. None ignores that levels beyond them were not known, as most
        clients do: the best prices can be compared then even after the market has left what the answer showed.
    """
    books: dict[str, Rebuilt] = {}
    for symbol, message in told:
        if symbol not in books:
            marks: list[BookMark] = []
            book = OrderBook(chain, BookStart.REST, snapshot_levels=cut, mark=marks.append)
            books[symbol] = Rebuilt(book, marks)
        books[symbol].take(message)
    return books


def comparable(one: Rebuilt) -> list[tuple[int, bool]]:
    """(last_id, equal) of each change after which the book can be held against a bookTicker.

    A bookTicker says what the best prices became with change `u`, and is sent when they change. The book is known
    after the last of the changes from `first_id` to `last_id` only. They can be compared where a bookTicker has a
    `u` of those: then it is the newest one up to `last_id`, and it was sent within the same tenth of a second. (The
    last one before that would do as well: nothing changed since. But it would prove less.)
    """
    ids = [id_ for id_, _, _ in one.tickers]
    found = []
    for first_id, last_id, bid, ask in one.bests:
        at = bisect_right(ids, last_id) - 1
        if at >= 0 and ids[at] >= first_id:
            found.append((last_id, one.tickers[at][1:] == (bid, ask)))
    return found


def test_spot_best_prices_equal_the_recorded_ones(recorded: Path) -> None:
    one = rebuild(session(recorded / SPOT), BookChain.FIRST_ID)["BTCUSDT"]
    assert len(one.changes) == 6495
    # The first two were in the snapshot already.
    assert len(one.bests) == 6493
    # No break, never crossed: it went LIVE once and stayed so.
    assert [mark.state for mark in one.marks] == [BookState.LIVE]
    points = comparable(one)
    assert len(points) == 5737
    # Two times the book was right and the exchange did not say so. The best bid of bookTicker 50093478171
    # was 61,565.10; one of the next three changes, up to 50093478174 where a diff ends, took it away; the
    # next bookTicker, 50093478187, has it again. The 61,564.91 that was best in between was never sent. The
    # other time 61,556.11 went between 50093480538 and 50093480542, and 61,556.09 was there with
    # 50093480545: the 61,556.04 in between was best for a few changes only.
    assert [id_ for id_, equal in points if not equal] == [50093478174, 50093480542]
    missed = {id_: (bid, ask) for _, id_, bid, ask in one.bests if id_ in (50093478174, 50093480542)}
    assert missed == {50093478174: (61564.91, 61565.17), 50093480542: (61556.04, 61556.12)}
    assert not {(bid, ask) for _, bid, ask in one.tickers} & set(missed.values())


def test_usd_m_best_prices_equal_the_recorded_ones_and_the_chain_holds(recorded: Path) -> None:
    one = rebuild(session(recorded / USDM), BookChain.PREVIOUS_ID)["BTCUSDT"]
    assert len(one.changes) == 6551
    breaks = [after.first_id for before, after in pairwise(one.changes) if after[2] != before[1]]
    assert breaks == []
    assert [mark.state for mark in one.marks] == [BookState.LIVE]
    points = comparable(one)
    # One of the comparable points is hidden in the playing of what was kept; see below.
    assert (len(points), all(equal for _, equal in points)) == (5702, True)


def test_usd_m_changes_that_were_kept_give_the_recorded_prices_too(recorded: Path) -> None:
    """The same with the snapshot first, so that the book can be looked at after each change that was kept."""
    one = rebuild(snapshot_first(session(recorded / USDM)), BookChain.PREVIOUS_ID)["BTCUSDT"]
    # Four changes were in the snapshot already.
    assert len(one.bests) == 6551 - 4
    points = comparable(one)
    assert (len(points), all(equal for _, equal in points)) == (5703, True)


@pytest.mark.parametrize(
    "name, symbols, changes, compared", [(TEN_SYMBOLS, 10, 4709, 2344), (FOUR_SYMBOLS, 4, 546, 200)]
)
def test_many_symbols_on_one_connection_without_a_break(
    recorded: Path, name: str, symbols: int, changes: int, compared: int
) -> None:
    books = rebuild(session(recorded / name), BookChain.FIRST_ID)
    assert len(books) == symbols
    assert sum(len(one.changes) for one in books.values()) == changes
    points: list[tuple[int, bool]] = []
    for symbol, one in books.items():
        assert [mark.state for mark in one.marks] == [BookState.LIVE], symbol
        points += comparable(one)
    assert (len(points), all(equal for _, equal in points)) == (compared, True)


def test_a_book_stops_where_the_market_leaves_what_its_snapshot_showed(recorded: Path) -> None:
    """A thousand levels lasted four minutes that night. Every best price is right until then."""
    one = rebuild(islice(session(recorded / SPOT), 40_000), BookChain.FIRST_ID, cut=1000)["BTCUSDT"]
    states = [mark.state for mark in one.marks[:2]]
    assert states == [BookState.LIVE, BookState.STALE]
    assert one.marks[1].reason == "the best price has left what the snapshot showed"
    assert 0 < len(one.bests) < 3000
    assert all(equal for _, equal in comparable(one))
