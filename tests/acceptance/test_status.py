"""``chandlery status``: its exit codes, and what it says where there is no live feed to tell of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from chandlery.status_file import STATUS_NAME
from tests.acceptance.conftest import Command, started

TOPIC = {
    **{"topic": "trades BTC/USDT", "path": "stream", "since": 0, "heard_at": 0, "messages": 5, "repeated": 0},
    **{"refills": 0, "refilled": 0, "lost": 0, "reason": None},
}


def left_behind(home: Path, *, pid: int, at: int, **changed: Any) -> None:
    """What a feed said last."""
    body = {
        **{"pid": pid, "exchange": "binance", "at": at, "series": [], "routes": [TOPIC]},
        "writer": {
            **{"state": "direct", "error": None, "waiting_rows": 0, "journal_records": 0, "written_rows": 7},
            "lag": {"p50": 10, "p99": 40, "longest": 50},
        },
    }
    home.mkdir(exist_ok=True)
    (home / STATUS_NAME).write_text(json.dumps(body | changed))


def now_ms() -> int:
    return int(time.time() * 1000)


@pytest.mark.parametrize("exists", [True, False])
def test_a_home_without_a_feed(chandlery: Command, tmp_path: Path, exists: bool) -> None:
    home = tmp_path / "home"
    if exists:
        home.mkdir()
    done = chandlery("status", "--home", home)
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"chandlery: home: '{home}' is not accepted; expected a home in which `chandlery ingest` or `chandlery up` "
        "has run\n"
    )
    # Looking makes nothing.
    assert list(tmp_path.iterdir()) == ([home] if exists else [])
    assert not exists or not list(home.iterdir())


def test_a_feed_that_runs_well(chandlery: Command, tmp_path: Path) -> None:
    left_behind(tmp_path, pid=os.getpid(), at=now_ms())
    done = chandlery("status", "--home", tmp_path)
    assert done.code == 0, done.err
    assert "binance: running" in done.err
    assert "trades BTC/USDT" in done.out
    assert "stream" in done.out


def test_a_feed_whose_process_has_ended(chandlery: Command, tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left_behind(tmp_path, pid=ended.pid, at=now_ms())
    done = chandlery("status", "--home", tmp_path)
    assert done.code == 1
    assert "binance: not running; this is of 20" in done.err
    assert "trades BTC/USDT" in done.out
    assert chandlery("status", "--home", tmp_path, "--json").code == 1


def test_a_feed_that_has_said_nothing_for_long(chandlery: Command, tmp_path: Path) -> None:
    """The process number belongs to another one by now, or it hangs."""
    left_behind(tmp_path, pid=os.getpid(), at=now_ms() - 60_000)
    done = chandlery("status", "--home", tmp_path)
    assert done.code == 1
    assert "not running" in done.err


@pytest.mark.parametrize(
    "changed, said",
    [
        (
            {"routes": [TOPIC | {"path": "refused", "reason": "Invalid symbol."}]},
            "trades BTC/USDT: Invalid symbol.",
        ),
        ({"routes": [TOPIC | {"lost": 12}]}, "trades BTC/USDT: 12 trades are lost"),
        ({"series": [{"series": "binance BTC/USDT 1m", "error": "no answer"}]}, "binance BTC/USDT 1m: no answer"),
    ],
)
def test_a_feed_in_trouble(chandlery: Command, tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    left_behind(tmp_path, pid=os.getpid(), at=now_ms(), **changed)
    done = chandlery("status", "--home", tmp_path)
    assert done.code == 1
    assert said in done.err
    assert chandlery("status", "--home", tmp_path, "--json").code == 1


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"{}", b'"status"', b"\xff\x00\x17", b'{"at": 1, "pid": 2}',
        b'{"at": "now", "pid": {}, "routes": 1, "series": null, "writer": []}',
        b'{"at": 1, "pid": 1, "exchange": "x", "routes": [{}], "series": [], "writer": {}}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("as_json", [True, False])
def test_a_file_of_somebody_else(chandlery: Command, tmp_path: Path, content: bytes, as_json: bool) -> None:
    (tmp_path / STATUS_NAME).write_bytes(content)
    done = chandlery("status", "--home", tmp_path, *(["--json"] if as_json else []))
    assert done.code == 1, done.out
    assert done.err == f"chandlery: {tmp_path / STATUS_NAME} is not what a live feed writes; remove it\n"


def test_a_file_that_cannot_be_read(chandlery: Command, tmp_path: Path) -> None:
    (tmp_path / STATUS_NAME).mkdir()
    done = chandlery("status", "--home", tmp_path)
    assert done.code == 1
    assert done.err == f"chandlery: {tmp_path / STATUS_NAME} cannot be read: Is a directory\n"


def test_a_process_that_is_told_to_stop_runs_no_longer(
    chandlery: Command, exchange_url: str, tmp_path: Path
) -> None:
    arguments = (
        "ingest", "--exchange", "binance", "--exchange-url", exchange_url, "--symbols", "BTC/USDT",
        "--home", tmp_path,
    )  # fmt: skip
    with started(*arguments, ready="BTC/USDT") as (process, _):
        end = time.monotonic() + 60
        while (done := chandlery("status", "--home", tmp_path, "--json")).code != 0:
            assert time.monotonic() < end, done
        assert done.json["pid"] == process.pid
    assert process.returncode is not None
    done = chandlery("status", "--home", tmp_path)
    assert (done.code, "binance: not running" in done.err) == (1, True)
