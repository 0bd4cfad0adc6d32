"""Seeded synthetic markets: endless, and the same for equal seeds wherever one looks first.

A market is made one UTC day at a time. Prices at the days' ends come from smooth noise that is a pure function of
(seed, symbol, day), and a bridge of random steps joins them; so any day can be made without those before it.
Symbols have been listed since 2020-01-01. There are minutes without trades (flat candles of zero volume), more of
them in slower markets, and now and then an outage of the whole exchange in the form real ones have: some flat
minutes, a candle that ends early, then no candles at all for a while.

Every day has the same number of trades, so that ids are dense and known without counting from the listing.
"""

from __future__ import annotations

import math
import zlib
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from exchange.simulator.market import FirstIds, Listing
from market.candle import Bools, Float64s, candles, no_candles
from market.clock import LATEST_MS
from market.errors import BadInput
from market.instrument import check_symbol
from market.timeframe import DAY_MS, MINUTE_MS, Int64s

#: 2020-01-01T00:00:00Z.
LISTED_MS = 1_577_836_800_000
DEFAULT_SYMBOLS = ("BTC/USDT", "ETH/USDT", "SOL/USDT")

_MINUTES = 1440
#: Aggregated trades of a day, and single trades beyond one for each of them.
_PRINTS_A_DAY = 14_400
_EXTRA_A_DAY = 28_800
#: Every minute that trades has at least this many, so that open, high, low and close all fit.
_LEAST_PRINTS = 8
_KEPT_DAYS = 200
#: Of the logarithm of the price: period in days and amplitude of each layer of noise.
_LAYERS = ((512, 0.45), (128, 0.25), (32, 0.12), (8, 0.06), (1, 0.02))
#: Deviation of the logarithm of the price in one minute.
_STEP = 0.0006
_OUTAGE_CHANCE = 0.05


@dataclass(frozen=True)
class _Day:
    """One day's candles, and the ids of the first trade of each of its 1,440 minutes (and of the next day)."""

    table: pa.Table
    opens: Int64s
    first_print: Int64s
    first_trade: Int64s


@dataclass(frozen=True)
class _Outage:
    """An outage of the exchange, in minutes of the day."""

    flat_from: int
    absent_from: int
    absent_to: int
    #: Milliseconds into the last minute before the absence.
    early_ms: int


