"""``make bench``: all benchmarks, results printed and kept in ``bench/results``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = ("store", "backtest")
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Each in a process of its own, so that none warms or burdens the next."""
    RESULTS.mkdir(exist_ok=True)
    for name in BENCHMARKS:
        done = subprocess.run(
            [sys.executable, "-m", f"bench.{name}", "--json", *sys.argv[1:]], check=True, capture_output=True
        )
        (RESULTS / f"{name}.json").write_bytes(done.stdout)
        found = json.loads(done.stdout)
        for one in found if isinstance(found, list) else [found]:
            print(json.dumps(one))


if __name__ == "__main__":
    main()
