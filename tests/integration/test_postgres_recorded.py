"""A recorded year in PostgreSQL: every row, and every larger candle, as the exchange published it.

The tests stand in the order in which they happen to one database of each mode: a year without one month, then that
month, then a correction.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from market.candle import COLUMNS, CandleState, open_times_ms
from market.clock import SystemClock, to_ms
from market.coverage import CoverageState
from market.fingerprint import Digest, dataset_fingerprint
from market.instrument import Series
from market.interval import Interval
from market.rollup import roll_up
from market.timeframe import DAY_MS, ONE_MINUTE, TIMEFRAMES, Timeframe
from store.batch import Absence, CandleBatch, Written
from store.live_source import LocalMarket
from store.market_data import MarketData
from store.postgres.address import DatabaseUrl
from store.postgres.aggregates import VIEWS
from store.postgres.mode import Mode
from store.postgres.partitions import Partitions
from store.postgres.store import PostgresStore
from store.sqlite.store import DATABASE_NAME, SqliteStore
from tests.support import servers
from tests.support.postgres_server import PrivatePostgres

pytestmark = pytest.mark.recorded

Load = Callable[[str, str], pa.Table]
CLOCK = SystemClock()
SYMBOLS = {"BTC/USDT": "BTCUSDT", "ETH/USDT": "ETHUSDT", "ARB/USDT": "ARBUSDT"}
BTC, ETH, ARB = (Series("binance", symbol, ONE_MINUTE) for symbol in SYMBOLS)
YEAR = Interval(to_ms("2023-01-01"), to_ms("2024-01-01"))
#: Left out of the first load.
LATE = Interval(to_ms("2023-02-01"), to_ms("2023-03-01"))
#: No trade, and so no candle, of any symbol.
OUTAGE = Interval(to_ms("2023-03-24T12:40Z"), to_ms("2023-03-24T14:00Z"))
#: What the exchange's own candles are recorded of, and how many windows both hold.
RECORDED = [
    ("BTC/USDT", "15m", 35_035), ("BTC/USDT", "1h", 8_759), ("BTC/USDT", "4h", 2_190), ("BTC/USDT", "1d", 365),
    ("ETH/USDT", "15m", 35_035), ("ETH/USDT", "1h", 8_759), ("ETH/USDT", "4h", 2_190), ("ETH/USDT", "1d", 365),
    ("ARB/USDT", "15m", 10_847), ("ARB/USDT", "1h", 3_122),
]  # fmt: skip
#: Of these, what is read through the views of plain PostgreSQL.
VIEWED = {("BTC/USDT", "15m"), ("ETH/USDT", "1h"), ("BTC/USDT", "4h"), ("ETH/USDT", "1d"), ("ARB/USDT", "1h")}
#: Columns of the views -> of the recorded files; exact decimals in both.
DECIMALS = {
    "volume": "volume_base",
    "quote_volume": "volume_quote",
    "taker_buy_volume": "taker_buy_base",
    "taker_buy_quote_volume": "taker_buy_quote",
}


def minutes(load: Load, series: Series) -> pa.Table:
    return load(f"binance_spot_{SYMBOLS[series.symbol]}_1m_2023", "1m")


def inside(table: pa.Table, interval: Interval) -> pa.Table:
    first, last = np.searchsorted(open_times_ms(table), [interval.start, interval.end])
    return table.slice(int(first), int(last - first))


async def load_year(store: Any, load: Load) -> None:
    """All minutes but ETH's of one month, as a backfill brings them."""
    for series in (BTC, ETH, ARB):
        table = minutes(load, series)
        months = [to_ms(f"2023-{number:02}-01") for number in range(1, 13)] + [YEAR.end]
        for start, end in itertools.pairwise(months):
            part = inside(table, Interval(start, end))
            if part.num_rows and not (series == ETH and start == LATE.start):
                batch = whole_batch(series, part)
                if OUTAGE.start in Interval(start, end):
                    batch = replace(
                        batch,
                        absences=(Absence(interval=OUTAGE, state=CoverageState.EMPTY, evidence="asked twice"),),
                    )
                assert await store.write(batch) == Written(inserted=part.num_rows)


def whole_batch(series: Series, table: pa.Table) -> CandleBatch:
    return CandleBatch(series=series, source="file", now_ms=YEAR.end, table=table, state=CandleState.VERIFIED)


@dataclass
class Loaded:
    """One database with the year in it."""

    mode: Mode
    url: DatabaseUrl


