"""Candles per second of an event-driven moving-average cross, beside a bare Python loop that does the same.

Both run over the same 1,000,000 one-minute candles in one process, taking turns; medians are printed. The bare loop
gets its closes as a ready list: it reads nothing, checks nothing and keeps no account but the equity.

    python -m bench.backtest [--json] [--candles N] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from backtest.run import run_backtest
from market.candle import candles, open_times_ms
from market.coverage import CoverageState, Covered
from market.fingerprint import digest
from market.instrument import Series
from market.interval import Interval
from market.timeframe import ONE_MINUTE, TIMEFRAMES
from store.archive.manifest import MANIFEST, ArchiveFile, Manifest, series_folder
from trading.catalogue import load_strategy

FAST, SLOW = 10, 30
#: Averages closer than this are equal, as in the strategy.
ABOVE, BELOW = 1 + 1e-11, 1 - 1e-11
#: 2022-01-01T00:00:00Z
START = 1_640_995_200_000
SERIES = Series("binance", "BTC/USDT", ONE_MINUTE)


def market(count: int) -> pa.Table:
    """A seeded random walk with every column that Binance gives, two decimals."""
    rng = np.random.default_rng(1)
    close = np.round(30_000 * np.exp(np.cumsum(rng.normal(0, 5e-4, count))), 2)
    opens = np.concatenate(([30_000.0], close[:-1]))
    volume = np.round(rng.uniform(0.1, 50, count), 5)
    return candles(
        {
            "open_time": START + np.arange(count) * ONE_MINUTE.milliseconds,
            "open": opens,
            "high": np.round(np.maximum(opens, close) + rng.uniform(0, 5, count), 2),
            "low": np.round(np.minimum(opens, close) - rng.uniform(0, 5, count), 2),
            "close": close,
            "volume": volume,
            "quote_volume": np.round(volume * close, 5),
            "trades": rng.integers(1, 5000, count),
            "taker_buy_volume": np.round(volume / 2, 5),
            "taker_buy_quote_volume": np.round(volume * close / 2, 5),
        }
    )


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


def bare_loop(opens: list[float], closes: list[float], fee: float) -> tuple[int, float]:
    """The same rules with nothing around them: running sums, one position, fills at the next open."""
    cash, held, wanted, fills = 10_000.0, 0.0, 0, 0
    fast_sum = sum(closes[SLOW - FAST : SLOW - 1])
    slow_sum = sum(closes[: SLOW - 1])
    for at in range(SLOW - 1, len(closes)):
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
        fast, slow = fast_sum / FAST, slow_sum / SLOW
        fast_sum -= closes[at - FAST + 1]
        slow_sum -= closes[at - SLOW + 1]
        if fast > slow * ABOVE:
            if not held:
                wanted = 1
        elif held and fast < slow * BELOW:
            wanted = -1
    return fills, cash + held * closes[-1]


def timed(work: Callable[[], object]) -> float:
    """Seconds of wall time."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(count: int, rounds: int) -> dict[str, object]:
    """Both contenders, alternated."""
    table = market(count)
    opens, closes = table.column("open").to_pylist(), table.column("close").to_pylist()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        archive(root, table)
        strategy = load_strategy("sma_cross", {"fast": FAST, "slow": SLOW})

        def engine() -> object:
            return run_backtest(root, strategy, "binance", ["BTC/USDT"], ONE_MINUTE)

        result = run_backtest(root, strategy, "binance", ["BTC/USDT"], ONE_MINUTE)
        bare_fills, bare_equity = bare_loop(opens, closes, 0.001)
        ours, bare = [], []
        for _ in range(rounds):
            ours.append(timed(engine))
            bare.append(timed(lambda: bare_loop(opens, closes, 0.001)))
    ours_rate, bare_rate = count / statistics.median(ours), count / statistics.median(bare)
    return {
        "benchmark": "backtest",
        "candles": count,
        "rounds": rounds,
        "python": platform.python_version(),
        "event_driven_candles_per_second": round(ours_rate),
        "bare_loop_candles_per_second": round(bare_rate),
        "ratio": round(ours_rate / bare_rate, 4),
        "budget_candles_per_second": 1_000_000,
        "fills": len(result.fills),
        "bare_loop_fills": bare_fills,
        "final_equity": result.final_equity,
        "bare_loop_final_equity": bare_equity,
        "result_hash": result.result_hash,
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--candles", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    found = measure(options.candles, options.rounds)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for name, value in found.items():
        print(f"{name:34} {value:,}" if isinstance(value, int | float) else f"{name:34} {value}")


if __name__ == "__main__":
    main()
