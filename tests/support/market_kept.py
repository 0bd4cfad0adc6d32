"""Holding what a live feed has kept against what the simulated exchange has traded: candles and recorded trades."""

from __future__ import annotations

import asyncio
import functools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from chandlery.wiring import Store
from exchange.simulator.market import Market
from exchange.simulator.synthetic import SyntheticTape
from market.candle import COLUMNS, open_times_ms
from market.coverage import CoverageState
from market.instrument import Series
from market.interval import Interval, IntervalSet
from market.timeframe import MINUTE_MS, ONE_MINUTE
from store.batch import CandleBatch
from store.trade_batch import RunState, TradeBatch

EXCHANGE = "binance"
#: A market without a hole for twelve hours.
SEED = 7
#: 2024-06-21T20:00:00Z.
BEGIN_MS = 1_719_000_000_000
SYMBOLS = ("BTC/USDT", "ETH/USDT", "SOL/USDT", "XRP/USDT")


@functools.cache
def market_of(symbol: str) -> Market:
    """What the simulated exchange with our seed trades of a symbol."""
    return Market(SyntheticTape(SEED, symbol))


async def exchange_time(url: str) -> int:
    """The time of the simulated exchange, epoch milliseconds; its faults may take a few tries."""
    async with httpx.AsyncClient(base_url=url) as client:
        for _ in range(200):
            try:
                answer = await client.get("/simulator/clock")
                return int(answer.json()["now_ms"])
            except (httpx.HTTPError, ValueError):
                await asyncio.sleep(0.05)
    raise AssertionError("the simulated exchange does not tell its time")


def wanted(cut: int) -> Interval:
    """The candles that must be known at the exchange's time `cut`; the newest ones may not have settled."""
    return Interval(BEGIN_MS + MINUTE_MS, cut // MINUTE_MS * MINUTE_MS - 2 * MINUTE_MS)


async def all_kept(store: Store, symbols: Sequence[str], cut: int, seconds: float = 300.0) -> None:
    """Return as soon as every trade and candle before `cut` is stored."""
    end = time.monotonic() + seconds
    for symbol in symbols:
        last = max(trade.id for trade in market_of(symbol).trades(cut - 10 * MINUTE_MS, cut))
        while missing := await _missing(store, symbol, cut, last):
            assert time.monotonic() < end, f"not within {seconds:g} s: {missing} of {symbol}"
            await asyncio.sleep(0.05)


async def _missing(store: Store, symbol: str, cut: int, last: int) -> str | None:
    newest = await store.newest_trade(EXCHANGE, symbol)
    if newest is None or int(newest.id) < last:
        return f"trade {last} after {newest}"
    covered = await store.coverage(Series(EXCHANGE, symbol, ONE_MINUTE), wanted(cut))
    unknown = IntervalSet([wanted(cut)]) - IntervalSet(one.interval for one in covered)
    return f"candles {list(unknown)}" if unknown else None


@dataclass
class Told:
    """What was told to be durable, and where."""

    #: Ids of trades, and open times of candles, by symbol.
    trades: dict[str, set[int]] = field(default_factory=dict)
    candles: dict[str, set[int]] = field(default_factory=dict)
    #: How many batches, by where they became durable.
    landed: Counter[str] = field(default_factory=Counter)

    @property
    def rows(self) -> int:
        """Different rows."""
        return sum(len(one) for kind in (self.trades, self.candles) for one in kind.values())

    def add(self, batch: object, landed: str) -> None:
        """A batch became durable."""
        self.landed[landed] += 1
        if isinstance(batch, TradeBatch):
            self.trades.setdefault(batch.symbol, set()).update(int(one.id) for one in batch.trades)
        elif isinstance(batch, CandleBatch) and batch.table.num_rows:
            times = self.candles.setdefault(batch.series.symbol, set())
            times.update(open_times_ms(batch.table).tolist())


async def check_told(store: Store, told: Told) -> tuple[int, int]:
    """Everything that was told is there; the numbers of missing and of doubled rows, both of which must be 0."""
    missing = doubled = 0
    for symbol, ids in told.trades.items():
        stored = Counter(int(one.id) for one in await store.trades(EXCHANGE, symbol, 0, 2**42))
        missing += len(ids - set(stored))
        doubled += stored.total() - len(stored)
    for symbol, times in told.candles.items():
        table = await store.read(Series(EXCHANGE, symbol, ONE_MINUTE), 0, 2**42)
        found = Counter(open_times_ms(table).tolist())
        missing += len(times - set(found))
        doubled += found.total() - len(found)
    return missing, doubled


async def check_kept(store: Store, symbols: Sequence[str], cut: int) -> int:
    """Trades from the first stored one to `cut` and all candles are the exchange's own; rows looked at."""
    rows = 0
    for symbol in symbols:
        market = market_of(symbol)
        stored = await store.trades(EXCHANGE, symbol, 0, cut)
        assert stored, symbol
        true = [one for one in market.trades(stored[0].event_time, cut) if one.id >= int(stored[0].id)]
        # Told apart, as most of what can go wrong shows in the ids.
        ids, true_ids = {int(one.id) for one in stored}, {one.id for one in true}
        runs = [(one.first_id, one.last_id, one.state) for one in await store.trade_runs(EXCHANGE, symbol)]
        wrong = (sorted(true_ids - ids), sorted(ids - true_ids))
        assert wrong == ([], []), f"{symbol}: missing and too many are {wrong}; the ledger says {runs}"
        ours = [(one.id, one.price, one.quantity, one.event_time, one.taker_buys) for one in stored]
        assert ours == [(one.id, one.price, one.quantity, one.time, not one.buyer_is_maker) for one in true], symbol
        assert [state for _, _, state in runs] == [RunState.PRESENT], f"{symbol}: {runs}"
        series, candles = Series(EXCHANGE, symbol, ONE_MINUTE), wanted(cut)
        kept = await store.read(series, candles.start, candles.end)
        expected = market.minutes(cut + MINUTE_MS, candles.start, candles.end)
        assert kept.select(COLUMNS).to_pylist() == expected.select(COLUMNS).to_pylist(), symbol
        covered = await store.coverage(series, candles)
        assert {one.state for one in covered} == {CoverageState.PRESENT}, symbol
        rows += len(stored) + kept.num_rows
    return rows


def journal_files(home: Path) -> list[str]:
    """The files of a home's journal that hold records, or what was set aside."""
    return sorted(path.name for path in (home / "journal").glob("*") if path.suffix in (".journal", ".refused"))
