"""``GET /api/v3/exchangeInfo``: limits of the exchange and rules of each market."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from exchange.simulator.limits import Allowance
from exchange.simulator.market import Listing

_OTHER_LIMITS = [
    {"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": 100},
    {"rateLimitType": "ORDERS", "interval": "DAY", "intervalNum": 1, "limit": 200000},
    {"rateLimitType": "RAW_REQUESTS", "interval": "MINUTE", "intervalNum": 5, "limit": 61000},
]


def spot_info(listings: Sequence[Listing], now_ms: int, allowance: Allowance) -> dict[str, Any]:
    """The answer for these symbols. When one was listed is not in it, as on Binance."""
    return {
        "timezone": "UTC",
        "serverTime": now_ms,
        "rateLimits": [allowance.rule(), *_OTHER_LIMITS],
        "exchangeFilters": [],
        "symbols": [_entry(listing) for listing in listings],
    }


def contracts_info(listings: Sequence[Listing], now_ms: int, allowance: Allowance) -> dict[str, Any]:
    """The same of a futures exchange, with perpetual contracts."""
    return {
        "timezone": "UTC",
        "serverTime": now_ms,
        "rateLimits": [allowance.rule(), *_OTHER_LIMITS],
        "exchangeFilters": [],
        "assets": [],
        "symbols": [_contract(listing) for listing in listings],
    }


def _contract(listing: Listing) -> dict[str, Any]:
    return _entry(listing) | {
        "pair": listing.exchange_symbol,
        "contractType": "PERPETUAL",
        "contractStatus": "TRADING",
        "deliveryDate": 4133404800000,
        "onboardDate": 1567965300000,
        "marginAsset": listing.quote,
        "pricePrecision": listing.price_decimals,
        "quantityPrecision": listing.lot_decimals,
        "underlyingType": "COIN",
        "timeInForce": ["GTC", "IOC", "FOK", "GTX"],
    }


def _entry(listing: Listing) -> dict[str, Any]:
    tick, lot = (Decimal(1).scaleb(-places) for places in (listing.price_decimals, listing.lot_decimals))
    minimum = {"BTC": Decimal("0.0001"), "ETH": Decimal("0.001"), "BNB": Decimal("0.01")}.get(
        listing.quote, Decimal(5)
    )
    return {
        "symbol": listing.exchange_symbol,
        "status": "TRADING",
        "baseAsset": listing.base,
        "baseAssetPrecision": 8,
        "quoteAsset": listing.quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "baseCommissionPrecision": 8,
        "quoteCommissionPrecision": 8,
        "orderTypes": [
            *("LIMIT", "LIMIT_MAKER", "MARKET", "STOP_LOSS", "STOP_LOSS_LIMIT"),
            *("TAKE_PROFIT", "TAKE_PROFIT_LIMIT"),
        ],
        "icebergAllowed": True,
        "ocoAllowed": True,
        "otoAllowed": True,
        "quoteOrderQtyMarketAllowed": True,
        "allowTrailingStop": True,
        "cancelReplaceAllowed": True,
        "amendAllowed": True,
        "pegInstructionsAllowed": True,
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": False,
        "filters": _filters(tick, lot, minimum),
        "permissions": [],
        "permissionSets": [["SPOT"]],
        "defaultSelfTradePreventionMode": "EXPIRE_MAKER",
        "allowedSelfTradePreventionModes": ["EXPIRE_TAKER", "EXPIRE_MAKER", "EXPIRE_BOTH", "DECREMENT"],
    }


def _filters(tick: Decimal, lot: Decimal, minimum: Decimal) -> list[dict[str, Any]]:
    return [
        {
            "filterType": "PRICE_FILTER",
            "minPrice": f"{tick:.8f}",
            "maxPrice": "1000000.00000000",
            "tickSize": f"{tick:.8f}",
        },
        {
            "filterType": "LOT_SIZE",
            "minQty": f"{lot:.8f}",
            "maxQty": "900000000.00000000",
            "stepSize": f"{lot:.8f}",
        },
        {"filterType": "ICEBERG_PARTS", "limit": 10},
        {
            "filterType": "MARKET_LOT_SIZE",
            "minQty": "0.00000000",
            "maxQty": "9000000.00000000",
            "stepSize": "0.00000000",
        },
        {
            "filterType": "TRAILING_DELTA",
            "minTrailingAboveDelta": 10,
            "maxTrailingAboveDelta": 2000,
            "minTrailingBelowDelta": 10,
            "maxTrailingBelowDelta": 2000,
        },
        {
            "filterType": "PERCENT_PRICE_BY_SIDE",
            "bidMultiplierUp": "5",
            "bidMultiplierDown": "0.2",
            "askMultiplierUp": "5",
            "askMultiplierDown": "0.2",
            "avgPriceMins": 5,
        },
        {
            "filterType": "NOTIONAL",
            "minNotional": f"{minimum:.8f}",
            "applyMinToMarket": True,
            "maxNotional": "9000000.00000000",
            "applyMaxToMarket": False,
            "avgPriceMins": 5,
        },
        {"filterType": "MAX_NUM_ORDERS", "maxNumOrders": 200},
        {"filterType": "MAX_NUM_ALGO_ORDERS", "maxNumAlgoOrders": 5},
    ]
