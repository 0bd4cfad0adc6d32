"""Tickers, forming candles and trades as bytes in Redis, and the commands to write and read them.

Each is the tuple of the same name in ``market`` as MessagePack, an array of its fields in their order. What is not
that is not read: a ticker is ``[1723118400171, 1723118400123, 57000.01, 0.5, 57000.02, 1.2, null, ...]``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from market.candle_update import CandleUpdate
from market.instrument import Series
from market.ticker import Ticker
from market.trade import Trade
from store.redis.command import Command, Reply, command
from store.redis.live_keys import live_key, symbols_key
from store.redis.ownership import Call, live_script

_T = TypeVar("_T")

#: Trades packed together at most, where many are sent at once.
TRADES_TOGETHER = 500

_ENCODER = msgspec.msgpack.Encoder()
_TICKER = msgspec.msgpack.Decoder(Ticker)
_FORMING = msgspec.msgpack.Decoder(CandleUpdate)
_TRADES = msgspec.msgpack.Decoder(list[Trade])
#: Before the trades of a batch: how many, and when the newest was received.
_HEAD = struct.Struct(">IQ")
_ADD, _NEWEST = live_script("trades", "add"), live_script("trades", "newest")


def write_ticker(exchange: str, symbol: str, ticker: Ticker, lifetime_ms: int) -> Command:
    return command("SET", live_key(exchange, symbol, "ticker"), _ENCODER.encode(ticker), "PX", lifetime_ms)


def ask_ticker(exchange: str, symbol: str) -> Command:
    return command("GET", live_key(exchange, symbol, "ticker"))


def read_ticker(reply: Reply) -> Ticker | None:
    """The ticker; None where there is none that can be read."""
    return _decoded(_TICKER, reply)


def list_symbol(exchange: str, symbol: str, now_ms: int, lifetime_ms: int) -> list[Command]:
    """Say that there is a ticker of this symbol, and forget those of whom nothing was said for so long."""
    key = symbols_key(exchange)
    return [
        command("ZADD", key, now_ms, symbol),
        command("ZREMRANGEBYSCORE", key, "-inf", now_ms - lifetime_ms),
        command("PEXPIRE", key, lifetime_ms),
    ]


def ask_symbols(exchange: str) -> Command:
    return command("ZRANGE", symbols_key(exchange), 0, -1)


def read_symbols(reply: Reply) -> list[str]:
    """The symbols, in order."""
    return sorted(one.decode(errors="replace") for one in reply)


def write_forming(series: Series, update: CandleUpdate, lifetime_ms: int) -> Command:
    return command("SET", _forming_key(series), _ENCODER.encode(update), "PX", lifetime_ms)


def ask_forming(series: Series) -> Command:
    return command("GET", _forming_key(series))


def read_forming(reply: Reply) -> CandleUpdate | None:
    """The candle; None where there is none that can be read."""
    return _decoded(_FORMING, reply)


class RedisTrades:
    """The commands for the recent trades of one market."""

    def __init__(self, exchange: str, symbol: str) -> None:
        self._keys = tuple(live_key(exchange, symbol, "trades", part) for part in ("record", "batches"))

    def add(
        self, call: Call, after: int | None, trades: Sequence[Trade], most: int, oldest_ms: int, lifetime_ms: int
    ) -> Command:
        """Add trades to those that the same owner's call `after` left; None: in place of all that are there.

        :param most: kept at most, or a batch more.
        :param oldest_ms: those received before are let go.
        """
        batches = [trades[at : at + TRADES_TOGETHER] for at in range(0, len(trades), TRADES_TOGETHER)]
        bounds = "" if after is None else after, most, oldest_ms
        return _ADD.call(self._keys, (*call.arguments(lifetime_ms), *bounds, *map(_packed, batches)))

    def ask(self, limit: int) -> Command:
        """Ask for the newest `limit` trades, and what was sent together with them."""
        return _NEWEST.call(self._keys, (limit,))


def read_trades(reply: Reply) -> list[Trade]:
    """Trades, oldest first; batches that cannot be read are left out, with all that are older."""
    found: list[list[Trade]] = []
    for batch in reply:
        trades = _decoded(_TRADES, batch[_HEAD.size :])
        if trades is None:
            break
        found.append(trades)
    return [trade for trades in reversed(found) for trade in trades]


def _packed(trades: Sequence[Trade]) -> bytes:
    newest = max(one.received_at for one in trades)
    return _HEAD.pack(len(trades), newest) + _ENCODER.encode(trades)


def _forming_key(series: Series) -> str:
    return live_key(series.exchange, series.symbol, "forming_candle", series.timeframe.name)


def _decoded(decoder: msgspec.msgpack.Decoder[_T], reply: Reply) -> _T | None:
    try:
        return None if reply is None else decoder.decode(reply)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
