"""Made-up trades for the tests of stores."""

from __future__ import annotations

from collections.abc import Iterable

from market.trade import Trade
from store.trade_batch import TradeBatch
from tests.support.made_candles import START

EXCHANGE, SYMBOL = "binance", "BTC/USDT"


def time_of(number: int) -> int:
    """The event time of a trade: a hundred a second, several in one millisecond now and then."""
    return START + number // 3 * 30


def trade(number: int, *, version: int = 0, id: int | str | None = None) -> Trade:
    """The trade with this number; another version differs in everything but its id."""
    return Trade(
        number if id is None else id,
        100 + number % 17 / 8 + version,
        0.001 * (1 + number % 5),
        time_of(number) + version * 7,
        (number + version) % 2 == 0,
        time_of(number) + 40 + version,
        1 + number % 3,
    )


def counted(numbers: Iterable[int], *, symbol: str = SYMBOL, version: int = 0) -> TradeBatch:
    """Trades of an exchange that counts them."""
    made = [trade(one, version=version) for one in numbers]
    return TradeBatch(exchange=EXCHANGE, symbol=symbol, trades=made, dense=True)


def uncounted(numbers: Iterable[int], *, symbol: str = SYMBOL, version: int = 0) -> TradeBatch:
    """Trades of an exchange whose ids say nothing of each other."""
    made = [trade(one, version=version, id=f"{one * 7919 % 10_007:05x}-t") for one in numbers]
    return TradeBatch(exchange="bybit", symbol=symbol, trades=made, dense=False)
