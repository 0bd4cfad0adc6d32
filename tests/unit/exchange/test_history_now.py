"""Trades, order books and tickers over REST: real ccxt classes, answers from a script."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import ccxt.async_support as ccxt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange.binance.history import BinanceHistory
from exchange.binance.rest import parse_agg_trades, parse_best, parse_book, parse_day, parse_trades
from exchange.ccxt_client import CcxtHistory
from exchange.ccxt_messages import parsed_book, parsed_ticker, parsed_trades, trade_id
from exchange.trade_page import TradePage
from market.errors import BadInput, ExchangeRefused, ExchangeUnavailable, NotFound
from market.trade import Trade
from tests.conftest import ManualClock
from tests.unit.exchange.test_ccxt_client import SYMBOL, Answer, Plain, scripted

NOW = 1_700_000_000_000
#: Ids of the trades that the scripted exchange has; older ones it does not serve.
FIRST, LAST = 1000, 3499
CONTRACT = {
    **SYMBOL, "pair": "BTCUSDT", "contractType": "PERPETUAL", "deliveryDate": 4133404800000, "marginAsset": "USDT",
    "pricePrecision": 2, "quantityPrecision": 3, "underlyingType": "COIN", "contractSize": "1",
}  # fmt: skip


def time_of(id_: int) -> int:
    return NOW - (LAST - id_) * 10


def row(id_: int) -> dict[str, Any]:
    return {
        "id": id_, "price": "27000.10000000", "qty": "0.50000000", "quoteQty": "13500.05000000",
        "time": time_of(id_), "isBuyerMaker": id_ % 2 == 0, "isBestMatch": True,
    }  # fmt: skip


def aggregated(id_: int) -> dict[str, Any]:
    return {
        "a": id_, "p": "27000.1", "q": "0.5", "f": 3 * id_, "l": 3 * id_ + 2, "T": time_of(id_), "m": id_ % 2 == 0,
    }  # fmt: skip


def served(query: dict[str, str], made: Callable[[int], dict[str, Any]]) -> list[dict[str, Any]]:
    """What Binance answers: from an id on, or the newest."""
    limit = int(query["limit"])
    if "fromId" not in query:
        return [made(id_) for id_ in range(LAST - limit + 1, LAST + 1)]
    start = max(FIRST, int(query["fromId"]))
    return [made(id_) for id_ in range(start, LAST + 1)][:limit]


def binance(path: str, query: dict[str, str]) -> Any:
    if path.endswith("/exchangeInfo"):
        return {"symbols": [CONTRACT if "fapi" in path else SYMBOL]}
    if path.endswith("/historicalTrades"):
        return served(query, row)
    if path.endswith("/aggTrades"):
        return served(query, aggregated)
    if path.endswith("/depth"):
        levels = range(int(query["limit"]))
        sides = {"bids": [[str(100 - at), "1"] for at in levels], "asks": [[str(101 + at), "2"] for at in levels]}
        when = {"E": NOW - 5, "T": NOW - 6} if "fapi" in path else {}
        return {"lastUpdateId": 77, **when, **sides}
    raise AssertionError(path)


def ask(work: Callable[[Any], Coroutine[Any, Any, Any]], answer: Answer = binance, *, futures: bool = False) -> Any:
    kind = "linear" if futures else "spot"
    settings = {"options": {"fetchMarkets": {"types": [kind]}}}
    client = scripted(ccxt.binanceusdm if futures else ccxt.binance, answer, settings)
    return asyncio.run(work(BinanceHistory(client, clock=ManualClock(NOW))))


def known(id_: int, **changes: Any) -> Trade:
    return Trade(id_, 27000.1, 0.5, time_of(id_), True, NOW - 1)._replace(**changes)


BTC = "BTC/USDT"
PERPETUAL = "BTC/USDT:USDT"


@pytest.mark.parametrize("futures", [False, True])
class TestTradesOfBinance:
    def test_those_that_follow_the_last_one(self, futures: bool) -> None:
        symbol = PERPETUAL if futures else BTC
        page: TradePage = ask(lambda it: it.trades_after(symbol, known(3400)), futures=futures)
        assert [one.id for one in page.trades] == list(range(3401, LAST + 1))
        assert (page.complete, page.missing) == (True, False)
        one = page.trades[0]
        assert one == Trade(3401, 27000.1, 0.5, time_of(3401), True, NOW, 3 if futures else 1)
        assert not page.trades[1].taker_buys

    def test_a_full_page_says_that_there_are_more(self, futures: bool) -> None:
        symbol = PERPETUAL if futures else BTC
        page: TradePage = ask(lambda it: it.trades_after(symbol, known(2000), limit=100), futures=futures)
        assert [one.id for one in page.trades] == list(range(2001, 2101))
        assert (page.complete, page.missing) == (False, False)
        more: TradePage = ask(lambda it: it.trades_after(symbol, known(2000), limit=5000), futures=futures)
        assert len(more.trades) == 1000

    def test_what_is_not_served_any_more_is_missing(self, futures: bool) -> None:
        symbol = PERPETUAL if futures else BTC
        page: TradePage = ask(lambda it: it.trades_after(symbol, known(500)), futures=futures)
        assert page.trades[0].id == FIRST
        assert page.missing

    def test_nothing_newer_is_complete_and_nothing_missing(self, futures: bool) -> None:
        symbol = PERPETUAL if futures else BTC
        page: TradePage = ask(lambda it: it.trades_after(symbol, known(LAST)), futures=futures)
        assert page == TradePage(trades=[], complete=True, missing=False)

    def test_without_a_last_one_the_newest(self, futures: bool) -> None:
        symbol = PERPETUAL if futures else BTC
        page: TradePage = ask(lambda it: it.trades_after(symbol, None, limit=3), futures=futures)
        assert [one.id for one in page.trades] == [LAST - 2, LAST - 1, LAST]
        assert (page.complete, page.missing) == (True, False)

    def test_older_ones_than_asked_are_no_answer(self, futures: bool) -> None:
        def answer(path: str, query: dict[str, str]) -> Any:
            query.pop("fromId", None)
            return binance(path, query)

        symbol = PERPETUAL if futures else BTC
        with pytest.raises(ExchangeUnavailable, match="older trades"):
            ask(lambda it: it.trades_after(symbol, known(LAST)), answer, futures=futures)

    def test_an_id_of_another_exchange_is_refused(self, futures: bool) -> None:
        symbol = PERPETUAL if futures else BTC
        with pytest.raises(BadInput, match="last: 'a-b'"):
            ask(lambda it: it.trades_after(symbol, known(1, id="a-b")), futures=futures)

    @pytest.mark.parametrize("answer", ["<html>", {"code": 0}, None, [7], [None], [[]]])
    def test_something_else_is_no_answer(self, futures: bool, answer: Any) -> None:
        def garbage(path: str, query: dict[str, str]) -> Any:
            return binance(path, query) if path.endswith("exchangeInfo") else answer

        symbol = PERPETUAL if futures else BTC
        for work in (
            lambda it: it.trades_after(symbol, None),
            lambda it: it.order_book(symbol),
            lambda it: it.ticker(symbol),
        ):
            with pytest.raises(ExchangeUnavailable):
                ask(work, garbage, futures=futures)

    def test_an_unknown_symbol(self, futures: bool) -> None:
        for work in (
            lambda it: it.trades_after("BTC/USDC", None),
            lambda it: it.order_book("BTC/USDC"),
            lambda it: it.ticker("BTC/USDC"),
        ):
            with pytest.raises(NotFound, match="symbol: 'BTC/USDC'"):
                ask(work, futures=futures)


class TestBooksOfBinance:
    def test_spot_says_no_time_and_serves_any_number_of_levels(self) -> None:
        book = ask(lambda it: it.order_book(BTC, 7))
        assert (book.last_id, book.event_time, book.received_at) == (77, None, NOW)
        assert (len(book.bids), len(book.asks)) == (7, 7)
        assert (book.bids[0], book.asks[0]) == ((100.0, 1.0), (101.0, 2.0))

    def test_the_futures_serve_certain_numbers_of_levels_and_the_rest_is_left_out(self) -> None:
        asked: list[str] = []

        def answer(path: str, query: dict[str, str]) -> Any:
            asked.extend([query["limit"]] if path.endswith("depth") else [])
            return binance(path, query)

        book = ask(lambda it: it.order_book(PERPETUAL, 7), answer, futures=True)
        assert (len(book.bids), book.event_time) == (7, NOW - 5)
        assert asked == ["10"]

    @pytest.mark.parametrize("name", ["spot_BTCUSDT_2024-08-08_2024-08-09", "usdm_BTCUSDT_2024-08-08"])
    def test_recorded_snapshots(self, recorded: Path, name: str) -> None:
        with gzip.open(recorded / "ws" / f"binance_{name}.jsonl.gz", "rt") as lines:
            messages = [json.loads(line) for line in lines if '"src":"rest"' in line]
        books = [parse_book(one["msg"], 1000, NOW) for one in messages if "/depth" in one["url"]]
        assert books
        assert all(len(one.bids) == len(one.asks) == 1000 and one.bids[0] < one.asks[0] for one in books)
        assert all((one.event_time is None) == ("spot" in name) for one in books)


DAY_ANSWER = {
    "symbol": "BNBBTC", "lastPrice": "4.00000200", "bidPrice": "4.00000000", "bidQty": "100.00000000",
    "askPrice": "4.00000200", "askQty": "100.00000000", "openPrice": "99.00000000", "highPrice": "100.00000000",
    "lowPrice": "0.10000000", "volume": "8913.30000000", "quoteVolume": "15.30000000",
    "openTime": 1499783499040, "closeTime": 1499869899040, "firstId": 28385, "lastId": 28460, "count": 76,
}  # fmt: skip


class TestParsers:
    def test_the_documented_day(self) -> None:
        day = parse_day(DAY_ANSWER, NOW)
        assert (day.bid, day.ask, day.last, day.open, day.high, day.low) == (4.0, 4.000002, 4.000002, 99, 100, 0.1)
        assert (day.volume, day.quote_volume, day.trades, day.event_time) == (8913.3, 15.3, 76, 1499869899040)

    def test_a_market_without_offers_or_trades(self) -> None:
        zeros = {name: "0.00000000" for name, value in DAY_ANSWER.items() if "." in str(value)}
        day = parse_day({**DAY_ANSWER, **zeros, "count": 0}, NOW)
        assert (day.bid, day.bid_quantity, day.ask, day.last, day.high) == (None, None, None, None, None)
        assert (day.volume, day.trades) == (0.0, 0)

    def test_best_prices_of_the_futures_go_over_the_day(self) -> None:
        answer = {
            "symbol": "BTCUSDT",
            "bidPrice": "5.0",
            "bidQty": "1",
            "askPrice": "6.0",
            "askQty": "2",
            "time": 9,
        }
        best = parse_best(answer, NOW).over(parse_day(DAY_ANSWER, NOW))
        assert (best.bid, best.ask, best.last, best.event_time) == (5.0, 6.0, 4.000002, 9)

    @pytest.mark.parametrize(
        "change",
        [
            {"price": "0"}, {"price": "-1"}, {"price": "NaN"}, {"price": "Infinity"}, {"price": None},
            {"price": "1e300"}, {"qty": "0"}, {"qty": "text"}, {"time": -1}, {"time": "yesterday"},
            {"time": 10**18}, {"id": -1}, {"id": "x"}, {"id": 2**70}, {"isBuyerMaker": "maybe"},
            {"isBuyerMaker": None},
        ],
    )  # fmt: skip
    def test_a_trade_with_a_number_no_trade_has(self, change: dict[str, Any]) -> None:
        assert parse_trades([row(1)], NOW)
        with pytest.raises(ExchangeUnavailable, match="trades: "):
            parse_trades([{**row(1), **change}], NOW)
        with pytest.raises(ExchangeUnavailable):
            parse_trades([{name: value for name, value in row(1).items() if name not in change}], NOW)

    def test_trades_out_of_order(self) -> None:
        for ids in ((2, 1), (1, 1)):
            with pytest.raises(ExchangeUnavailable, match="follows"):
                parse_trades([row(id_) for id_ in ids], NOW)
            with pytest.raises(ExchangeUnavailable, match="follows"):
                parse_agg_trades([aggregated(id_) for id_ in ids], NOW)
        with pytest.raises(ExchangeUnavailable, match="before its first"):
            parse_agg_trades([{**aggregated(5), "l": 1}], NOW)

    @pytest.mark.parametrize(
        "change",
        [
            {"lastUpdateId": None}, {"lastUpdateId": "x"}, {"bids": None}, {"bids": [["1"]]},
            {"bids": [["1", "-1"]]},
            {"bids": [["0", "1"]]}, {"bids": [["1", "1"], ["2", "1"]]}, {"bids": [["1", "1"], ["1", "1"]]},
            {"asks": [["2", "1"], ["1", "1"]]}, {"asks": [["NaN", "1"]]}, {"asks": {}},
        ],
    )  # fmt: skip
    def test_a_book_that_is_none(self, change: dict[str, Any]) -> None:
        book = {"lastUpdateId": 1, "bids": [["1", "1"]], "asks": [["2", "1"]]}
        assert parse_book(book, 5, NOW).bids == [(1.0, 1.0)]
        with pytest.raises(ExchangeUnavailable, match="depth: "):
            parse_book({**book, **change}, 5, NOW)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(),
            lambda one: st.lists(one) | st.dictionaries(st.text(), one),
        )
    )
    def test_anything_at_all_is_read_or_refused(self, answer: Any) -> None:
        for parse in (
            lambda: parse_trades(answer, NOW),
            lambda: parse_agg_trades(answer, NOW),
            lambda: parse_book(answer, 5, NOW),
            lambda: parse_day(answer, NOW),
            lambda: parse_best(answer, NOW),
            lambda: parsed_trades(answer, "plain", NOW),
            lambda: parsed_book(answer, 5, "plain", NOW),
            lambda: parsed_ticker(answer, "plain", NOW),
        ):
            try:
                parse()
            except ExchangeUnavailable:
                continue


def unified(id_: int | str | None, time: int, **changes: Any) -> dict[str, Any]:
    return {"id": id_, "timestamp": time, "price": 2.0, "amount": 1.0, "side": "buy", "info": {}, **changes}


class Live(Plain):
    """An exchange that serves the newest trades since a time."""

    trades: list[dict[str, Any]]
    #: Rows of one page.
    page = 5
    #: It serves so many of its newest trades.
    kept = 10**6
    levels: tuple[int, ...] = (20, 50)

    def describe(self) -> Any:
        paged = {"fetchTrades": {"limit": self.page}}
        return self.deep_extend(super().describe(), {"features": {"spot": paged}})

    async def fetch_trades(self, symbol: str, since: Any = None, limit: Any = None, params: Any = None) -> Any:
        rows = self.trades[-self.kept :]
        if since is None:
            return rows[-limit:]
        return [one for one in rows if one["timestamp"] >= since][:limit]

    async def fetch_order_book(self, symbol: str, limit: Any = None, params: Any = None) -> Any:
        if limit not in (None, *self.levels):
            raise ccxt.BadRequest("limit must be one of 20, 50")
        count = limit or 25
        return {
            "bids": [[100 - at, 1.0] for at in range(count)], "asks": [[101 + at, 1.0, 5] for at in range(count)],
            "timestamp": None, "nonce": None, "symbol": symbol, "datetime": None,
        }  # fmt: skip

    async def fetch_ticker(self, symbol: str, params: Any = None) -> Any:
        return {"timestamp": 5, "bid": 1.0, "bidVolume": None, "ask": 0.0, "last": "1.5", "baseVolume": 3.0}


def live(trades: list[dict[str, Any]], **changes: Any) -> CcxtHistory:
    kind = type("Live", (Live,), {"trades": trades, **changes})
    return CcxtHistory(kind({}), clock=ManualClock(NOW))


def after(history: CcxtHistory, last: Trade | None, limit: int = 1000) -> TradePage:
    return asyncio.run(history.trades_after("B/U", last, limit=limit))


def ids(page: TradePage) -> list[int | str]:
    return [one.id for one in page.trades]


class TestAnyExchange:
    def test_those_after_the_last_one_even_of_the_same_instant(self) -> None:
        rows = [unified(str(id_), 100 + id_ // 3) for id_ in range(1, 9)]
        page = after(live(rows, page=7), Trade(4, 2.0, 1.0, 101, True, NOW))
        assert ids(page) == [5, 6, 7]
        assert (page.complete, page.missing) == (False, False)
        assert page.trades[0] == Trade(5, 2.0, 1.0, 101, True, NOW)
        rest = after(live(rows, page=7), page.trades[-1])
        assert (ids(rest), rest.complete, rest.missing) == ([8], True, False)

    def test_an_instant_that_fills_a_page_is_left_behind_and_said_to_be_missing(self) -> None:
        rows = [unified(id_, 100) for id_ in range(1, 9)] + [unified(9, 101)]
        page = after(live(rows), Trade(5, 2.0, 1.0, 100, True, NOW))
        assert (ids(page), page.complete, page.missing) == ([9], True, True)
        newest = after(live(rows[:-1]), Trade(5, 2.0, 1.0, 100, True, NOW))
        assert newest == TradePage(trades=[], complete=True, missing=False)

    def test_ids_that_do_not_count_keep_the_order_of_the_exchange(self) -> None:
        rows = [unified(id_, 100) for id_ in ("b-1", "a-2", "c-3")] + [unified("a-0", 101)]
        page = after(live(rows), Trade("a-2", 2.0, 1.0, 100, True, NOW))
        assert ids(page) == ["b-1", "c-3", "a-0"]
        assert not page.missing

    def test_what_the_exchange_no_longer_serves_is_missing(self) -> None:
        rows = [unified(id_, 100 + id_) for id_ in range(1, 30)]
        page = after(live(rows, kept=3), Trade(4, 2.0, 1.0, 104, True, NOW))
        assert (ids(page), page.missing) == ([27, 28, 29], True)

    def test_nothing_newer(self) -> None:
        rows = [unified(id_, 100 + id_) for id_ in range(1, 4)]
        page = after(live(rows), Trade(3, 2.0, 1.0, 103, True, NOW))
        assert page == TradePage(trades=[], complete=True, missing=False)

    def test_where_the_size_of_a_page_is_unknown_only_nothing_newer_is_complete(self) -> None:
        rows = [unified(id_, 100 + id_) for id_ in range(1, 4)]
        page = after(live(rows, page=None), Trade(2, 2.0, 1.0, 102, True, NOW))
        assert (ids(page), page.complete) == ([3], False)
        assert after(live(rows, page=None), page.trades[-1]).complete

    def test_without_a_last_one_the_newest_each_once(self) -> None:
        rows = [unified(id_, 100 + id_) for id_ in (1, 2, 3, 3)]
        page = after(live(rows), None, limit=3)
        assert (ids(page), page.complete, page.missing) == ([2, 3], True, False)

    def test_trades_without_ids_are_refused_for_good(self) -> None:
        with pytest.raises(ExchangeRefused, match="without ids"):
            after(live([unified(None, 100)]), None)

    @pytest.mark.parametrize(
        "change", [{"price": None}, {"amount": -1.0}, {"timestamp": None}, {"side": None}, {"price": float("nan")}]
    )
    def test_a_trade_that_is_none(self, change: dict[str, Any]) -> None:
        with pytest.raises(ExchangeUnavailable, match="plain trades"):
            parsed_trades([unified("1", 100, **change)], "plain", NOW)

    @pytest.mark.parametrize(
        "text, id_",
        [("17", 17), ("a-1", "a-1"), ("", ""), ("٣", "٣"), ("1" * 18, int("1" * 18)), ("1" * 30, "1" * 30)],
    )
    def test_ids_are_numbers_where_they_are(self, text: str, id_: int | str) -> None:
        assert trade_id(text) == id_

    def test_a_number_of_levels_that_is_refused_is_not_asked_for_again(self) -> None:
        history = live([])
        assert len(asyncio.run(history.order_book("B/U", 20)).bids) == 20
        assert len(asyncio.run(history.order_book("B/U", 1000)).bids) == 25
        book = asyncio.run(history.order_book("B/U", 20))
        assert (len(book.bids), len(book.asks), book.last_id, book.event_time) == (20, 20, 0, None)
        assert book.asks[0] == (101.0, 1.0)

    def test_a_ticker_with_what_the_exchange_says(self) -> None:
        ticker = asyncio.run(live([]).ticker("B/U"))
        assert (ticker.bid, ticker.ask, ticker.last, ticker.volume, ticker.open) == (1.0, None, 1.5, 3.0, None)
        assert (ticker.event_time, ticker.received_at) == (5, NOW)

    def test_what_breaks_ccxts_parser_is_no_answer(self) -> None:
        async def broken(*rest: Any) -> Any:
            raise TypeError("'NoneType' object is not subscriptable")

        history = live([], fetch_trades=broken, fetch_ticker=broken, fetch_order_book=broken)
        for work in (
            lambda: history.trades_after("B/U", None),
            lambda: history.ticker("B/U"),
            lambda: history.order_book("B/U"),
        ):
            with pytest.raises(ExchangeUnavailable, match="cannot be read"):
                asyncio.run(work())

    def test_without_a_shared_budget_there_is_none_to_tell_of(self) -> None:
        assert live([]).budgets() == []
