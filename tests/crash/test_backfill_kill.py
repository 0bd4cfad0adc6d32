"""``kill -9`` at ten random moments of a backfill: what is committed stays true, and a rerun completes it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest
from simulated import ROOT, simulated_exchange

from market.candle import open_times_ms
from market.clock import SystemClock, to_ms
from market.coverage import CoverageState
from market.instrument import Series
from market.interval import Interval, IntervalSet
from market.timeframe import ONE_MINUTE
from store.sqlite.store import SqliteStore

pytestmark = [pytest.mark.crash, pytest.mark.recorded]

RANGE = Interval(to_ms("2023-01-20"), to_ms("2023-04-01"))
SYMBOLS = {"BTC/USDT": "BTCUSDT", "ETH/USDT": "ETHUSDT"}
KILLS = 10
#: Seconds a whole run takes at least, once it has begun to write; the moments of the kills lie within.
LENGTH = 1.5
#: Seconds for a process to start, and for a whole run, at most.
DEADLINE = 120.0
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


def size(home: Path) -> int:
    """Bytes of the write-ahead log and the database together."""
    return sum(path.stat().st_size for path in home.glob(DATABASE + "*"))


def kill_after(process: subprocess.Popen[str], home: Path, seconds: float) -> bool:
    """Kill the process so many seconds after it began to write; false if it ended before that."""
    before = size(home)
    left = DEADLINE
    while size(home) == before and left > 0:
        left -= 0.02
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
            return False
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True
    return False


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
    killed, seen = 0, list[int]()
    with simulated_exchange(data=recorded / "candles", symbols=list(SYMBOLS), now_ms=to_ms("2024-01-02")) as url:
        while killed < KILLS:
            process = start(home, url)
            try:
                if kill_after(process, home, moments.uniform(0, LENGTH / KILLS)):
                    killed += 1
                else:
                    # It was done before the moment came: begin anew, so that each kill hits a run at work.
                    output, errors = process.communicate(timeout=DEADLINE)
                    assert process.returncode == 0, output + errors
                    for path in home.glob(DATABASE + "*"):
                        path.unlink()
                    continue
            finally:
                process.kill()
                process.communicate()
            for symbol in SYMBOLS:
                table, present, _ = state(home, symbol)
                seen.append(table.num_rows)
                assert present == IntervalSet.of_candles(open_times_ms(table), ONE_MINUTE)
        # Most kills hit a run at work, or this test shows nothing.
        assert len(set(seen)) > KILLS
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
    assert [name for name in orphans if not name.endswith(".lock")] == []
