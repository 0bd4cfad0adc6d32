"""Messages of Binance's streams to a listener, beside bare decoding and cryptofeed's handler of the same messages.

python -m bench.streams [--json] [--candles N] [--rounds N]

From a list in memory, no socket; a fifth of `--candles` messages of each kind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any

import msgspec
import numpy as np
from cryptofeed.defines import BINANCE, TICKER, TRADES
from cryptofeed.exchanges import Binance
from cryptofeed.symbols import Symbols

from bench.market import START
from bench.paired import Measured, paired, run
from exchange.binance.dispatch import Stream, dispatch
from exchange.plausible import EventTimes
from market.channel import Channel, Topic
from market.clock import SystemClock

#: Kind of stream to its channel, cryptofeed's name of it, and how many a second we must manage.
KINDS = {"aggTrade": (Channel.TRADES, TRADES, 250_000), "bookTicker": (Channel.TICKERS, TICKER, 250_000)}


class _Envelope(msgspec.Struct, gc=False):
    stream: str
    data: msgspec.Raw


class _AggTrade(msgspec.Struct, gc=False):
    a: int
    p: float
    q: float
    f: int
    l: int  # noqa: E741 - the name on the wire
    T: int
    m: bool


class _BookTicker(msgspec.Struct, gc=False):
    b: float
    B: float
    a: float
    A: float


_SHAPES: dict[str, Any] = {"aggTrade": _AggTrade, "bookTicker": _BookTicker}


def trades(number: int) -> list[bytes]:
    """Made-up messages of ``btcusdt@aggTrade``, always the same."""
    rng = np.random.default_rng(1)
    prices = 60_000 * np.exp(np.cumsum(rng.normal(0, 1e-5, number)))
    rows = zip(count(START), prices, rng.uniform(1e-5, 1, number), rng.random(number) < 0.5, strict=False)
    return [
        b'{"stream":"btcusdt@aggTrade","data":{"e":"aggTrade","E":%d,"s":"BTCUSDT","a":%d,"p":"%.8f","q":"%.8f",'
        b'"f":%d,"l":%d,"T":%d,"m":%s,"M":true}}'
        % (time + 1, time, price, quantity, time, time, time, b"true" if maker else b"false")
        for time, price, quantity, maker in rows
    ]


def best_prices(number: int) -> list[bytes]:
    """Made-up messages of ``btcusdt@bookTicker``, always the same."""
    rng = np.random.default_rng(2)
    prices = 60_000 * np.exp(np.cumsum(rng.normal(0, 1e-5, number)))
    rows = zip(count(1), prices, rng.uniform(0, 9, number), rng.uniform(0, 9, number), strict=False)
    return [
        b'{"stream":"btcusdt@bookTicker","data":{"u":%d,"s":"BTCUSDT","b":"%.8f","B":"%.8f","a":"%.8f","A":"%.8f"}}'
        % (number, price, bid, price + 0.01, ask)
        for number, price, bid, ask in rows
    ]


def ours(kind: str, messages: list[bytes]) -> Callable[[], None]:
    """Decoded, checked, and handed to a listener that does nothing."""
    name = f"btcusdt@{kind}"
    topic = Topic(KINDS[kind][0], "BTC/USDT")

    def hear() -> None:
        stream = Stream(name, "BTCUSDT", topic, _nothing, EventTimes(), futures=False)
        take = dispatch("binance", {name: stream}, _refused, _refused, SystemClock().now_ms)
        for message in messages:
            take(message)

    return hear


def _nothing(_: object) -> None:
    pass


def _refused(one: object) -> None:
    raise AssertionError(one)


def decoding(kind: str, messages: list[bytes]) -> Callable[[], None]:
    """The envelope and the inner object into typed structs, and nothing with them."""
    envelope = msgspec.json.Decoder(_Envelope).decode
    data = msgspec.json.Decoder(_SHAPES[kind], strict=False).decode

    def decode() -> None:
        for message in messages:
            data(envelope(message).data)

    return decode


def cryptofeed(kind: str, messages: list[bytes]) -> Callable[[], None]:
    """cryptofeed's own handler of a message, with a callback that does nothing."""
    # What it would ask the exchange for.
    Symbols.set(BINANCE, {"BTC-USDT": "BTCUSDT"}, {"instrument_type": {"BTC-USDT": "spot"}})
    channel = KINDS[kind][1]
    runner = asyncio.Runner()

    async def callback(_: object, __: float) -> None:
        pass

    async def handle(feed: Any) -> None:
        for message in messages:
            await feed.message_handler(message, None, 0.0)

    async def opened() -> Any:
        return Binance(symbols=["BTC-USDT"], channels=[channel], callbacks={channel: callback})

    feed = runner.run(opened())
    return lambda: runner.run(handle(feed))


def measure(candles: int, rounds: int) -> list[Measured]:
    """Each kind of message beside both."""
    number = max(1000, candles // 5)
    found = []
    for kind, messages in {"aggTrade": trades(number), "bookTicker": best_prices(number)}.items():
        mine, enough = ours(kind, messages), KINDS[kind][2]
        found += [
            paired(
                f"binance {kind}: bytes to listener",
                number,
                mine,
                "msgspec decode only",
                decoding(kind, messages),
                rounds=rounds,
                budget_per_second=enough,
            ),
            paired(
                f"binance {kind}: bytes to listener",
                number,
                mine,
                "cryptofeed's Binance handler",
                cryptofeed(kind, messages),
                rounds=rounds,
            ),
        ]
    return found


if __name__ == "__main__":
    run(measure, __doc__)
