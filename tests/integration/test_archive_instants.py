"""DuckDB, SQLite, Arrow and polars mean the same instant, whatever the zone of the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from market.clock import to_ms
from store.archive.archive import Archive
from store.sqlite.store import DATABASE_NAME, SqliteStore
from tests.support.made_candles import BTC, MINUTE, batch, made_at
from tests.support.workers import HERE, ROOT

#: Both sides of a month, of a year, and of the hours that Berlin and New York skip or repeat.
TIMES = [
    to_ms(text) + minute * MINUTE
    for text in (
        "2022-12-31T14:59:00Z", "2022-12-31T23:59:00Z", "2023-03-12T06:59:00Z", "2023-03-26T00:59:00Z",
        "2023-05-31T23:58:00Z", "2023-10-29T00:59:00Z", "2023-11-05T05:59:00Z",
    )
    for minute in range(3)
]  # fmt: skip


def read_under(zone: str, path: Path, root: Path) -> dict[str, list[int]]:
    """What ``instants.py`` prints in a process with that zone."""
    ran = subprocess.run(
        [sys.executable, str(HERE / "instants.py"), str(path), str(root)],
        env=os.environ | {"TZ": zone, "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)])},
        capture_output=True,
        text=True,
        check=True,
    )
    read: dict[str, list[int]] = json.loads(ran.stdout)
    return read


@pytest.mark.parametrize("zone", ["UTC", "Asia/Seoul", "America/New_York", "Europe/Berlin"])
async def test_every_reader_means_the_same_instant(tmp_path: Path, clock: Any, zone: str) -> None:
    path, root = tmp_path / DATABASE_NAME, tmp_path / "archive"
    async with SqliteStore.opened(path, clock) as store:
        await store.write(batch(made_at(TIMES)))
        await Archive(root).build(store, BTC)
        periods = [one.period for one in Archive(root).manifests()[0].files]
    assert periods == ["2022-12", "2023-01", "2023-03", "2023-05", "2023-06", "2023-10", "2023-11"]
    read = read_under(zone, path, root)
    bounds = read.pop("parquet statistics")
    assert {name for name, times in read.items() if times != TIMES} == set()
    assert len(read) == 7
    assert bounds == sorted(bounds)
    assert (bounds[0], bounds[-1]) == (TIMES[0], TIMES[-1])
