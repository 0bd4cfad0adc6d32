"""The Parquet archive: round trip, re-archiving, damage, full disks, two at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from market.candle import CANDLE_SCHEMA, CandleState
from market.clock import SystemClock, to_ms
from market.coverage import CoverageState
from market.errors import SchemaTooNew, StoreBusy, StoreUnusable
from market.fingerprint import dataset_fingerprint, digest
from market.instrument import Instrument, Series
from market.interval import Interval
from market.timeframe import TIMEFRAMES
from store.archive.archive import Archive, period_bounds, period_of, read_candles
from store.archive.manifest import MANIFEST, Manifest, series_folder
from store.files import UNFINISHED, locked
from store.sqlite.store import DATABASE_NAME, SqliteStore
from tests.integration.test_store_places import mounted
from tests.support.made_candles import BTC, DAY, START, absence, at, batch, buckets, made, made_at
from tests.support.proof import prove
from tests.support.workers import worker

#: Some minutes of each day from January to mid-March: three periods.
MINUTES = [day * 1440 + minute for day in range(75) for minute in range(0, 1440, 60)]


@pytest.fixture
async def store(tmp_path: Path, clock: Any) -> AsyncIterator[SqliteStore]:
    async with SqliteStore.opened(tmp_path / "home" / DATABASE_NAME, clock) as opened:
        yield opened


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "archive")


def standing(archive: Archive, series: Series = BTC) -> dict[str, tuple[int, int]]:
    """Each file with its inode and size: a file that was written anew has another inode."""
    folder = series_folder(archive.root, series)
    return {path.name: (path.stat().st_ino, path.stat().st_size) for path in folder.iterdir()}


def said(entries: Any) -> list[tuple[Interval, CoverageState, str | None, int | None]]:
    return [(one.interval, one.state, one.evidence, one.expires_at) for one in entries]


async def fill(store: SqliteStore) -> None:
    silence = [absence(100_000, 101_000, evidence="asked twice"), absence(107_990, 107_999, expires_at=at(10**6))]
    outage = absence(61, 90, CoverageState.EXCHANGE_OUTAGE, evidence="status page")
    await store.write(batch(made(MINUTES), absences=[*silence, outage]))


async def test_a_series_comes_back_in_a_new_home(
    store: SqliteStore, archive: Archive, tmp_path: Path, clock: Any
) -> None:
    await fill(store)
    report = await archive.build(store, BTC)
    table = await store.read(BTC, START, at(10**6))
    assert (report.files, report.written, report.rows) == (3, 3, table.num_rows)
    assert report.fingerprint == dataset_fingerprint([(BTC, digest(table))])
    assert archive.verify(BTC) == []
    clock.advance(1000)
    async with SqliteStore.opened(tmp_path / "other" / DATABASE_NAME, clock) as other:
        written = await archive.restore(other, BTC, clock)
        assert (written.inserted, written.refusals) == (table.num_rows, ())
        assert await other.read(BTC, START, at(10**6)) == table
        assert said(await other.coverage(BTC)) == said(await store.coverage(BTC))
        # A second restore finds everything there; the new home archives to the same fingerprint.
        assert (await archive.restore(other, BTC, clock)).written == 0
        again = await Archive(tmp_path / "archive 2").build(other, BTC)
        assert again.fingerprint == report.fingerprint
        path = other.path
    assert prove(path) == table.num_rows


@pytest.mark.parametrize("name", ["1m", "30m", "1h", "1d", "1w", "1M"])
async def test_every_timeframe_has_its_periods(
    store: SqliteStore, archive: Archive, tmp_path: Path, clock: Any, name: str
) -> None:
    timeframe = TIMEFRAMES[name]
    series = BTC.at(timeframe)
    times = buckets(timeframe, 40, to_ms("2021-12-31T12:00:00Z"))
    await store.write(batch(made_at(times), series=series, now_ms=timeframe.next(times[-1])))
    report = await archive.build(store, series)
    manifest = archive.manifest(series)
    assert manifest is not None
    assert [one.period for one in manifest.files] == sorted({period_of(one, timeframe) for one in times})
    for file in manifest.files:
        start, end = period_bounds(file.period)
        assert start <= file.first_open <= file.last_open < end
    async with SqliteStore.opened(tmp_path / "other" / DATABASE_NAME, clock) as other:
        assert (await archive.restore(other, series, clock)).inserted == 40
        assert (await Archive(tmp_path / "archive 2").build(other, series)).fingerprint == report.fingerprint


async def test_archiving_again_changes_nothing(store: SqliteStore, archive: Archive) -> None:
    await fill(store)
    await archive.build(store, BTC)
    before = standing(archive)
    report = await archive.build(store, BTC)
    assert (report.written, report.removed) == (0, 0)
    assert standing(archive) == before


async def test_a_correction_rewrites_exactly_its_period(store: SqliteStore, archive: Archive, clock: Any) -> None:
    await fill(store)
    await archive.build(store, BTC)
    before = standing(archive)
    await store.write(batch(made([MINUTES[40 * 24]], version=1)))
    report = await archive.build(store, BTC)
    assert (report.files, report.written, report.removed) == (3, 1, 1)
    after = standing(archive)
    assert {name for name in before if name.startswith(("2023-01", "2023-03"))} <= set(after)
    assert {name for name in after if name not in before} == {name for name in after if name.startswith("2023-02")}
    assert all(after[name] == before[name] for name in set(before) & set(after) - {MANIFEST})
    assert archive.verify(BTC) == []


async def test_news_in_the_ledger_alone_changes_the_manifest_alone(store: SqliteStore, archive: Archive) -> None:
    await fill(store)
    await archive.build(store, BTC)
    before = standing(archive)
    await store.write(batch(absences=[absence(200_000, 200_010)]))
    assert (await archive.build(store, BTC)).written == 0
    after = standing(archive)
    assert {name for name in after if after[name] != before[name]} == {MANIFEST}
    manifest = archive.manifest(BTC)
    assert manifest is not None
    assert list(manifest.coverage) == await store.coverage(BTC)


async def test_a_series_known_to_be_empty_is_archived_too(
    store: SqliteStore, archive: Archive, tmp_path: Path, clock: Any
) -> None:
    await store.write(batch(absences=[absence(0, 50)]))
    assert (await archive.build(store, BTC)).files == 0
    async with SqliteStore.opened(tmp_path / "other" / DATABASE_NAME, clock) as other:
        await archive.restore(other, BTC, clock)
        assert said(await other.coverage(BTC)) == said(await store.coverage(BTC))


async def test_what_is_not_ours_stays_and_what_a_run_left_goes(store: SqliteStore, archive: Archive) -> None:
    await fill(store)
    await archive.build(store, BTC)
    folder = series_folder(archive.root, BTC)
    (folder / "README").write_text("mine")
    (folder / "2023-01.000000000000.parquet").write_bytes(b"left by a killed run")
    (folder / f"2023-01.000000000000.parquet{UNFINISHED}").write_bytes(b"likewise")
    assert (await archive.build(store, BTC)).removed == 2
    assert (folder / "README").read_text() == "mine"
    assert archive.verify(BTC) == []


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "one bit": _flip,
    "text": lambda path: path.write_text("open_time,open\n"),
    "other columns": lambda path: pq.write_table(pa.table({"a": [1]}), path),
    "other rows": lambda path: pq.write_table(made(range(10)), path),
}


@pytest.mark.parametrize("kind", list(DAMAGE))
async def test_a_damaged_file_is_found_named_and_not_restored(
    store: SqliteStore, archive: Archive, tmp_path: Path, clock: Any, kind: str
) -> None:
    await fill(store)
    await archive.build(store, BTC)
    manifest = archive.manifest(BTC)
    assert manifest is not None
    path = archive.path(BTC, manifest.files[1])
    DAMAGE[kind](path)
    (wrong,) = archive.verify(BTC)
    assert str(path) in wrong
    async with SqliteStore.opened(tmp_path / "other" / DATABASE_NAME, clock) as other:
        with pytest.raises(StoreUnusable, match=path.name):
            await archive.restore(other, BTC, clock)
        # What was whole is there, and of the damaged file nothing.
        assert (await other.read(BTC, START, at(10**6))).num_rows == manifest.files[0].rows
    if kind != "one bit":
        # Another length is seen by the next run, which writes the file again.
        assert (await archive.build(store, BTC)).written == 1
        assert archive.verify(BTC) == []


async def test_no_damage_of_a_parquet_file_goes_unseen(
    store: SqliteStore, archive: Archive, tmp_path: Path
) -> None:
    await store.write(batch(made(range(500))))
    await archive.build(store, BTC)
    manifest = archive.manifest(BTC)
    assert manifest is not None
    content = archive.path(BTC, manifest.files[0]).read_bytes()
    rng = random.Random(5)
    broken = tmp_path / "broken.parquet"
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        broken.write_bytes(damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])])
        # Readable with the right or with other values, or an error of ours; nothing else may come out.
        with contextlib.suppress(StoreUnusable):
            assert read_candles(broken).schema == CANDLE_SCHEMA


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"format": "else"}',
        b'{"format": "chandlery-archive", "version": 1}',
        b"\xff\xfe",
    ],
)
async def test_a_damaged_manifest_says_so_and_the_next_run_writes_it_anew(
    store: SqliteStore, archive: Archive, content: bytes
) -> None:
    await fill(store)
    before = await archive.build(store, BTC)
    path = series_folder(archive.root, BTC) / MANIFEST
    good = path.read_bytes()
    path.write_bytes(content)
    for reading in (lambda: archive.manifest(BTC), archive.manifests, lambda: archive.verify(BTC)):
        with pytest.raises(StoreUnusable, match=r"manifest.json is damaged: .*; run `chandlery archive`"):
            reading()
    assert (await archive.build(store, BTC)).fingerprint == before.fingerprint
    assert path.read_bytes() == good
    assert archive.verify(BTC) == []


async def test_a_manifest_of_a_newer_release_is_left_alone(store: SqliteStore, archive: Archive) -> None:
    await fill(store)
    await archive.build(store, BTC)
    path = series_folder(archive.root, BTC) / MANIFEST
    newer = json.dumps(json.loads(path.read_bytes()) | {"version": 2}).encode()
    path.write_bytes(newer)
    with pytest.raises(SchemaTooNew, match="has version 2, this release knows 1"):
        await archive.build(store, BTC)
    assert path.read_bytes() == newer


async def test_manifests_are_equal_bytes_and_come_back_equal(store: SqliteStore, archive: Archive) -> None:
    await fill(store)
    await archive.build(store, BTC)
    (manifest,) = archive.manifests()
    assert Manifest.of_json(manifest.to_json(), "memory") == manifest == archive.manifest(BTC)
    february = Interval(*period_bounds("2023-02"))
    assert [one.period for one in manifest.files_in(february)] == ["2023-02"]


async def test_two_at_once_one_is_refused(store: SqliteStore, archive: Archive, tmp_path: Path) -> None:
    await fill(store)
    with locked(archive.root / ".archive.lock", "archive"):
        with pytest.raises(StoreBusy, match=r"archive is in use by chandlery archive \(process \d+\)"):
            await archive.build(store, BTC)
        with worker("archive", store.path, archive.root) as other:
            other.go()
            (refused, _) = other.rest()
        assert refused.startswith(f"failed StoreBusy {archive.root} is in use by chandlery archive (process ")
    assert not series_folder(archive.root, BTC).exists()
    # The lock of an ended process holds nobody up.
    with worker("archive", store.path, archive.root) as other:
        other.go()
        assert other.rest()[0].startswith("archived 3 3 0 ")
    assert (await archive.build(store, BTC)).written == 0


async def test_a_full_disk_keeps_the_old_archive(store: SqliteStore, tmp_path: Path) -> None:
    await fill(store)
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=3m", "tmpfs") as place:
        archive = Archive(place)
        await archive.build(store, BTC)
        before = standing(archive)
        await store.write(batch(made(range(40 * 1440, 60 * 1440), version=2)))
        ballast = place / "ballast"
        with pytest.raises(OSError, match="No space left"):
            ballast.write_bytes(b"\0" * 4_000_000)
        with pytest.raises(StoreUnusable, match=r"cannot be written: .*No space left on device; the old state"):
            await archive.build(store, BTC)
        assert standing(archive) == before
        assert archive.verify(BTC) == []
        ballast.unlink()
        assert (await archive.build(store, BTC)).written == 2
        assert archive.verify(BTC) == []


async def test_a_place_that_cannot_be_written_says_so(store: SqliteStore, tmp_path: Path) -> None:
    await fill(store)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnusable, match="cannot be written"):
        await Archive(tmp_path / "file").build(store, BTC)


async def test_rows_that_arrive_while_archiving_are_in_this_run_or_in_the_next(
    store: SqliteStore, archive: Archive
) -> None:
    await fill(store)
    with worker("write", store.path, BTC.symbol, 0, 60_000, 500, 1) as writer:
        writer.go()
        while writer.hear() != "done":
            await archive.build(store, BTC)
            assert archive.verify(BTC) == []
    report = await archive.build(store, BTC)
    table = await store.read(BTC, START, at(10**6))
    assert report.fingerprint == dataset_fingerprint([(BTC, digest(table))])


async def test_states_do_not_matter_to_the_archive(store: SqliteStore, archive: Archive) -> None:
    await store.write(batch(made(MINUTES)))
    await archive.build(store, BTC)
    before = standing(archive)
    await store.write(batch(made(MINUTES), state=CandleState.VERIFIED))
    assert (await archive.build(store, BTC)).written == 0
    assert standing(archive) == before


def test_the_bounds_of_periods() -> None:
    assert period_bounds("2023-12") == (to_ms("2023-12-01"), to_ms("2024-01-01"))
    assert period_bounds("2024") == (to_ms("2024-01-01"), to_ms("2025-01-01"))
    assert period_of(to_ms("2023-12-31") + DAY - 1, BTC.timeframe) == "2023-12"


@pytest.mark.recorded
async def test_the_recorded_year_comes_back(
    store: SqliteStore, archive: Archive, tmp_path: Path, recorded_candles: Callable[[str, str], pa.Table]
) -> None:
    table = recorded_candles("binance_spot_BTCUSDT_1m_2023-01-01", "1m").slice(0, 200_000)
    await store.write(batch(table, state=CandleState.VERIFIED))
    report = await archive.build(store, BTC)
    assert report.fingerprint == dataset_fingerprint([(BTC, digest(table))])
    async with SqliteStore.opened(tmp_path / "other" / DATABASE_NAME, SystemClock()) as other:
        assert (await archive.restore(other, BTC, SystemClock())).inserted == 200_000
        assert await other.read(BTC, START, at(10**6)) == table


async def test_files_are_sorted_encoded_and_compressed(store: SqliteStore, archive: Archive) -> None:
    await fill(store)
    await archive.build(store, BTC)
    manifest = archive.manifest(BTC)
    assert manifest is not None
    group = pq.read_metadata(archive.path(BTC, manifest.files[0])).row_group(0)
    assert [one.column_index for one in group.sorting_columns] == [0]
    encodings = {group.column(place).path_in_schema: group.column(place) for place in range(group.num_columns)}
    assert {one.compression for one in encodings.values()} == {"ZSTD"}
    assert "DELTA_BINARY_PACKED" in encodings["open_time"].encodings
    assert "BYTE_STREAM_SPLIT" in encodings["volume"].encodings
    assert not [name for name, one in encodings.items() if "RLE_DICTIONARY" in one.encodings]


async def test_symbols_that_differ_in_a_dash_or_an_underscore_keep_apart(
    store: SqliteStore, archive: Archive
) -> None:
    symbols = ["A-B/C", "A/B-C", "A/B_C", "A/B:C", "A_B/C", "A%2DB/C", "BTC/USDT:USDT-231229", "BTC/USDT"]
    series = [Series("binance", symbol, BTC.timeframe) for symbol in symbols]
    for number, one in enumerate(series):
        await store.write(batch(made(range(number + 1)), series=one))
        await archive.build(store, one)
    assert len({series_folder(archive.root, one) for one in series}) == len(series)
    for number, one in enumerate(series):
        manifest = archive.manifest(one)
        assert manifest is not None
        assert (manifest.series, manifest.digest.rows) == (one, number + 1)
        assert archive.verify(one) == []
    assert series_folder(archive.root, series[-2]) == archive.root / "binance" / "BTC-USDT_USDT-231229" / "1m"


async def test_three_day_candles_of_any_listing_day_come_back(
    store: SqliteStore, archive: Archive, tmp_path: Path, clock: Any
) -> None:
    days = Series("binance", "ARB/USDT", TIMEFRAMES["3d"])
    listed = to_ms("2023-03-23")
    arb = Instrument(
        exchange="binance", symbol="ARB/USDT", exchange_symbol="ARBUSDT", base="ARB", quote="USDT", listed_ms=listed
    )
    await store.save_instruments([arb])
    await store.write(batch(made_at([listed + 3 * number * DAY for number in range(9)]), series=days))
    report = await archive.build(store, days)
    async with SqliteStore.opened(tmp_path / "other" / DATABASE_NAME, clock) as other:
        restored = await archive.restore(other, days, clock)
        assert (restored.inserted, restored.refusals) == (9, ())
        again = await Archive(tmp_path / "again").build(other, days)
    assert again.fingerprint == report.fingerprint


async def test_cancelled_it_keeps_the_lock_until_the_last_write_has_ended(
    store: SqliteStore, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.write(batch(made(range(10))))
    swapping, go_on = threading.Event(), threading.Event()
    swap = archive._swap

    def slow(*given: Any) -> int:
        swapping.set()
        assert go_on.wait(10)
        return swap(*given)

    monkeypatch.setattr(archive, "_swap", slow)
    task = asyncio.create_task(archive.build(store, BTC))
    assert await asyncio.to_thread(swapping.wait, 10)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(StoreBusy), locked(archive.root / ".archive.lock", "another"):
        pass
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    with locked(archive.root / ".archive.lock", "another"):
        assert archive.verify(BTC) == []
