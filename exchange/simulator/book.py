"""A made-up order book around the last price, the same whenever the same instant is asked for."""

from __future__ import annotations

import zlib

import numpy as np

from exchange.binance.wire import OrderBook
from exchange.simulator.market import Market

#: The book changes this often.
_STEP_MS = 100
#: Always this many levels are drawn, so that a shorter book is the beginning of a longer one.
_LEVELS = 5000
#: Half the spread, and the widest step between levels, as shares of the price.
_HALF_SPREAD = 5e-6
_WIDEST_STEP = 2e-5
#: Quote value of a usual level.
_USUAL_VALUE = 20_000.0


def order_book(market: Market, now_ms: int, levels: int) -> OrderBook:
    """The best `levels` bids and asks; the last price lies between them. Empty before the first trade."""
    update = now_ms // _STEP_MS
    price = market.last_price(now_ms)
    if price is None:
        return OrderBook(last_update_id=update, bids=(), asks=())
    tick, lot = 10**market.listing.price_decimals, 10**market.listing.lot_decimals
    rng = np.random.default_rng([zlib.crc32(market.listing.exchange_symbol.encode()), update])
    ticks = round(price * tick)
    widest = max(1, int(ticks * _WIDEST_STEP))
    steps = rng.integers(1, widest + 1, (2, _LEVELS))[:, :levels]
    values = rng.lognormal(0, 1, (2, _LEVELS))[:, :levels] * _USUAL_VALUE
    away = np.cumsum(steps, axis=1) - steps[:, :1] + int(ticks * _HALF_SPREAD)
    sides = []
    for side, direction in enumerate((-1, 1)):
        prices = ticks + direction * away[side] + (1 if direction > 0 else 0)
        prices = prices[prices > 0]
        lots = np.maximum(np.rint(values[side][: len(prices)] / price * lot), 1)
        sides.append(tuple(zip((prices / tick).tolist(), (lots / lot).tolist(), strict=True)))
    return OrderBook(last_update_id=update, bids=sides[0], asks=sides[1])
