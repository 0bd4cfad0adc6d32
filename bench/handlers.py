"""What others do with the same messages: nothing but decoding, cryptofeed's handler, ccxt.pro's.

Each is a function that handles all of the messages and returns the seconds of processor time that took, without
what has to be prepared.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import ccxt.pro
import msgspec

from bench.messages import SNAPSHOT_ID, SYMBOLS, snapshot


class _Envelope(msgspec.Struct, gc=False):
    stream: str
    data: msgspec.Raw


class _Trade(msgspec.Struct, gc=False):
    t: int
    p: float
    q: float
    T: int
    m: bool


class _BookTicker(msgspec.Struct, gc=False):
    b: float
    B: float
    a: float
    A: float


class _Depth(msgspec.Struct, gc=False):
    E: int
    U: int
    u: int
    b: list[tuple[float, float]]
    a: list[tuple[float, float]]


class _Kline(msgspec.Struct, gc=False):
    t: int
    o: float
    h: float
    l: float  # noqa: E741 - the name on the wire
    c: float
    v: float
    n: int
    x: bool


class _KlineEvent(msgspec.Struct, gc=False):
    E: int
    k: _Kline


_SHAPES: dict[str, Any] = {
    "trade": _Trade,
    "bookTicker": _BookTicker,
    "depth@100ms": _Depth,
    "kline_1m": _KlineEvent,
}


def decoding(messages: Sequence[bytes]) -> Callable[[], float]:
    """The envelope and the inner object into typed structs, and nothing with them."""
    envelope = msgspec.json.Decoder(_Envelope).decode
    decoders = {
        f"{name.lower()}@{kind}": msgspec.json.Decoder(shape, strict=False).decode
        for name in SYMBOLS.values()
        for kind, shape in _SHAPES.items()
    }

    def decode() -> float:
        began = time.process_time()
        for message in messages:
            one = envelope(message)
            decoders[one.stream](one.data)
        return time.process_time() - began

    return decode


def cryptofeed(messages: Sequence[bytes]) -> Callable[[], float]:
    """cryptofeed's own handler of a message, with callbacks that do nothing. It keeps books, and builds no candles.

    :raises ImportError: it is not installed.
    """
    from cryptofeed.defines import BINANCE, CANDLES, L2_BOOK, TICKER, TRADES
    from cryptofeed.exchanges import Binance
    from cryptofeed.symbols import Symbols
    from cryptofeed.types import OrderBook

    names = {symbol.replace("/", "-"): name for symbol, name in SYMBOLS.items()}
    # What it would ask the exchange for.
    Symbols.set(BINANCE, names, {"instrument_type": dict.fromkeys(names, "spot")})
    runner = asyncio.Runner()

    async def callback(_: object, __: float) -> None:
        pass

    async def handle() -> float:
        channels = [TRADES, TICKER, L2_BOOK, CANDLES]
        # It keeps state: each run begins with a new one, as ours does.
        feed = Binance(symbols=list(names), channels=channels, callbacks=dict.fromkeys(channels, callback))
        for symbol in SYMBOLS:
            standard = symbol.replace("/", "-")
            bids, asks = (
                {Decimal(str(price)): Decimal(str(quantity)) for price, quantity in side}
                for side in snapshot(symbol)
            )
            feed._l2_book[standard] = OrderBook(BINANCE, standard, bids=bids, asks=asks)
            feed.last_update_id[standard] = SNAPSHOT_ID
        began = time.process_time()
        for message in messages:
            await feed.message_handler(message, None, 0.0)
        return time.process_time() - began

    return lambda: runner.run(handle())


def ccxt_pro(messages: Sequence[bytes]) -> Callable[[], float]:
    """ccxt.pro's own handling of a text message, with nobody waiting for anything."""
    runner = asyncio.Runner()
    texts = [one.decode() for one in messages]

    async def handle() -> float:
        exchange = ccxt.pro.binance()
        try:
            exchange.set_markets([_market(exchange, symbol, name) for symbol, name in SYMBOLS.items()])
            for symbol in SYMBOLS:
                bids, asks = snapshot(symbol)
                exchange.orderbooks[symbol] = exchange.order_book(
                    {"bids": bids, "asks": asks, "nonce": SNAPSHOT_ID, "symbol": symbol}
                )
            client = exchange.client("wss://stream.binance.com:9443/stream")
            began = time.process_time()
            for text in texts:
                client.handle_text_or_binary_message(text)
            return time.process_time() - began
        finally:
            await exchange.close()

    return lambda: runner.run(handle())


def _market(exchange: Any, symbol: str, name: str) -> Any:
    base, quote = symbol.split("/")
    return exchange.safe_market_structure(
        {
            "id": name, "lowercaseId": name.lower(), "symbol": symbol, "base": base, "quote": quote, "baseId": base,
            "quoteId": quote, "type": "spot", "spot": True, "active": True,
            "precision": {"price": 0.01, "amount": 0.00001},
        }
    )  # fmt: skip
