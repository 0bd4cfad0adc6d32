"""The evolving order book of the simulated exchange: changes applied to a snapshot give every later snapshot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exchange.binance.wire import OrderBook
from exchange.simulator.book import STEP_MS, Book, BookChanges
from exchange.simulator.market import Market
from exchange.simulator.recorded import RecordedTape
from exchange.simulator.synthetic import LISTED_MS, SyntheticTape
from market.clock import to_ms
from market.timeframe import DAY_MS

NOW = LISTED_MS + 500 * DAY_MS + 12_345_678
SYMBOLS = ("BTC/USDT", "SOL/USDT", "ABC/USDT")


@pytest.fixture(scope="module")
def markets() -> dict[str, Market]:
    return {symbol: Market(SyntheticTape(5, symbol)) for symbol in SYMBOLS}


def priced(price: Callable[[int], int | None]) -> Book:
    """A book around prices that the test gives, in ticks by exchange time."""

    def path(start_ms: int, end_ms: int) -> list[int]:
        prices = [price(at) for at in range(start_ms, end_ms + 1, STEP_MS)]
        return [one for one in prices if one is not None]

    return Book("XYZUSDT", 2, 3, price, path, lambda: 100_000)


class Copy:
    """The book as a client keeps it."""

    def __init__(self, book: OrderBook) -> None:
        self.last_id = book.last_update_id
        self.bids, self.asks = dict(book.bids), dict(book.asks)

    def apply(self, changes: BookChanges) -> None:
        assert changes.first_id == self.last_id + 1 <= changes.last_id
        self.last_id = changes.last_id
        for side, levels in ((self.bids, changes.bids), (self.asks, changes.asks)):
            for price, quantity in levels:
                if quantity:
                    side[price] = quantity
                else:
                    side.pop(price, None)

    def best(self, levels: int) -> OrderBook:
        return OrderBook(
            last_update_id=self.last_id,
            bids=tuple(sorted(self.bids.items(), reverse=True)[:levels]),
            asks=tuple(sorted(self.asks.items())[:levels]),
        )


def followed(book: Book, start_ms: int, waits: list[int], *, known: int = 5000, compared: int = 150) -> None:
    """Follow the book over steps of these lengths, comparing all the way.

    :param known: levels that the client starts with. What lies beyond them it only learns as it changes.
    """
    now_ms = start_ms
    copy, state = Copy(book.snapshot(now_ms, known)), book.state(now_ms)
    for wait in waits:
        now_ms += wait
        later = book.state(now_ms)
        if later is state:
            assert book.snapshot(now_ms, 1).last_update_id == copy.last_id
            continue
        copy.apply(book.changes(state, later))
        state = later
        assert copy.best(compared) == book.snapshot(now_ms, compared)


@given(
    symbol=st.sampled_from(SYMBOLS),
    start=st.integers(0, 400 * DAY_MS),
    waits=st.lists(st.integers(1, 5000), min_size=1, max_size=12),
)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_changes_lead_from_each_snapshot_to_the_later_ones(
    markets: dict[str, Market], symbol: str, start: int, waits: list[int]
) -> None:
    followed(markets[symbol].book, LISTED_MS + DAY_MS + start, waits)


@given(prices=st.lists(st.integers(40_000, 300_000), min_size=2, max_size=5))
@settings(max_examples=10)
def test_the_price_may_jump_anywhere(prices: list[int]) -> None:
    steps = [STEP_MS * 2] * (len(prices) - 1)
    book = priced(lambda now_ms: prices[min(max((now_ms - NOW) // (2 * STEP_MS), 0), len(prices) - 1)])
    followed(book, NOW, steps, known=10_000, compared=5000)


@given(
    symbol=st.sampled_from(SYMBOLS),
    start=st.integers(0, 400 * DAY_MS),
    span=st.integers(200, 60_000) | st.integers(200_000, 400_000),
    share=st.floats(0, 1),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_joined_changes_lead_on_from_any_snapshot_in_between(
    markets: dict[str, Market], symbol: str, start: int, span: int, share: float
) -> None:
    book = markets[symbol].book
    start += LISTED_MS + DAY_MS
    between = book.snapshot(start + int(span * share), 5000)
    changes = book.changes(book.state(start), book.state(start + span))
    copy = Copy(between)
    copy.last_id = changes.first_id - 1
    copy.apply(changes)
    assert copy.best(150) == book.snapshot(start + span, 150)


def test_near_zero_the_bids_run_out() -> None:
    book = priced(lambda now_ms: 100 + (now_ms - NOW) // STEP_MS)
    assert 0 < len(book.snapshot(NOW, 5000).bids) <= 101
    assert all(price > 0 for price, _ in book.snapshot(NOW, 5000).bids)
    followed(book, NOW, [STEP_MS] * 20)


def test_a_market_without_a_price_has_an_empty_book() -> None:
    def price(now_ms: int) -> int | None:
        return None if now_ms < NOW else 100_000

    book = priced(price)
    empty = book.snapshot(NOW - 1000, 10)
    assert (empty.bids, empty.asks) == ((), ())
    followed(book, NOW - 1000, [300, 300, 900])


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_the_last_price_lies_between_bids_and_asks(markets: dict[str, Market], symbol: str) -> None:
    market = markets[symbol]
    for now_ms in range(NOW, NOW + 10_000, 700):
        book, state = market.book.snapshot(now_ms, 5000), market.book.state(now_ms)
        price = market.last_price(state.time_ms)
        assert price is not None
        assert market.last_ticks(state.time_ms) == round(price * 10**market.listing.price_decimals)
        assert 0 <= now_ms - state.time_ms < 2 * STEP_MS
        assert book.bids[0][0] <= price < book.asks[0][0]
        assert book.asks[0][0] - book.bids[0][0] < price * 1e-3
        for side, falling in ((book.bids, True), (book.asks, False)):
            prices = [level[0] for level in side]
            assert len(prices) == len(set(prices)) == 5000
            assert prices == sorted(prices, reverse=falling)
            assert all(quantity > 0 for _, quantity in side)
        assert market.book.snapshot(now_ms, 5).bids == book.bids[:5]


def test_the_book_depends_on_nothing_but_symbol_seed_and_time() -> None:
    def book(seed: int, symbol: str) -> Book:
        return Market(SyntheticTape(seed, symbol)).book

    one, other = book(5, "ETH/USDT"), book(5, "ETH/USDT")
    for now_ms in (NOW + 3 * DAY_MS, NOW, NOW + 100, NOW + DAY_MS, NOW - 5000):
        other.state(now_ms + 777_777)
        assert one.snapshot(now_ms, 5000) == other.snapshot(now_ms, 5000)
    assert one.snapshot(NOW, 5) != book(6, "ETH/USDT").snapshot(NOW, 5)


def test_from_step_to_step_only_some_levels_change(markets: dict[str, Market]) -> None:
    book = markets["BTC/USDT"].book
    sizes, ids = [], []
    state = book.state(NOW)
    for step in range(1, 300):
        later = book.state(NOW + step * STEP_MS)
        ids.append(later.last_id - state.last_id)
        changes = book.changes(state, later)
        sizes.append(len(changes.bids) + len(changes.asks))
        assert changes.event_time == later.time_ms
        state = later
    # One step in five is quiet; in the others some of 10,000 levels change, by several updates each.
    assert 50 < sizes.count(0) < 70
    assert ids.count(0) == sizes.count(0)
    assert 5 < sum(sizes) / len(sizes) < 50
    assert sum(one > 1 for one in ids) > 200


@pytest.mark.recorded
def test_a_recorded_market_has_such_a_book_too(recorded: Path) -> None:
    (path,) = (recorded / "candles").glob("binance_spot_BTCUSDT_1m_2023*")
    market = Market(RecordedTape("BTCUSDT", [path]))
    followed(market.book, to_ms("2023-06-01T12:00:00Z"), [100] * 30 + [3000] * 10)
    # Through the outage, in which no candle is.
    followed(market.book, to_ms("2023-03-24T12:39:00Z"), [20_000] * 6 + [3_600_000, 1_200_000, 60_000])
