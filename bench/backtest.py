"""Candles per second of an event-driven moving-average cross, beside a bare Python loop that does the same.

Both run over the same 1,000,000 one-minute candles in one process, taking turns; medians are printed. The bare loop
gets its closes as a ready list: it reads nothing, checks nothing and keeps no account but the equity.

    python -m bench.backtest [--json] [--candles N] [--rounds N]
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from backtest.run import run_backtest
from bench.market import walk
from bench.paired import Measured, paired, run
from market.candle import open_times_ms
from market.coverage import CoverageState, Covered
from market.errors import Mismatch
from market.fingerprint import digest
from market.instrument import Series
from market.interval import Interval
from market.timeframe import ONE_MINUTE, TIMEFRAMES
from store.archive.manifest import MANIFEST, ArchiveFile, Manifest, series_folder
from trading.catalogue import load_strategy

#: Candles in the fast and the slow average.
LENGTHS = ((10, 30), (50, 200))
#: Candles in a second.
BUDGET = 1_000_000
#: Averages closer than this are equal, as in the strategy.
ABOVE, BELOW = 1 + 1e-11, 1 - 1e-11
SERIES = Series("binance", "BTC/USDT", ONE_MINUTE)


def archive(root: Path, table: pa.Table) -> None:
    """Write `table` as the archive would: a file a month and a manifest."""
    folder = series_folder(root, SERIES)
    folder.mkdir(parents=True)
    times = open_times_ms(table)
    months = TIMEFRAMES["1M"].floor_all(times)
    files = []
    for month in np.unique(months):
        rows = table.filter(pa.array(months == month))
        opens, name = open_times_ms(rows), f"{month}.parquet"
        pq.write_table(rows, folder / name, compression="zstd")
        files.append(
            ArchiveFile(
                period=str(month),
                name=name,
                rows=rows.num_rows,
                first_open=int(opens[0]),
                last_open=int(opens[-1]),
                sha256="",
                digest=digest(rows).hex,
                size=(folder / name).stat().st_size,
            )
        )
    known = Covered(
        interval=Interval(int(times[0]), int(times[-1]) + ONE_MINUTE.milliseconds),
        state=CoverageState.PRESENT,
        source="bench",
        learned_at=0,
    )
    manifest = Manifest(series=SERIES, files=tuple(files), coverage=(known,))
    (folder / MANIFEST).write_bytes(manifest.to_json())


def bare_loop(
    opens: list[float], closes: list[float], fast_length: int, slow_length: int, fee: float
) -> tuple[int, float]:
    """The same rules with nothing around them: running sums, one position, fills at the next open."""
    cash, held, wanted, fills = 10_000.0, 0.0, 0, 0
    fast_sum = sum(closes[slow_length - fast_length : slow_length - 1])
    slow_sum = sum(closes[: slow_length - 1])
    for at in range(slow_length - 1, len(closes)):
        if wanted:
            price = opens[at]
            if wanted > 0:
                held, cash = cash / (1 + fee) / price, 0.0
            else:
                cash, held = held * price * (1 - fee), 0.0
            wanted = 0
            fills += 1
        close = closes[at]
        fast_sum += close
        slow_sum += close
        fast, slow = fast_sum / fast_length, slow_sum / slow_length
        fast_sum -= closes[at - fast_length + 1]
        slow_sum -= closes[at - slow_length + 1]
        if fast > slow * ABOVE:
            if not held:
                wanted = 1
        elif held and fast < slow * BELOW:
            wanted = -1
    return fills, cash + held * closes[-1]


def measure(count: int, rounds: int) -> list[Measured]:
    """Both contenders in turn, for a cross with many fills and one with few."""
    table = walk(count)
    opens, closes = table.column("open").to_pylist(), table.column("close").to_pylist()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        archive(root, table)
        for fast, slow in LENGTHS:
            strategy = load_strategy("sma_cross", {"fast": fast, "slow": slow})
            ours = partial(run_backtest, root, strategy, "binance", ["BTC/USDT"], ONE_MINUTE)
            bare = partial(bare_loop, opens, closes, fast, slow, 0.001)
            fills = len(ours().fills)
            if fills != bare()[0]:
                raise Mismatch(f"{fills} fills, and {bare()[0]} of the bare loop")
            name = f"event-driven sma_cross {fast}/{slow}, {fills:,} fills"
            found.append(
                paired(name, count, ours, "bare Python loop", bare, rounds=rounds, budget_per_second=BUDGET)
            )
    return found


if __name__ == "__main__":
    run(measure, __doc__)
