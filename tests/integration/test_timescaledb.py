"""Hypertables over years: late corrections in compressed chunks, policies, settings, what status says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import numpy as np
import pyarrow as pa
import pytest

from market.candle import CandleState, by_open_time, open_times_ms
from market.fingerprint import Digest, dataset_fingerprint, digest
from market.instrument import Series
from market.interval import Interval, IntervalSet
from market.rollup import roll_up
from market.timeframe import TIMEFRAMES
from store.integrity import check_series
from store.live_source import LocalMarket
from store.market_data import MarketData
from store.postgres.aggregates import TIMEFRAMES_KEPT, VIEWS
from store.postgres.maintenance import apply_rules
from store.postgres.maintenance_rules import MaintenanceRules
from store.postgres.mode import Mode
from store.postgres.store import PostgresStore
from tests.support import servers
from tests.support.candle_stores import postgres
from tests.support.made_candles import BTC, DAY, ETH, MINUTE, NOW, START, at, batch, made, made_at
from tests.support.notes import eventually

#: Days of minutes in the database of most tests.
DAYS = 10
WHOLE = Interval(START, START + DAYS * DAY)
ETH_HOURS = Series("binance", "ETH/USDT", TIMEFRAMES["1h"])


@pytest.fixture
async def store(clock: Any) -> AsyncIterator[PostgresStore]:
    """Ten days of BTC and ETH minutes in compressed chunks, aggregates current."""
    servers.timescaledb()
    async with postgres(Mode.TIMESCALEDB, clock, refresh=False) as opened:
        # The policies run when a test says so.
        sql(opened, "SELECT _timescaledb_functions.stop_background_workers()")
        for series in (BTC, ETH):
            await opened.write(batch(made(range(DAYS * 1440)), series=series))
        clock.advance(1000)
        maintained = await opened.maintenance(MaintenanceRules()).run()
        assert (maintained.compressed, maintained.busy) == (DAYS, [])
        yield opened


def sql(store: PostgresStore, text: str) -> str:
    """Run statements in the database of a store; the rows as lines."""
    return servers.postgres().sql(database(store), text)


def database(store: PostgresStore) -> str:
    return store.location.rpartition("/")[2]


async def applied(store: PostgresStore, rules: MaintenanceRules) -> list[str]:
    return await apply_rules(store._database, store.schema.mode, rules)


def compressed(store: PostgresStore) -> int:
    counted = (
        "SELECT count(*) FROM timescaledb_information.chunks WHERE hypertable_name = 'candles' AND is_compressed"
    )
    return int(sql(store, counted))


async def stored(store: PostgresStore, series: Series = BTC) -> pa.Table:
    return await store.read(series, START, NOW)


async def fingerprint(store: PostgresStore, series: Series = BTC) -> str:
    """By the digests that every write keeps."""
    whole = sum((one.digest for one in await store.chunks(series)), Digest())
    return dataset_fingerprint([(series, whole)])


async def proven(store: PostgresStore, clock: Any) -> None:
    """Digests, ledger and aggregates are those of the rows."""
    market_data = MarketData(store, LocalMarket.empty(clock), clock)
    for series in (BTC, ETH):
        assert [one for one in await check_series(store, series, clock) if one.kind != "gap"] == []
        minutes = await stored(store, series)
        for name in ("5m", "15m", "1h", "2h", "4h", "1d"):
            answer = await market_data.candles(series.at(TIMEFRAMES[name]))
            expected = roll_up(minutes, TIMEFRAMES[name]).table
            whole = open_times_ms(expected) + TIMEFRAMES[name].milliseconds <= answer.interval.end
            assert answer.table.select(expected.column_names) == expected.filter(pa.array(whole)), name


async def test_one_late_correction_in_a_compressed_chunk(store: PostgresStore, clock: Any) -> None:
    before, learned = await stored(store), clock.now_ms()
    clock.advance(1000)
    written = await store.write(batch(made([3000], version=1), state=CandleState.VERIFIED))
    assert (written.corrected, written.inserted) == (1, 0)
    expected = by_open_time(pa.concat_tables([before.slice(0, 3000), made([3000], version=1), before.slice(3001)]))
    assert await stored(store) == expected
    assert await store.read(BTC, START, NOW, as_of_ms=learned) == before
    assert await fingerprint(store) == dataset_fingerprint([(BTC, digest(expected))])
    assert (await store.status()).late_corrections == 1
    await proven(store, clock)


async def test_three_thousand_late_corrections_over_three_chunks(store: PostgresStore, clock: Any) -> None:
    before, learned = await stored(store), clock.now_ms()
    clock.advance(1000)
    # The second half of the second day, the third one, the beginning of the fourth.
    span = range(1440 + 700, 1440 + 700 + 3000)
    written = await store.write(batch(made(span, version=1), state=CandleState.VERIFIED))
    assert (written.corrected, written.inserted) == (3000, 0)
    parts = [before.slice(0, span.start), made(span, version=1), before.slice(span.stop)]
    assert await stored(store) == pa.concat_tables(parts)
    assert await store.read(BTC, START, NOW, as_of_ms=learned) == before
    assert await stored(store, ETH) == before
    assert (await store.status()).late_corrections == 3000
    await proven(store, clock)
    # Corrected again: the history has both versions.
    clock.advance(1000)
    between = clock.now_ms()
    clock.advance(1000)
    written = await store.write(batch(made([2200, 3500], version=2), state=CandleState.VERIFIED))
    assert written.corrected == 2
    assert await store.read(BTC, START, NOW, as_of_ms=between) == pa.concat_tables(parts)
    assert (await store.status()).late_corrections == 3002
    await proven(store, clock)


async def test_a_correction_in_a_chunk_that_is_not_compressed_is_not_counted_as_late(
    store: PostgresStore, clock: Any
) -> None:
    await store.write(batch(made(range(DAYS * 1440, DAYS * 1440 + 10))))
    written = await store.write(batch(made([5, DAYS * 1440 + 3], version=1)))
    assert written.corrected == 2
    assert (await store.status()).late_corrections == 1


async def test_the_same_values_seen_again_make_compressed_candles_more_final(
    store: PostgresStore, clock: Any
) -> None:
    table, revision = await stored(store), (await store.facts(BTC)).revision  # type: ignore[union-attr]
    clock.advance(1000)
    # All of two days, and a part of another one.
    again = pa.concat_tables([table.slice(1440, 2880), table.slice(8000, 100)])
    written = await store.write(batch(again, state=CandleState.VERIFIED))
    assert (written.unchanged, written.written) == (2980, 0)
    assert sql(store, "SELECT count(*) FROM candles WHERE state = 2") == "2980"
    assert await stored(store) == table
    assert (await store.facts(BTC)).revision == revision  # type: ignore[union-attr]
    # A closed candle with other values no longer replaces a verified one.
    outranked = await store.write(batch(made([1500], version=3)))
    assert (outranked.outranked, outranked.written) == (1, 0)
    await proven(store, clock)


async def test_new_rows_and_new_series_in_compressed_chunks(store: PostgresStore, clock: Any) -> None:
    chunks = compressed(store)
    solana = Series("binance", "SOL/USDT", BTC.timeframe)
    await store.write(batch(made(range(700, 5000)), series=solana))
    await store.write(batch(made_at([START + hour * 3_600_000 for hour in range(100)]), series=ETH_HOURS))
    assert compressed(store) == chunks
    assert await stored(store, solana) == made(range(700, 5000))
    # Rows that lacked inside a compressed chunk, beside stored ones.
    await store.write(batch(made([*range(600, 700), *range(5000, 5100)]), series=solana))
    assert await stored(store, solana) == made(range(600, 5100))
    for series in (solana, ETH_HOURS):
        assert [one for one in await check_series(store, series, clock) if one.kind in ("digest", "ledger")] == []
    await proven(store, clock)
    # The next maintenance compresses what was written into them.
    maintained = await store.maintenance(MaintenanceRules()).run()
    assert maintained.compressed == 5
    assert await stored(store, solana) == made(range(600, 5100))
    assert (await store.maintenance(MaintenanceRules()).run()).compressed == 0


async def test_compression_changes_no_answer(store: PostgresStore, clock: Any) -> None:
    market_data = MarketData(store, LocalMarket.empty(clock), clock)
    names = ("1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "12h", "1d", "3d")
    written = clock.now_ms() - 1000
    await store.write(batch(made([77, 4000], version=1)))

    async def answers() -> list[Any]:
        found = [await market_data.candles(BTC.at(TIMEFRAMES[name])) for name in names]
        found.append(await market_data.candles(BTC, as_of_ms=written))
        found.append(await market_data.candles(BTC, start_ms=at(3990), limit=20))
        return found

    first = await answers()
    assert digest(first[0].table.drop_columns(["missing"])).rows == DAYS * 1440
    seen = {await fingerprint(store)}
    for command in (
        "SELECT count(decompress_chunk(c)) FROM show_chunks('candles') c",
        "SELECT count(compress_chunk(c)) FROM show_chunks('candles') c",
    ):
        assert sql(store, command) == str(DAYS)
        assert await answers() == first
        seen.add(await fingerprint(store))
    assert len(seen) == 1


async def test_status_says_what_is_there(store: PostgresStore, clock: Any) -> None:
    status = await store.status()
    assert (status.mode, status.extension) == (
        Mode.TIMESCALEDB,
        sql(store, "SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'"),
    )
    assert status.size_bytes > 1_000_000
    tables = {one.name: one for one in status.hypertables}
    assert set(tables) == {"candles", "trade_history", "system_metrics", *VIEWS}
    candles = tables["candles"]
    assert (candles.chunks, candles.compressed, candles.interval) == (DAYS, DAYS, WHOLE)
    assert (candles.chunk_seconds, tables["trade_history"].chunk_seconds) == (86_400, 3600)
    assert candles.ratio is not None
    assert candles.ratio > 1.5
    assert all(tables[view].aggregate and tables[view].chunks for view in VIEWS)
    jobs = {(one.kind, one.target): one for one in status.jobs}
    assert set(jobs) == {
        ("policy_compression", "candles"),
        ("policy_compression", "trade_history"),
        ("policy_retention", "trade_history"),
        *(("policy_refresh_continuous_aggregate", view) for view in VIEWS),
    }
    assert '"90 days"' in jobs["policy_retention", "trade_history"].config
    assert '"7 days"' in jobs["policy_compression", "candles"].config
    assert all(one.scheduled and one.every_seconds for one in status.jobs)
    assert (status.due, status.drops, status.partitions, status.archived_candles) == ((), (), (), 0)


async def test_every_job_runs(store: PostgresStore, clock: Any) -> None:
    sql(store, "INSERT INTO trade_history SELECT 1, now() - INTERVAL '100 days', 'old', 1, 1, 'buy', now()")
    sql(store, "INSERT INTO trade_history SELECT 1, now() - INTERVAL '2 hours', 'new', 1, 1, 'buy', now()")
    before = {name: sql(store, f"SELECT * FROM {name} ORDER BY 1, 2") for name in VIEWS}
    for job in (await store.status()).jobs:
        sql(store, f"CALL run_job({job.number})")
    assert sql(store, "SELECT trade_id FROM trade_history") == "new"
    # What lies outside the windows of the policies is as it was.
    assert {name: sql(store, f"SELECT * FROM {name} ORDER BY 1, 2") for name in VIEWS} == before
    await proven(store, clock)


async def test_due_ranges_are_named_until_they_are_refreshed(store: PostgresStore, clock: Any) -> None:
    await store.write(batch(made([2000], version=1), series=ETH))
    (due,) = (await store.status()).due
    assert (due.symbol, due.interval, due.kept) == ("ETH/USDT", Interval(at(2000), at(2001)), False)
    maintained = await store.maintenance(MaintenanceRules()).run()
    assert maintained.refreshed == IntervalSet([Interval(START + DAY, START + 2 * DAY)])
    assert (await store.status()).due == ()


async def test_settings_of_the_hypertable_are_applied_to_a_database_that_is_there(
    store: PostgresStore, clock: Any
) -> None:
    rules = MaintenanceRules(chunk_days=7, compress_after_days=30)
    assert await applied(store, rules) == [
        "new chunks of candles are 7 days long, not 1 day",
        "candles are compressed after 30 days, not after 7 days",
    ]
    assert await applied(store, rules) == []
    later = START + 40 * DAY
    await store.write(batch(made_at([later + minute * MINUTE for minute in range(3 * 1440)])))
    status = await store.status()
    assert status.hypertables[0].chunk_seconds == 7 * 86_400
    assert status.hypertables[0].chunks in (DAYS + 1, DAYS + 2)
    (policy,) = [one for one in status.jobs if (one.kind, one.target) == ("policy_compression", "candles")]
    assert '"30 days"' in policy.config
    sql(store, f"CALL run_job({policy.number})")
    assert await applied(store, MaintenanceRules()) == [
        "new chunks of candles are 1 day long, not 7 days",
        "candles are compressed after 7 days, not after 30 days",
    ]
    # A policy that somebody removed comes back.
    sql(store, "SELECT remove_compression_policy('candles')")
    assert await applied(store, MaintenanceRules()) == ["candles are compressed after 7 days, not never"]


async def test_two_at_once_maintain_and_one_holds_a_chunk(store: PostgresStore, clock: Any) -> None:
    await store.write(batch(made([*range(700, 900), 2000], version=1)))
    runs = [store.maintenance(MaintenanceRules(chunk_days=2)).run() for _ in range(2)]
    done = await asyncio.gather(*runs)
    for one in done:
        assert not any("settings" in line for line in one.busy)
    assert sum(len(one.settings) for one in done) == 1
    assert (await store.status()).due == ()
    await proven(store, clock)


async def test_the_server_compresses_a_chunk_while_the_maintenance_waits_for_it(
    store: PostgresStore, clock: Any
) -> None:
    chunk = sql(store, "SELECT c::text FROM show_chunks('candles') c ORDER BY 1 LIMIT 1")
    sql(store, f"SELECT decompress_chunk('{chunk}')")
    job = await asyncpg.connect(servers.postgres().url(database(store)))
    try:
        async with job.transaction():
            await job.execute(f"SELECT compress_chunk('{chunk}')")
            run = asyncio.create_task(store.maintenance(MaintenanceRules()).run())
            waits = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND database = $1"
            own = await job.fetchval("SELECT oid FROM pg_database WHERE datname = current_database()")
            await eventually(lambda: job.fetchval(waits, own), "the maintenance waits for the chunk")
        done = await run
    finally:
        await job.close()
    assert (done.compressed, done.busy) == (0, [])
    assert compressed(store) == DAYS


def test_every_kept_timeframe_has_its_own_view() -> None:
    assert [f"candles_{name}" for name in TIMEFRAMES_KEPT] == list(VIEWS[:-1])
    assert np.all(np.diff([TIMEFRAMES[name].seconds for name in TIMEFRAMES_KEPT]) > 0)
