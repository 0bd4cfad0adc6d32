"""What requests cost, and what answers say of it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import ccxt.async_support as ccxt
import pytest

from exchange.binance.tariff import BinanceTariff
from exchange.budget import Limit
from exchange.errors import BAN_UNSAID, WAIT_UNSAID, wait_told
from exchange.request_limits import PlainTariff
from market.clock import SystemClock

SPOT = BinanceTariff(ccxt.binance())
FUTURES = BinanceTariff(ccxt.binanceusdm())


def cost(client: ccxt.Exchange, api: str, path: str, **params: object) -> float:
    """By ccxt."""
    config = client.api[api]["get"][path]
    found: float = client.calculate_rate_limiter_cost(api, "GET", path, params, config)
    return found


@pytest.mark.parametrize(
    "path, params, weight",
    [
        ("klines", {}, 2),
        ("exchangeInfo", {}, 20),
        ("time", {}, 1),
        ("depth", {"limit": 100}, 5),
        ("depth", {"limit": 500}, 25),
        ("depth", {"limit": 1000}, 50),
        ("depth", {"limit": 5000}, 250),
        ("historicalTrades", {}, 25),
        ("trades", {}, 25),
        ("aggTrades", {}, 4),
        ("ticker/24hr", {"symbol": "BTCUSDT"}, 2),
        ("ticker/24hr", {}, 80),
    ],
)
def test_documented_weights_of_spot(path: str, params: dict[str, object], weight: float) -> None:
    client = ccxt.binance()
    charge = SPOT.charge("public", path, cost(client, "public", path, **params))
    assert (charge.budget, charge.limit.weight) == ("api.binance.com spot", 6000)
    assert charge.weight == pytest.approx(weight)


@pytest.mark.parametrize(
    "path, params, weight",
    [
        ("klines", {"limit": 99}, 1),
        ("klines", {"limit": 1000}, 5),
        ("depth", {"limit": 1000}, 20),
        ("aggTrades", {}, 20),
        ("exchangeInfo", {}, 1),
        ("ticker/24hr", {"symbol": "BTCUSDT"}, 1),
    ],
)
def test_documented_weights_of_the_futures(path: str, params: dict[str, object], weight: float) -> None:
    client = ccxt.binanceusdm()
    charge = FUTURES.charge("fapiPublic", path, cost(client, "fapiPublic", path, **params))
    assert (charge.budget, charge.limit.weight) == ("fapi.binance.com usdm", 2400)
    assert charge.weight == pytest.approx(weight)


def test_one_host_is_one_budget_whatever_the_exchange_id() -> None:
    assert FUTURES.charge("public", "klines", 0.4).budget == SPOT.charge("public", "klines", 0.4).budget
    assert BinanceTariff(ccxt.binanceus()).charge("public", "klines", 1).budget == "api.binance.us spot"


@pytest.mark.parametrize("exchange, host", [("okx", "www.okx.com"), ("bybit", "api.bybit.com")])
def test_other_exchanges_go_by_ccxts_pace(exchange: str, host: str) -> None:
    client = getattr(ccxt, exchange)()
    charge = PlainTariff(client).charge("public", "anything", 2.5)
    assert (charge.budget, charge.weight) == (host, 2.5)
    assert charge.limit.window_ms >= 1000
    assert charge.limit.window_ms / charge.limit.weight == pytest.approx(client.rateLimit, rel=0.01)


@pytest.mark.parametrize(
    "headers, counted",
    [
        ({"X-MBX-USED-WEIGHT": "7", "X-MBX-USED-WEIGHT-1M": "1234"}, 1234),
        ({"x-mbx-used-weight": "7"}, 7),
        ({"x-mbx-used-weight-1m": "many"}, None),
        ({"x-mbx-used-weight-1m": "-5"}, None),
        ({"x-mbx-used-weight-1m": "9" * 40}, None),
        ({"x-mbx-order-count-1m": "3"}, None),
        ({}, None),
    ],
)
def test_the_weight_that_the_exchange_has_counted(headers: dict[str, str], counted: float | None) -> None:
    assert SPOT.counted(headers) == counted


@pytest.mark.parametrize(
    "name, weight",
    [("binance_spot_exchangeInfo_2021-10-12", 1200), ("binance_usdm_exchangeInfo_2021-07-22", 2400)],
)
def test_the_limit_in_a_recorded_exchange_info(recorded: Path, name: str, weight: float) -> None:
    body = gzip.decompress((recorded / "instruments" / f"{name}.json.gz").read_bytes()).decode()
    told = SPOT.told("https://api.binance.com/api/v3/exchangeInfo", body)
    assert told == Limit(weight=weight, window_ms=60_000, told=True)
    assert SPOT.told("https://api.binance.com/api/v3/klines", body) is None


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"rateLimitType": "REQUEST_WEIGHT"},
        {"rateLimitType": "REQUEST_WEIGHT", "interval": "MOON", "intervalNum": 1, "limit": 6000},
        {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 0, "limit": 6000},
        {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": -1},
        {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 1e300},
        {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": "6000"},
        {"rateLimitType": "REQUEST_WEIGHT", "interval": ["MINUTE"], "intervalNum": 1, "limit": 6000},
        {"rateLimitType": "ORDERS", "interval": "MINUTE", "intervalNum": 1, "limit": 6000},
        7,
    ],
)
def test_a_limit_of_another_form_is_none(entry: object) -> None:
    assert SPOT.told("/api/v3/exchangeInfo", json.dumps({"rateLimits": [entry]})) is None


def test_a_cut_off_answer_tells_no_limit() -> None:
    assert SPOT.told("/api/v3/exchangeInfo", '{"rateLimits": [{"rateLimitType": "REQ') is None
    assert SPOT.told("/api/v3/exchangeInfo", '{"rateLimits": [{"rateLimitType": REQ]') is None


class TestHowLongToWait:
    def test_the_header_counts_first(self) -> None:
        assert wait_told({"Retry-After": "7"}, "IP banned until 1999999999999", banned=True) == 7

    def test_then_what_the_text_says(self) -> None:
        until = SystemClock().now_ms() + 300_000
        assert wait_told({}, f"IP banned until {until}. Please", banned=True) == pytest.approx(300, abs=5)

    def test_else_what_is_usual(self) -> None:
        assert wait_told({}, "", banned=False) == WAIT_UNSAID
        assert wait_told({}, "IP banned until tomorrow", banned=True) == BAN_UNSAID
