"""The main job: the demonstration ends with a summary; `up` serves until it is interrupted, and stops cleanly."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest

import chandlery as client
from tests.acceptance.conftest import ROOT, Command, started

UP = ("--now", "2024-06-01T00:00:30Z", "--since", "2024-05-31T20:00:00Z", "--speed", 120)


def answer(url: str, names: dict[str, str]) -> Any:
    """The candles of a service that may still be fetching the first of them."""
    for _ in range(3000):
        response = httpx.get(f"{url}/v1/candles", params=names)
        if response.status_code == 200 and response.json()["data"]:
            return response.json()
        assert response.status_code in (200, 404), response.text
    raise AssertionError("no candle came")


def test_the_demonstration_ends_with_a_summary(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "chandlery", "up", "--demo", "--home", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for part in ("Kept", "Archived", "Served", "Backtested", "result hash", "simulated BTC/USDT 1m"):
        assert part in done.stdout
    # The week has an outage of the made-up exchange: verified empty, and no gap.
    kept = next(line.split() for line in done.stdout.splitlines() if line.startswith("simulated BTC/USDT 1m"))
    assert (kept[5], kept[6]) == ("100", "0")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.glob("archive/simulated/BTC-USDT/1m/*.parquet"))


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_up_serves_what_it_keeps_until_interrupted(
    chandlery: Command, tmp_path: Path, stop: signal.Signals
) -> None:
    with started("up", "--home", tmp_path, "--port", 0, *UP, ready="serving on") as (process, line):
        url = "http://" + line.split("http://")[1].split()[0]
        names = {"exchange": "simulated", "symbol": "BTC/USDT", "timeframe": "1m"}
        first = answer(url, names)
        # The exchange's clock runs: a closed candle arrives by itself, two real half seconds apart.
        newest = first["data"][-1][0]
        for _ in range(3000):
            later = httpx.get(f"{url}/v1/candles", params=names | {"limit": "5"}).json()
            if later["data"][-1][0] > newest:
                break
        assert later["data"][-1][0] > newest
        assert later["meta"]["complete"] is True
        process.send_signal(stop)
        assert process.stdout is not None
        rest = process.stdout.read()
        assert process.wait() == 0
        assert "Traceback" not in rest
        assert "stopped" in rest
    # What it had committed is there, complete, and equal over both doors.
    assert chandlery("check", "--home", tmp_path).code == 0
    with client.connect(str(tmp_path)) as store:
        kept = store.candles("BTC/USDT", "1m", exchange="simulated")
    assert kept["open_time"].is_sorted()
    assert kept.filter(pl.col("open_time").dt.epoch("ms") <= newest).height >= len(first["data"])


def test_a_forming_candle_is_served_on_request_and_never_stored(tmp_path: Path) -> None:
    with started("up", "--home", tmp_path, "--port", 0, *UP, ready="serving on") as (_, line):
        url = "http://" + line.split("http://")[1].split()[0]
        names = {"exchange": "simulated", "symbol": "BTC/USDT", "timeframe": "1m", "limit": "3"}
        for _ in range(3000):
            body = answer(url, names | {"include_forming": "true"})
            at = body["columns"].index("closed")
            if not body["data"][-1][at]:
                break
        assert [row[at] for row in body["data"]][-1] is False
        assert all(row[at] for row in body["data"][:-1])
        forming = body["data"][-1][0]
        with client.connect(str(tmp_path)) as store:
            stored = store.candles("BTC/USDT", "1m", exchange="simulated")
        plain = httpx.get(f"{url}/v1/candles", params=names).json()
        assert "closed" not in plain["columns"]
        assert stored["open_time"].dt.epoch("ms").max() < forming + 60_000


def test_the_commands_explain_themselves(chandlery: Command) -> None:
    listing = chandlery("--help")
    assert listing.code == 0
    for command in ("up", "backfill", "check", "doctor"):
        assert command in listing.out
    assert chandlery("--version").out.startswith("chandlery ")


def test_the_doctor_says_what_is_there(chandlery: Command, exchange_url: str, tmp_path: Path) -> None:
    done = chandlery(
        "doctor", "--home", tmp_path, "--exchange", "binance", "--exchange-url", exchange_url, "--json"
    )
    found = {one["what"]: one for one in done.json}
    assert done.code == 0
    assert "none yet" in found["database"]["detail"]
    assert exchange_url in found["binance"]["detail"]
    away = chandlery("doctor", "--home", tmp_path, "--exchange", "binance", "--exchange-url", "http://127.0.0.1:9")
    assert away.code == 1


def test_up_serves_what_it_has_while_the_exchange_is_away(chandlery: Command, tmp_path: Path) -> None:
    rows = [f"{1_685_577_600_000 + at * 60_000},11,12,10,11.5,3" for at in range(60)]
    file = tmp_path / "hour.csv"
    file.write_text("\n".join(["timestamp,open,high,low,close,volume", *rows]))
    assert chandlery("import", file, "--exchange", "binance", "--symbol", "BTC/USDT", "--home", tmp_path).code == 0
    away = ("--exchange", "binance", "--exchange-url", "http://127.0.0.1:9", "--symbols", "BTC/USDT")
    with started("up", "--home", tmp_path, "--port", 0, *away, ready="serving on") as (process, line):
        url = "http://" + line.split("http://")[1].split()[0]
        assert process.stdout is not None
        assert "trying again every 60 s" in process.stdout.readline()
        body = answer(url, {"exchange": "binance", "symbol": "BTC/USDT", "timeframe": "15m"})
        assert len(body["data"]) == 4


def test_a_port_in_use_is_known_before_anything_is_fetched(chandlery: Command, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = chandlery("up", "--home", tmp_path, "--port", port)
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert f"127.0.0.1:{port}" in done.err
