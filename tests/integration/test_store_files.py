"""Files are replaced whole or not at all; a lock holds one process and says who holds it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from market.errors import StoreBusy, StoreUnusable
from store.files import UNFINISHED, locked, replacing
from store.sqlite.store import DATABASE_NAME, SqliteStore
from tests.support.made_candles import BTC, START, at, batch, made


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    for text in ("one", "two"):
        with replacing(path) as temporary:
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "one"
        assert path.read_text() == text
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("ours"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_alone(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    expected = StoreUnusable if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as raised:
        write()
    if expected is StoreUnusable:
        assert str(raised.value) == f"{path} cannot be written: No space left on device; the old state is untouched"
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_what_an_interrupted_write_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / f"file{UNFINISHED}").write_text("longer than what comes now")
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "file").read_text() == "new"


def test_a_lock_has_one_holder_and_says_who(tmp_path: Path) -> None:
    path = tmp_path / "home" / ".lock"
    for _ in range(2):
        with locked(path, "up"):
            with pytest.raises(StoreBusy, match=rf"home is in use by chandlery up \(process {os.getpid()}\)"):
                locked(path, "archive").__enter__()
            # Who was refused did not take the name away.
            assert path.read_text().startswith("chandlery up")


def test_a_lock_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnusable, match="cannot be written"):
        locked(tmp_path / "file" / ".lock", "up").__enter__()


async def test_any_name_of_a_home_works(tmp_path: Path, clock: Any) -> None:
    path = tmp_path / "a home #1 ?x=y&mode=memory %20 é'\"" / DATABASE_NAME
    async with SqliteStore.opened(path, clock) as store:
        await store.write(batch(made(range(5))))
    assert path.is_file()
    async with SqliteStore.opened(path, clock, read_only=True) as store:
        assert await store.read(BTC, START, at(10)) == made(range(5))
