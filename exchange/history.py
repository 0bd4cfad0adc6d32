"""Opening the history of an exchange by its id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ccxt.async_support as ccxt

from exchange.address import at_address, check_address
from exchange.binance.history import BINANCE_IDS, BINANCE_SETTINGS, BinanceHistory
from exchange.binance.tariff import BinanceTariff
from exchange.budget import Purpose
from exchange.ccxt_client import REQUEST_TIMEOUT_MS, CcxtHistory
from exchange.names import check_known
from exchange.request_limits import PlainTariff, RequestLimits


def open_history(
    exchange: str,
    url: str | None = None,
    *,
    timeout_ms: int = REQUEST_TIMEOUT_MS,
    limits: Path | None = None,
    purpose: Purpose = Purpose.BACKFILL,
) -> CcxtHistory:
    """The history of the exchange with ccxt id `exchange`; nothing is sent yet. Close it when done.

    :param url: another address for every request to it (a simulated exchange, a proxy), for example
        ``http://127.0.0.1:9900``. Only scheme and host change; the paths are the exchange's own.
    :param timeout_ms: how long one request may take, milliseconds.
    :param limits: the folder of the budgets that all processes of this machine share (see ``exchange.budget``);
        made when first needed. Without one, only ccxt's own throttle holds this client's requests back.
    :param purpose: what the requests are for: live ones go before those of a backfill.
    :raises NotFound: for an id that ccxt does not know, with the nearest ones.
    :raises BadInput: for an address that is not one.
    """
    address = None if url is None else check_address(url)
    check_known(exchange)
    # The last answer, decoded or not, tells a web page from an empty list of candles.
    common = {"timeout": timeout_ms, "enableLastJsonResponse": True, "enableLastResponseHeaders": True}
    client = getattr(ccxt, exchange)({**common, **_settings(exchange)})
    if address is not None:
        client.urls["api"] = at_address(client.urls["api"], address)
    binance = exchange in BINANCE_IDS
    shared = None
    if limits is not None:
        tariff = BinanceTariff(client) if binance else PlainTariff(client)
        shared = RequestLimits(client, tariff, limits, purpose)
    return BinanceHistory(client, shared) if binance else CcxtHistory(client, shared)


def _settings(exchange: str) -> dict[str, Any]:
    """ccxt's settings for one exchange."""
    if exchange not in BINANCE_IDS:
        return {}
    if exchange == "binanceusdm":
        return BINANCE_SETTINGS
    # One market list instead of three: the derivatives have their own ids.
    return {**BINANCE_SETTINGS, "options": {"fetchMarkets": {"types": ["spot"]}}}
