"""Bad input: one clear line that names what is wrong, the right exit code, and nothing changed."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import polars as pl
import pytest

from tests.acceptance.conftest import ROOT, Command, Outcome, started

MINUTE = 60_000
START = 1_685_577_600_000  # 2023-06-01
BTC = ("--exchange", "binance", "--symbol", "BTC/USDT")
HEADER = "timestamp,open,high,low,close,volume"


def one_line(outcome: Outcome, code: int, *parts: str) -> None:
    """The command ended with `code` and said one line that holds all of `parts`."""
    assert outcome.code == code, outcome.err
    assert outcome.err.count("\n") == 1, outcome.err
    assert "Traceback" not in outcome.err
    for part in parts:
        assert part in outcome.err, outcome.err


def write_csv(path: Path, rows: list[str]) -> Path:
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path


def row(at: int, volume: str = "1.5", high: str = "12.5") -> str:
    return f"{START + at * MINUTE},11.0,{high},10.0,12.0,{volume}"


@pytest.fixture
def home(chandlery: Command, tmp_path: Path) -> Path:
    """A home with one hour of minutes."""
    file = write_csv(tmp_path / "hour.csv", [row(at) for at in range(60)])
    done = chandlery("import", file, *BTC, "--timeframe", "1m", "--home", tmp_path / "home")
    assert done.code == 0, done.err
    return tmp_path / "home"


def content(home: Path) -> bytes:
    """All rows of all tables, to compare before and after."""
    with sqlite3.connect(home / "market_data.sqlite3") as connection:
        dump = "\n".join(connection.iterdump()).encode()
    connection.close()
    return dump


BACKFILL = ("backfill", "--exchange", "binance", "--symbols", "BTC/USDT", "--since", "2023-01-01")


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (("coverage", "--exchange", "nowhere", "--symbol", "BTC/USDT"), ["exchange", "nowhere", "binance"]),
        (("coverage", "--exchange", "binance", "--symbol", "XYZ/USDT"), ["symbol", "XYZ/USDT", "BTC/USDT"]),
        (("coverage", "--exchange", "binance", "--symbol", "BTCUSDT"), ["symbol", "BTCUSDT", "BTC/USDT"]),
        (("coverage", *BTC, "--timeframe", "7m"), ["timeframe", "7m", "15m"]),
        (("coverage", *BTC, "--since", "2023-06-01T00:00:00"), ["--since", "no zone"]),
        (("coverage", *BTC, "--since", "yesterday"), ["--since", "yesterday"]),
        (("coverage", *BTC, "--since", "1685577600"), ["--since", "milliseconds"]),
        (("gaps", *BTC, "--since", "2023-07-01", "--until", "2023-06-01"), ["--until", "after --since"]),
        ((*BACKFILL[:-1], "2099-01-01"), ["--since", "2099-01-01", "past"]),
        ((*BACKFILL, "--until", "2022-01-01"), ["--until", "after --since"]),
        ((*BACKFILL, "--timeframe", "2m"), ["timeframe", "2m"]),
        (("backfill", "--exchange", "binanse", *BACKFILL[3:]), ["exchange", "binanse", "binance"]),
        (("backfill", "--exchange", "binance", "--symbols", ",", "--since", "2023-01-01"), ["--symbols"]),
        ((*BACKFILL, "--exchange-url", "nonsense"), ["exchange-url", "nonsense"]),
        (("export", *BTC, "--out", "x.xlsx"), ["file", "x.xlsx", ".csv"]),
        (("export", *BTC, "--out", "/nowhere/x.csv"), ["file", "/nowhere/x.csv"]),
        (("archive", "--exchange", "kraken"), ["--exchange", "kraken", "binance"]),
        (("backtest", "no_such", "--exchange", "binance", "--symbols", "BTC/USDT"), ["no_such", "sma_cross"]),
        (("import", "/nowhere.csv", *BTC), ["file", "/nowhere.csv"]),
    ],
    ids=lambda value: " ".join(map(str, value))[:60],
)
def test_wrong_words(chandlery: Command, home: Path, arguments: tuple[str, ...], parts: list[str]) -> None:
    before = content(home)
    one_line(chandlery(*arguments, "--home", home), 2, *parts)
    assert content(home) == before


def test_a_typo_in_an_option_is_bad_usage(chandlery: Command, home: Path) -> None:
    done = chandlery("series", "--hme", home)
    assert done.code == 2
    assert "--hme" in done.err
    assert "--home" in done.err


def test_unknown_symbol_of_the_exchange(chandlery: Command, exchange_url: str, tmp_path: Path) -> None:
    done = chandlery(
        "backfill", "--exchange", "binance", "--exchange-url", exchange_url, "--symbols", "BTC/USTD",
        "--since", "2024-05-31", "--home", tmp_path,
    )  # fmt: skip
    one_line(done, 2, "symbol", "BTC/USTD", "BTC/USDT")


def test_missing_columns_are_named_and_nothing_is_stored(chandlery: Command, home: Path, tmp_path: Path) -> None:
    before = content(home)
    file = tmp_path / "short.csv"
    file.write_text("timestamp,open,high,low,close\n1685577600000,1,2,1,2\n")
    one_line(chandlery("import", file, *BTC, "--home", home), 2, "file", "volume")
    assert content(home) == before


def test_bad_rows_are_quarantined_and_the_rest_is_stored(chandlery: Command, tmp_path: Path) -> None:
    rows = [
        row(3),
        row(1),
        row(0),
        row(1),  # the same again: dropped
        row(0, volume="9.9"),  # other values: refused
        f"{START + 30_000},11,12,10,11,1",  # misaligned
        row(4, high="9.0"),
        row(5, volume="-1"),
        row(6, volume="abc"),
        row(7, volume=""),
        f"{START + 8 * MINUTE},nan,12,10,11,1",
        row(2),
    ]
    file = write_csv(tmp_path / "bad.csv", rows)
    done = chandlery("import", file, *BTC, "--timeframe", "1m", "--home", tmp_path / "home", "--json")
    assert done.code == 1
    assert done.json["series"][0]["inserted"] == 4
    assert done.json["series"][0]["refused"] == 7
    reasons = {one["row"]: one["reason"] for one in done.json["refusals"]}
    assert set(reasons) == {4, 5, 6, 7, 8, 9, 10}
    for at, part in {4: "same open_time", 5: "bucket", 6: "high", 7: "negative", 8: "abc", 9: "volume"}.items():
        assert part in reasons[at]
    stored = chandlery("series", "--home", tmp_path / "home", "--json").json["series"][0]
    assert (stored["rows"], stored["quarantined"]) == (4, 7)
    # The same file again changes nothing, and is refused for the same reasons.
    again = chandlery("import", file, *BTC, "--timeframe", "1m", "--home", tmp_path / "home", "--json")
    assert again.json["series"][0]["unchanged"] == 4
    assert chandlery("series", "--home", tmp_path / "home", "--json").json["series"][0] == stored


def test_the_wrong_timeframe_is_found_before_anything_is_stored(chandlery: Command, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "hours.csv", [row(at * 60) for at in range(24)])
    done = chandlery("import", file, *BTC, "--timeframe", "1m", "--home", tmp_path / "home")
    one_line(done, 2, "timeframe", "1h")


def test_a_parquet_file_cut_in_half(chandlery: Command, home: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.parquet"
    assert chandlery("export", *BTC, "--out", whole, "--home", home).code == 0
    half = tmp_path / "half.parquet"
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    before = content(home)
    one_line(chandlery("import", half, *BTC, "--home", home), 2, "file", "half.parquet")
    assert content(home) == before


def test_an_export_does_not_overwrite_unasked(chandlery: Command, home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    out.write_text("mine")
    one_line(chandlery("export", *BTC, "--out", out, "--home", home), 2, "file", "out.csv")
    assert out.read_text() == "mine"
    assert chandlery("export", *BTC, "--out", out, "--overwrite", "--home", home).code == 0
    assert pl.read_csv(out).height == 60


def test_a_home_that_is_a_file(chandlery: Command, tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("not a folder")
    source = write_csv(tmp_path / "a.csv", [row(0), row(1), row(2)])
    one_line(chandlery("import", source, *BTC, "--home", place / "home"), 2, "home")
    assert place.read_text() == "not a folder"


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """The folder cannot be written: by its mode, or for root, whom modes do not stop, by a mount."""
    if os.geteuid() != 0:
        folder.chmod(0o555)
        yield
        folder.chmod(0o755)
        return
    bound = subprocess.run(["mount", "--bind", folder, folder], capture_output=True, check=False).returncode == 0
    if not bound:
        pytest.skip("root writes everywhere, and nothing may be mounted here")
    subprocess.run(["mount", "-o", "remount,bind,ro", folder, folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_home_that_is_read_only(chandlery: Command, home: Path, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "a.csv", [row(at) for at in range(60, 120)])
    before = content(home)
    with read_only(home):
        one_line(chandlery("import", source, *BTC, "--home", home), 2, "home", "read-only")
        listed = chandlery("series", "--home", home)
        assert (listed.code, "BTC/USDT" in listed.out) == (0, True), listed.err
        with started("serve", "--home", home, "--port", 0, ready="serving") as (_, line):
            url = "http://" + line.split("http://")[1].split()[0]
            assert httpx.get(f"{url}/v1/health").status_code == 200
    assert content(home) == before


def test_a_full_disk(home: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: the write fails in the middle of a transaction."""
    source = write_csv(tmp_path / "long.csv", [row(at) for at in range(60, 60_000)])
    before = content(home)
    limit = (home / "market_data.sqlite3").stat().st_size + 500_000
    done = subprocess.run(
        [sys.executable, "-m", "chandlery", "import", str(source), *BTC, "--home", str(home)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    one_line(Outcome(done.returncode, done.stdout, done.stderr), 1, "market_data.sqlite3")
    assert content(home) == before


def test_a_database_of_a_newer_release(chandlery: Command, home: Path) -> None:
    with sqlite3.connect(home / "market_data.sqlite3") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = content(home)
    for arguments in (("series",), ("db", "upgrade"), ("doctor",), ("serve", "--workers", "2", "--port", "0")):
        done = chandlery(*arguments, "--home", home)
        assert done.code == 1
        assert "99" in done.out + done.err
    assert content(home) == before


def test_a_file_that_is_no_database(chandlery: Command, tmp_path: Path) -> None:
    (tmp_path / "market_data.sqlite3").write_bytes(b"this is not a database at all" * 100)
    one_line(chandlery("series", "--home", tmp_path), 1, "market_data.sqlite3")
    one_line(chandlery("db", "upgrade", "--home", tmp_path), 1, "market_data.sqlite3")
    assert (tmp_path / "market_data.sqlite3").read_bytes().startswith(b"this is not")


def test_no_home_yet(chandlery: Command, tmp_path: Path) -> None:
    one_line(chandlery("series", "--home", tmp_path / "none"), 2, "home", "backfill")
    assert not (tmp_path / "none").exists()


def test_a_port_in_use(chandlery: Command, home: Path) -> None:
    with started("serve", "--home", home, "--port", 0, ready="serving") as (_, line):
        port = line.split("http://127.0.0.1:")[1].split()[0]
        one_line(chandlery("serve", "--home", home, "--port", port), 1, f"127.0.0.1:{port}")
        one_line(chandlery("serve", "--home", home, "--port", port, "--workers", 2), 1, f"127.0.0.1:{port}")
        one_line(chandlery("simulate", "--seed", 1, "--port", port), 1, port)


def test_several_workers_answer_and_stop(home: Path) -> None:
    with started("serve", "--home", home, "--port", 0, "--workers", 2, ready="serving") as (process, line):
        url = "http://" + line.split("http://")[1].split()[0]
        names = {"exchange": "binance", "symbol": "BTC/USDT", "timeframe": "15m"}
        # The answer comes when the first process is up; until then the request waits in the port's queue.
        for _ in range(4):
            assert len(httpx.get(f"{url}/v1/candles", params=names, timeout=60).json()["data"]) == 4
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        assert "Traceback" not in process.stdout.read()
        assert process.wait() == 0


def test_a_home_that_another_process_keeps_current(chandlery: Command, tmp_path: Path) -> None:
    arguments = (
        "up",
        "--home",
        tmp_path,
        "--port",
        0,
        "--now",
        "2024-06-01T00:00:30Z",
        "--since",
        "2024-05-31T20:00:00Z",
    )
    with started(*arguments, ready="serving on") as (process, _):
        done = chandlery("up", "--home", tmp_path, "--port", 0)
        assert done.code == 1
        assert f"process {process.pid}" in done.err
        # Reading beside it works.
        assert chandlery("series", "--home", tmp_path).code == 0


@pytest.mark.parametrize(
    "name, value, part",
    [
        ("CHANDLERY_PORT", "eighty", "port"),
        ("CHANDLERY_LOG_LEVEL", "loud", "log_level"),
        ("CHANDLERY_DATABASE_URL", "mysql://x", "sqlite:///"),
        ("CHANDLERY_SETTLE_MS", "-1", "settle_ms"),
    ],
)
def test_a_wrong_setting_is_named(
    chandlery: Command, home: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, part: str
) -> None:
    monkeypatch.setenv(name, value)
    one_line(chandlery("series", "--home", home), 2, part, name)


def test_a_misspelt_variable_is_named(chandlery: Command, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANDLERY_PROT", "9000")
    one_line(chandlery("series", "--home", home), 2, "CHANDLERY_PROT", "CHANDLERY_PORT")


def test_a_candle_that_lacks_minutes_does_not_become_whole_by_export_and_import(
    chandlery: Command, tmp_path: Path
) -> None:
    rows = [row(at) for at in range(180) if not 70 <= at < 100]
    file = write_csv(tmp_path / "holes.csv", rows)
    assert chandlery("import", file, *BTC, "--timeframe", "1m", "--home", tmp_path / "a").code == 0
    for name in ("hours.csv", "hours.parquet", "hours.arrow"):
        out = tmp_path / name
        done = chandlery("export", *BTC, "--timeframe", "1h", "--out", out, "--home", tmp_path / "a", "--json")
        assert (done.code, done.json["rows"], done.json["incomplete"]) == (0, 3, 1)
        again = chandlery("import", out, *BTC, "--timeframe", "1h", "--home", tmp_path / name[6:], "--json")
        assert again.code == 1
        assert (again.json["series"][0]["inserted"], again.json["series"][0]["refused"]) == (2, 1)
        assert "missing is" in again.json["refusals"][0]["reason"]


def test_an_unknown_key_in_the_settings_file(
    chandlery: Command, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "chandlery.toml").write_text('hom = "elsewhere"\n')
    monkeypatch.chdir(tmp_path)
    one_line(chandlery("series"), 2, "hom", "home")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("bakcfill",), ["bakcfill"]),
        (("backfill", "--exchang", "x"), ["--exchang", "--exchange"]),
        (("serve", "--workers", "0"), ["--workers", "1"]),
        (("series",), ["chandlery.toml"]),
    ],
)
def test_bad_usage_is_one_line_too(
    chandlery: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    parts: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chandlery.toml").write_bytes(b'home = "\xff"')
    one_line(chandlery(*arguments), 2, *parts)


def test_an_unknown_exchange_is_not_imported(chandlery: Command, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "some.csv", [row(at) for at in range(3)])
    named = ("--exchange", "binanec", "--symbol", "BTC/USDT", "--home", tmp_path / "home")
    one_line(chandlery("import", file, *named), 2, "--exchange", "binanec", "binance")
    assert not (tmp_path / "home").exists()


def test_the_future_is_refused_and_a_candle_without_its_minutes_is_told(
    chandlery: Command, home: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    ahead = ("--since", "2099-01-01", "--home", home)
    for arguments in (("export", *BTC, "--out", out, *ahead), ("coverage", *BTC, *ahead), ("gaps", *BTC, *ahead)):
        one_line(chandlery(*arguments), 2, "--since", "2099", "future")
    one_line(chandlery("export", *BTC, "--out", out, "--as-of", "2099-01-01", "--home", home), 2, "--as-of")
    assert not out.exists()
    more = write_csv(tmp_path / "more.csv", [row(at) for at in range(90, 120)])
    assert chandlery("import", more, *BTC, "--home", home).code == 0
    done = chandlery("export", *BTC, "--timeframe", "1h", "--out", out, "--home", home)
    assert done.code == 0
    assert "1 of them lack minutes" in done.err
