"""ccxt's errors translated."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import aiohttp
import ccxt.async_support as ccxt
import pytest

from exchange.errors import BAN_UNSAID, WAIT_UNSAID, one_line, retry_after, translate
from market.errors import ExchangeRefused, ExchangeUnavailable, NotFound, RateLimited

PAGE = "<!DOCTYPE html><html><body>" + "blocked " * 1000


@pytest.mark.parametrize(
    "error, kind",
    [
        (ccxt.RequestTimeout("binance GET http://x"), ExchangeUnavailable),
        (ccxt.ExchangeNotAvailable("binance 503"), ExchangeUnavailable),
        (ccxt.NetworkError("reset"), ExchangeUnavailable),
        (ccxt.OnMaintenance("binance is upgrading"), ExchangeUnavailable),
        (ccxt.BadResponse("not json"), ExchangeUnavailable),
        (ccxt.BadSymbol("binance does not have market symbol X"), NotFound),
        (ccxt.BadRequest('binance {"code":-1100}'), ExchangeRefused),
        (ccxt.PermissionDenied("binance 403"), ExchangeRefused),
        (ccxt.ExchangeError("binance says no"), ExchangeRefused),
    ],
)
def test_each_error_becomes_ours(error: ccxt.BaseError, kind: type) -> None:
    translated = translate(error, "binance", {}, "X/Y")
    assert type(translated) is kind
    assert "\n" not in str(translated)


def test_half_a_body_is_no_answer() -> None:
    error = ccxt.ExchangeError("binance GET http://x")
    error.__cause__ = aiohttp.ClientPayloadError("Response payload is not completed")
    translated = translate(error, "binance", {})
    assert isinstance(translated, ExchangeUnavailable)
    assert "payload is not completed" in str(translated)


@pytest.mark.parametrize("kind", [ccxt.RateLimitExceeded, ccxt.DDoSProtection])
def test_a_rate_limit_says_how_long(kind: type) -> None:
    translated = translate(kind("binance 429 Too Many Requests {}"), "binance", {"Retry-After": "7"})
    assert isinstance(translated, RateLimited)
    assert (translated.retry_after, translated.banned) == (7.0, False)


def test_a_teapot_is_a_ban() -> None:
    translated = translate(ccxt.DDoSProtection("binance 418 I'm a teapot {}"), "binance", {"retry-after": "600"})
    assert isinstance(translated, RateLimited)
    assert (translated.retry_after, translated.banned) == (600.0, True)


def test_a_limit_of_418_in_the_url_is_not_a_ban() -> None:
    translated = translate(ccxt.RateLimitExceeded("kraken GET http://x?limit=418 429 Slow down"), "kraken", {})
    assert isinstance(translated, RateLimited)
    assert (translated.retry_after, translated.banned) == (WAIT_UNSAID, False)


def test_retry_after_as_a_date_and_unsaid() -> None:
    moment = datetime.now(UTC) + timedelta(seconds=100)
    assert retry_after({"Retry-After": format_datetime(moment, usegmt=True)}, 1.0) == pytest.approx(100, abs=3)
    assert retry_after({"Retry-After": "soon"}, BAN_UNSAID) == BAN_UNSAID
    assert retry_after({}, 3.0) == 3.0


def test_a_web_page_is_named_and_not_shown() -> None:
    translated = translate(ccxt.ExchangeNotAvailable(f"binance 502 Bad Gateway {PAGE}"), "binance", {})
    assert "a web page instead of JSON" in str(translated)
    assert len(str(translated)) < 300
    assert one_line("a\n  b\tc") == "a b c"
    assert len(one_line("x" * 5000)) == 200