@pytest.fixture(params=list(Mode), ids=lambda mode: mode.value, scope="module")
def loaded(request: pytest.FixtureRequest, postgres: PrivatePostgres, recorded_candles: Load) -> Iterator[Loaded]:
    mode: Mode = request.param
    if mode is Mode.TIMESCALEDB:
        servers.timescaledb()
    name = servers.database_from(mode.value, lambda at: PostgresStore.upgraded(DatabaseUrl.parse(at), mode))
    found = Loaded(mode, DatabaseUrl.parse(postgres.url(name)))

    async def load() -> None:
        async with PostgresStore.opened(found.url, CLOCK, refresh=False) as store:
            await load_year(store, recorded_candles)
            if store.aggregates is not None:
                assert list(await store.aggregates.refresh()) == [YEAR]

    apart(load())
    yield found
    postgres.drop_database(name)


@pytest.fixture(scope="module")
def embedded(recorded_candles: Load, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same year in SQLite, whole."""
    path = tmp_path_factory.mktemp("year") / DATABASE_NAME

    async def load() -> None:
        async with SqliteStore.opened(path, CLOCK) as store:
            await load_year(store, recorded_candles)
            await store.write(whole_batch(ETH, inside(minutes(recorded_candles, ETH), LATE)))

    apart(load())
    return path


def apart(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` in a loop of its own."""
    with asyncio.Runner() as runner:
        runner.run(work)


@pytest.fixture
async def store(loaded: Loaded) -> AsyncIterator[PostgresStore]:
    """Nothing is refreshed behind the tests' back."""
    async with PostgresStore.opened(loaded.url, CLOCK, refresh=False) as opened:
        yield opened


@pytest.fixture
async def connection(loaded: Loaded) -> AsyncIterator[asyncpg.Connection]:
    """Someone who reads by SQL."""
    url = loaded.url
    opened = await asyncpg.connect(
        host=url.host, port=url.port, user=url.user, password=url.password, database=url.database
    )
    await opened.execute("SET timezone = 'UTC'")
    yield opened
    await opened.close()


@pytest.fixture
def market_data(store: PostgresStore) -> MarketData:
    return MarketData(store, LocalMarket.empty(CLOCK), CLOCK)


async def derived(market_data: MarketData, series: Series, timeframe: Timeframe, interval: Interval) -> pa.Table:
    """Larger candles whose minutes are all known."""
    answer = await market_data.candles(series.at(timeframe), start_ms=interval.start, end_ms=interval.end)
    return answer.table.filter(pc.equal(answer.table.column("missing"), 0)).select(COLUMNS)


def recorded_name(symbol: str, timeframe: str) -> str:
    return f"binance_spot_{SYMBOLS[symbol]}_{timeframe if timeframe in ('15m', '1h') else 'coarse'}"


def in_both(ours: pa.Table, theirs: pa.Table) -> tuple[pa.Table, pa.Table]:
    both = np.intersect1d(open_times_ms(ours), open_times_ms(theirs))
    return tuple(  # type: ignore[return-value]
        one.filter(pa.array(np.isin(open_times_ms(one), both))).combine_chunks() for one in (ours, theirs)
    )


# --- the year without one month ---


async def test_every_row_comes_back_equal(store: PostgresStore, recorded_candles: Load) -> None:
    for series in (BTC, ARB):
        table = minutes(recorded_candles, series)
        assert await store.read(series, YEAR.start, YEAR.end) == table
    eth = minutes(recorded_candles, ETH)
    assert await store.read(ETH, YEAR.start, LATE.start) == inside(eth, Interval(YEAR.start, LATE.start))
    assert await store.read(ETH, LATE.end, YEAR.end) == inside(eth, Interval(LATE.end, YEAR.end))
    assert not (await store.read(ETH, LATE.start, LATE.end)).num_rows
    assert not await store.integrity()


def identities(view: str) -> str:
    """Which materialised rows stand where, and who wrote them: by time, outside [$1, $2) and inside."""
    return f"""
        SELECT NOT (bucket >= $1 AND bucket < $2) AS outside, count(*) AS rows,
               md5(string_agg(row_text, ',' ORDER BY row_text)) AS digest
        FROM (SELECT {"day" if view == "daily_statistics" else "open_time"} AS bucket,
                     tableoid::text || ctid::text || xmin::text AS row_text
              FROM {{materialised}}) r
        GROUP BY 1 ORDER BY 1"""


async def materialised(
    connection: asyncpg.Connection, interval: Interval
) -> dict[str, dict[bool, tuple[int, str]]]:
    """View -> whether outside of an interval -> how many rows, and a digest of who they are."""
    found = {}
    named = await connection.fetch(
        """SELECT view_name, format('%I.%I', materialization_hypertable_schema, materialization_hypertable_name)
           FROM timescaledb_information.continuous_aggregates"""
    )
    for view, table in named:
        text = identities(view).format(materialised=table)
        rows = await connection.fetch(text, instant(interval.start), instant(interval.end))
        found[view] = {row["outside"]: (row["rows"], row["digest"]) for row in rows}
    assert set(found) == set(VIEWS)
    return found


def instant(milliseconds: int) -> Any:
    return pa.scalar(milliseconds, pa.timestamp("ms", "UTC")).as_py()


async def test_a_late_month_shows_at_once_and_only_that_is_refreshed(
    loaded: Loaded,
    store: PostgresStore,
    market_data: MarketData,
    connection: asyncpg.Connection,
    recorded_candles: Load,
) -> None:
    month = inside(minutes(recorded_candles, ETH), LATE)
    before = await materialised(connection, LATE) if store.aggregates is not None else {}
    assert await store.write(whole_batch(ETH, month)) == Written(inserted=month.num_rows)
    await late_month_is_right(market_data, recorded_candles)
    if store.aggregates is None:
        return
    # Who reads by SQL sees it after the refresh.
    question = "SELECT count(*) FROM candles_1h JOIN instruments USING (instrument_id) WHERE symbol = 'ETH/USDT'"
    assert await connection.fetchval(question) == 8_759 - 28 * 24
    assert list(await store.aggregates.refresh()) == [LATE]
    assert await connection.fetchval(question) == 8_759
    await late_month_is_right(market_data, recorded_candles)
    after = await materialised(connection, LATE)
    for view in VIEWS:
        assert after[view][True] == before[view][True], view
        assert after[view][False] != before[view][False], view
    counts = {"candles_5m": 288, "candles_15m": 96, "candles_1h": 24, "candles_4h": 6, "candles_1d": 1}
    for view, count in counts.items():
        assert after[view][False][0] - before[view][False][0] == 28 * count
    assert list(await store.aggregates.refresh()) == []


async def late_month_is_right(market_data: MarketData, load: Load) -> None:
    for name in ("15m", "1h", "4h", "1d"):
        ours = await derived(market_data, ETH, TIMEFRAMES[name], LATE)
        theirs = inside(load(recorded_name("ETH/USDT", name), name), LATE)
        assert ours == theirs, name
        assert ours.num_rows == LATE.duration // TIMEFRAMES[name].milliseconds


# --- the whole year ---


@pytest.mark.parametrize(("symbol", "timeframe", "windows"), RECORDED)
async def test_larger_candles_equal_the_exchanges_own(
    market_data: MarketData, recorded_candles: Load, symbol: str, timeframe: str, windows: int
) -> None:
    series = Series("binance", symbol, ONE_MINUTE)
    ours = await derived(market_data, series, TIMEFRAMES[timeframe], YEAR)
    ours, theirs = in_both(ours, recorded_candles(recorded_name(symbol, timeframe), timeframe))
    assert ours.num_rows >= windows
    assert ours == theirs


@pytest.mark.parametrize("timeframe", ["5m", "15m", "4h"])
async def test_larger_candles_equal_those_made_of_the_minutes(
    market_data: MarketData, recorded_candles: Load, timeframe: str
) -> None:
    for series in (BTC, ETH, ARB):
        answer = await market_data.candles(series.at(TIMEFRAMES[timeframe]), start_ms=YEAR.start, end_ms=YEAR.end)
        expected = roll_up(minutes(recorded_candles, series), TIMEFRAMES[timeframe]).table
        assert answer.table.select(COLUMNS) == expected


def raw(folder: Path, name: str, timeframe: str) -> pl.DataFrame:
    """A recorded file as it is: exact decimals."""
    (path,) = (folder / "candles").glob(f"{name}*.parquet")
    table = pl.from_arrow(pq.read_table(path))
    assert isinstance(table, pl.DataFrame)
    if "interval" in table.columns:
        table = table.filter(pl.col("interval") == timeframe)
    return table


async def by_sql(connection: asyncpg.Connection, view: str, symbol: str) -> dict[int, asyncpg.Record]:
    """What a view says of a symbol, by open time in milliseconds."""
    bucket = "day" if view == "daily_statistics" else "open_time"
    rows = await connection.fetch(
        f"""SELECT (extract(epoch FROM {bucket}) * 1000)::bigint AS ms, v.*
            FROM {view} v JOIN instruments USING (instrument_id) WHERE exchange = 'binance' AND symbol = $1""",
        symbol,
    )
    return {row["ms"]: row for row in rows}


@pytest.mark.parametrize(("symbol", "timeframe", "windows"), RECORDED)
async def test_who_reads_by_sql_gets_the_recorded_decimals(
    loaded: Loaded, connection: asyncpg.Connection, recorded: Path, symbol: str, timeframe: str, windows: int
) -> None:
    if loaded.mode is Mode.PLAIN and (symbol, timeframe) not in VIEWED:
        pytest.skip("a view reads all minutes of a symbol, for seconds: some of them will do")
    ours = await by_sql(connection, f"candles_{timeframe}", symbol)
    compared = 0
    for theirs in raw(recorded, recorded_name(symbol, timeframe), timeframe).iter_rows(named=True):
        row = ours.get(theirs["open_time_ms"])
        # What the archive of one day lacks makes no whole window.
        if row is None or (symbol == "ARB/USDT" and row["minutes"] < TIMEFRAMES[timeframe].seconds // 60
                           and theirs["open_time_ms"] >= to_ms("2023-07-27")):  # fmt: skip
            continue
        compared += 1
        for name in ("open", "high", "low", "close"):
            assert row[name] == float(theirs[name])
        for name, other in DECIMALS.items():
            assert isinstance(row[name], Decimal)
            assert row[name] == theirs[other], (name, row, theirs)
        assert row["trades"] == theirs["trades"]
        whole = theirs["close_time_ms"] + 1 == theirs["open_time_ms"] + TIMEFRAMES[timeframe].milliseconds
        early = None if row["early_close_time"] is None else row["early_close_time"].timestamp() * 1000
        assert early == (None if whole else theirs["close_time_ms"])
    assert compared >= windows


async def test_five_minutes_by_sql_are_sums_of_recorded_decimals(
    connection: asyncpg.Connection, recorded: Path
) -> None:
    expected = (
        raw(recorded, "binance_spot_BTCUSDT_1m_2023", "1m")
        .group_by(pl.col("open_time_ms") // 300_000 * 300_000)
        .agg([pl.col(name).sum() for name in (*DECIMALS.values(), "trades")] + [pl.len()])
    )
    ours = await by_sql(connection, "candles_5m", "BTC/USDT")
    assert len(ours) == len(expected) == 105_104
    for theirs in expected.iter_rows(named=True):
        row = ours[theirs["open_time_ms"]]
        assert [row[name] for name in DECIMALS] == [theirs[name] for name in DECIMALS.values()]
        assert (row["trades"], row["minutes"]) == (theirs["trades"], theirs["len"])


async def test_the_statistics_of_a_day_fit_its_candle(connection: asyncpg.Connection, recorded: Path) -> None:
    days = await by_sql(connection, "daily_statistics", "BTC/USDT")
    hours = await by_sql(connection, "candles_1h", "BTC/USDT")
    outage = to_ms("2023-03-24")
    compared = 0
    for theirs in raw(recorded, recorded_name("BTC/USDT", "1d"), "1d").iter_rows(named=True):
        if (row := days.get(theirs["open_time_ms"])) is None:
            continue
        compared += 1
        for name in ("open", "high", "low", "close"):
            assert row[name] == float(theirs[name])
        for name in ("volume", "quote_volume", "taker_buy_volume"):
            assert row[name] == theirs[DECIMALS[name]]
        assert row["trades"] == theirs["trades"]
        assert abs(row["average_price"] - theirs["volume_quote"] / theirs["volume_base"]) < Decimal("1e-10")
        assert theirs["low"] < row["average_price"] < theirs["high"]
        within = [
            hours[row["ms"] + hour * 3_600_000] for hour in range(24) if row["ms"] + hour * 3_600_000 in hours
        ]
        assert row["busiest_hour_volume"] == max(one["volume"] for one in within)
        assert row["widest_hour_range"] == max(one["high"] / one["low"] - 1 for one in within)
        cut = row["ms"] == outage
        assert (row["traded_hours"], row["minutes"]) == ((22, 1360) if cut else (24, 1440))
    assert compared == len(days) == 365


async def test_datasets_are_the_same_in_every_store(
    store: PostgresStore, embedded: Path, recorded_candles: Load
) -> None:
    async with SqliteStore.opened(embedded, CLOCK, read_only=True) as other:
        for series in (BTC, ETH, ARB):
            ours, theirs = await store.chunks(series), await other.chunks(series)
            assert [(one.start, one.digest) for one in ours] == [(one.start, one.digest) for one in theirs]
            assert fingerprint(series, ours) == fingerprint(series, theirs)
            assert [replace(one, learned_at=0) for one in await store.coverage(series)] == [
                replace(one, learned_at=0) for one in await other.coverage(series)
            ]
        data, reference = (MarketData(one, LocalMarket.empty(CLOCK), CLOCK) for one in (store, other))
        for name in ("1m", "1h", "1d", "1w", "1M"):
            asked = {"start_ms": YEAR.start, "end_ms": YEAR.end}
            prints = {
                (await one.candles(ETH.at(TIMEFRAMES[name]), **asked)).fingerprint for one in (data, reference)
            }
            assert len(prints) == 1, name


def fingerprint(series: Series, chunks: Any) -> str:
    return dataset_fingerprint([(series, sum((one.digest for one in chunks), Digest()))])


# --- a correction ---


async def test_a_late_correction_shows_at_once_and_only_its_day_is_refreshed(
    store: PostgresStore, market_data: MarketData, connection: asyncpg.Connection, recorded_candles: Load
) -> None:
    day = Interval(to_ms("2023-05-10"), to_ms("2023-05-11"))
    at = to_ms("2023-05-10T12:34Z")
    table = minutes(recorded_candles, BTC)
    row = inside(table, Interval(at, at + 1)).to_pylist()[0]
    row |= {"volume": row["volume"] + 1000, "high": row["high"] + 5000}
    corrected = pa.Table.from_pylist([row], schema=table.schema)
    expected = pa.concat_tables(
        [inside(table, Interval(day.start, at)), corrected, inside(table, Interval(at + 60_000, day.end))]
    )
    then = CLOCK.now_ms()
    before = await materialised(connection, day) if store.aggregates is not None else {}
    assert await store.write(whole_batch(BTC, corrected)) == Written(corrected=1)

    async def is_right() -> None:
        for name in ("5m", "15m", "1h", "4h", "1d"):
            rolled = roll_up(expected, TIMEFRAMES[name]).table
            assert await derived(market_data, BTC, TIMEFRAMES[name], day) == rolled, name

    await is_right()
    assert (await store.read(BTC, day.start, day.end, as_of_ms=then)) == inside(table, day)
    if store.aggregates is None:
        assert (await by_sql(connection, "candles_1d", "BTC/USDT"))[day.start]["high"] == row["high"]
        return
    assert list(await store.aggregates.refresh()) == [day]
    await is_right()
    assert (await by_sql(connection, "candles_1d", "BTC/USDT"))[day.start]["high"] == row["high"]
    after = await materialised(connection, day)
    for view in VIEWS:
        assert after[view][True] == before[view][True], view
        assert after[view][False] != before[view][False], view


# --- partitions of plain PostgreSQL ---


async def test_rows_of_a_month_without_partition_are_kept_and_moved(
    postgres: PrivatePostgres, recorded_candles: Load, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = await asyncio.to_thread(
        servers.database_from, "plain", lambda at: PostgresStore.upgraded(DatabaseUrl.parse(at), Mode.PLAIN)
    )
    url = DatabaseUrl.parse(postgres.url(name))
    tables = (
        "SELECT string_agg(relname, ' ' ORDER BY relname COLLATE \"C\") FROM pg_class WHERE relispartition AND "
    )
    month = inside(minutes(recorded_candles, BTC), LATE)
    async with PostgresStore.opened(url, clock) as store:
        # The clock says November 2023: that month and the next three are there in every table, before any row is.
        for parent in ("candles", "trade_history", "system_metrics"):
            found = postgres.sql(name, f"{tables} relkind = 'r' AND relname LIKE '{parent}\\_%'")
            ahead = [f"{parent}_{one}" for one in ("2023_11", "2023_12", "2024_01", "2024_02", "default")]
            assert found.split() == ahead

        async def not_now(*_: object) -> int:
            return 0

        with monkeypatch.context() as patched:
            patched.setattr(Partitions, "make_for", not_now)
            await store.write(whole_batch(BTC, month.slice(0, 30_000)))
        assert postgres.sql(name, "SELECT count(*) FROM candles_default") == "30000"
        assert await store.read(BTC, YEAR.start, YEAR.end) == month.slice(0, 30_000)
        (finding,) = await store.integrity()
        assert "30,000 candles wait in the default partition" in finding

        await store.write(whole_batch(BTC, month.slice(30_000)))
        assert postgres.sql(name, "SELECT count(*) FROM candles_default") == "0"
        assert postgres.sql(name, "SELECT count(*) FROM candles_2023_02") == str(month.num_rows)
        assert await store.read(BTC, YEAR.start, YEAR.end) == month
        assert not await store.integrity()
        assert await store.write(whole_batch(BTC, month)) == Written(unchanged=month.num_rows)
        assert month.num_rows == 28 * DAY_MS // 60_000
    postgres.drop_database(name)
