"""The Python client as it is used in a shell: nobody closes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.acceptance.conftest import ROOT, Command

ONE_LINE = "import chandlery; print(chandlery.connect(r'{}').candles('BTC/USDT', '5m', exchange='binance').height)"


def test_a_client_that_nobody_closes_ends_without_a_word(chandlery: Command, tmp_path: Path) -> None:
    rows = [f"{1_685_577_600_000 + at * 60_000},11,12,10,11.5,3" for at in range(60)]
    file = tmp_path / "hour.csv"
    file.write_text("\n".join(["timestamp,open,high,low,close,volume", *rows]))
    assert chandlery("import", file, "--exchange", "binance", "--symbol", "BTC/USDT", "--home", tmp_path).code == 0
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ONE_LINE.format(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "12\n", "")
