"""Prints the open times of a store and its archive as every reader takes them; run under several time zones."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import duckdb
import polars
import pyarrow.parquet as pq

from market.candle import INSTANT, instants_ms, open_times_ms
from market.clock import SystemClock, iso
from store.archive.archive import Archive, read_candles
from store.sqlite.store import SqliteStore
from tests.support.made_candles import BTC, NOW


async def stored(path: Path) -> Any:
    async with SqliteStore.opened(path, SystemClock(), read_only=True) as store:
        return await store.read(BTC, 0, NOW)


def instants(path: Path, root: Path) -> dict[str, list[int]]:
    """Epoch milliseconds by reader."""
    archive = Archive(root)
    manifest = archive.manifest(BTC)
    assert manifest is not None
    files = [str(archive.path(BTC, one)) for one in manifest.files]
    table = asyncio.run(stored(path))
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    rows = connection.execute(
        "SELECT epoch_ms(open_time), CAST(open_time AS VARCHAR) FROM read_parquet($files) ORDER BY 1",
        {"files": files},
    ).fetchall()
    found = {
        "sqlite file": [
            row[0] for row in sqlite3.connect(path).execute("SELECT open_time FROM candles ORDER BY 1")
        ],
        "store": open_times_ms(table).tolist(),
        "store as datetimes": [round(one.timestamp() * 1000) for one in table.column("open_time").to_pylist()],
        "archive": [one for file in files for one in open_times_ms(read_candles(Path(file))).tolist()],
        "parquet statistics": _bounds(files),
        "duckdb": [row[0] for row in rows],
        "duckdb to arrow": _arrow(connection, files),
        "polars": polars.read_parquet(files)["open_time"].dt.epoch("ms").to_list(),
    }
    assert [row[1][:19] for row in rows] == [iso(row[0])[:19].replace("T", " ") for row in rows]
    connection.close()
    return found


def _arrow(connection: duckdb.DuckDBPyConnection, files: list[str]) -> list[int]:
    query = "SELECT open_time FROM read_parquet($files) ORDER BY 1"
    column = connection.sql(query, params={"files": files}).to_arrow_table().column(0)
    times: list[int] = instants_ms(column.cast(INSTANT)).tolist()
    return times


def _bounds(files: list[str]) -> list[int]:
    bounds: list[int] = []
    for file in files:
        statistics = pq.read_metadata(file).row_group(0).column(0).statistics
        bounds += [round(one.timestamp() * 1000) for one in (statistics.min, statistics.max)]
    return bounds


if __name__ == "__main__":
    read = instants(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.write(json.dumps({name: [int(one) for one in times] for name, times in read.items()}))
