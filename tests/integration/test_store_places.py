"""An SQLite store where it cannot be: foreign, newer, damaged, read-only and full places. Nothing is changed."""

from __future__ import annotations

import contextlib
import os
import resource
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from market.errors import BadInput, NotFound, SchemaTooNew, StoreUnusable
from store.batch import Written
from store.sqlite import schema
from store.sqlite.store import DATABASE_NAME, SqliteStore
from tests.support.made_candles import BTC, START, absence, at, batch, made
from tests.support.places import mounted
from tests.support.proof import prove

WHOLE = (START, at(100_000))


async def open_and_close(path: Path, clock: Any, read_only: bool) -> None:
    async with SqliteStore.opened(path, clock, read_only=read_only):
        pass


async def filled(path: Path, clock: Any, count: int = 3000) -> None:
    """A store with some candles, closed."""
    async with SqliteStore.opened(path, clock) as store:
        await store.write(batch(made(range(count)), absences=[absence(count, count + 5)]))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("read_only", [False, True])
async def test_a_newer_schema_is_refused(tmp_path: Path, clock: Any, read_only: bool) -> None:
    path = tmp_path / DATABASE_NAME
    await filled(path, clock)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {schema.LATEST + 1}")
    before = path.read_bytes()
    with pytest.raises(
        SchemaTooNew, match=rf"schema version {schema.LATEST + 1}, this release knows {schema.LATEST}"
    ):
        await open_and_close(path, clock, read_only)
    assert path.read_bytes() == before


@pytest.mark.parametrize("read_only", [False, True])
async def test_another_programs_database_is_refused_and_left_as_it_is(
    tmp_path: Path, clock: Any, read_only: bool
) -> None:
    path = tmp_path / DATABASE_NAME
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
        connection.commit()
    before = files(tmp_path)
    with pytest.raises(StoreUnusable, match="SQLite database of another program; choose another home"):
        await open_and_close(path, clock, read_only)
    assert files(tmp_path) == before


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    "content", [b"open_time,open,high\n" * 100, b"\x00" * 5000, b"SQLite format 3\x00" + b"\xff" * 600]
)
async def test_a_file_that_is_no_database_is_refused(
    tmp_path: Path, clock: Any, read_only: bool, content: bytes
) -> None:
    path = tmp_path / DATABASE_NAME
    path.write_bytes(content)
    with pytest.raises(StoreUnusable, match="is damaged or not a Chandlery database"):
        await open_and_close(path, clock, read_only)
    assert path.read_bytes() == content


async def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path, clock: Any) -> None:
    (tmp_path / DATABASE_NAME).mkdir()
    with pytest.raises(StoreUnusable, match="cannot be opened"):
        await open_and_close(tmp_path / DATABASE_NAME, clock, False)


async def test_a_file_in_place_of_the_home_is_refused(tmp_path: Path, clock: Any) -> None:
    (tmp_path / "home").write_text("hello")
    with pytest.raises(BadInput, match=r"home: .* is not accepted"):
        await open_and_close(tmp_path / "home" / DATABASE_NAME, clock, False)


async def test_reading_needs_a_database_that_is_there_and_current(tmp_path: Path, clock: Any) -> None:
    path = tmp_path / DATABASE_NAME
    with pytest.raises(NotFound, match="run a backfill or an import first"):
        await open_and_close(path, clock, True)
    assert not path.exists()
    path.touch()
    with pytest.raises(StoreUnusable, match="schema version 0, reading needs"):
        await open_and_close(path, clock, True)


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9])
async def test_a_truncated_database_says_so(tmp_path: Path, clock: Any, kept: float) -> None:
    path = tmp_path / DATABASE_NAME
    await filled(path, clock)
    os.truncate(path, int(path.stat().st_size * kept))
    said: list[str] = []
    try:
        async with SqliteStore.opened(path, clock) as store:
            said += await store.integrity()
            await store.read(BTC, *WHOLE)
    except StoreUnusable as error:
        said.append(str(error))
    assert said
    assert all("damaged or not a Chandlery database" in one or "malformed" in one for one in said), said


