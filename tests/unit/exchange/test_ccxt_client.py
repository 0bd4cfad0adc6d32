"""The ccxt client with ccxt's transport replaced: real ccxt classes, answers from a script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import ccxt.async_support as ccxt
import pytest

from exchange.address import at_address, check_address
from exchange.binance.history import BINANCE_SETTINGS, BinanceHistory
from exchange.ccxt_client import CcxtHistory, parsed_candles
from exchange.history import open_history
from market.candle import COLUMNS, open_times_ms
from market.errors import BadInput, ExchangeRefused, ExchangeUnavailable, NotFound
from market.timeframe import ONE_MINUTE, TIMEFRAMES

MINUTE = 60_000
DAY = 86_400_000
#: 2023-03-24T00:00:00Z
START = 1_679_616_000_000
Answer = Callable[[str, dict[str, str]], Any]

SYMBOL = {
    "symbol": "BTCUSDT", "status": "TRADING", "baseAsset": "BTC", "quoteAsset": "USDT",
    "baseAssetPrecision": 8, "quotePrecision": 8, "isSpotTradingAllowed": True, "permissions": ["SPOT"],
    "filters": [
        {"filterType": "PRICE_FILTER", "minPrice": "0.01", "maxPrice": "1000000", "tickSize": "0.01000000"},
        {"filterType": "LOT_SIZE", "minQty": "0.00001", "maxQty": "9000", "stepSize": "0.00001000"},
        {"filterType": "NOTIONAL", "minNotional": "5.00000000"},
    ],
}  # fmt: skip


def scripted(exchange: type, answer: Answer, settings: dict[str, Any] | None = None) -> Any:
    """A ccxt exchange whose transport is `answer(path, query)`; text stands for a body that is not JSON."""

    class Scripted(exchange):  # type: ignore[misc]
        async def fetch(self, url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Any:
            parts = urlsplit(url)
            found = answer(parts.path, dict(parse_qsl(parts.query)))
            self.last_json_response = None if isinstance(found, str) else found
            if not isinstance(found, str):
                self.handle_errors(200, "OK", url, method, {}, json.dumps(found), found, {}, None)
            return found

    client = Scripted(settings or {})
    client.id = exchange.__name__
    return client


def kline(open_time: int) -> list[Any]:
    return [open_time, "1.0", "2.0", "0.5", "1.5", "10.0", open_time + MINUTE - 1, "15.0", 3, "4.0", "6.0", "0"]


def binance_answer(times: list[int]) -> Answer:
    """Binance with candles at `times`."""

    def answer(path: str, query: dict[str, str]) -> Any:
        if path.endswith("/exchangeInfo"):
            return {"symbols": [SYMBOL]}
        if path.endswith("/time"):
            return {"serverTime": START}
        start, end = int(query["startTime"]), int(query["endTime"])
        return [kline(time) for time in times if start <= time <= end][: int(query["limit"])]

    return answer


def on_binance(answer: Answer, work: Callable[[BinanceHistory], Coroutine[Any, Any, Any]]) -> Any:
    client = scripted(ccxt.binance, answer, {**BINANCE_SETTINGS, "options": {"fetchMarkets": {"types": ["spot"]}}})
    return asyncio.run(work(BinanceHistory(client)))


class TestBinance:
    def test_every_column_of_the_klines_is_kept(self) -> None:
        page = on_binance(
            binance_answer([START]), lambda it: it.candles("BTC/USDT", ONE_MINUTE, START, START + MINUTE)
        )
        assert tuple(page.table.column_names) == COLUMNS
        row = page.table.to_pylist()[0]
        assert (row["quote_volume"], row["trades"], row["taker_buy_volume"]) == (15.0, 3, 4.0)
        assert row["early_close_time"] is None

    def test_a_short_page_is_conclusive_to_the_end_and_a_full_one_to_its_last_row(self) -> None:
        times = [START + at * MINUTE for at in range(1500)]
        end = START + 2000 * MINUTE
        full = on_binance(binance_answer(times), lambda it: it.candles("BTC/USDT", ONE_MINUTE, START, end))
        rest = on_binance(binance_answer(times), lambda it: it.candles("BTC/USDT", ONE_MINUTE, full.reaches, end))
        assert (full.table.num_rows, full.reaches) == (1000, START + 1000 * MINUTE)
        assert (rest.table.num_rows, rest.reaches) == (500, end)

    def test_first_open_is_one_request(self) -> None:
        asked: list[dict[str, str]] = []

        def answer(path: str, query: dict[str, str]) -> Any:
            asked.append(query)
            return binance_answer([START + 5 * MINUTE])(path, query)

        first = on_binance(answer, lambda it: it.first_open("BTC/USDT", ONE_MINUTE, START - DAY, START + DAY))
        assert first == START + 5 * MINUTE
        assert [query["limit"] for query in asked if "limit" in query] == ["1"]

    def test_first_open_of_nothing_is_none(self) -> None:
        assert on_binance(binance_answer([]), lambda it: it.first_open("BTC/USDT", ONE_MINUTE, 0, START)) is None

    def test_a_web_page_is_no_answer(self) -> None:
        def answer(path: str, query: dict[str, str]) -> Any:
            return binance_answer([])(path, query) if "klines" not in path else "<html>blocked</html>"

        with pytest.raises(ExchangeUnavailable, match="not a list of klines"):
            on_binance(answer, lambda it: it.candles("BTC/USDT", ONE_MINUTE, START, START + DAY))

    def test_rows_outside_the_asked_range_are_no_answer(self) -> None:
        def answer(path: str, query: dict[str, str]) -> Any:
            return binance_answer([])(path, query) if "klines" not in path else [kline(START - MINUTE)]

        with pytest.raises(ExchangeUnavailable, match="outside the range"):
            on_binance(answer, lambda it: it.candles("BTC/USDT", ONE_MINUTE, START, START + DAY))

    def test_an_unknown_symbol_names_near_ones(self) -> None:
        with pytest.raises(NotFound, match=r"symbol: 'BTC/USDC' .* such as BTC/USDT"):
            on_binance(binance_answer([]), lambda it: it.candles("BTC/USDC", ONE_MINUTE, START, START + DAY))

    def test_instruments_carry_exact_steps(self) -> None:
        (one,) = on_binance(binance_answer([]), lambda it: it.instruments())
        assert (one.symbol, one.exchange_symbol, one.base, one.quote, one.kind) == (
            "BTC/USDT",
            "BTCUSDT",
            "BTC",
            "USDT",
            "spot",
        )
        assert (one.tick_size, one.lot_size, one.min_notional) == (Decimal("0.01"), Decimal("0.00001"), Decimal(5))

    def test_server_time(self) -> None:
        assert on_binance(binance_answer([]), lambda it: it.server_time()) == START


class Plain(ccxt.Exchange):  # type: ignore[misc]
    """The smallest exchange ccxt could know: one market, `rows(timeframe, since, limit)` as its candles."""

    rows: Callable[[str, int, int], list[list[Any]]]
    asked = 0

    def describe(self) -> Any:
        return self.deep_extend(
            super().describe(),
            {
                "id": "plain",
                "has": {"fetchOHLCV": True, "fetchTime": True},
                "timeframes": {"1m": "1", "1d": "1440"},
            },
        )

    async def fetch_markets(self, params: Any = None) -> Any:
        return [
            self.safe_market_structure({"id": "B-U", "symbol": "B/U", "base": "B", "quote": "U", "type": "spot"})
        ]

    async def fetch_time(self, params: Any = None) -> int:
        return NOW

    async def fetch_ohlcv(
        self, symbol: str, timeframe: str = "1m", since: Any = None, limit: Any = None, params: Any = None
    ) -> Any:
        self.asked += 1
        assert self.asked < 60, "the search does not end"
        found = type(self).rows(timeframe, since, limit)
        self.last_json_response = found
        return found


#: 2023-06-02T00:00:00Z
NOW = START + 70 * DAY


def plain(rows: Callable[[str, int, int], list[list[Any]]]) -> CcxtHistory:
    kind = type("Plain", (Plain,), {"rows": staticmethod(rows)})
    return CcxtHistory(kind({}))


def ohlcv(open_time: int) -> list[Any]:
    return [open_time, 1.0, 2.0, 0.5, 1.5, 10.0]


def by_window(times: set[int]) -> Callable[[str, int, int], list[list[Any]]]:
    """An exchange that answers with the window since .. since + limit buckets."""

    def rows(timeframe: str, since: int, limit: int) -> list[list[Any]]:
        step = TIMEFRAMES[timeframe].milliseconds
        opens = sorted({time // step * step for time in times})
        return [ohlcv(time) for time in opens if since <= time < since + limit * step]

    return rows


class TestAnyExchange:
    def test_a_window_with_rows_is_conclusive_to_its_last_row(self) -> None:
        history = plain(by_window({START + at * MINUTE for at in (0, 1, 3)}))
        page = asyncio.run(history.candles("B/U", ONE_MINUTE, START, START + DAY))
        assert open_times_ms(page.table).tolist() == [START + at * MINUTE for at in (0, 1, 3)]
        assert page.reaches == START + 4 * MINUTE
        assert page.table.column("quote_volume").null_count == 3

    def test_an_empty_window_is_conclusive_to_its_end(self) -> None:
        page = asyncio.run(plain(by_window(set())).candles("B/U", ONE_MINUTE, START, START + DAY))
        assert (page.table.num_rows, page.reaches) == (0, START + 200 * MINUTE)

    def test_newest_candles_whatever_the_start_conclude_nothing(self) -> None:
        newest = [ohlcv(NOW - at * MINUTE) for at in range(100, -1, -1)]
        page = asyncio.run(
            plain(lambda timeframe, since, limit: newest).candles("B/U", ONE_MINUTE, START, NOW + MINUTE)
        )
        assert page.reaches == START
        assert page.table.num_rows == 101

    def test_newest_candles_only_when_none_is_wanted_is_a_refusal(self) -> None:
        newest = [ohlcv(NOW - at * MINUTE) for at in range(100, -1, -1)]
        history = plain(lambda timeframe, since, limit: newest)
        with pytest.raises(ExchangeRefused, match="plain serves only its newest 101 candles of B/U 1m, from 2023"):
            asyncio.run(history.candles("B/U", ONE_MINUTE, START, START + DAY))

    def test_first_candles_after_the_start_conclude_up_to_the_first(self) -> None:
        later = [ohlcv(START + (5000 + at) * MINUTE) for at in range(200)]
        page = asyncio.run(plain(lambda timeframe, since, limit: later).candles("B/U", ONE_MINUTE, START, NOW))
        assert (page.table.num_rows, page.reaches) == (0, START + 5000 * MINUTE)

    def test_first_open_is_found_by_days(self) -> None:
        listing = START + 33 * DAY + 754 * MINUTE
        times = {listing + at * MINUTE for at in range(0, 30 * 1440, 7)}
        first = asyncio.run(plain(by_window(times)).first_open("B/U", ONE_MINUTE, START - 4000 * DAY, NOW))
        assert first == listing

    def test_first_open_after_a_cut_in_the_day(self) -> None:
        times = {START, START + 1000 * MINUTE}
        history = plain(by_window(times))
        assert asyncio.run(history.first_open("B/U", ONE_MINUTE, START + MINUTE, NOW)) == START + 1000 * MINUTE

    def test_first_open_of_an_exchange_that_answers_empty_ends(self) -> None:
        assert asyncio.run(plain(by_window(set())).first_open("B/U", ONE_MINUTE, START - 4000 * DAY, NOW)) is None

    def test_a_timeframe_it_lacks(self) -> None:
        with pytest.raises(
            BadInput, match="timeframe: '1h' is not accepted; expected one that plain serves: 1m 1d"
        ):
            plain(by_window(set())).check_timeframe(TIMEFRAMES["1h"])

    def test_missing_numbers_become_nan_for_the_store_to_refuse(self) -> None:
        table = parsed_candles([[START, 1.0, None, 1.0, 1.0, None]], "plain")
        assert table.column("high").to_pylist() != table.column("high").to_pylist()

    @pytest.mark.parametrize("rows", [["text"], [[START, 1.0]], [[None, 1, 1, 1, 1, 1]], [{"a": 1}]])
    def test_rows_of_another_form_are_no_answer(self, rows: list[Any]) -> None:
        with pytest.raises(ExchangeUnavailable):
            parsed_candles(rows, "plain")


class TestOpening:
    def test_an_unknown_exchange_names_near_ones(self) -> None:
        with pytest.raises(NotFound, match=r"exchange: 'binnance' .* such as binance"):
            open_history("binnance")

    @pytest.mark.parametrize("url", ["localhost:9900", "ftp://x", "http://", "http://h:99999", "http://h/?a=1", ""])
    def test_an_address_that_is_none(self, url: str) -> None:
        with pytest.raises(BadInput, match="exchange-url"):
            open_history("binance", url)

    @pytest.mark.parametrize(
        "exchange", ["binance", "binanceus", "binanceusdm", "bybit", "okx", "kraken", "coinbase"]
    )
    def test_every_request_goes_to_the_other_address(self, exchange: str) -> None:
        history = open_history(exchange, "http://127.0.0.1:9900/")
        found: list[str] = []

        def walk(node: Any) -> None:
            if isinstance(node, dict):
                for value in node.values():
                    walk(value)
            else:
                found.append(node)

        walk(history._ccxt.urls["api"])
        assert found
        assert all(url.startswith(("http://127.0.0.1:9900", "ws://127.0.0.1:9900")) for url in found)

    def test_paths_and_templates(self) -> None:
        urls = {"a": "https://api.{hostname}/v5", "b": ["https://x.com"], "ws": {"c": "wss://x.com:9443/ws"}}
        assert at_address(urls, check_address("https://proxy/binance/")) == {
            "a": "https://proxy/binance/v5",
            "b": ["https://proxy/binance"],
            "ws": {"c": "wss://proxy/binance/ws"},
        }
