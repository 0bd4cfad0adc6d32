"""``kill -9`` at every step of an archive run: the old or the new state, and the next run completes it."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from store.archive.archive import Archive
from store.archive.manifest import series_folder
from store.sqlite.store import DATABASE_NAME, SqliteStore
from tests.support.made_candles import BTC, absence, batch, made
from tests.support.workers import HERE, worker

pytestmark = pytest.mark.crash

#: Some minutes of each day of January and February.
MINUTES = [day * 1440 + minute for day in range(55) for minute in range(0, 1440, 180)]


async def write(path: Path, clock: Any, version: int) -> None:
    async with SqliteStore.opened(path, clock) as store:
        await store.write(batch(made(MINUTES, version), absences=[absence(90_000, 91_000 + version)]))


def killed_at(path: Path, root: Path, step: int) -> bool:
    """One archive run that is killed just before its `step`-th change to the disk; False if it ended first."""
    with worker("archive", path, root, env={"KILL_AT": str(step)}, script=HERE / "killed_worker.py") as one:
        one.go()
        said = one.rest()
        assert not [line for line in said if line.startswith("failed")], said
        if one.process.returncode == -signal.SIGKILL:
            return True
        assert said[-1] == "done"
        return False


@pytest.mark.parametrize("start", ["from nothing", "over an older archive"])
async def test_killed_at_every_step(tmp_path: Path, clock: Any, start: str) -> None:
    path = tmp_path / DATABASE_NAME
    old = tmp_path / "old"
    await write(path, clock, 0)
    if start == "over an older archive":
        async with SqliteStore.opened(path, clock) as store:
            await Archive(old).build(store, BTC)
        await write(path, clock, 1)
    before = Archive(old).manifest(BTC)
    async with SqliteStore.opened(path, clock) as store:
        await Archive(tmp_path / "whole").build(store, BTC)
    after = Archive(tmp_path / "whole").manifest(BTC)
    assert after is not None

    seen_old = seen_new = 0
    for step in itertools.count(1):
        root = tmp_path / "archive"
        shutil.rmtree(root, ignore_errors=True)
        if before is not None:
            shutil.copytree(old, root)
        killed = killed_at(path, root, step)
        archive = Archive(root)
        found = archive.manifest(BTC)
        assert found in (before, after)
        seen_old += found == before
        seen_new += found == after
        if found is not None:
            assert archive.verify(BTC) == []
        async with SqliteStore.opened(path, clock) as store:
            await archive.build(store, BTC)
        assert archive.manifest(BTC) == after
        assert archive.verify(BTC) == []
        folder = series_folder(root, BTC)
        assert sorted(os.listdir(folder)) == sorted(["manifest.json", *(one.name for one in after.files)])
        if not killed:
            break
    # Two files and a manifest, each written, synced, renamed and synced; then the old ones go.
    assert step > 12
    assert seen_old > 8
    assert seen_new > (1 if before is None else 2)
