"""An exchange in trouble, seen from the command line: passing trouble is sat out, the rest is said in a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import Command, started

FAULTS: dict[str, dict[str, Any]] = {
    "429": {"do": "status", "status": 429, "retry_after": 1},
    "418": {"do": "status", "status": 418, "retry_after": 1},
    "503": {"do": "status", "status": 503},
    "html": {"do": "html"},
    "half a body": {"do": "half_body"},
    "nothing": {"do": "empty"},
    "a partial page": {"do": "partial"},
}


@pytest.mark.parametrize("name", FAULTS)
def test_passing_trouble_is_sat_out(chandlery: Command, tmp_path: Path, name: str) -> None:
    rules = tmp_path / "faults.json"
    rules.write_text(json.dumps([{"path": "/api/v3/klines", "from": 2, "count": 1} | FAULTS[name]]))
    arguments = ("simulate", "--seed", 7, "--now", "2024-06-01T00:00:30Z", "--port", 0, "--faults", rules)
    with started(*arguments, ready="ready") as (_, line):
        done = chandlery(
            "backfill", "--exchange", "binance", "--exchange-url", line.split()[1], "--symbols", "BTC/USDT",
            "--since", "2024-05-30", "--until", "2024-06-01", "--home", tmp_path, "--json",
        )  # fmt: skip
    assert done.code == 0, done.err
    (series,) = done.json["series"]
    assert (series["stored"] + series["verified_empty"], series["missing"]) == (2880, 0)
    assert "Traceback" not in done.err
    # The HTTP library itself repeats what got no answer at all, and a partial page is no error.
    if name not in ("nothing", "a partial page"):
        assert "; waiting" in done.err if name in ("429", "418") else "trying again in" in done.err


def test_a_ban_longer_than_our_patience_ends_the_run_and_keeps_what_came(
    chandlery: Command, tmp_path: Path
) -> None:
    rules = tmp_path / "faults.json"
    fault = {"path": "/api/v3/klines", "from": 2, "count": 99, "do": "status", "status": 418, "retry_after": 3600}
    rules.write_text(json.dumps([fault]))
    arguments = ("simulate", "--seed", 7, "--now", "2024-06-01T00:00:30Z", "--port", 0, "--faults", rules)
    with started(*arguments, ready="ready") as (_, line):
        done = chandlery(
            "backfill", "--exchange", "binance", "--exchange-url", line.split()[1], "--symbols", "BTC/USDT",
            "--since", "2024-05-30", "--until", "2024-06-01", "--home", tmp_path, "--json",
        )  # fmt: skip
    assert done.code == 1
    (series,) = done.json["series"]
    assert (series["stored"], series["missing"]) == (1000, 1880)
    assert len(series["missing_intervals"]) == 1
    assert "3600" in series["error"] or "418" in series["error"] or "ban" in series["error"]


def test_a_faults_file_that_is_wrong(chandlery: Command, tmp_path: Path) -> None:
    rules = tmp_path / "faults.json"
    rules.write_text('[{"do": "explode"}]')
    done = chandlery("simulate", "--seed", 1, "--port", 0, "--faults", rules)
    assert done.code == 2
    assert "do" in done.err
    assert "half_body" in done.err
