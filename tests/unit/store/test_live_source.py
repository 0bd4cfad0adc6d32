"""What readers of the same process get, and what is noted for those of other processes."""

from __future__ import annotations

from market.book_message import BookChange, BookSnapshot
from market.candle_update import CandleUpdate
from market.instrument import Series
from market.ticker import Ticker
from market.timeframe import ONE_MINUTE
from market.trade import Trade
from store.live_books import LiveBook
from store.live_changes import LiveChanges
from store.live_market import LiveMarket
from store.live_source import LiveValue, LocalMarket
from tests.conftest import ManualClock

BTC = ("binance", "BTC/USDT")
SERIES = Series(*BTC, ONE_MINUTE)


class HeldBook:
    def __init__(self, book: BookSnapshot) -> None:
        self.book = book

    def top(self, levels: int) -> BookSnapshot | None:
        return self.book

    def why(self) -> str:
        return "live (stream)"


def trade(id_: int, received_at: int) -> Trade:
    return Trade(id_, 1.0, 1.0, received_at - 5, True, received_at)


def update(at: int, close: float = 1.5) -> CandleUpdate:
    return CandleUpdate(at // 60_000 * 60_000, 1.0, 2.0, 0.5, close, 3.0, 4.0, 5, 1.0, 1.5, None, False, at, at)


async def test_the_local_market_is_what_ingest_holds_with_its_age(clock: ManualClock) -> None:
    market = LiveMarket(clock)
    source = LocalMarket(market, clock)
    assert await source.ticker(*BTC) is None
    assert await source.tickers("binance") == {}
    assert await source.order_book(*BTC, 5) is None
    assert await source.why_no_book(*BTC) == "no order book of BTC/USDT is kept here for binance"
    assert await source.trades(*BTC, 5) == LiveValue([], 0)
    assert await source.forming(SERIES) is None
    assert source.fresh_forming(SERIES) == (True, None)

    said = Ticker(clock.now_ms(), last=7.0)
    market.tickers.sink(*BTC)(said)
    book = BookSnapshot(7, [(1.0, 2.0)], [(2.0, 3.0)], None, clock.now_ms())
    market.order_books.put(*BTC, HeldBook(book))
    trades = [trade(one, clock.now_ms()) for one in range(9)]
    for one in trades:
        market.trades.sink(*BTC)(one)
    market.candles.heard(SERIES, update(clock.now_ms()))
    clock.advance(40)
    assert await source.ticker(*BTC) == LiveValue(said, 40, "router")
    assert await source.tickers("binance") == {"BTC/USDT": LiveValue(said, 40, "router")}
    assert await source.order_book(*BTC, 5) == LiveBook(book, 40, "router")
    assert (await source.trades(*BTC, 2)).value == trades[-2:]
    held = await source.forming(SERIES)
    assert held is not None
    assert held == market.candles.get(SERIES)
    assert source.fresh_forming(SERIES) == (True, held)


def test_only_the_newest_of_tickers_and_candles_is_noted(clock: ManualClock) -> None:
    market = LiveMarket(clock)
    assert market.changes is None
    changes = market.followed()
    assert market.followed() is changes
    sink = changes.ticker_sink(*BTC)
    for last in (1.0, 2.0, 3.0):
        sink(Ticker(clock.now_ms(), last=last))
        market.candles.heard(SERIES, update(clock.now_ms(), last))
    assert changes.tickers == {BTC: Ticker(clock.now_ms(), last=3.0)}
    assert list(changes.candles) == [SERIES]
    changes.candles.clear()
    # Late: it changes nothing.
    market.candles.heard(SERIES, update(clock.now_ms() - 1))
    assert not changes.candles
    market.candles.put(SERIES, update(clock.now_ms(), 9.0).table(), clock.now_ms())
    assert list(changes.candles) == [SERIES]
    said = market.candles.update(SERIES)
    assert said == update(clock.now_ms(), 9.0)
    held = market.candles.get(SERIES)
    assert held is not None
    assert said is not None
    assert said.table() == held[0]
    clock.advance(5 * 60_000 + 1)
    assert market.candles.update(SERIES) is None


def test_what_waits_is_bounded_and_says_that_there_was_more() -> None:
    changes = LiveChanges()
    sink = changes.trade_sink(*BTC)
    assert changes.traded() == []
    for one in range(3):
        sink(trade(one, 10))
    assert changes.traded() == [BTC]
    waiting = changes.take_trades(BTC)
    assert ([one.id for one in waiting.new], waiting.all) == ([0, 1, 2], True)  # type: ignore[attr-defined]
    assert changes.traded() == []
    assert changes.take_trades(BTC) == ([], True)
    for one in range(5_000):
        sink(trade(one, 10))
    waiting = changes.take_trades(BTC)
    assert not waiting.all
    assert len(waiting.new) == 2_000
    assert waiting.new[-1].id == 4_999  # type: ignore[attr-defined]


def test_changes_of_books_are_dropped_together_with_trades() -> None:
    changes = LiveChanges()
    books, trades = changes.book_sink(*BTC), changes.trade_sink(*BTC)
    for one in range(4):
        books(BookChange(one, one, None, [(1.0, 1.0)], [], None, 10))
    trades(trade(1, 10))
    assert changes.drop() == 5
    assert changes.drop() == 0
    assert changes.take_changes(BTC) == ([], True)
