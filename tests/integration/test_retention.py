"""Dropping archived candles: refused for every reason there is, and invisible to readers when it is done."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ingest.backfill import BackfillRules, backfill
from market.candle import CandleState
from market.clock import iso, to_ms
from market.coverage import CoverageState
from market.errors import BadInput, StoreBusy, StoreUnusable
from market.fingerprint import Digest
from market.instrument import Series
from market.interval import Interval, IntervalSet
from market.timeframe import TIMEFRAMES
from store.archive.archive import Archive
from store.archived_page import ARCHIVE_TIER
from store.consistency import differences
from store.difference import DifferenceKind
from store.integrity import archived_candles, check_series
from store.live_source import LocalMarket
from store.market_data import MarketData
from store.postgres.address import DatabaseUrl
from store.postgres.aggregates import VIEWS
from store.postgres.maintenance_rules import MaintenanceRules
from store.postgres.mode import Mode
from store.postgres.retention import Dropped
from store.postgres.store import PostgresStore
from store.sqlite.store import DATABASE_NAME, SqliteStore
from tests.conftest import ManualClock
from tests.support import servers
from tests.support.candle_stores import postgres
from tests.support.made_candles import BTC, DAY, ETH, HOUR, MINUTE, absence, batch, buckets, made_at
from tests.support.made_candles import START as YEAR
from tests.unit.ingest import scripted
from tests.unit.ingest.scripted import ScriptedHistory

NOVEMBER, DECEMBER, MARCH = to_ms("2022-11-01"), to_ms("2022-12-01"), to_ms("2023-03-01")
END = to_ms("2023-01-20")
RULES = MaintenanceRules()
ETH_HOURS, BTC_WEEKS = ETH.at(TIMEFRAMES["1h"]), BTC.at(TIMEFRAMES["1w"])
SERIES = (BTC, ETH, ETH_HOURS, BTC_WEEKS)
#: Kept and not, of minutes and of aggregates, of the calendar; those in between are made as their neighbours are.
NAMES = ("1m", "3m", "5m", "15m", "1h", "12h", "1d", "3d", "1w", "1M")


def minutes_of(start: int, end: int, hours: range = range(6)) -> list[int]:
    """The open times of some hours of each day."""
    days = range(start, end, DAY)
    return [day + hour * HOUR + minute * MINUTE for day in days for hour in hours for minute in range(60)]


async def fill(url: str, mode: Mode) -> None:
    """Six hours of each day from November to January, larger candles beside them; compressed and aggregated."""
    clock = ManualClock()
    async with PostgresStore.opened(DatabaseUrl.parse(url), clock, mode=mode, refresh=False) as store:
        for series in (BTC, ETH):
            await store.write(batch(made_at(minutes_of(NOVEMBER, END)), series=series, source="binance rest"))
        await store.write(batch(made_at(range(NOVEMBER, END, HOUR)), series=ETH_HOURS))
        weeks = [one for one in buckets(TIMEFRAMES["1w"], 12, NOVEMBER) if one < END]
        await store.write(batch(made_at(weeks), series=BTC_WEEKS))
        silent = (NOVEMBER + 6 * HOUR - YEAR) // MINUTE, (NOVEMBER + 24 * HOUR - YEAR) // MINUTE
        await store.write(batch(absences=[absence(*silent, expires_at=clock.now_ms() + DAY)]))
        assert (await store.maintenance(RULES).run()).busy == []


@pytest.fixture(params=[Mode.PLAIN, Mode.TIMESCALEDB], ids=["postgresql", "timescaledb"])
async def store(request: pytest.FixtureRequest, clock: Any) -> AsyncIterator[PostgresStore]:
    """A database that :func:`fill` filled."""
    mode: Mode = request.param
    server = servers.timescaledb() if mode is Mode.TIMESCALEDB else servers.postgres()
    template = f"retention {mode.value}"
    name = await asyncio.to_thread(servers.database_from, template, lambda url: fill(url, mode))
    clock.advance(2000)
    try:
        async with PostgresStore.opened(DatabaseUrl.parse(server.url(name)), clock, refresh=False) as opened:
            if mode is Mode.TIMESCALEDB:
                # The policies run when a test says so.
                sql(opened, "SELECT _timescaledb_functions.stop_background_workers()")
            yield opened
    finally:
        await asyncio.to_thread(server.drop_database, name)


@pytest.fixture
async def archive(store: PostgresStore, tmp_path: Path) -> Archive:
    """All of it."""
    made = Archive(tmp_path / "archive")
    for series in SERIES:
        await made.build(store, series)
    return made


def sql(store: PostgresStore, text: str) -> str:
    """Run statements in the database of a store; the rows as lines."""
    return servers.postgres().sql(store.location.rpartition("/")[2], text)


def rows(store: PostgresStore) -> int:
    return int(sql(store, "SELECT count(*) FROM candles"))


async def drop(store: PostgresStore, archive: Archive, before: int) -> Dropped:
    return await store.retention(archive, RULES).drop(before)


def reader(store: Any, archive: Archive | None, clock: Any) -> MarketData:
    return MarketData(store, LocalMarket.empty(clock), clock, archive)


async def answers(market_data: MarketData, names: Sequence[str] = ("1m", "15m", "3d", "1w")) -> dict[Any, Any]:
    """What can be asked, without where it came from: tiers, states and who said so differ by design."""
    found: dict[Any, Any] = {}
    for series in (BTC, ETH):
        for name in names:
            one = series.at(TIMEFRAMES[name])
            questions: list[dict[str, int]] = [
                {},
                {"limit": 7},
                {"start_ms": NOVEMBER + 5 * HOUR, "limit": 400},
                {"end_ms": YEAR + 30 * MINUTE, "limit": 500},
                {"start_ms": YEAR - 3 * DAY + 30_000, "end_ms": YEAR + 3 * DAY},
                {"start_ms": DECEMBER, "end_ms": DECEMBER + DAY},
            ]
            for question in questions:
                answer = await market_data.candles(one, **question)
                known = IntervalSet(entry.interval for entry in answer.coverage)
                found[one, *question.items()] = replace(answer, coverage=(), tier=""), known
    return found


async def unharmed(store: PostgresStore, clock: Any, archive: Archive) -> None:
    """Every proof there is, but the gaps that were made on purpose."""
    for series in SERIES:
        found = await check_series(store, series, clock, archive)
        assert [one for one in found if one.kind not in ("gap", "derived")] == []
        assert archive.verify(series) == []
    assert await store.integrity() == []


async def test_after_a_drop_everything_reads_as_before(store: PostgresStore, archive: Archive, clock: Any) -> None:
    market_data = reader(store, archive, clock)
    before, infos, count = await answers(market_data, NAMES), await store.series(), rows(store)
    missing = await market_data.gaps(BTC)
    digests = {series: [(one.start, one.digest) for one in await store.chunks(series)] for series in SERIES}
    clock.advance(1000)
    done = await drop(store, archive, YEAR)
    days, hours = (YEAR - NOVEMBER) // DAY, (YEAR - NOVEMBER) // HOUR
    expected = 2 * days * 360 + hours + 8
    assert (done.obstacles, done.candles, done.series) == ((), expected, 4)
    assert done.chunks == (2 if store.schema.mode is Mode.PLAIN else days)
    assert rows(store) == count - expected
    assert sql(store, f"SELECT count(*) FROM candles WHERE open_time < '{iso(YEAR)}'") == "0"

    assert await answers(market_data, NAMES) == before
    old = await market_data.candles(BTC, start_ms=NOVEMBER, end_ms=DECEMBER)
    assert old.tier == ARCHIVE_TIER
    assert {one.state for one in old.coverage} == {CoverageState.ARCHIVED, CoverageState.EMPTY}
    assert (await market_data.candles(BTC, limit=100)).tier == "database"
    # Digests, counts and what a backfill would ask for are as they were.
    assert digests == {series: [(one.start, one.digest) for one in await store.chunks(series)] for series in SERIES}
    for was, now in zip(infos, await store.series(), strict=True):
        assert now.revision == was.revision + 1
        assert replace(now, revision=was.revision, last_write=was.last_write) == was
    assert await market_data.gaps(BTC) == missing
    await unharmed(store, clock, archive)
    assert sum([await archived_candles(store, series) for series in SERIES]) == expected

    # The second time there is nothing to drop.
    assert (await drop(store, archive, YEAR)).candles == 0
    status = await store.status()
    assert [(one.before, one.candles) for one in status.drops][-1][0] == YEAR
    assert sum(one.candles for one in status.drops) == expected
    assert status.archived_candles == expected


async def test_the_ledger_names_the_file_and_its_digest(store: PostgresStore, archive: Archive, clock: Any) -> None:
    await drop(store, archive, YEAR)
    files = {one.period: one for one in archive.manifest(BTC).files}  # type: ignore[union-attr]
    moved = [one for one in await store.coverage(BTC) if one.state is CoverageState.ARCHIVED]
    assert {one.source for one in moved} == {"binance rest"}
    for one in moved:
        file = files[iso(one.interval.start)[:7]]
        assert one.evidence == f"archive: {file.name}, digest {file.digest}"
    # A week that opens before the drop and ends after it has moved whole.
    weeks = [one for one in await store.coverage(BTC_WEEKS) if one.state is CoverageState.ARCHIVED]
    assert weeks[-1].interval.end == to_ms("2023-01-02")


async def refused(store: PostgresStore, archive: Archive, before: int, kinds: set[str]) -> Dropped:
    """Ask for a drop, and see that it is refused for exactly these kinds of reasons and drops nothing."""
    count, ledger = rows(store), [await store.coverage(series) for series in SERIES]
    done = await drop(store, archive, before)
    assert {one.kind for one in done.obstacles} == kinds
    assert (done.candles, rows(store)) == (0, count)
    assert [await store.coverage(series) for series in SERIES] == ledger
    return done


async def test_what_is_not_archived_is_not_dropped(store: PostgresStore, tmp_path: Path) -> None:
    archive = Archive(tmp_path / "another")
    for series in (BTC, ETH_HOURS, BTC_WEEKS):
        await archive.build(store, series)
    done = await refused(store, archive, YEAR, {"archive"})
    assert [(one.series, one.interval) for one in done.obstacles] == [
        (ETH, Interval(NOVEMBER, DECEMBER)),
        (ETH, Interval(DECEMBER, YEAR)),
    ]
    assert "2022-11 is not in the archive" in done.obstacles[0].detail


async def test_what_changed_since_it_was_archived_is_not_dropped(
    store: PostgresStore, archive: Archive, clock: Any
) -> None:
    await store.write(batch(made_at([DECEMBER + MINUTE], version=1), state=CandleState.VERIFIED))
    if store.aggregates is not None:
        await store.aggregates.refresh()
    done = await refused(store, archive, YEAR, {"archive"})
    (one,) = done.obstacles
    assert (one.series, one.interval) == (BTC, Interval(DECEMBER, YEAR))
    assert "other candles" in one.detail
    await archive.build(store, BTC)
    assert (await drop(store, archive, YEAR)).obstacles == ()
    await unharmed(store, clock, archive)


@pytest.mark.parametrize("damage", ["bytes", "gone"])
async def test_a_damaged_archive_is_found_before_anything_is_dropped(
    store: PostgresStore, archive: Archive, damage: str
) -> None:
    manifest = archive.manifest(ETH)
    assert manifest is not None
    path = archive.path(ETH, manifest.files[1])
    if damage == "gone":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
    (one,) = (await refused(store, archive, YEAR, {"archive"})).obstacles
    assert (one.series, str(path) in one.detail) == (ETH, True)


async def test_dates_that_are_no_boundary_or_too_young(store: PostgresStore, archive: Archive, clock: Any) -> None:
    done = await refused(store, archive, YEAR - DAY, {"boundary"})
    assert "2022-12-01 or 2023-01-01" in done.obstacles[0].detail
    # The archive has years of the larger candles.
    done = await refused(store, archive, DECEMBER, {"boundary"})
    assert {one.series for one in done.obstacles} == {ETH_HOURS, BTC_WEEKS}
    assert "2022-01-01 or 2023-01-01" in done.obstacles[0].detail
    clock.time_ms = YEAR + 3 * DAY
    done = await refused(store, archive, YEAR, {"age"})
    assert "2022-12-28T00:00:00Z" in done.obstacles[0].detail
    clock.time_ms = YEAR + 8 * DAY
    assert (await drop(store, archive, YEAR)).obstacles == ()


async def test_rows_that_no_digest_knows_are_not_dropped(store: PostgresStore, archive: Archive) -> None:
    sql(
        store,
        "INSERT INTO candles (instrument_id, timeframe, open_time, open, high, low, close, volume, state, "
        f"learned_at) VALUES (1, 60, '{iso(NOVEMBER + 20 * HOUR)}', 1, 1, 1, 1, 1, 1, now())",
    )
    done = await refused(store, archive, YEAR, {"rows"})
    assert "chandlery check" in done.obstacles[0].detail


async def test_what_the_aggregates_lack_is_not_dropped(store: PostgresStore, archive: Archive) -> None:
    if store.aggregates is None:
        pytest.skip("plain PostgreSQL keeps no aggregates")
    await store.write(batch(made_at([DECEMBER + 7 * HOUR]), series=ETH))
    await archive.build(store, ETH)
    (one,) = (await refused(store, archive, YEAR, {"aggregates"})).obstacles
    assert one.interval == Interval(DECEMBER + 7 * HOUR, DECEMBER + 7 * HOUR + MINUTE)
    assert "ETH/USDT" in one.detail
    await store.maintenance(RULES).run()
    # A policy that looks at everything would find the minutes gone, and the aggregates with them.
    sql(
        store,
        "SELECT remove_continuous_aggregate_policy('candles_5m');"
        "SELECT add_continuous_aggregate_policy('candles_5m', start_offset => NULL, "
        "end_offset => INTERVAL '5 minutes', schedule_interval => INTERVAL '1h')",
    )
    await refused(store, archive, YEAR, {"policy"})


async def test_without_an_archive_a_reader_is_told_where_the_candles_are(
    store: PostgresStore, archive: Archive, tmp_path: Path, clock: Any
) -> None:
    await drop(store, archive, YEAR)
    market_data = reader(store, None, clock)
    with pytest.raises(StoreUnusable, match=r"before 2022-12-31T06:00:00Z are in the archive .*2022-12\.") as told:
        await market_data.candles(BTC)
    assert "given no archive" in str(told.value)
    assert (await market_data.candles(BTC, start_ms=YEAR)).table.num_rows == 19 * 360
    # An archive that lacks them is an error, too, for readers and for the one that builds.
    shutil.copytree(archive.root, tmp_path / "copy")
    manifest = archive.manifest(BTC)
    assert manifest is not None
    archive.path(BTC, manifest.files[0]).unlink()
    with pytest.raises(StoreUnusable, match="2022-11"):
        await reader(store, archive, clock).candles(BTC, start_ms=NOVEMBER, limit=1)
    with pytest.raises(StoreUnusable, match="2022-11"):
        await archive.build(store, BTC)
    with pytest.raises(StoreUnusable, match=r"dropped the candles of .* lacks them"):
        await Archive(tmp_path / "empty").build(store, BTC)
    assert archive.path(BTC, manifest.files[1]).exists()
    assert (await Archive(tmp_path / "copy").build(store, BTC)).written == 0


async def test_as_of_before_the_drop_is_refused_and_after_it_answered(
    store: PostgresStore, archive: Archive, clock: Any
) -> None:
    market_data, asked = reader(store, archive, clock), {"start_ms": DECEMBER, "end_ms": DECEMBER + DAY}
    before = clock.now_ms()
    table = (await market_data.candles(BTC, **asked)).table
    clock.advance(1000)
    await drop(store, archive, YEAR)
    for series in (BTC, BTC.at(TIMEFRAMES["1h"])):
        with pytest.raises(BadInput, match="which has no history; or a start at or after") as told:
            await market_data.candles(series, **asked, as_of_ms=before)
        assert told.value.field == "as_of"
    answer = await market_data.candles(BTC, **asked, as_of_ms=clock.now_ms())
    assert answer.table == table
    assert answer.gaps.duration == 18 * HOUR
    # The history of what stayed is there.
    assert (await market_data.candles(BTC, start_ms=YEAR, as_of_ms=before)).table.num_rows == 19 * 360


async def test_writing_into_an_archived_range(store: PostgresStore, archive: Archive, clock: Any) -> None:
    await drop(store, archive, YEAR)
    times = minutes_of(DECEMBER, DECEMBER + 2 * DAY)
    revision = (await store.facts(BTC)).revision  # type: ignore[union-attr]
    # Exactly what was archived is known.
    written = await store.write(batch(made_at(times), state=CandleState.VERIFIED))
    assert (written.unchanged, written.written) == (720, 0)
    assert (await store.facts(BTC)).revision == revision  # type: ignore[union-attr]
    assert (await archive.restore(store, BTC, clock)).written == 0
    # Other values cannot be compared, nor their versions kept.
    for table in (made_at(times[:1], version=1), made_at(times[:10]), made_at([*times, END - DAY], version=1)):
        with pytest.raises(StoreUnusable, match=r"2022-12-01T00:00:00Z were archived .* nothing was written"):
            await store.write(batch(table))
    # What was missing there is filled as ever.
    late = minutes_of(DECEMBER, DECEMBER + DAY, range(6, 9))
    assert (await store.write(batch(made_at([*times, *late])))).inserted == 180
    answer = await reader(store, archive, clock).candles(BTC, start_ms=DECEMBER, end_ms=DECEMBER + DAY)
    assert answer.table.drop_columns(["missing"]) == made_at(minutes_of(DECEMBER, DECEMBER + DAY, range(9)))
    hour = await reader(store, archive, clock).candles(
        BTC.at(TIMEFRAMES["4h"]), start_ms=DECEMBER, end_ms=DECEMBER + DAY
    )
    assert hour.table.column("missing").to_pylist() == [0, 0, 180]
    found = await check_series(store, BTC, clock, archive)
    assert [one for one in found if one.kind not in ("gap", "derived")] == []
    # The archive takes them in beside what only it has, and then they may go, too.
    before = await answers(reader(store, archive, clock))
    report = await archive.build(store, BTC)
    assert (report.written, archive.verify(BTC)) == (1, [])
    whole = sum((one.digest for one in await store.chunks(BTC)), Digest())
    assert archive.manifest(BTC).digest == whole  # type: ignore[union-attr]
    clock.advance(1000)
    done = await drop(store, archive, YEAR)
    assert (done.obstacles, done.candles) == ((), 180)
    assert await answers(reader(store, archive, clock)) == before
    await unharmed(store, clock, archive)


async def test_a_series_that_comes_later_is_written_into_the_dropped_range(
    store: PostgresStore, archive: Archive, clock: Any
) -> None:
    await drop(store, archive, YEAR)
    before = await answers(reader(store, archive, clock))
    views = {view: sql(store, f"SELECT * FROM {view} ORDER BY 1, 2") for view in VIEWS if store.aggregates}
    solana = Series("binance", "SOL/USDT", BTC.timeframe)
    await store.write(batch(made_at(minutes_of(DECEMBER, END)), series=solana))
    await store.maintenance(RULES).run()
    market_data = reader(store, archive, clock)
    hours = await market_data.candles(solana.at(TIMEFRAMES["1h"]), start_ms=DECEMBER, end_ms=DECEMBER + DAY)
    assert hours.table.num_rows == 6
    assert await answers(market_data) == before
    await unharmed(store, clock, archive)
    await archive.build(store, solana)
    asked = await market_data.candles(solana), await market_data.candles(solana.at(TIMEFRAMES["1d"]))
    done = await drop(store, archive, YEAR)
    assert (done.obstacles, done.candles) == ((), 31 * 360)
    again = await market_data.candles(solana), await market_data.candles(solana.at(TIMEFRAMES["1d"]))
    assert [one.table for one in again] == [one.table for one in asked]
    old = f"SELECT * FROM {{}} WHERE instrument_id <= 2 AND {{}} < '{iso(YEAR)}' ORDER BY 1, 2"
    for view, rows_before in views.items():
        column = "day" if view == "daily_statistics" else "open_time"
        for line in sql(store, old.format(view, column)).splitlines():
            assert line in rows_before


async def test_later_refreshes_and_policies_leave_the_aggregates_of_dropped_candles_alone(
    store: PostgresStore, archive: Archive, clock: Any
) -> None:
    if store.aggregates is None:
        pytest.skip("plain PostgreSQL keeps no aggregates")
    await drop(store, archive, YEAR)
    views = {view: sql(store, f"SELECT * FROM {view} ORDER BY 1, 2") for view in VIEWS}
    # One instant on each side of the drop, in one write.
    await store.write(batch(made_at([YEAR - 10 * MINUTE, YEAR + 7 * HOUR]), series=ETH, source="late"))
    assert len((await store.status()).due) == 2
    refreshed = await store.aggregates.refresh()
    assert refreshed == IntervalSet([Interval(YEAR, YEAR + DAY)])
    (left,) = (await store.status()).due
    assert (left.kept, left.interval.end) == (True, YEAR - 9 * MINUTE)
    assert not await store.aggregates.refresh()
    for job in (await store.status()).jobs:
        sql(store, f"CALL run_job({job.number})")
    changed = {view: sql(store, f"SELECT * FROM {view} ORDER BY 1, 2") for view in VIEWS}
    for view, was in views.items():
        lost = set(was.splitlines()) - set(changed[view].splitlines())
        assert all("2023-01-01" in line for line in lost), view
    days = await reader(store, archive, clock).candles(
        ETH.at(TIMEFRAMES["1d"]), start_ms=YEAR - DAY, end_ms=YEAR + DAY
    )
    assert days.table.column("missing").to_pylist() == [1440 - 361] * 2


async def test_aggregates_that_somebody_erased_are_noticed_and_made_from_the_archive(
    store: PostgresStore, archive: Archive, clock: Any
) -> None:
    if store.aggregates is None:
        pytest.skip("plain PostgreSQL keeps no aggregates")
    market_data = reader(store, archive, clock)
    await drop(store, archive, YEAR)
    before = await answers(market_data)
    start, end = iso(DECEMBER), iso(DECEMBER + 3 * DAY)
    for view in VIEWS:
        sql(store, f"CALL refresh_continuous_aggregate('{view}', '{start}', '{end}')")
    gone = f"SELECT count(*) FROM candles_1d WHERE open_time >= '{start}' AND open_time < '{end}'"
    assert sql(store, gone) == "0"
    assert await answers(market_data) == before
    (line,) = await store.integrity()
    assert "6 archived days" in line


async def test_a_drop_goes_month_by_month_and_ends_anywhere(
    store: PostgresStore, archive: Archive, clock: Any
) -> None:
    for series in (ETH_HOURS, BTC_WEEKS):
        key = f"instrument_id = {1 if series == BTC_WEEKS else 2} AND timeframe = {series.timeframe.seconds}"
        for table in ("candles", "candle_chunks", "coverage", "series"):
            sql(store, f"DELETE FROM {table} WHERE {key}")
    market_data = reader(store, archive, clock)
    before = await answers(market_data)
    assert (await drop(store, archive, DECEMBER)).candles == 2 * 30 * 360
    assert await answers(market_data) == before
    done = await drop(store, archive, YEAR)
    assert (done.candles, done.obstacles) == (2 * 31 * 360, ())
    assert await answers(market_data) == before
    assert [one.before for one in (await store.status()).drops] == [DECEMBER, YEAR]


async def test_two_drops_at_once(store: PostgresStore, archive: Archive, clock: Any) -> None:
    done = await asyncio.gather(
        drop(store, archive, YEAR), drop(store, Archive(archive.root), YEAR), return_exceptions=True
    )
    (busy,) = [one for one in done if isinstance(one, BaseException)]
    assert isinstance(busy, StoreBusy)
    (good,) = [one for one in done if isinstance(one, Dropped)]
    assert good.candles > 0
    await unharmed(store, clock, archive)


async def test_who_holds_a_candle_is_not_waited_for_long(store: PostgresStore, archive: Archive) -> None:
    held, release = asyncio.Event(), asyncio.Event()

    async def hold(connection: Any) -> None:
        await connection.fetch("SELECT FROM series FOR UPDATE")
        held.set()
        await release.wait()

    task = asyncio.create_task(store._database.write(hold))
    await held.wait()
    count = rows(store)
    try:
        with pytest.raises(StoreBusy, match="holds a lock"):
            await drop(store, archive, YEAR)
    finally:
        release.set()
        await task
    assert rows(store) == count
    assert (await drop(store, archive, YEAR)).obstacles == ()


async def test_a_store_that_still_has_the_rows_agrees_with_one_that_dropped_them(
    store: PostgresStore, archive: Archive, clock: Any, tmp_path: Path
) -> None:
    async with SqliteStore.opened(tmp_path / DATABASE_NAME, clock) as other:
        for series in SERIES:
            await archive.restore(other, series, clock)
        await drop(store, archive, YEAR)
        for series in SERIES:
            for pair in ((store, other), (other, store)):
                found = [one async for one in differences(*pair, series)]
                # The restored absences have another source.
                assert [one for one in found if one.kind is not DifferenceKind.LEDGER] == []
        await other.write(batch(made_at([YEAR + MINUTE], version=1), state=CandleState.VERIFIED))
        found = [one async for one in differences(store, other, BTC)]
        (one,) = [one for one in found if one.kind is not DifferenceKind.LEDGER]
        assert one.interval == Interval(YEAR + MINUTE, YEAR + 2 * MINUTE)


@pytest.mark.parametrize("mode", list(Mode))
async def test_a_backfill_asks_nothing_of_an_archived_range(clock: Any, tmp_path: Path, mode: Mode) -> None:
    # Nine days of minutes, from 24 March to 2 April.
    history = ScriptedHistory([scripted.START + minute * MINUTE for minute in range(9 * 1440)])
    wanted = Interval(scripted.START, scripted.START + 9 * DAY)
    async with postgres(mode, clock, refresh=False) as store:

        async def fill_again(again: bool) -> Any:
            rules = BackfillRules(again=again)
            (report,) = await backfill(history, store, clock, ["BTC/USDT"], BTC.timeframe, wanted, rules=rules)
            assert report.error is None
            return report

        assert (await fill_again(False)).written == 9 * 1440
        await store.maintenance(RULES).run()
        series, archive = Series("scripted", "BTC/USDT", BTC.timeframe), Archive(tmp_path / "archive")
        await archive.build(store, series)
        april = to_ms("2023-04-01")
        assert (await drop(store, archive, april)).obstacles == ()
        history.asked.clear()
        report = await fill_again(False)
        assert (report.stored, report.missing, report.written) == (9 * 1440, 0, 0)
        assert history.count("candles") == 0
        # Read again, too: what is archived cannot be corrected, what is not can.
        history.changed = {april - MINUTE, april + MINUTE}
        report = await fill_again(True)
        assert (report.stored, report.missing, report.written) == (9 * 1440, 0, 1)
        assert all(start >= april for question, start, _ in history.asked if question == "candles")


async def test_an_empty_database_has_nothing_to_drop(clock: Any, tmp_path: Path) -> None:
    async with postgres(Mode.PLAIN, clock) as empty:
        done = await empty.retention(Archive(tmp_path / "archive"), RULES).drop(YEAR)
        assert (done.obstacles, done.candles) == ((), 0)


async def test_maintenance_of_partitions(clock: Any) -> None:
    async with postgres(Mode.PLAIN, clock) as plain:
        now = iso(clock.now_ms())
        sql(
            plain,
            "INSERT INTO trade_history SELECT 1, t, t::text, 1, 1, 'buy', t FROM unnest(ARRAY["
            f"'2023-01-05Z', '2023-06-01Z', '2023-08-17Z', '{now}']::timestamptz[]) t;"
            "INSERT INTO candles SELECT 1, 60, t, 1, 1, 1, 1, 1, 1, 1, 1, 1, NULL, 1, t FROM "
            "generate_series('2020-01-01Z'::timestamptz, '2020-03-01Z', INTERVAL '1 h') t",
        )
        waiting = {one.table: one.waiting_rows for one in (await plain.status()).partitions}
        assert waiting == {"candles": 1441, "trade_history": 3, "system_metrics": 0}
        assert "1,441 candles wait" in (await plain.integrity())[0]
        first, second = await asyncio.gather(*[plain.maintenance(RULES).run() for _ in range(2)])
        assert (first.busy, second.busy) == ([], [])
        moved = [one.partitions.get("candles", 0) for one in (first, second)]
        assert sum(moved) == 3
        status = {one.table: one for one in (await plain.status()).partitions}
        assert [one.waiting_rows for one in status.values()] == [0, 0, 0]
        assert (status["candles"].first_month, status["candles"].last_month) == ("2020_01", "2024_02")
        # Ninety days before 14 November lie in August; whole months go.
        assert sql(plain, "SELECT count(*) FROM trade_history") == "2"
        assert status["trade_history"].first_month == "2023_08"
        assert sql(plain, "SELECT count(*) FROM candles") == "1441"
        third = await plain.maintenance(RULES).run()
        assert (third.partitions, third.dropped_partitions, third.busy) == ({}, 0, [])


async def test_a_reader_asks_for_the_status_too(clock: Any) -> None:
    async with postgres(Mode.PLAIN, clock) as plain:
        url = DatabaseUrl.parse(servers.postgres().url(plain.location.rpartition("/")[2]))
        async with PostgresStore.opened(url, clock, read_only=True) as reading:
            status = await reading.status()
    assert (status.hypertables, status.jobs, status.due, status.extension) == ((), (), (), None)
    assert [one.table for one in status.partitions] == ["candles", "system_metrics", "trade_history"]
