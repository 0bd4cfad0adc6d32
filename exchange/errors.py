"""ccxt's errors in the words of the house; the only place where they are translated.

::

    RateLimitExceeded, DDoSProtection            RateLimited (418: banned)
    no connection, time-out, 5xx, half a body,   ExchangeUnavailable
      an answer that is not what was asked for
    BadSymbol                                    NotFound("symbol", ...)
    every other error of the exchange            ExchangeRefused
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import ccxt.async_support as ccxt

from market.clock import SystemClock
from market.errors import ChandleryError, ExchangeRefused, ExchangeUnavailable, NotFound, RateLimited

#: Seconds to wait where a 429 or a 418 does not say how long.
WAIT_UNSAID = 10.0
BAN_UNSAID = 120.0
_LONGEST_MESSAGE = 200
_BANNED_UNTIL = re.compile(r"banned until (?P<ms>[0-9]{13})\b")
_HTML = re.compile(r"<!doctype|<html|<head|<body", re.IGNORECASE)


@contextmanager
def translated(exchange: Any, symbol: str | None = None) -> Iterator[None]:
    """Raise what ccxt raises inside as an error of this project.

    :param exchange: the ccxt exchange that is called; its last response headers tell how long to wait. They
        belong to the failing call: nothing is awaited between ccxt setting them and the error arriving here.
    :param symbol: the symbol that was asked about.
    """
    try:
        yield
    except ccxt.BaseError as error:
        raise translate(error, exchange.id, exchange.last_response_headers or {}, symbol) from error
    except TimeoutError as error:
        raise ExchangeUnavailable(f"{exchange.id} gave no answer in time") from error


def translate(
    error: ccxt.BaseError, exchange: str, headers: Mapping[str, str], symbol: str | None = None
) -> ChandleryError:
    """The error of this project that says the same as ccxt's `error`."""
    message = one_line(str(error)) or type(error).__name__
    if isinstance(error, ccxt.RateLimitExceeded | ccxt.DDoSProtection):
        # ccxt puts the HTTP status into the message, between spaces, and nowhere else.
        banned = " 418 " in str(error)[:500]
        wait = wait_told(headers, str(error), banned=banned)
        verb = "has banned this address" if banned else "asks to slow down"
        return RateLimited(f"{exchange} {verb} for {wait:g} s: {message}", wait, banned=banned)
    if isinstance(error, ccxt.BadSymbol):
        return NotFound("symbol", symbol, hint=f"a symbol that {exchange} trades ({message})")
    # Half a body reaches us as a plain ExchangeError; only its cause tells that the connection broke.
    broken = isinstance(error.__cause__, aiohttp.ClientError | OSError)
    if broken or isinstance(error, ccxt.OperationFailed | ccxt.BadResponse):
        why = f" ({one_line(str(error.__cause__))})" if broken and str(error.__cause__) else ""
        return ExchangeUnavailable(f"{exchange} gave no usable answer: {message}{why}")
    return ExchangeRefused(f"{exchange} refused: {message}")


def wait_told(headers: Mapping[str, str], text: str, *, banned: bool) -> float:
    """Seconds to wait after a 429, or a 418 (`banned`): by its headers, else by its text, else as is usual.

    :param text: the body, or a message with it in it. Binance writes ``IP banned until 1659146400000``.
    """
    until = _BANNED_UNTIL.search(text)
    unsaid = BAN_UNSAID if banned else WAIT_UNSAID
    if until is not None:
        unsaid = max(WAIT_UNSAID, (int(until["ms"]) - SystemClock().now_ms()) / 1000)
    return retry_after(headers, unsaid)


def retry_after(headers: Mapping[str, str], unsaid: float) -> float:
    """Seconds to wait by the ``Retry-After`` header (a number or a date), or `unsaid` without one."""
    text = next((value for name, value in headers.items() if name.lower() == "retry-after"), "").strip()
    if text.replace(".", "", 1).isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return unsaid
    now = datetime.fromtimestamp(SystemClock().now_ms() / 1000, UTC)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - now).total_seconds())


def one_line(text: str) -> str:
    """`text` on one line and short; a web page in it is named, not shown."""
    page = _HTML.search(text)
    if page:
        text = text[: page.start()] + "a web page instead of JSON"
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 3] + "..."