async def test_a_damaged_page_is_an_error_and_the_next_read_works(tmp_path: Path, clock: Any) -> None:
    path = tmp_path / DATABASE_NAME
    await filled(path, clock, 20_000)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = b"\xaa" * 4096
    path.write_bytes(content)
    async with SqliteStore.opened(path, clock, read_only=True) as store:
        for _ in range(2):
            with pytest.raises(StoreUnusable, match="damaged"):
                await store.read(BTC, *WHOLE)
        assert await store.read(BTC, START, at(10)) == made(range(10))
        assert await store.integrity() != []


async def test_a_read_only_file_system_is_read_but_not_written(tmp_path: Path, clock: Any) -> None:
    home = tmp_path / "home"
    await filled(home / DATABASE_NAME, clock)
    with mounted(home, "--bind", str(home)), mounted(home, "-o", "remount,bind,ro"):
        async with SqliteStore.opened(home / DATABASE_NAME, clock, read_only=True) as store:
            assert await store.read(BTC, *WHOLE) == made(range(3000))
        with pytest.raises(BadInput, match="this one is read-only"):
            await open_and_close(home / DATABASE_NAME, clock, False)
        with pytest.raises(BadInput, match="can be made and written"):
            await open_and_close(home / "deeper" / DATABASE_NAME, clock, False)


async def test_a_home_without_permission_is_read_but_not_written(
    tmp_path: Path, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(tmp_path / DATABASE_NAME, clock)
    real = os.access

    def access(path: Any, mode: int) -> bool:
        return real(path, mode) and not (Path(path) == tmp_path and mode & os.W_OK)

    monkeypatch.setattr(os, "access", access)
    with pytest.raises(BadInput, match="this one is read-only"):
        await open_and_close(tmp_path / DATABASE_NAME, clock, False)
    before = set(os.listdir(tmp_path))
    async with SqliteStore.opened(tmp_path / DATABASE_NAME, clock, read_only=True) as store:
        assert await store.read(BTC, *WHOLE) == made(range(3000))
        assert set(os.listdir(tmp_path)) == before


async def test_what_is_still_in_the_wal_is_read_without_permission_to_write(
    tmp_path: Path, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / DATABASE_NAME
    async with SqliteStore.opened(path, clock) as writer:
        await writer.write(batch(made(range(100))))
        monkeypatch.setattr(os, "access", lambda folder, mode: mode != os.W_OK)
        async with SqliteStore.opened(path, clock, read_only=True) as store:
            assert await store.read(BTC, *WHOLE) == made(range(100))


async def test_a_full_disk_leaves_what_was_there_and_is_no_end(tmp_path: Path, clock: Any) -> None:
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=3m", "tmpfs") as home:
        path = home / DATABASE_NAME
        async with SqliteStore.opened(path, clock) as store:
            await store.write(batch(made(range(1000))))
            before = await store.series(), await store.chunks(BTC), await store.coverage(BTC)
            ballast = home / "ballast"
            with pytest.raises(OSError, match="No space left"):
                ballast.write_bytes(b"\0" * 3_000_000)
            for _ in range(3):
                with pytest.raises(StoreUnusable, match=r"no space left|input/output error"):
                    await store.write(batch(made(range(20_000), version=1)))
                assert (await store.series(), await store.chunks(BTC), await store.coverage(BTC)) == before
                assert await store.read(BTC, *WHOLE) == made(range(1000))
            ballast.unlink()
            assert await store.write(batch(made(range(500, 1500)))) == Written(inserted=500, unchanged=500)
        assert prove(path) == 1500


async def test_a_new_home_on_a_full_disk_is_refused(tmp_path: Path, clock: Any) -> None:
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=64k", "tmpfs") as home:
        with pytest.raises(OSError, match="No space left"):
            (home / "ballast").write_bytes(b"\0" * 100_000)
        with pytest.raises(StoreUnusable):
            await open_and_close(home / DATABASE_NAME, clock, False)


async def test_a_file_that_may_not_grow_is_like_a_full_disk(tmp_path: Path, clock: Any) -> None:
    path = tmp_path / DATABASE_NAME
    async with SqliteStore.opened(path, clock) as store:
        await store.write(batch(made(range(1000))))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
        try:
            for _ in range(2):
                with pytest.raises(StoreUnusable, match="nothing of this batch was written"):
                    await store.write(batch(made(range(30_000), version=1)))
                assert await store.read(BTC, *WHOLE) == made(range(1000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert await store.write(batch(made(range(2000)))) == Written(inserted=1000, unchanged=1000)
    assert prove(path) == 2000
