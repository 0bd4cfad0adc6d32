"""Router memory: what is old is not served, what is bounded stays bounded."""

from __future__ import annotations

from market.candle_update import CandleUpdate
from market.instrument import Series
from market.ticker import Ticker
from market.timeframe import ONE_MINUTE
from market.trade import Trade
from store.live import LiveCandles
from store.live_tickers import LiveTickers
from store.live_trades import LiveTrades
from tests.conftest import ManualClock

SERIES = Series("binance", "BTC/USDT", ONE_MINUTE)


def trade(id_: int, received_at: int) -> Trade:
    return Trade(id_, 1.0, 1.0, received_at - 5, True, received_at)


def update(open_time: int, event_time: int, received_at: int) -> CandleUpdate:
    return CandleUpdate(open_time, 1.0, 2.0, 0.5, 1.5, 3.0, 4.0, 5, 1.0, 1.5, None, False, event_time, received_at)


def test_trades_are_served_newest_last_for_ten_minutes(clock: ManualClock) -> None:
    trades = LiveTrades(clock)
    put = trades.sink("binance", "BTC/USDT")
    for id_ in range(5):
        put(trade(id_, clock.now_ms()))
        clock.advance(1000)
    assert [one.id for one in trades.get("binance", "BTC/USDT", 2)] == [3, 4]
    assert [one.id for one in trades.get("binance", "BTC/USDT", 100)] == [0, 1, 2, 3, 4]
    clock.advance(10 * 60_000 - 3000)
    assert [one.id for one in trades.get("binance", "BTC/USDT", 100)] == [2, 3, 4]
    assert trades.get("binance", "ETH/USDT", 100) == []


def test_trades_that_nobody_reads_are_dropped_too(clock: ManualClock) -> None:
    trades = LiveTrades(clock)
    put = trades.sink("binance", "BTC/USDT")
    for id_ in range(30_000):
        put(trade(id_, clock.now_ms()))
    assert len(trades.get("binance", "BTC/USDT", 100_000)) == 20_000
    clock.advance(11 * 60_000)
    trades.drop_old()
    put(trade(30_000, clock.now_ms()))
    assert [one.id for one in trades.get("binance", "BTC/USDT", 100_000)] == [30_000]


def test_messages_of_best_prices_and_of_the_day_are_one_ticker(clock: ManualClock) -> None:
    tickers = LiveTickers(clock)
    tickers.sink("binance", "BTC/USDT")(Ticker(clock.now_ms(), 7, last=10.0, volume=3.0, open=9.0))
    clock.advance(100)
    tickers.sink("binance", "BTC/USDT")(Ticker(clock.now_ms(), None, 9.5, 1.0, 10.5, 2.0))
    whole = tickers.get("binance", "BTC/USDT")
    assert whole is not None
    assert (whole.bid, whole.ask, whole.last, whole.volume, whole.event_time) == (9.5, 10.5, 10.0, 3.0, 7)
    assert whole.received_at == clock.now_ms()
    clock.advance(5 * 60_000 - 50)
    later = tickers.get("binance", "BTC/USDT")
    assert later is not None
    assert (later.bid, later.last) == (9.5, None)
    assert set(tickers.all("binance")) == {"BTC/USDT"}
    clock.advance(100)
    assert tickers.get("binance", "BTC/USDT") is None
    assert tickers.all("binance") == {}
    assert tickers.all("kraken") == {}


def test_a_forming_candle_never_goes_back(clock: ManualClock) -> None:
    live = LiveCandles(clock)
    live.heard(SERIES, update(60_000, 70_000, clock.now_ms()))
    live.heard(SERIES, update(0, 59_000, clock.now_ms()))
    held = live.get(SERIES)
    assert held is not None
    assert held[0].column("open_time").cast("int64").to_pylist() == [60_000]
    assert held[0].column("quote_volume").to_pylist() == [4.0]
    live.put(SERIES, update(0, 0, 0).table(), 80_000)
    clock.advance(5 * 60_000)
    assert live.get(SERIES) is not None
    clock.advance(1)
    assert live.get(SERIES) is None
