"""Backtests over a recorded year, through the real store and archive."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from backtest.run import run_backtest
from backtest.source import MissingCandles
from market.candle import floats, open_times_ms
from market.clock import to_ms
from market.coverage import CoverageState
from market.instrument import Series
from market.interval import Interval
from market.timeframe import TIMEFRAMES
from store.archive.archive import Archive
from store.batch import Absence, CandleBatch
from store.sqlite.store import SqliteStore
from trading.strategies.sma_cross import SmaCross

pytestmark = pytest.mark.recorded

ROOT = Path(__file__).resolve().parents[2]
MINUTE, HOUR = TIMEFRAMES["1m"], TIMEFRAMES["1h"]
YEAR = Interval(to_ms("2023-01-01"), to_ms("2024-01-01"))
#: Binance had no candles on 2023-03-24 from 12:40 to 14:00.
NO_MINUTES = Interval(to_ms("2023-03-24T12:40:00Z"), to_ms("2023-03-24T14:00:00Z"))
NO_HOUR = Interval(to_ms("2023-03-24T13:00:00Z"), to_ms("2023-03-24T14:00:00Z"))
BTC = Series("binance", "BTC/USDT", MINUTE)


class FixedClock:
    def now_ms(self) -> int:
        return YEAR.end + 86_400_000


async def fill_archive(
    folder: Path, tables: dict[Series, pa.Table], absences: dict[Series, tuple[Interval, CoverageState]]
) -> Path:
    root = folder / "archive"
    clock = FixedClock()
    async with SqliteStore.opened(folder / "market_data.sqlite3", clock) as store:
        for series, table in tables.items():
            known: tuple[Absence, ...] = ()
            if series in absences:
                interval, state = absences[series]
                known = (Absence(interval=interval, state=state, evidence="recorded"),)
            batch = CandleBatch(
                series=series, source="recorded", now_ms=clock.now_ms(), table=table, absences=known
            )
            await store.write(batch)
            await Archive(root).build(store, series)
    return root


@pytest.fixture(scope="module")
def archived(tmp_path_factory: pytest.TempPathFactory, recorded_candles: Callable[[str, str], pa.Table]) -> Path:
    """BTC's one-minute candles of 2023, its hourly ones of the exchange, and ETH's minutes around March."""
    ether = recorded_candles("binance_spot_ETHUSDT_1m_2023-01-01", "1m")
    tables = {
        BTC: recorded_candles("binance_spot_BTCUSDT_1m_2023-01-01", "1m"),
        Series("binance", "ETH/USDT", MINUTE): ether.slice(57 * 1440, 36 * 1440),
        BTC.at(HOUR): recorded_candles("binance_spot_BTCUSDT_1h_2023-01-01", "1h"),
    }
    absences = {one: (NO_HOUR if one.timeframe == HOUR else NO_MINUTES, CoverageState.EMPTY) for one in tables}
    return asyncio.run(fill_archive(tmp_path_factory.mktemp("recorded"), tables, absences))


def plain_sma_cross(table: pa.Table, fast: int, slow: int) -> list[tuple[int, float, int, float]]:
    """Entries and exits (time, price) of the same rules, written as plainly as can be."""
    times, opens = open_times_ms(table).tolist(), floats(table, "open").tolist()
    # Whole cents: sums are exact, and equal averages are equal.
    cents = [round(close * 100) for close in floats(table, "close").tolist()]
    found, entry, wanted = [], None, 0
    for at in range(slow - 1, len(cents)):
        if wanted > 0:
            entry = (times[at], opens[at])
        elif wanted < 0 and entry is not None:
            found.append((*entry, times[at], opens[at]))
            entry = None
        wanted = 0
        above = sum(cents[at + 1 - fast : at + 1]) * slow - sum(cents[at + 1 - slow : at + 1]) * fast
        if above > 0 and entry is None:
            wanted = 1
        elif above < 0 and entry is not None:
            wanted = -1
    return found


@pytest.mark.parametrize(("timeframe", "file"), [(HOUR, "1h"), (MINUTE, "1m")])
def test_round_trips_of_a_year_equal_a_plain_loop(archived: Path, recorded_candles, timeframe, file: str) -> None:
    table = recorded_candles(f"binance_spot_BTCUSDT_{file}_2023-01-01", file)
    result = run_backtest(archived, SmaCross(), "binance", ["BTC/USDT"], timeframe, YEAR)
    found = [(one.entered_at, one.entry_price, one.exited_at, one.exit_price) for one in result.round_trips]
    wanted = plain_sma_cross(table, 10, 30)
    assert [(one[0], one[2]) for one in found] == [(one[0], one[2]) for one in wanted]
    # A round trip's price is paid quote over bought base: the open, but for the last bits.
    assert [price for one in found for price in one[1::2]] == pytest.approx(
        [price for one in wanted for price in one[1::2]], rel=1e-12
    )
    assert result.candles == table.num_rows
    assert not result.series[0].missing
    assert [one.duration for one in result.series[0].empty] == [
        NO_HOUR.duration if timeframe == HOUR else NO_MINUTES.duration
    ]
    manifest = Archive(archived).manifest(BTC.at(timeframe))
    assert manifest is not None
    assert result.fingerprint == manifest.fingerprint


def test_hours_rolled_up_from_minutes_trade_like_the_exchanges_own(
    archived: Path, tmp_path: Path, recorded_candles
) -> None:
    minutes = {BTC: recorded_candles("binance_spot_BTCUSDT_1m_2023-01-01", "1m")}
    alone = asyncio.run(fill_archive(tmp_path, minutes, {BTC: (NO_MINUTES, CoverageState.EMPTY)}))
    own = run_backtest(archived, SmaCross(), "binance", ["BTC/USDT"], HOUR, YEAR)
    derived = run_backtest(alone, SmaCross(), "binance", ["BTC/USDT"], HOUR, YEAR)
    assert derived.series[0].derived_from == BTC
    assert derived.result_hash == own.result_hash
    assert len(own.round_trips) > 100


def test_two_symbols_of_a_quarter_are_repeatable_and_clean(archived: Path) -> None:
    quarter = Interval(to_ms("2023-03-01"), to_ms("2023-04-01"))
    runs = [
        run_backtest(
            archived,
            SmaCross(fast=20, slow=90, stake=0.5),
            "binance",
            ["BTC/USDT", "ETH/USDT"],
            MINUTE,
            quarter,
            read_rows=rows,
            tripwire=rows == 7_777,
        )
        for rows in (500_000, 7_777)
    ]
    assert runs[0].result_hash == runs[1].result_hash
    assert runs[0].fingerprint == runs[1].fingerprint
    assert runs[1].ok, runs[1].leaks
    assert {one.symbol for one in runs[0].fills} == {"BTC/USDT", "ETH/USDT"}


def test_an_outage_is_refused_or_masked(tmp_path: Path, recorded_candles) -> None:
    table = recorded_candles("binance_spot_BTCUSDT_1m_2023-01-01", "1m")
    times = open_times_ms(table)
    day = Interval(to_ms("2023-03-24"), to_ms("2023-03-25"))
    part = table.filter(pa.array((times >= day.start) & (times < day.end)))
    root = asyncio.run(fill_archive(tmp_path, {BTC: part}, {BTC: (NO_MINUTES, CoverageState.EXCHANGE_OUTAGE)}))
    with pytest.raises(MissingCandles, match="2023-03-24T12:40:00Z, 2023-03-24T14:00:00Z"):
        run_backtest(root, SmaCross(), "binance", ["BTC/USDT"], MINUTE, day)
    result = run_backtest(root, SmaCross(fast=3, slow=9), "binance", ["BTC/USDT"], MINUTE, day, missing="mask")
    assert list(result.series[0].missing) == [NO_MINUTES]
    assert result.candles == 1440 - 80
    inside = [one for one in result.fills if one.filled_at in NO_MINUTES or one.decided_at - 1 in NO_MINUTES]
    assert inside == []


AGREE = """
import asyncio, hashlib, json, sys
from pathlib import Path
from backtest.feed import Feed
from backtest.source import find_source
from market.candle import open_times_ms
from market.clock import SystemClock
from market.instrument import Series
from market.interval import Interval
from store.archive.manifest import read_manifest, series_folder
from store.sqlite.store import SqliteStore
from trading.strategy import Subscription
import pyarrow as pa, pyarrow.parquet as pq

