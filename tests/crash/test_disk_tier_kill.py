"""``kill -9`` while the disk tier is written: what is there is whole, and what is left over is swept."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.files import UNFINISHED
from store.tiers.disk_file import SUFFIX
from tests.support.disk_worker import MONTHS, SYMBOLS, chunk, tier
from tests.support.workers import HERE, worker

pytestmark = pytest.mark.crash

KILLS = int(os.environ.get("CHANDLERY_TEST_DISK_KILLS", "20"))


def work(*arguments: object) -> dict[str, int]:
    with worker(*arguments, script=HERE / "disk_worker.py") as one:
        one.go()
        said: dict[str, int] = json.loads(one.rest()[-1])
        return said


def names(folder: Path, suffix: str) -> Iterator[str]:
    yield from (path.name for path in folder.rglob(f"*{suffix}"))


def check(folder: Path, revisions: set[int]) -> int:
    """Every file is what its name says, and nothing but these is there after a sweep; how many files."""
    disk = tier(folder, 1 << 30)
    served = 0
    for revision in revisions:
        for symbol in SYMBOLS:
            for month in range(MONTHS):
                name, table = chunk(symbol, month, revision)
                found = disk.get(name)
                assert found is None or found.equals(table)
                served += found is not None
    # A file has its name only when it is whole.
    assert disk.counts.damaged == 0
    assert served == len(list(names(folder, SUFFIX)))
    before = len(list(names(folder, UNFINISHED)))
    assert disk.sweep().leftovers == before
    assert list(names(folder, UNFINISHED)) == []
    assert disk.files == served
    return served


def test_killed_at_every_step(tmp_path: Path) -> None:
    folder = tmp_path / "caches"
    steps = work("killed_at", folder)["steps"]
    own = [folder / str(step) for step in range(1, steps + 1)]
    # From its making to its renaming the file has another name: lock, three pieces, time, name.
    assert [len(list(names(one, UNFINISHED))) for one in own].count(1) == 6
    served = [check(one, {1, 2}) for one in own]
    # The first revision; between renaming and deleting both; the second.
    assert served == [1] * (steps - 2) + [2, 1]
    disk = tier(own[-1], 1 << 30)
    assert disk.get(chunk(SYMBOLS[0], 0, 2)[0]) is not None
    assert disk.get(chunk(SYMBOLS[0], 0, 1)[0]) is None


def test_killed_at_any_moment(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    assert work("killed", folder, KILLS, 7)["killed"] == KILLS
    revisions = {int(name.split(".r")[1].split(".")[0]) for name in names(folder, SUFFIX)}
    assert revisions
    assert check(folder, revisions)
    disk = tier(folder, 1 << 30)
    for number, symbol in enumerate(SYMBOLS):
        name, table = chunk(symbol, number, 10**9)
        assert disk.put(name, table)
        found = disk.get(name)
        assert found is not None
        assert found.equals(table)
