"""Closed candles read again: drift counted by age, the delay learnt, and what REST does not say kept."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest

from exchange.page import CandlePage
from ingest.settle_check import SettleChecker, SettleRules, compared, settle_delay
from market.candle import CandleState, candles, no_candles, open_times_ms
from market.errors import ExchangeRefused, ExchangeUnavailable, StoreUnavailable
from market.instrument import Series
from market.timeframe import MINUTE_MS, ONE_MINUTE, Timeframe
from store.batch import CandleBatch, Written
from store.settling import SettleCheck, SettleCount
from tests.conftest import ManualClock

SERIES = Series("binance", "BTC/USDT", ONE_MINUTE)
START = 1_699_999_800_000


def row(open_time: int, close: float = 1.0, **more: Any) -> pa.Table:
    columns: dict[str, Any] = {name: [1.0] for name in ("open", "high", "low", "volume")}
    columns |= {"open_time": [open_time], "close": [close], "high": [max(1.0, close)]}
    return candles(columns | {name: [value] for name, value in more.items()})


class Store:
    """Candles by open time, and the counts."""

    def __init__(self) -> None:
        self.rows: dict[int, pa.Table] = {}
        self.batches: list[CandleBatch] = []
        self.counts: dict[int, tuple[int, int]] = {}
        self.away = 0

    async def write(self, batch: CandleBatch) -> Written:
        if self.away:
            self.away -= 1
            raise StoreUnavailable("away")
        self.batches.append(batch)
        for at, open_time in enumerate(open_times_ms(batch.table).tolist()):
            self.rows[open_time] = batch.table.slice(at, 1)
        return Written()

    async def read(self, series: Series, start_ms: int, end_ms: int) -> pa.Table:
        found = [table for time, table in sorted(self.rows.items()) if start_ms <= time < end_ms]
        return pa.concat_tables(found) if found else no_candles()

    async def record_settle(self, exchange: str, timeframe: Timeframe, counts: Sequence[SettleCount]) -> None:
        for one in counts:
            checked, drifted = self.counts.get(one.age_ms, (0, 0))
            self.counts[one.age_ms] = (checked + one.checked, drifted + one.drifted)

    async def settle_checks(self, exchange: str | None = None) -> list[SettleCheck]:
        return [check(age, *counts) for age, counts in self.counts.items()]


class Exchange:
    """What the exchange says now."""

    def __init__(self) -> None:
        self.rows: dict[int, pa.Table] = {}
        self.faults: list[Exception] = []

    async def candles(self, symbol: str, timeframe: Timeframe, start_ms: int, end_ms: int) -> CandlePage:
        if self.faults:
            raise self.faults.pop()
        found = [table for time, table in sorted(self.rows.items()) if start_ms <= time < end_ms]
        return CandlePage(table=pa.concat_tables(found) if found else no_candles(), reaches=end_ms)


def check(age_ms: int, checked: int, drifted: int) -> SettleCheck:
    return SettleCheck(
        exchange="binance",
        timeframe=ONE_MINUTE,
        age_ms=age_ms,
        checked=checked,
        drifted=drifted,
        last_drift_open_time=None,
        updated_at=0,
    )


class Bench:
    """A checker that is stepped by hand."""

    def __init__(self) -> None:
        self.store, self.exchange, self.clock = Store(), Exchange(), ManualClock(START)
        self.learned: list[tuple[str, int]] = []
        self.turn, self.next = asyncio.Event(), asyncio.Event()
        self.checker = SettleChecker(
            self.exchange,
            self.store,
            self.clock,
            learned=lambda timeframe, delay: self.learned.append((timeframe.name, delay)),
            rules=SettleRules(sometimes=(5_000, 20_000), sample=2),
            sleep=self._sleep,
        )

    async def _sleep(self, seconds: float) -> None:
        self.turn.set()
        await self.next.wait()
        self.next.clear()

    async def step(self, milliseconds: int = 0) -> None:
        self.clock.advance(milliseconds)
        self.turn.clear()
        self.next.set()
        await self.turn.wait()

    def close(self, open_time: int, close: float = 1.0) -> None:
        self.store.rows[open_time] = row(open_time, close)
        self.exchange.rows.setdefault(open_time, row(open_time, close))
        self.checker.closed(SERIES, open_time)


async def stepped(bench: Bench) -> asyncio.Task[None]:
    running = asyncio.create_task(bench.checker.run())
    await bench.turn.wait()
    return running


async def test_drift_is_counted_by_age_and_the_stored_candle_corrected() -> None:
    bench = Bench()
    running = await stepped(bench)
    bench.clock.time_ms = START + MINUTE_MS
    bench.close(START)
    await bench.step(5_000)
    assert bench.store.counts == {5_000: (1, 0)}
    bench.exchange.rows[START] = row(START, 2.0)
    await bench.step(15_000)
    assert bench.store.counts[20_000] == (1, 1)
    assert bench.store.batches[-1].state is CandleState.CLOSED
    await bench.step(40_000)
    assert bench.store.counts[60_000] == (1, 0)
    assert bench.store.batches[-1].state is CandleState.VERIFIED
    assert bench.store.rows[START].column("close")[0].as_py() == 2.0
    assert (bench.checker.checked, bench.checker.drifted, bench.checker.waiting) == (3, 1, 0)
    running.cancel()


async def test_one_candle_in_the_sample_is_read_early_and_every_one_after_a_minute() -> None:
    bench = Bench()
    running = await stepped(bench)
    for minute in range(4):
        bench.close(START + minute * MINUTE_MS)
    assert bench.checker.waiting == 4 + 2 * 2
    await bench.step(6 * MINUTE_MS)
    assert bench.store.counts == {5_000: (2, 0), 20_000: (2, 0), 60_000: (4, 0)}
    running.cancel()


@pytest.mark.parametrize("where", ["exchange", "store"])
async def test_trouble_is_tried_again_and_not_for_ever(where: str) -> None:
    bench = Bench()
    running = await stepped(bench)
    bench.close(START + MINUTE_MS)
    if where == "exchange":
        bench.exchange.faults = [ExchangeUnavailable("no answer")] * 3
    else:
        bench.store.away = 3
    await bench.step(3 * MINUTE_MS)
    for _ in range(5):
        await bench.step(61_000)
    assert bench.store.counts == {60_000: (1, 0)}
    bench.close(START + 2 * MINUTE_MS)
    bench.exchange.faults = [ExchangeUnavailable("no answer")] * 50
    for _ in range(10):
        await bench.step(61_000)
    assert bench.checker.waiting == 0
    # Three ages, five tries each.
    assert len(bench.exchange.faults) == 50 - 15
    running.cancel()


async def test_a_symbol_that_is_refused_is_not_asked_again() -> None:
    bench = Bench()
    running = await stepped(bench)
    bench.close(START + MINUTE_MS)
    bench.exchange.faults = [ExchangeRefused("delisted")]
    await bench.step(3 * MINUTE_MS)
    assert bench.checker.waiting == 0
    running.cancel()


async def test_the_delay_is_learnt_from_enough_checks_and_told_once() -> None:
    bench = Bench()
    bench.store.counts = {5_000: (1000, 30), 20_000: (1000, 2), 60_000: (1000, 1), 300_000: (10, 10)}
    running = await stepped(bench)
    for minute in range(2):
        bench.close(START + minute * MINUTE_MS)
        await bench.step(2 * MINUTE_MS)
    assert bench.learned == [("1m", 20_000)]
    running.cancel()


@pytest.mark.parametrize(
    "checks, delay",
    [
        ([], 0),
        ([check(5_000, 19, 19)], 0),
        ([check(5_000, 20, 1)], 5_000),
        ([check(5_000, 5000, 5), check(60_000, 5000, 6)], 60_000),
        ([check(5_000, 5000, 5)], 0),
    ],
)
def test_settle_delay(checks: list[SettleCheck], delay: int) -> None:
    assert settle_delay(checks) == delay


def test_columns_that_rest_does_not_say_are_kept_where_the_rest_agrees() -> None:
    ours = row(START, quote_volume=7.0, trades=3)
    table, changed = compared(row(START), ours)
    assert table.to_pylist() == ours.to_pylist()
    assert changed == []
    table, changed = compared(row(START, 2.0), ours)
    assert changed == [START]
    assert table.column("quote_volume").to_pylist() == [None]


def test_an_early_close_that_the_exchange_takes_back_is_a_change() -> None:
    ours = row(START, quote_volume=7.0, early_close_time=START + 5)
    table, changed = compared(row(START, quote_volume=7.0), ours)
    assert changed == [START]
    assert table.column("early_close_time").to_pylist() == [None]


def test_a_candle_that_was_not_stored_has_not_changed() -> None:
    table, changed = compared(row(START), no_candles())
    assert (table.num_rows, changed) == (1, [])