class SyntheticTape:
    """The candles of one made-up market.

    :raises BadInput: if `symbol` has not the form ``BTC/USDT``.
    """

    def __init__(self, seed: int, symbol: str) -> None:
        base, _, quote = check_symbol(symbol, "--symbols").partition("/")
        if ":" in quote:
            raise BadInput("--symbols", symbol, "spot symbols such as BTC/USDT")
        self._seed = seed & 0xFFFF_FFFF_FFFF_FFFF
        self._key = zlib.crc32(symbol.encode())
        # Known names have prices one would recognise; others lie anywhere between 0.1 and 1,000.
        level = {"BTC": 40_000.0, "ETH": 2500.0, "SOL": 90.0}.get(base, 10.0 ** (4 * self._noise(0, 0, 9) - 1))
        self._level = level
        magnitude = math.floor(math.log10(level))
        price_decimals = min(max(6 - magnitude - 1, 2), 5) if magnitude < 4 else 2
        self.listing = Listing(
            base=base, quote=quote, price_decimals=price_decimals, lot_decimals=min(max(magnitude + 1, 1), 3)
        )
        #: Share of the minutes without trades, and lots of a usual minute.
        self._quiet = {"BTC": 0.002, "ETH": 0.005}.get(base, 0.03)
        self._usual_lots = 1_000_000 / level * 10**self.listing.lot_decimals
        self._days: OrderedDict[int, _Day] = OrderedDict()

    def candles(self, start_ms: int, end_ms: int) -> pa.Table:
        start_ms = max(start_ms, LISTED_MS)
        parts = []
        for number in range(start_ms // DAY_MS, -(-end_ms // DAY_MS)):
            day = self._day(number)
            first, last = np.searchsorted(day.opens, (start_ms, end_ms))
            parts.append(day.table.slice(first, max(0, last - first)))
        return pa.concat_tables(parts) if parts else no_candles()

    def next_open(self, ms: int) -> int | None:
        ms = max(ms, LISTED_MS)
        for number in range(ms // DAY_MS, ms // DAY_MS + 2):
            opens = self._day(number).opens
            row = int(np.searchsorted(opens, ms))
            if row < len(opens):
                return int(opens[row])
        return None

    def previous_open(self, ms: int) -> int | None:
        for number in range((ms - 1) // DAY_MS, (ms - 1) // DAY_MS - 2, -1):
            if number < LISTED_MS // DAY_MS:
                return None
            opens = self._day(number).opens
            row = int(np.searchsorted(opens, ms)) - 1
            if row >= 0:
                return int(opens[row])
        return None

    def first_ids(self, open_ms: int) -> FirstIds:
        if open_ms < LISTED_MS:
            return FirstIds(0, 0)
        number, rest = divmod(open_ms, DAY_MS)
        day = self._day(number)
        minute = -(-rest // MINUTE_MS)
        return FirstIds(int(day.first_print[minute]), int(day.first_trade[minute]))

    def minute_of_print(self, print_id: int) -> int | None:
        number = LISTED_MS // DAY_MS + print_id // _PRINTS_A_DAY
        if number * DAY_MS >= LATEST_MS:
            return None
        return number * DAY_MS + _row_of(self._day(number).first_print, print_id) * MINUTE_MS

    def minute_of_trade(self, trade_id: int) -> int | None:
        number = LISTED_MS // DAY_MS + trade_id // (_PRINTS_A_DAY + _EXTRA_A_DAY)
        if number * DAY_MS >= LATEST_MS:
            return None
        return number * DAY_MS + _row_of(self._day(number).first_trade, trade_id) * MINUTE_MS

    def _day(self, number: int) -> _Day:
        day = self._days.get(number)
        if day is None:
            day = self._days[number] = self._made(number)
            if len(self._days) > _KEPT_DAYS:
                self._days.popitem(last=False)
        return day

    def _noise(self, layer: int, index: int, kind: int = 0) -> float:
        """A number in [0, 1) that depends on nothing but the seed, the symbol and the arguments."""
        entropy = [self._seed, self._key, kind, layer, index + 1_000_000]
        return float(np.random.SeedSequence(entropy).generate_state(1)[0]) / 2**32

    def _log_price(self, number: int) -> float:
        """The logarithm of the price at the start of a day."""
        value = math.log(self._level)
        for layer, (period, amplitude) in enumerate(_LAYERS):
            index, rest = divmod(number, period)
            share = rest / period
            share = share * share * (3 - 2 * share)
            noise = self._noise(layer, index) * (1 - share) + self._noise(layer, index + 1) * share
            value += amplitude * (2 * noise - 1)
        return value

    def _outage(self, number: int) -> _Outage | None:
        """The outage of a day, the same for every symbol."""
        rng = np.random.default_rng([self._seed, 1, number])
        if rng.random() >= _OUTAGE_CHANCE:
            return None
        absent_from = int(rng.integers(120, 1200))
        return _Outage(
            flat_from=absent_from - int(rng.integers(3, 60)),
            absent_from=absent_from,
            absent_to=absent_from + int(rng.integers(5, 120)),
            early_ms=int(rng.integers(1, MINUTE_MS - 1)),
        )

    def _made(self, number: int) -> _Day:
        rng = np.random.default_rng([self._seed, self._key, 2, number])
        outage = self._outage(number)
        traded = rng.random(_MINUTES) >= self._quiet
        # The first minute always trades, so that no candle needs a price of the day before.
        traded[0] = True
        if outage:
            traded[outage.flat_from : outage.absent_to] = False
        prices = self._prices(number, rng, traded)
        activity = np.where(traded, np.exp(rng.normal(0, 0.8, _MINUTES)), 0.0)
        prints = np.where(traded, _LEAST_PRINTS, 0)
        prints = prints + _shared(_PRINTS_A_DAY - int(prints.sum()), activity)
        extra = _shared(_EXTRA_A_DAY, activity)
        lots = np.where(traded, np.rint(self._usual_lots * activity).astype(np.int64), 0)
        lots = np.maximum(lots, 4 * (prints + extra))
        opens = number * DAY_MS + np.arange(_MINUTES, dtype=np.int64) * MINUTE_MS
        columns = self._columns(rng, prices, lots)
        columns.update({"open_time": opens, "trades": prints + extra})
        present = np.ones(_MINUTES, np.bool_)
        early = np.zeros(_MINUTES, np.int64)
        if outage:
            present[outage.absent_from : outage.absent_to] = False
            early[outage.absent_from - 1] = opens[outage.absent_from - 1] + outage.early_ms
        table = candles(
            {name: values[present] for name, values in columns.items()}
            | {"early_close_time": pa.array(early[present], mask=early[present] == 0)}
        )
        before = number - LISTED_MS // DAY_MS
        first_print = before * _PRINTS_A_DAY + np.concatenate(([0], np.cumsum(prints)))
        first_trade = before * (_PRINTS_A_DAY + _EXTRA_A_DAY) + np.concatenate(([0], np.cumsum(prints + extra)))
        return _Day(table, opens[present], first_print, first_trade)

    def _prices(self, number: int, rng: np.random.Generator, traded: Bools) -> dict[str, Int64s]:
        """Open, high, low and close of each minute in ticks; minutes without trades stay at the last close."""
        start, end = self._log_price(number), self._log_price(number + 1)
        walk = np.concatenate(([0.0], np.cumsum(rng.normal(0, _STEP, _MINUTES))))
        share = np.linspace(0, 1, _MINUTES + 1)
        path = np.exp(start + (end - start) * share + walk - walk[-1] * share)
        tick = 10**self.listing.price_decimals
        marks = np.maximum(np.rint(path * tick).astype(np.int64), 10)
        reach = rng.exponential(_STEP / 2, (2, _MINUTES)) * path[:-1] * tick
        close = marks[1:]
        last = np.maximum.accumulate(np.where(traded, np.arange(_MINUTES), 0))
        close = np.where(traded, close, close[last])
        open_ = np.where(traded, marks[:-1], close)
        high = np.maximum(open_, close) + np.where(traded, np.rint(reach[0]).astype(np.int64), 0)
        low = np.minimum(open_, close) - np.where(traded, np.rint(reach[1]).astype(np.int64), 0)
        return {"open": open_, "high": high, "low": np.maximum(low, 1), "close": close}

    def _columns(
        self, rng: np.random.Generator, prices: dict[str, Int64s], lots: Int64s
    ) -> dict[str, Float64s | Int64s]:
        """The float columns; what buyers and sellers paid lies inside the minute's range, in whole tick-lots."""
        tick, lot = 10**self.listing.price_decimals, 10**self.listing.lot_decimals
        bought = np.rint(lots * rng.uniform(0.3, 0.7, _MINUTES)).astype(np.int64)
        reach = prices["high"] - prices["low"]
        paid = [
            side * prices["low"] + np.rint(side * reach * rng.uniform(0.35, 0.65, _MINUTES)).astype(np.int64)
            for side in (bought, lots - bought)
        ]
        return {
            **{name: values / tick for name, values in prices.items()},
            "volume": lots / lot,
            "quote_volume": (paid[0] + paid[1]) / (tick * lot),
            "taker_buy_volume": bought / lot,
            "taker_buy_quote_volume": paid[0] / (tick * lot),
        }


def _row_of(first: Int64s, id_: int) -> int:
    """The minute of the day that holds an id, from the first id of each."""
    return int(np.searchsorted(first, id_, side="right")) - 1


def _shared(total: int, weights: Float64s) -> Int64s:
    """`total` shared out by weight in whole numbers that add up to it; nothing where the weight is zero."""
    upto = np.floor(total * np.cumsum(weights) / weights.sum())
    upto[-1] = total
    shares: Int64s = np.diff(upto, prepend=0.0).astype(np.int64)
    # Rounding may leave the last one at a weight of zero; it goes to the heaviest.
    stray = int(shares[weights == 0].sum())
    shares[weights == 0] = 0
    shares[int(np.argmax(weights))] += stray
    return shares