root, series = Path(sys.argv[1]), Series.parse("binance", "BTC/USDT", "1m")
span = Interval(1679616000000, 1679788800000)

async def stored():
    async with SqliteStore.opened(root.parent / "market_data.sqlite3", SystemClock(), read_only=True) as store:
        return await store.read(series, span.start, span.end)

with Feed(root) as feed:
    source = find_source(root, "binance", Subscription("BTC/USDT", series.timeframe), span)
    duckdb = pa.concat_tables([piece.table for piece in feed.pieces(source, span)])
manifest = read_manifest(root, series)
arrow = pa.concat_tables([pq.read_table(series_folder(root, series) / one.name) for one in manifest.files_in(span)])
times = open_times_ms(arrow)
arrow = arrow.filter(pa.array((times >= span.start) & (times < span.end)))
tables = {"duckdb": duckdb, "arrow": arrow, "sqlite": asyncio.run(stored())}
print(json.dumps({
    name: [table.num_rows, hashlib.sha256(open_times_ms(table).tobytes()).hexdigest(),
           [one for one in table["early_close_time"].cast(pa.int64()).to_pylist() if one is not None]]
    for name, table in tables.items()
}))
"""


@pytest.mark.parametrize("zone", ["UTC", "Asia/Seoul", "America/New_York"])
def test_duckdb_sqlite_and_arrow_agree_on_every_instant(archived: Path, zone: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", AGREE, str(archived)],
        cwd=ROOT,
        env={**os.environ, "TZ": zone},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert answers["duckdb"] == answers["arrow"] == answers["sqlite"]
    assert answers["duckdb"][0] == 2 * 1440 - 80
    assert answers["duckdb"][2] == [1_679_661_581_646]


def test_the_result_does_not_depend_on_the_machines_zone(archived: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from backtest.run import run_backtest\n"
        "from market.timeframe import TIMEFRAMES\n"
        "from trading.catalogue import load_strategy\n"
        "strategy = load_strategy('sma_cross')\n"
        "r = run_backtest(Path(sys.argv[1]), strategy, 'binance', ['BTC/USDT'], TIMEFRAMES['1h'])\n"
        "print(r.result_hash, r.fingerprint)"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-W", "error", "-c", code, str(archived)],
            cwd=ROOT,
            env={**os.environ, "TZ": zone},
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        ).stdout
        for zone in ("UTC", "Asia/Seoul")
    }
    assert len(answers) == 1
