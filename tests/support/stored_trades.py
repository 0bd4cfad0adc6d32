"""Trades put into a writer, and looked for in a store."""

from __future__ import annotations

from ingest.writer import Writer
from market.clock import SystemClock
from tests.support.scripted_writes import trade

#: An interval that has every trade in it, epoch milliseconds.
LONG_AGO, ALWAYS = 1_600_000_000_000, 1_900_000_000_000


async def put_trades(writer: Writer, first: int, count: int, symbol: str = "BTC/USDT") -> int:
    """Put in `count` trades with ids from `first` on, and wait until they are durable; the next id."""
    sink = writer.trade_sink("binance", symbol, True)
    now = SystemClock().now_ms()
    for number in range(first, first + count):
        sink(trade(number, now))
    await writer.durable()
    return first + count
