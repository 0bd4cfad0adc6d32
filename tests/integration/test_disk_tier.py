"""The disk tier on real disks: shared by processes, full, read-only, gone, and with foreign files in it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from structlog.testing import capture_logs

from market.errors import BadInput
from market.timeframe import TIMEFRAMES
from store.cache.statistics import TierStatistics
from store.tiers.disk import ChunkName, DiskTier
from store.tiers.disk_folder import room_of, write
from tests.conftest import ManualClock
from tests.support.disk_worker import MONTHS, SYMBOLS, chunk
from tests.support.made_candles import BTC, DAY, HOUR, MINUTE
from tests.support.places import mount, mounted
from tests.support.small_disk import BLOCK
from tests.support.workers import HERE, worker

MIB = 1 << 20
ROUNDS = int(os.environ.get("CHANDLERY_TEST_DISK_ROUNDS", "200"))


def made_tier(folder: Path, clock: Any, limit: int = 64 * MIB, **more: Any) -> DiskTier:
    return DiskTier(folder, limit, TierStatistics(clock.now_ms), clock, **{"keep_free_bytes": 0} | more)


@pytest.fixture
def disk(tmp_path: Path, clock: ManualClock) -> DiskTier:
    return made_tier(tmp_path / "cache", clock)


def tallied(disk: DiskTier) -> tuple[int, int, int, int]:
    """Hits, misses, errors, evictions."""
    counts = disk._statistics.snapshot()
    return (
        sum(one.hits for one in counts),
        sum(one.misses for one in counts),
        sum(one.errors for one in counts),
        sum(one.evictions for one in counts),
    )


def only_file(folder: Path) -> Path:
    (path,) = folder.rglob("*.arrow")
    return path


def held(disk: DiskTier, chunks: list[tuple[ChunkName, pa.Table]]) -> list[bool]:
    """Which of the chunks are there; they are looked for without being made use of."""
    disk.frozen = True
    try:
        return [disk.get(name) is not None for name, _ in chunks]
    finally:
        disk.frozen = False


def test_what_was_put_is_got_by_everyone(disk: DiskTier, tmp_path: Path, clock: ManualClock) -> None:
    name, table = chunk("BTC/USDT", 1, 17)
    assert disk.get(name) is None
    assert disk.put(name, table)
    assert only_file(tmp_path) == (
        tmp_path / f"cache/binance/BTC%2FUSDT/1m/stored-2023-02.r17.{name.digest.hex[:16]}.arrow"
    )
    for _ in range(2):
        found = disk.get(name)
        assert found is not None
        assert found.equals(table)
    # No copy: none of its memory is Arrow's own.
    before = pa.total_allocated_bytes()
    found = disk.get(name)
    assert pa.total_allocated_bytes() - before < 1000
    again = made_tier(tmp_path / "cache", clock)
    assert again.get(name) == table
    assert disk.get(chunk("BTC/USDT", 1, 18)[0]) is None
    assert disk.get(name._replace(kind="derived")) is None
    assert tallied(disk) == (3, 3, 0, 0)
    assert disk.files == 1
    assert disk.sweep().bytes == disk.bytes == disk._statistics.snapshot()[0].bytes > 0


def test_it_holds_no_file_open(disk: DiskTier) -> None:
    name, table = chunk("BTC/USDT", 0, 1)
    disk.put(name, table)
    before = len(os.listdir("/proc/self/fd"))
    tables = [disk.get(name) for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert all(one is not None and one.equals(table) for one in tables)


def test_a_table_outlives_its_file(disk: DiskTier, tmp_path: Path) -> None:
    name, table = chunk("BTC/USDT", 0, 1)
    disk.put(name, table)
    found = disk.get(name)
    part = disk.get(name).slice(100, 7)  # type: ignore[union-attr]
    disk.drop()
    shutil.rmtree(tmp_path / "cache")
    assert found is not None
    assert found.equals(table)
    del found
    assert part.equals(table.slice(100, 7))


def test_a_newer_revision_takes_the_place_of_older_ones(disk: DiskTier) -> None:
    neighbours = [chunk("BTC/USDT", 1, 3), chunk("ETH/USDT", 0, 3)]
    derived = chunk("BTC/USDT", 0, 3)[0]._replace(kind="derived")
    for name, table in [*neighbours, chunk("BTC/USDT", 0, 3), (derived, chunk("BTC/USDT", 0, 3)[1])]:
        assert disk.put(name, table)
    newer = chunk("BTC/USDT", 0, 12)
    assert disk.put(*newer)
    assert held(disk, [*neighbours, (derived, None), newer]) == [True] * 4
    assert held(disk, [chunk("BTC/USDT", 0, 3)]) == [False]
    # One that comes late leaves the newer one alone; so does a digest of another run of revisions.
    assert disk.put(*chunk("BTC/USDT", 0, 4))
    assert held(disk, [newer, chunk("BTC/USDT", 0, 4)]) == [True, True]


def test_the_least_recently_used_go_first(tmp_path: Path, clock: ManualClock) -> None:
    chunks = [chunk(symbol, month, 1) for month in range(MONTHS) for symbol in SYMBOLS]
    disk = made_tier(tmp_path / "cache", clock, limit=700_000)
    for name, table in chunks[:8]:
        assert disk.put(name, table)
        clock.advance(HOUR)
    for name, _ in chunks[:3]:
        assert disk.get(name) is not None
    clock.advance(HOUR)
    for name, table in chunks[8:13]:
        assert disk.put(name, table)
        clock.advance(HOUR)
    there = held(disk, chunks[:13])
    assert there[:3] == [True] * 3
    assert there[8:] == [True] * 5
    assert 0 < there.count(False) < 5
    # The oldest of those in between.
    assert there[3:8] == sorted(there[3:8])
    assert disk.sweep().bytes <= 700_000
    assert tallied(disk)[3] == there.count(False)


def test_a_use_is_noted_at_most_once_a_minute(disk: DiskTier, tmp_path: Path, clock: ManualClock) -> None:
    name, table = chunk("BTC/USDT", 0, 1)
    disk.put(name, table)
    path = only_file(tmp_path)
    put_at = path.stat().st_mtime_ns
    assert put_at == clock.now_ms() * 1_000_000
    clock.advance(MINUTE - 1)
    disk.get(name)
    assert path.stat().st_mtime_ns == put_at
    clock.advance(1)
    disk.get(name)
    assert path.stat().st_mtime_ns == put_at + MINUTE * 1_000_000
    # A clock that was wrong by years does not keep a file for ever.
    os.utime(path, ns=(4 * 10**18, 4 * 10**18))
    disk.get(name)
    assert path.stat().st_mtime_ns == put_at + MINUTE * 1_000_000


def test_nothing_larger_than_the_limit(tmp_path: Path, clock: ManualClock) -> None:
    disk = made_tier(tmp_path / "cache", clock, limit=20_000)
    with capture_logs() as said:
        assert not disk.put(*chunk("BTC/USDT", 0, 1))
    assert said[0]["event"] == "a chunk is larger than the disk cache"
    assert disk.counts.refused == 1
    assert disk.sweep().files == 0
    # One that takes nearly all of it does fit.
    almost = made_tier(tmp_path / "cache", clock, limit=58_000)
    for revision in (1, 2):
        assert almost.put(*chunk("BTC/USDT", revision, revision))
        assert almost.sweep().files == 1


def test_a_limit_of_nothing_is_no_disk_tier(tmp_path: Path, clock: ManualClock) -> None:
    disk = made_tier(tmp_path / "cache", clock, limit=0)
    assert not disk.put(*chunk("BTC/USDT", 0, 1))
    assert disk.get(chunk("BTC/USDT", 0, 1)[0]) is None
    assert not (tmp_path / "cache").exists()
    with pytest.raises(BadInput, match="limit_bytes"):
        made_tier(tmp_path / "cache", clock, limit=-1)


def test_what_is_not_what_its_name_says_is_not_kept(disk: DiskTier) -> None:
    name, table = chunk("BTC/USDT", 0, 1)
    with capture_logs() as said:
        assert not disk.put(name, table.slice(1))
        assert not disk.put(name._replace(start=name.start + DAY), table)
        assert not disk.put(name._replace(series=BTC.at(TIMEFRAMES["1M"])), table)
    assert len(said) == 1
    assert disk.counts.refused == 3
    assert disk.get(name._replace(start=name.start + DAY)) is None
    assert disk.get(name) is None


def state(folder: Path) -> dict[Path, tuple[int, ...]]:
    """Everything in a folder, with what changes when it is changed."""
    said = {path: path.stat() for path in folder.rglob("*")}
    return {path: (one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for path, one in said.items()}


def test_frozen_it_only_serves(tmp_path: Path, clock: ManualClock) -> None:
    chunks = [chunk(symbol, 0, 1) for symbol in SYMBOLS]
    filling = made_tier(tmp_path / "cache", clock)
    for name, table in chunks:
        filling.put(name, table)
    disk = made_tier(tmp_path / "cache", clock, limit=100_000)
    disk.frozen = True
    damaged = only_file(tmp_path / "cache/binance/BTC%2FUSDT")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    before = state(tmp_path)
    clock.advance(DAY)
    assert not disk.put(*chunk("BTC/USDT", 1, 1))
    assert [disk.get(name) is not None for name, _ in chunks] == [False, True, True, True]
    assert disk.sweep().files == 4
    assert state(tmp_path) == before
    disk.frozen = False
    assert disk.sweep().evicted > 0
    assert disk.bytes <= 100_000


def test_dropped_nothing_is_left(disk: DiskTier, tmp_path: Path, clock: ManualClock) -> None:
    other = made_tier(tmp_path / "cache", clock)
    for symbol in SYMBOLS:
        for month in range(2):
            assert other.put(*chunk(symbol, month, 1))
    folder = tmp_path / "cache/binance/BTC%2FUSDT/1m"
    (folder / ".stored-2023-09.r1.0.arrow.abc.unfinished").write_bytes(b"half")
    (folder / "foreign.arrow").symlink_to("/etc/hostname")
    (tmp_path / "cache/kraken/empty").mkdir(parents=True)
    assert disk.drop(BTC) == 4
    assert not folder.parent.exists()
    assert disk.files == 6
    assert disk.drop(BTC) == 0
    disk.frozen = True
    assert disk.drop() == 6
    assert list((tmp_path / "cache").iterdir()) == []
    assert disk.files == disk.bytes == 0
    disk.frozen = False
    assert other.get(chunk("ETH/USDT", 0, 1)[0]) is None
    assert other.put(*chunk("ETH/USDT", 0, 1))


def overwrite(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def changed(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()))

    return changed


def replace_by(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def replaced(path: Path) -> None:
        path.unlink()
        make(path)

    return replaced


def keep_times(path: Path) -> None:
    """One number changed, and nobody to see it by the time of the file."""
    said = path.stat()
    data = bytearray(path.read_bytes())
    data[20_000] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(said.st_atime_ns, said.st_mtime_ns))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": overwrite(lambda data: b""),
    "cut": overwrite(lambda data: data[:30_000]),
    "longer": overwrite(lambda data: data + b"\0"),
    "a page of zeros": overwrite(lambda data: data[:16_384] + bytes(4096) + data[20_480:]),
    "no Arrow": overwrite(lambda data: b"not at all"),
    "one bit": overwrite(lambda data: data[:25_000] + bytes([data[25_000] ^ 1]) + data[25_001:]),
    "one bit, same time": keep_times,
    "a folder": replace_by(Path.mkdir),
    "a pipe": replace_by(os.mkfifo),
    "a link to a file": replace_by(lambda path: path.symlink_to("/etc/hostname")),
    "a link to itself": replace_by(lambda path: path.symlink_to(path)),
    "a link to nothing": replace_by(lambda path: path.symlink_to("/nowhere")),
    "another's file": lambda path: os.chown(path, 12_345, -1),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("known", [False, True])
def test_a_damaged_or_foreign_file_is_deleted_and_made_again(
    disk: DiskTier, tmp_path: Path, damage: str, known: bool
) -> None:
    if damage == "another's file" and os.geteuid() != 0:
        pytest.skip("giving files away needs root")
    name, table = chunk("BTC/USDT", 0, 1)
    disk.put(name, table)
    if known:
        assert disk.get(name) is not None
    path = only_file(tmp_path)
    DAMAGES[damage](path)
    with capture_logs() as said:
        assert disk.get(name) is None
    assert not os.path.lexists(path)
    assert disk.counts.damaged == 1
    assert [one["event"] for one in said] == ["a damaged file in the disk cache is not used"]
    assert disk.get(name) is None
    assert disk.counts.damaged == 1
    assert disk.put(name, table)
    assert disk.get(name) == table


def test_a_file_of_another_chunk_under_this_name(disk: DiskTier, tmp_path: Path) -> None:
    name, table = chunk("BTC/USDT", 0, 1)
    disk.put(name, table)
    path = only_file(tmp_path)
    disk.put(*chunk("ETH/USDT", 0, 1))
    shutil.copy(only_file(tmp_path / "cache/binance/ETH%2FUSDT"), path)
    assert disk.get(name) is None
    assert disk.counts.damaged == 1


def test_a_full_folder_in_the_place_of_a_file_harms_nobody(disk: DiskTier, tmp_path: Path) -> None:
    name, table = chunk("BTC/USDT", 0, 1)
    disk.put(name, table)
    path = only_file(tmp_path)
    path.unlink()
    (path / "deep.arrow").mkdir(parents=True)
    assert disk.get(name) is None
    with capture_logs() as said:
        assert not disk.put(name, table)
    assert said[0]["event"] == "the disk cache cannot be written"
    assert disk.sweep().files == 1
    assert list(path.parent.iterdir()) == [path]


def test_links_are_not_followed_out_of_the_folder(disk: DiskTier, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    name, table = chunk("BTC/USDT", 0, 1)
    foreign = made_tier(elsewhere, disk._clock)
    foreign.put(name, table)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/binance").symlink_to(elsewhere / "binance")
    assert disk.get(name) is None
    assert not disk.put(*chunk("BTC/USDT", 0, 2))
    assert disk.sweep().files == 0
    assert disk.drop() == 0
    assert disk.drop(BTC) == 0
    assert foreign.get(name) == table
    assert tallied(disk) == (0, 1, 0, 0)


def test_a_folder_that_is_a_link_is_where_its_owner_wants_it(tmp_path: Path, clock: ManualClock) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "large")
    disk = made_tier(tmp_path / "cache", clock)
    assert disk.put(*chunk("BTC/USDT", 0, 1))
    assert (tmp_path / "large/binance").is_dir()


@pytest.mark.parametrize("place", ["gone", "a file"])
def test_no_folder_is_no_error(tmp_path: Path, clock: ManualClock, place: str) -> None:
    home = tmp_path / "disk"
    disk = made_tier(home / "cache", clock)
    name, table = chunk("BTC/USDT", 0, 1)
    assert disk.put(name, table)
    shutil.rmtree(home)
    if place == "a file":
        home.mkdir()
        (home / "cache").write_text("something else")
    with capture_logs() as said:
        for _ in range(5):
            assert disk.get(name) is None
            assert not disk.put(name, table)
        disk.sweep()
        disk.drop()
    # Once, not at each read.
    assert [one["event"] for one in said].count("the disk cache cannot be written") == 1
    assert disk.counts.refused == 5
    assert home.exists() == (place == "a file")
    # The disk is back.
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    assert disk.put(name, table)
    assert disk.get(name) == table


def test_read_only(tmp_path: Path, clock: ManualClock) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=8m", "tmpfs") as home:
        disk = made_tier(home / "cache", clock)
        chunks = [chunk("BTC/USDT", 0, 1), chunk("ETH/USDT", 0, 1)]
        for name, table in chunks:
            assert disk.put(name, table)
        damaged = only_file(home / "cache/binance/ETH%2FUSDT")
        damaged.write_bytes(b"?")
        mount(home, "-o", "remount,ro")
        clock.advance(HOUR)
        with capture_logs() as said:
            for _ in range(3):
                assert disk.get(chunks[0][0]) == chunks[0][1]
                assert disk.get(chunks[1][0]) is None
                assert not disk.put(*chunk("BTC/USDT", 0, 2))
            assert disk.sweep().files == 2
            assert disk.drop() == 0
        assert len(said) == 2
        assert [one.get("deleted") for one in said] == [False, None]
        mount(home, "-o", "remount,rw")
        assert disk.put(*chunks[1])
        assert disk.get(chunks[1][0]) == chunks[1][1]


def test_on_a_full_disk_the_cache_makes_way(tmp_path: Path, clock: ManualClock) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=4m", "tmpfs") as home:
        disk = made_tier(home / "cache", clock, keep_free_bytes=100_000)
        chunks = [chunk(symbol, 0, 1) for symbol in SYMBOLS]
        assert all(disk.put(name, table) for name, table in chunks[:3])
        ballast = fill(home)
        with capture_logs() as said:
            for _ in range(3):
                assert not disk.put(*chunks[3])
        assert [one["event"] for one in said] == ["the disk is nearly full: the cache takes nothing new"]
        assert held(disk, chunks) == [False] * 4
        assert list((home / "cache").iterdir()) == []
        ballast.unlink()
        assert disk.put(*chunks[3])
        assert held(disk, chunks) == [False, False, False, True]


@pytest.mark.parametrize("options", ["size=4m", "size=4m,nr_inodes=7"])
def test_a_disk_that_becomes_full_while_it_is_written(tmp_path: Path, clock: ManualClock, options: str) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", options, "tmpfs") as home:
        # As if there always were room.
        disk = made_tier(home / "cache", clock, keep_free_bytes=-(1 << 40))
        first, second = chunk("BTC/USDT", 0, 1), chunk("BTC/USDT", 1, 1)
        assert disk.put(*first)
        ballast = fill(home)
        with capture_logs() as said:
            for _ in range(3):
                assert not disk.put(*second)
        assert [(one["event"], one["error"]) for one in said] == [
            ("the disk cache cannot be written", "No space left on device")
        ]
        assert list(home.rglob("*.unfinished")) == []
        assert disk.get(first[0]) == first[1]
        ballast.unlink()
        assert disk.put(*second)


def fill(home: Path) -> Path:
    """Take all room there is."""
    ballast = home / "ballast"
    with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
        while file.write(b"\0" * BLOCK):
            pass
    return ballast


@pytest.mark.parametrize("keep", [None, MIB])
def test_it_leaves_room_for_others(tmp_path: Path, clock: ManualClock, keep: int | None) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=4m", "tmpfs") as home:
        disk = made_tier(home / "cache", clock, keep_free_bytes=keep)
        left = 4 * MIB // 20 if keep is None else keep
        chance = random.Random(1)
        put = 0
        for number in range(100):
            put += disk.put(*chunk(chance.choice(SYMBOLS), number % MONTHS, number))
            clock.advance(MINUTE)
            said = os.statvfs(home)
            assert said.f_bavail * said.f_frsize >= left
        assert put == 100


def test_many_threads(disk: DiskTier, tmp_path: Path) -> None:
    chunks = [chunk(symbol, month, 1) for month in range(MONTHS) for symbol in SYMBOLS]

    def work(number: int) -> bool:
        name, table = chunks[number % len(chunks)]
        if number < len(chunks):
            return disk.put(name, table)
        found = disk.get(name)
        return found is None or found.equals(table)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(4 * len(chunks))))
    assert all(held(disk, chunks))
    estimate, rooms = disk.bytes, [room_of(path.stat().st_size) for path in tmp_path.rglob("*.arrow")]
    assert estimate >= disk.sweep().bytes == sum(rooms)


def test_after_it_was_frozen_and_dropped_no_put_ends(
    disk: DiskTier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> None:
        inside.set()
        assert go_on.wait(30)
        write(*arguments)

    monkeypatch.setattr("store.tiers.disk.write", slow)
    with ThreadPoolExecutor(3) as pool:
        began = pool.submit(disk.put, *chunk("BTC/USDT", 0, 1))
        assert inside.wait(30)
        waiting = pool.submit(disk.put, *chunk("ETH/USDT", 0, 1))
        disk.frozen = True
        dropped = pool.submit(disk.drop)
        # It has to wait for the put that is under way; a drop that does not would be done by now.
        with contextlib.suppress(TimeoutError):
            dropped.result(0.3)
        go_on.set()
        assert began.result()
        assert not waiting.result()
        dropped.result()
    assert list((tmp_path / "cache").iterdir()) == []


def test_many_processes(tmp_path: Path, clock: ManualClock) -> None:
    folder, limit = tmp_path / "cache", 600_000
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(worker("mix", folder, limit, seed, ROUNDS, script=HERE / "disk_worker.py"))
            for seed in range(3)
        ]
        for one in workers:
            one.go()
        reports = [json.loads(one.rest()[-1]) for one in workers]
    total = {key: sum(one.get(key, 0) for one in reports) for key in ("wrong", "damaged", "got", "put", "evicted")}
    assert total["wrong"] == total["damaged"] == 0
    assert total["got"] > ROUNDS / 10
    assert total["put"] > ROUNDS / 2
    assert total["evicted"] > 0
    # Each may be in the middle of one file when another looks.
    assert max(one["largest"] for one in reports) <= limit + 2 * 60_000
    disk = made_tier(folder, clock, limit)
    assert disk.sweep().bytes <= limit
    assert not list(folder.rglob("*.unfinished"))
    disk.drop()
    assert list(folder.iterdir()) == []
