"""Candles made up for tests, and archives written straight from tables."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from market.candle import candles, open_times_ms
from market.coverage import CoverageState, Covered
from market.fingerprint import digest
from market.instrument import Series
from market.interval import Interval, IntervalSet
from market.timeframe import TIMEFRAMES, Timeframe
from store.archive.manifest import MANIFEST, ArchiveFile, Manifest, series_folder

#: 2023-01-01T00:00:00Z
START = 1_672_531_200_000


def walk(timeframe: Timeframe, count: int, seed: int = 7, start: int = START) -> pa.Table:
    """A random walk of `count` candles without holes, two decimals."""
    rng = np.random.default_rng(seed)
    close = np.round(100 * np.exp(np.cumsum(rng.normal(0, 0.002, count))), 2)
    opens = np.concatenate(([100.0], close[:-1]))
    times = start + np.arange(count) * timeframe.milliseconds
    return table_of(
        times,
        opens,
        close,
        high=np.round(np.maximum(opens, close) + rng.uniform(0, 0.2, count), 2),
        low=np.round(np.minimum(opens, close) - rng.uniform(0, 0.2, count), 2),
        volume=np.round(rng.uniform(0.1, 5, count), 3),
    )


def table_of(times, opens, closes, high=None, low=None, volume=None) -> pa.Table:
    """Candles from open times and prices."""
    opens, closes = np.asarray(opens, float), np.asarray(closes, float)
    return candles(
        {
            "open_time": np.asarray(times, np.int64),
            "open": opens,
            "high": np.maximum(opens, closes) if high is None else high,
            "low": np.minimum(opens, closes) if low is None else low,
            "close": closes,
            "volume": np.ones(len(opens)) if volume is None else volume,
        }
    )


def covered(start: int, end: int, state: CoverageState) -> Covered:
    return Covered(interval=Interval(start, end), state=state, source="test", learned_at=0)


def coverage_of(table: pa.Table, timeframe: Timeframe) -> list[Covered]:
    """Present where there are rows, nothing known elsewhere."""
    present = IntervalSet.of_candles(open_times_ms(table), timeframe)
    return [covered(one.start, one.end, CoverageState.PRESENT) for one in present]


def write_archive(
    root: Path, series: Series, table: pa.Table, coverage: Sequence[Covered] | None = None, period: str = "1M"
) -> Manifest:
    """Archive `table` as `series`, one file per `period`."""
    folder = series_folder(root, series)
    folder.mkdir(parents=True, exist_ok=True)
    times = open_times_ms(table)
    buckets = TIMEFRAMES[period].floor_all(times)
    files = []
    for bucket in np.unique(buckets):
        part = table.filter(pa.array(buckets == bucket))
        opens = open_times_ms(part)
        name = f"{bucket}.{digest(part).hex[:8]}.parquet"
        pq.write_table(part, folder / name, compression="zstd")
        data = (folder / name).read_bytes()
        files.append(
            ArchiveFile(
                period=str(bucket),
                name=name,
                rows=part.num_rows,
                first_open=int(opens[0]),
                last_open=int(opens[-1]),
                sha256=hashlib.sha256(data).hexdigest(),
                digest=digest(part).hex,
                size=len(data),
            )
        )
    known = coverage_of(table, series.timeframe) if coverage is None else coverage
    manifest = Manifest(series=series, files=tuple(files), coverage=tuple(known))
    (folder / MANIFEST).write_bytes(manifest.to_json())
    return manifest
