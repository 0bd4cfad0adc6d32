"""Backfill from the simulated exchange into SQLite: real sockets, real ccxt, real recorded candles."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pytest

from exchange.binance.history import BinanceHistory
from exchange.ccxt_client import CcxtHistory
from exchange.history import open_history
from ingest.backfill import BackfillRules, backfill
from ingest.patience import History, Patience
from ingest.report import SeriesReport
from market.candle import COLUMNS, open_times_ms
from market.clock import SystemClock, to_ms
from market.coverage import CoverageState
from market.errors import BadInput, ExchangeUnavailable, NotFound, RateLimited
from market.instrument import Series
from market.interval import Interval, IntervalSet
from market.timeframe import ONE_MINUTE, TIMEFRAMES
from store.sqlite.store import SqliteStore
from tests.support.simulated import simulated_exchange

BTC = Series("binance", "BTC/USDT", ONE_MINUTE)
ETH = Series("binance", "ETH/USDT", ONE_MINUTE)
YEAR = Interval(to_ms("2023-01-01"), to_ms("2024-01-01"))
OUTAGE = IntervalSet.of((to_ms("2023-03-24T12:40:00Z"), to_ms("2023-03-24T14:00:00Z")))
NOW = to_ms("2024-01-02")
#: Tries that follow each other quickly, and a wait that no test sits out.
QUICK = BackfillRules(patience=Patience(attempts=4, first_wait=0.01, longest_wait=0.05, longest_obeyed=5.0))
Outcome = TypeVar("Outcome")


def with_store(
    home: Path, url: str, work: Callable[[SqliteStore, History], Awaitable[Outcome]], timeout_ms: int = 10_000
) -> Outcome:
    """What `work` returns, given an open store and an open history."""

    async def main() -> Outcome:
        history = open_history("binance", url, timeout_ms=timeout_ms)
        try:
            async with SqliteStore.opened(home / "market_data.sqlite3", SystemClock()) as store:
                return await work(store, history)
        finally:
            await history.close()

    return asyncio.run(main())


def fill(
    home: Path,
    url: str,
    wanted: Interval,
    *symbols: str,
    rules: BackfillRules | None = None,
    timeframe: str = "1m",
    timeout_ms: int = 10_000,
) -> list[SeriesReport]:
    return with_store(
        home,
        url,
        lambda store, history: backfill(
            history, store, SystemClock(), symbols, TIMEFRAMES[timeframe], wanted, rules=rules
        ),
        timeout_ms,
    )


def stored(home: Path, series: Series, interval: Interval = YEAR) -> pa.Table:
    async def main() -> pa.Table:
        async with SqliteStore.opened(home / "market_data.sqlite3", SystemClock()) as store:
            return await store.read(series, interval.start, interval.end)

    return asyncio.run(main())


def empties(home: Path, series: Series) -> IntervalSet:
    async def main() -> IntervalSet:
        async with SqliteStore.opened(home / "market_data.sqlite3", SystemClock()) as store:
            ledger = await store.coverage(series)
            return IntervalSet(one.interval for one in ledger if one.state is CoverageState.EMPTY)

    return asyncio.run(main())


@pytest.fixture
def unused_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.recorded
class TestRecordedYear:
    def test_every_field_of_every_row_equals_the_recorded_year(
        self, recorded: Path, recorded_candles: Callable[[str, str], pa.Table], tmp_path: Path
    ) -> None:
        with simulated_exchange(data=recorded / "candles", symbols=["BTC/USDT", "ETH/USDT"], now_ms=NOW) as url:
            first = fill(tmp_path, url, YEAR, "BTC/USDT", "ETH/USDT")
            second = fill(tmp_path, url, YEAR, "BTC/USDT", "ETH/USDT")
        for series, report in zip((BTC, ETH), first, strict=True):
            base = series.symbol.replace("/", "")
            expected = recorded_candles(f"binance_spot_{base}_1m_2023-01-01", "1m")
            assert (report.stored, report.written, report.verified_empty) == (525_520, 525_520, 80)
            assert report.complete
            assert stored(tmp_path, series).equals(expected)
            assert stored(tmp_path, series).column("early_close_time").null_count == 525_519
            assert empties(tmp_path, series) == OUTAGE
        for report in second:
            assert report.complete
            assert report.written == 0
            assert report.requests <= 2

    def test_years_before_the_listing_cost_a_handful_of_requests(self, recorded: Path, tmp_path: Path) -> None:
        wanted = Interval(to_ms("2017-01-01"), to_ms("2023-03-23T16:00:00Z"))
        with simulated_exchange(data=recorded / "candles", symbols=["ARB/USDT", "BTC/USDT"], now_ms=NOW) as url:
            (report,) = fill(tmp_path, url, wanted, "ARB/USDT")
        assert (report.stored, report.complete) == (60, True)
        assert report.requests < 10
        assert empties(tmp_path, Series("binance", "ARB/USDT", ONE_MINUTE)) == IntervalSet.of(
            (wanted.start, to_ms("2023-03-23T15:00:00Z"))
        )

    def test_unknown_names_are_said_before_anything_is_fetched(self, recorded: Path, tmp_path: Path) -> None:
        with simulated_exchange(data=recorded / "candles", symbols=["BTC/USDT"], now_ms=NOW) as url:
            with pytest.raises(NotFound, match=r"symbol: 'BTC/USDX' .* BTC/USDT"):
                fill(tmp_path, url, YEAR, "BTC/USDX")
            assert stored(tmp_path, BTC).num_rows == 0


DAY = Interval(to_ms("2023-03-24"), to_ms("2023-03-25"))
#: A fault that passes, by what the exchange does.
PASSING = {
    "429": {"do": "status", "status": 429, "retry_after": 1, "path": "/api/v3/klines", "from": 1, "count": 1},
    "418": {"do": "status", "status": 418, "retry_after": 1, "path": "/api/v3/klines", "from": 2, "count": 1},
    "500": {"do": "status", "status": 500, "path": "/api/v3/klines", "from": 1, "count": 2},
    "503": {"do": "status", "status": 503, "path": "/api/v3/", "from": 1, "count": 3},
    "html": {"do": "html", "path": "/api/v3/", "from": 1, "count": 3},
    "half a body": {"do": "half_body", "path": "/api/v3/", "from": 1, "count": 3},
    "nothing": {"do": "empty", "path": "/api/v3/", "from": 1, "count": 3},
    "hanging": {"do": "hang", "seconds": 30, "path": "/api/v3/", "from": 1, "count": 3},
    "half the rows": {"do": "partial", "path": "/api/v3/klines", "from": 1, "count": 1},
}


@pytest.mark.recorded
@pytest.mark.parametrize("fault", PASSING)
def test_a_passing_fault_leaves_no_trace(
    fault: str, recorded: Path, recorded_candles: Callable[[str, str], pa.Table], tmp_path: Path
) -> None:
    with simulated_exchange(
        data=recorded / "candles", symbols=["BTC/USDT"], now_ms=NOW, faults=[PASSING[fault]], folder=tmp_path
    ) as url:
        (report,) = fill(tmp_path, url, DAY, "BTC/USDT", rules=QUICK, timeout_ms=5_000)
    year = recorded_candles("binance_spot_BTCUSDT_1m_2023-01-01", "1m")
    times = open_times_ms(year)
    expected = year.filter(pa.array((times >= DAY.start) & (times < DAY.end)))
    assert report.complete
    assert (report.stored, report.verified_empty) == (1360, 80)
    assert stored(tmp_path, BTC, DAY).equals(expected)
    assert empties(tmp_path, BTC) == OUTAGE


#: A fault that stays, and the error and words it ends with.
LASTING = {
    "banned for long": (
        {"do": "status", "status": 418, "retry_after": 3600, "path": "/api/v3/klines", "count": 99},
        RateLimited,
        "banned",
    ),
    "slow down for long": (
        {"do": "status", "status": 429, "retry_after": 3600, "path": "/api/v3/klines", "count": 99},
        RateLimited,
        "slow down for 3600 s",
    ),
    "500": (
        {"do": "status", "status": 500, "path": "/api/v3/klines", "count": 99},
        ExchangeUnavailable,
        "Injected",
    ),
    "html": ({"do": "html", "path": "/api/v3/klines", "count": 99}, ExchangeUnavailable, "not a list of klines"),
    "half a body": ({"do": "half_body", "path": "/api/v3/klines", "count": 99}, ExchangeUnavailable, "payload"),
    "nothing": ({"do": "empty", "path": "/api/v3/klines", "count": 99}, ExchangeUnavailable, "disconnected"),
}


@pytest.mark.parametrize("fault", LASTING)
def test_a_lasting_fault_is_one_clear_line_and_nothing_is_stored(fault: str, tmp_path: Path) -> None:
    rule, kind, words = LASTING[fault]
    with simulated_exchange(seed=7, now_ms=NOW, faults=[rule], folder=tmp_path) as url:
        (report,) = fill(tmp_path, url, DAY, "BTC/USDT", rules=QUICK)
    assert type(report.error) is kind
    assert words in str(report.error)
    assert "\n" not in str(report.error)
    assert len(str(report.error)) < 400
    assert (report.stored, report.missing, report.missing_intervals) == (0, 1440, IntervalSet([DAY]))
    assert stored(tmp_path, BTC, DAY).num_rows == 0


def test_nobody_listening_is_one_clear_line(tmp_path: Path, unused_port: int) -> None:
    with pytest.raises(ExchangeUnavailable, match="Cannot connect"):
        fill(tmp_path, f"http://127.0.0.1:{unused_port}", DAY, "BTC/USDT", rules=QUICK)


def test_a_timeframe_the_exchange_lacks_names_those_it_has() -> None:
    async def main() -> None:
        history = open_history("kraken", "http://127.0.0.1:9")
        try:
            history.check_timeframe(TIMEFRAMES["3m"])
        finally:
            await history.close()

    with pytest.raises(BadInput, match=r"timeframe: '3m' .* kraken serves: 1m 5m"):
        asyncio.run(main())


@pytest.mark.parametrize("timeframe", ["15m", "1h", "1d", "1w", "1M"])
def test_larger_timeframes_are_filled_likewise(timeframe: str, tmp_path: Path) -> None:
    wanted = Interval(to_ms("2023-10-01"), to_ms("2023-12-01"))
    with simulated_exchange(seed=7, now_ms=NOW) as url:
        (report,) = fill(tmp_path, url, wanted, "BTC/USDT", timeframe=timeframe)
        (again,) = fill(tmp_path, url, wanted, "BTC/USDT", timeframe=timeframe)
    step = TIMEFRAMES[timeframe]
    assert report.complete
    assert report.stored + report.verified_empty == step.count(wanted.start, wanted.end)
    assert report.stored > 0
    assert again.written == 0


def test_an_exchange_known_to_ccxt_only_is_filled_with_what_ccxt_parses(tmp_path: Path) -> None:
    """The general client, here on the same protocol: six columns, the first candle found by days, a web page."""
    wanted = Interval(to_ms("2012-01-01"), to_ms("2020-01-03"))

    async def work(store: SqliteStore, history: History) -> list[SeriesReport]:
        assert isinstance(history, BinanceHistory)
        general = CcxtHistory(history._ccxt)
        return await backfill(general, store, SystemClock(), ["BTC/USDT"], ONE_MINUTE, wanted, rules=QUICK)

    page = {"do": "html", "path": "/api/v3/klines", "from": 2, "count": 2}
    with simulated_exchange(seed=7, now_ms=to_ms("2020-02-01"), faults=[page], folder=tmp_path) as url:
        (report,) = with_store(tmp_path / "general", url, work)
        (raw,) = fill(tmp_path / "raw", url, wanted, "BTC/USDT")
    general, complete = stored(tmp_path / "general", BTC, wanted), stored(tmp_path / "raw", BTC, wanted)
    assert report.complete
    assert report.requests < 40
    assert (report.stored, report.verified_empty) == (raw.stored, raw.verified_empty)
    assert general.select(COLUMNS[:6]).equals(complete.select(COLUMNS[:6]))
    assert general.column("trades").null_count == general.num_rows
    assert raw.stored > 1000


class TestRunningExchange:
    """The exchange's clock runs, and the last candle is always half formed."""

    def test_what_was_stored_up_to_now_is_unchanged_after_the_close(self, tmp_path: Path) -> None:
        wanted = Interval(to_ms("2023-12-31T12:00:00Z"), to_ms("2024-01-03"))
        with simulated_exchange(seed=7, now_ms=NOW + 30_000, speed=60.0) as url:
            fill(tmp_path, url, wanted, "BTC/USDT")
            early = stored(tmp_path, BTC, wanted)

            async def until_closed(store: SqliteStore, history: History) -> pa.Table:
                """What the exchange says of the same range once its next buckets have closed."""
                last = int(open_times_ms(early)[-1])
                async with asyncio.timeout(60):
                    # Each question takes a round trip, and ccxt spaces them: this is no busy loop.
                    while await history.server_time() < last + 4 * 60_000:
                        pass
                tables, cursor = [], wanted.start
                while cursor <= last:
                    page = await history.candles("BTC/USDT", ONE_MINUTE, cursor, last + 60_000)
                    tables.append(page.table)
                    cursor = page.reaches
                return pa.concat_tables(tables)

            late = with_store(tmp_path, url, until_closed)
        assert early.num_rows > 1000
        assert early.equals(late.combine_chunks())
