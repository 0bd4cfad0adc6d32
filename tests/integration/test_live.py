"""The live loop beside a simulated exchange that runs six hundred times faster than real time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pyarrow as pa
import pytest

from exchange.history import open_history
from ingest.live import LiveLoop, LiveRules, LiveStatus
from market.candle import open_times_ms
from market.clock import SystemClock, to_ms
from market.coverage import CoverageState
from market.instrument import Series
from market.interval import Interval, IntervalSet
from market.timeframe import MINUTE_MS, ONE_MINUTE
from store.live import LiveCandles
from store.sqlite.store import SqliteStore
from tests.support.simulated import simulated_exchange

NOW = to_ms("2024-01-02T00:00:20Z")
BTC = Series("binance", "BTC/USDT", ONE_MINUTE)
SYMBOLS = ("BTC/USDT", "ETH/USDT")
RULES = LiveRules(look_back_ms=60 * MINUTE_MS)


class Watch:
    """Collects statuses, and says when the newest candle of every series is late enough."""

    def __init__(self, until_ms: int) -> None:
        self.until_ms = until_ms
        self.reached = asyncio.Event()
        self.told: list[LiveStatus] = []

    def __call__(self, status: LiveStatus) -> None:
        self.told.append(status)
        newest = {one.series: one.last_closed or 0 for one in self.told}
        if len(newest) == len(SYMBOLS) and min(newest.values()) >= self.until_ms:
            self.reached.set()


async def keep_current(home: Path, url: str, minutes: int) -> tuple[pa.Table, pa.Table, list[LiveStatus], bool]:
    """Run the loop until so many minutes have passed at the exchange.

    :return: what was stored, what the exchange says of the same range afterwards, the statuses, and whether a
        forming candle was in memory.
    """
    history = open_history("binance", url)
    try:
        async with SqliteStore.opened(home / "market_data.sqlite3", SystemClock()) as store:
            watch, live = Watch(NOW + minutes * MINUTE_MS), LiveCandles(SystemClock())
            loop = LiveLoop(history, store, live, SystemClock(), SYMBOLS, ONE_MINUTE, rules=RULES, on_status=watch)
            task = asyncio.create_task(loop.run())
            try:
                async with asyncio.timeout(60):
                    reached = asyncio.create_task(watch.reached.wait())
                    await asyncio.wait([task, reached], return_when=asyncio.FIRST_COMPLETED)
            finally:
                task.cancel()
                await asyncio.wait([task])
            table = await store.read(BTC, 0, 2**52)
            ledger = await store.coverage(BTC)
            hull = IntervalSet(one.interval for one in ledger)
            assert len(hull) == 1, "a gap was left behind"
            assert {one.state for one in ledger} <= {CoverageState.PRESENT, CoverageState.EMPTY}
            (whole,) = hull
            return table, await exchange_says(history, whole), watch.told, live.get(BTC) is not None
    finally:
        await history.close()


async def exchange_says(history: object, whole: Interval) -> pa.Table:
    tables, cursor = [], whole.start
    while cursor < whole.end:
        page = await history.candles("BTC/USDT", ONE_MINUTE, cursor, whole.end)  # type: ignore[attr-defined]
        tables.append(page.table)
        cursor = page.reaches
    return pa.concat_tables(tables).combine_chunks()


@pytest.mark.parametrize("speed, minutes", [(600.0, 60), (3600.0, 300)])
def test_a_fast_exchange_is_kept_up_with_and_no_half_formed_candle_is_stored(
    speed: float, minutes: int, tmp_path: Path
) -> None:
    with simulated_exchange(seed=7, symbols=SYMBOLS, now_ms=NOW, speed=speed) as url:
        stored, said, told, forming = asyncio.run(keep_current(tmp_path, url, minutes))
    assert stored.num_rows > minutes
    assert stored.equals(said)
    assert open_times_ms(stored)[0] >= NOW - 61 * MINUTE_MS
    assert forming
    # Once it has caught up, a candle is stored within a real second of its close.
    lags = [one.lag_ms for one in told if one.series == BTC and one.lag_ms is not None]
    assert sorted(lags)[len(lags) // 2] < MINUTE_MS + speed * 1000
    assert not any(one.error for one in told)


def test_faults_are_survived(tmp_path: Path) -> None:
    faults = [
        {"do": "status", "status": 429, "retry_after": 1, "path": "/api/v3/klines", "from": 3, "count": 1},
        {"do": "html", "path": "/api/v3/exchangeInfo", "from": 1, "count": 1},
        {"do": "half_body", "path": "/api/v3/klines", "from": 6, "count": 1},
        {"do": "empty", "path": "/api/v3/time", "from": 4, "count": 1},
    ]
    with simulated_exchange(
        seed=7, symbols=SYMBOLS, now_ms=NOW, speed=600.0, faults=faults, folder=tmp_path
    ) as url:
        stored, said, told, _ = asyncio.run(keep_current(tmp_path, url, 100))
    assert any(one.error for one in told)
    assert stored.equals(said)
