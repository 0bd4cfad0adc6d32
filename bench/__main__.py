"""``make bench``: all benchmarks, results printed and kept in ``bench/results``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = ("store", "postgres", "backtest", "streams", "ingest", "tiers", "tier_redis", "tier_mix")
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Each in a process of its own, so that none warms or burdens the next."""
    RESULTS.mkdir(exist_ok=True)
    for name in BENCHMARKS:
        done = subprocess.run(
            [sys.executable, "-m", f"bench.{name}", "--json", *sys.argv[1:]], check=True, capture_output=True
        )
        (RESULTS / f"{name}.json").write_bytes(done.stdout)
        for one in json.loads(done.stdout):
            print(_line(one))


def _line(one: dict[str, Any]) -> str:
    if "baseline" not in one:
        values, more = (
            "   ".join(f"{name} {value:,.2f}" for name, value in one[part].items()) for part in ("values", "more")
        )
        return f"{one['name']:50} {values} {one['unit']}   {more}"
    return (
        f"{one['name']:50} {one['ours_per_second']:>14,}/s   {one['baseline']:40}"
        f" {one['baseline_per_second']:>14,}/s   {one['ratio']:8.3f} x"
    )


if __name__ == "__main__":
    main()
