"""Made-up messages of Binance spot's combined streams: 20 symbols, dense ids, a thousand messages a second.

The mix is that of a recorded session of BTCUSDT (2024-08-08, ten minutes, 99,573 messages): 73 % best prices, 20 %
trades, 7 % changes of order books of 46 levels on average, half of them of 22 or fewer; candles added. A candle is
what the trades before it make, and a closed one comes after its last trade, so what is built from trades must equal
it. The same arguments always give the same messages.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

import numpy as np

from market.book_message import Level
from market.timeframe import MINUTE_MS

#: Unified symbol to the exchange's.
SYMBOLS = {f"{name}/USDT": f"{name}USDT" for name in (f"C{number:02}" for number in range(20))}
#: Kinds of message and how often each comes.
MIX = {"bookTicker": 0.725, "trade": 0.2, "depth": 0.065, "kline": 0.01}
TRADES_ONLY = {"trade": 1.0}
#: Messages in a second of exchange time.
PER_SECOND = 1_000
#: Number of the last change in every REST snapshot; the stream goes on from there.
SNAPSHOT_ID = 1_000
#: Messages whose kinds are drawn at once.
_BLOCK = 10_000
#: Different changes of a book, and levels of a snapshot.
_CHANGES, _LEVELS = 64, 1_000
#: Prices in cents, quantities in 1e-5: what the sums of candles are made of.
_CENTS, _LOTS = 100, 100_000


def snapshot(symbol: str) -> tuple[list[Level], list[Level]]:
    """Bids and asks of a symbol's book at :data:`SNAPSHOT_ID`, best first."""
    middle = _middle(list(SYMBOLS).index(symbol))
    bids = [((middle - step) / _CENTS, 1.0) for step in range(1, _LEVELS + 1)]
    asks = [((middle + step) / _CENTS, 1.0) for step in range(1, _LEVELS + 1)]
    return bids, asks


def _middle(number: int) -> int:
    """Cents."""
    return 100_000 * (number + 1)


