"""What can be traded where: instruments and the series of candles kept for them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from market.errors import BadInput
from market.timeframe import DAY_MS, DEFAULT_ORIGIN_MS, Timeframe

#: ccxt's unified symbols: BTC/USDT, BTC/USDT:USDT, BTC/USDT:USDT-231229-30000-C.
_SYMBOL = re.compile(r"[^\s/:]{1,40}/[^\s/:]{1,40}(:[^\s/:]{1,60})?\Z")
_EXCHANGE = re.compile(r"[a-z][a-z0-9_]{1,40}\Z")


@dataclass(frozen=True, order=True)
class Series:
    """One run of candles: an exchange, a ccxt unified symbol and a timeframe."""

    exchange: str
    symbol: str
    timeframe: Timeframe

    @staticmethod
    def parse(exchange: str, symbol: str, timeframe: str) -> Series:
        """A series from outside text.

        :raises BadInput: naming ``exchange``, ``symbol`` or ``timeframe``.
        """
        return Series(check_exchange(exchange), check_symbol(symbol), Timeframe.parse(timeframe))

    def at(self, timeframe: Timeframe) -> Series:
        """The same instrument in another timeframe."""
        return Series(self.exchange, self.symbol, timeframe)

    def __str__(self) -> str:
        return f"{self.exchange} {self.symbol} {self.timeframe}"


@dataclass(frozen=True, kw_only=True)
class Instrument:
    """One market of an exchange, as the exchange described it when we last asked."""

    exchange: str
    #: ccxt unified.
    symbol: str
    #: The exchange's own id: ``BTCUSDT``.
    exchange_symbol: str
    base: str
    quote: str
    #: ``spot``, ``swap``, ``future`` or ``option``.
    kind: str = "spot"
    #: Smallest price step, in quote.
    tick_size: Decimal | None = None
    #: Smallest quantity step, in base.
    lot_size: Decimal | None = None
    #: Smallest order value, in quote.
    min_notional: Decimal | None = None
    active: bool = True
    #: Listing instant, epoch milliseconds; three-day candles count from its day.
    listed_ms: int | None = None

    @property
    def origin_ms(self) -> int:
        """Where this instrument's three-day buckets count from."""
        return DEFAULT_ORIGIN_MS if self.listed_ms is None else self.listed_ms // DAY_MS * DAY_MS


def check_exchange(exchange: str, field: str = "exchange") -> str:
    """`exchange` if it has the form of a ccxt exchange id; raises BadInput otherwise."""
    if not isinstance(exchange, str) or not _EXCHANGE.match(exchange):
        raise BadInput(field, exchange, "a ccxt exchange id such as binance, kraken, okx")
    return exchange


def check_symbol(symbol: str, field: str = "symbol") -> str:
    """`symbol` if it has the form of a ccxt unified symbol; raises BadInput otherwise."""
    if not isinstance(symbol, str) or not _SYMBOL.match(symbol):
        raise BadInput(field, symbol, "a ccxt unified symbol such as BTC/USDT or BTC/USDT:USDT")
    return symbol
