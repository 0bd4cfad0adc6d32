"""``kill -9`` at ten random moments of a backfill: what is committed stays true, and a rerun completes it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest

from market.candle import open_times_ms
from market.clock import SystemClock, to_ms
from market.coverage import CoverageState
from market.instrument import Series
from market.interval import Interval, IntervalSet
from market.timeframe import ONE_MINUTE
from store.sqlite.store import SqliteStore
from tests.support.simulated import ROOT, simulated_exchange

pytestmark = [pytest.mark.crash, pytest.mark.recorded]

RANGE = Interval(to_ms("2023-01-20"), to_ms("2023-04-01"))
SYMBOLS = {"BTC/USDT": "BTCUSDT", "ETH/USDT": "ETHUSDT"}
KILLS = 10
#: Candles between the start of a run and its kill, at most; all kills together stay within the range.
MOST_CANDLES = 15_000
#: Seconds for a process to start, and for a whole run, at most.
DEADLINE = 300.0
DATABASE = "market_data.sqlite3"


def start(home: Path, url: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "chandlery", "backfill", "--exchange", "binance", "--exchange-url", url]
    command += ["--symbols", ",".join(SYMBOLS), "--timeframe", "1m", "--json", "--home", str(home)]
    command += ["--since", "2023-01-20", "--until", "2023-04-01"]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_at(process: subprocess.Popen[str], home: Path, candles: int) -> None:
    """Kill the process once it has committed so many candles."""

    async def main() -> None:
        before = await present()
        stop = time.monotonic() + DEADLINE
        while await present() < before + candles:
            assert time.monotonic() < stop, "the backfill does not get on"
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
                output, errors = process.communicate()
                raise AssertionError("the backfill ended before it was killed: " + output + errors)
        process.kill()

    async def present() -> int:
        async with SqliteStore.opened(home / DATABASE, SystemClock(), read_only=True) as store:
            ledgers = [await store.coverage(Series("binance", symbol, ONE_MINUTE)) for symbol in SYMBOLS]
        held = IntervalSet(one.interval for one in ledgers[0] if one.state is CoverageState.PRESENT)
        other = IntervalSet(one.interval for one in ledgers[1] if one.state is CoverageState.PRESENT)
        return (held.duration + other.duration) // ONE_MINUTE.milliseconds

    asyncio.run(main())


def state(home: Path, symbol: str) -> tuple[pa.Table, IntervalSet, IntervalSet]:
    """What is stored of `symbol`, where the ledger says it is, and where it says there is nothing."""

    async def main() -> tuple[pa.Table, IntervalSet, IntervalSet]:
        series = Series("binance", symbol, ONE_MINUTE)
        async with SqliteStore.opened(home / DATABASE, SystemClock()) as store:
            ledger = await store.coverage(series)
            present, empty = (
                IntervalSet(one.interval for one in ledger if one.state is wanted)
                for wanted in (CoverageState.PRESENT, CoverageState.EMPTY)
            )
            return await store.read(series, RANGE.start, RANGE.end), present, empty

    return asyncio.run(main())


def test_killed_at_ten_random_moments_a_rerun_completes(
    recorded: Path, recorded_candles: Callable[[str, str], pa.Table], tmp_path: Path
) -> None:
    moments = random.Random(20_230_324)
    expected = {}
    for symbol, name in SYMBOLS.items():
        year = recorded_candles(f"binance_spot_{name}_1m_2023-01-01", "1m")
        times = open_times_ms(year)
        expected[symbol] = year.filter(pa.array((times >= RANGE.start) & (times < RANGE.end)))
    home = tmp_path / "home"
    home.mkdir()
    state(home, "BTC/USDT")
    seen: list[int] = []
    with simulated_exchange(data=recorded / "candles", symbols=list(SYMBOLS), now_ms=to_ms("2024-01-02")) as url:
        for _ in range(KILLS):
            process = start(home, url)
            try:
                kill_at(process, home, moments.randrange(1, MOST_CANDLES))
            finally:
                process.kill()
                process.communicate()
            for symbol in SYMBOLS:
                table, present, _ = state(home, symbol)
                seen.append(table.num_rows)
                assert present == IntervalSet.of_candles(open_times_ms(table), ONE_MINUTE)
        # Most kills hit a run at work, or this test shows nothing.
        assert len(set(seen)) >= KILLS
        final = start(home, url)
        output, errors = final.communicate(timeout=DEADLINE)
        assert final.returncode == 0, output + errors
    reports = json.loads(output)["series"]
    for report in reports:
        assert (report["stored"], report["verified_empty"], report["missing"]) == (102_160, 80, 0)
    for symbol in SYMBOLS:
        table, present, empty = state(home, symbol)
        assert table.equals(expected[symbol])
        assert present | empty == IntervalSet([RANGE])
        assert not present & empty
    orphans = [path.name for path in home.rglob("*") if path.is_file() and DATABASE not in path.name]
    # The request budget stays for the next process.
    assert [name for name in orphans if not name.endswith((".lock", ".limit"))] == []