class MadeMessages:
    """Messages without end.

    :param start_ms: exchange time of the first one; the start of a minute.
    :param trades: ``trade``, or ``aggTrade`` for those who read no other.
    """

    def __init__(self, mix: dict[str, float], start_ms: int, *, trades: str = "trade") -> None:
        self._rng = np.random.default_rng(1)
        self._kinds, self._chances = list(mix), list(mix.values())
        self._has_candles = "kline" in mix
        self._now = start_ms * PER_SECOND // 1000
        self._minute_end = start_ms + MINUTE_MS
        quantities = self._rng.lognormal(9, 2, 4096).astype(int) + 1
        self._symbols = [
            _Symbol(name, number, start_ms, self._rng, cycle(quantities.tolist()), trades)
            for number, name in enumerate(SYMBOLS.values())
        ]

    def __iter__(self) -> Iterator[bytes]:
        while True:
            kinds = self._rng.choice(self._kinds, _BLOCK, p=self._chances).tolist()
            places = self._rng.integers(0, len(self._symbols), _BLOCK).tolist()
            for kind, place in zip(kinds, places, strict=True):
                self._now += 1
                now = self._now * 1000 // PER_SECOND
                if now >= self._minute_end:
                    yield from self.closed()
                one = self._symbols[place]
                if kind == "bookTicker":
                    yield one.best_prices()
                elif kind == "trade":
                    yield one.trade(now)
                elif kind == "depth":
                    yield one.change(now)
                else:
                    yield one.candle(now, b"false")

    def closed(self) -> list[bytes]:
        """The present minute ends: the closed candle of every symbol, and time goes on with the next minute."""
        end = self._minute_end
        found = [one.candle(end, b"true") for one in self._symbols] if self._has_candles else []
        self._minute_end += MINUTE_MS
        self._now = max(self._now, end * PER_SECOND // 1000)
        for one in self._symbols:
            one.begin(end)
        return found


class _Symbol:
    """One symbol's numbers, counting on."""

    def __init__(
        self, name: str, number: int, start: int, rng: np.random.Generator, quantities: Iterator[int], trades: str
    ) -> None:
        self._quantities = quantities
        self._name = name.encode()
        self._lower = name.lower().encode()
        self._middle = self._price = _middle(number)
        self._steps = cycle(rng.integers(-3, 4, 997).tolist())
        self._takers = cycle((rng.random(991) < 0.5).tolist())
        self._changes = cycle(_changes(self._middle, rng))
        self._trade_id = 1_000_000 * (number + 1)
        self._book_id = SNAPSHOT_ID
        self._head = b'{"stream":"%s@%s","data":{"e":"%s","E":%%d,"s":"%s",' % (
            self._lower, trades.encode(), trades.encode(), self._name,
        )  # fmt: skip
        ids = b'"a":%d,"p":"%d.%02d000000","q":"%d.%05d000","f":%d,"l":%d,"T":%d,"m":%s,"M":true}}'
        self._aggregated = trades == "aggTrade"
        self._trade_form = self._head + (
            ids if self._aggregated else b'"t":%d,"p":"%d.%02d000000","q":"%d.%05d000","T":%d,"m":%s,"M":true}}'
        )
        self.begin(start)

    def begin(self, open_time: int) -> None:
        """The minute from `open_time` on begins."""
        self._open_time = open_time
        self._first_id = self._trade_id + 1
        self._open = self._high = self._low = self._price
        self._count = self._volume = self._quote = self._bought = self._bought_quote = 0

    def trade(self, now: int) -> bytes:
        self._trade_id = id_ = self._trade_id + 1
        self._price = price = max(self._middle // 2, min(self._middle * 3 // 2, self._price + next(self._steps)))
        quantity = next(self._quantities)
        maker = next(self._takers)
        if self._count == 0:
            self._open = self._high = self._low = price
        elif price > self._high:
            self._high = price
        elif price < self._low:
            self._low = price
        self._count += 1
        self._volume += quantity
        self._quote += quantity * price
        if not maker:
            self._bought += quantity
            self._bought_quote += quantity * price
        said = b"true" if maker else b"false"
        numbers = (now, id_, *divmod(price, _CENTS), *divmod(quantity, _LOTS))
        return self._trade_form % ((*numbers, id_, id_, now, said) if self._aggregated else (*numbers, now, said))

    def best_prices(self) -> bytes:
        bid, bid_size, ask_size = divmod(self._price, _CENTS), next(self._quantities), next(self._quantities)
        return (
            b'{"stream":"%s@bookTicker","data":{"u":%d,"s":"%s","b":"%d.%02d000000","B":"%d.%05d000",'
            b'"a":"%d.%02d000000","A":"%d.%05d000"}}'
            % (
                self._lower, self._book_id, self._name, *bid, *divmod(bid_size, _LOTS),
                *divmod(self._price + 1, _CENTS), *divmod(ask_size, _LOTS),
            )
        )  # fmt: skip

    def change(self, now: int) -> bytes:
        first, self._book_id = self._book_id + 1, self._book_id + 14
        return (
            b'{"stream":"%s@depth@100ms","data":{"e":"depthUpdate","E":%d,"s":"%s","U":%d,"u":%d,%s}}'
            % (self._lower, now, self._name, first, self._book_id, next(self._changes))
        )  # fmt: skip

    def candle(self, now: int, closed: bytes) -> bytes:
        prices = [part for cents in (self._open, self._price, self._high, self._low) for part in divmod(cents, 100)]
        last = self._price if self._count else self._open
        prices[2:4] = divmod(last, _CENTS)
        scale = _CENTS * _LOTS
        return (
            b'{"stream":"%s@kline_1m","data":{"e":"kline","E":%d,"s":"%s","k":{"t":%d,"T":%d,"s":"%s","i":"1m",'
            b'"f":%d,"L":%d,"o":"%d.%02d000000","c":"%d.%02d000000","h":"%d.%02d000000","l":"%d.%02d000000",'
            b'"v":"%d.%05d000","n":%d,"x":%s,"q":"%d.%07d0","V":"%d.%05d000","Q":"%d.%07d0","B":"0"}}}'
            % (
                self._lower, now, self._name, self._open_time, self._open_time + MINUTE_MS - 1, self._name,
                self._first_id, self._trade_id, *prices, *divmod(self._volume, _LOTS), self._count, closed,
                *divmod(self._quote, scale), *divmod(self._bought, _LOTS), *divmod(self._bought_quote, scale),
            )
        )  # fmt: skip


def _changes(middle: int, rng: np.random.Generator) -> list[bytes]:
    """Changes of a book that never cross it: a third of the levels go, most are near the best price."""
    found = []
    for levels in np.minimum(rng.lognormal(np.log(22), 1.2, _CHANGES).astype(int) + 1, 400).tolist():
        sides = []
        for side, sign in ((b"b", -1), (b"a", 1)):
            count = levels // 2 + (levels % 2 if sign > 0 else 0)
            steps = np.unique(np.minimum(rng.exponential(200, count).astype(int) + 1, _LEVELS)).tolist()
            sizes = np.where(rng.random(len(steps)) < 0.33, 0, rng.integers(1, 10**7, len(steps))).tolist()
            rows = [
                b'["%d.%02d000000","%d.%05d000"]' % (*divmod(middle + sign * step, _CENTS), *divmod(size, _LOTS))
                for step, size in zip(steps, sizes, strict=True)
            ]
            sides.append(b'"%s":[%s]' % (side, b",".join(rows)))
        found.append(b",".join(sides))
    return found
