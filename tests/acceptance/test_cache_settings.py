"""Settings of the cache that cannot be: refused at the start by name, in one line, with nothing changed."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from chandlery.settings import FILE, load
from market.errors import BadInput
from store.control import OperatingState
from tests.acceptance.conftest import Command, Outcome

#: A value of each setting that cannot be, and words of what would be accepted.
WRONG: list[tuple[str, Any, str]] = [
    ("cache_ttl", "price=0", "whole milliseconds from 1 to 86400000"),
    ("cache_ttl", "price=86400001", "whole milliseconds from 1 to 86400000"),
    ("cache_ttl", "ticker=0", "whole milliseconds from 1 to 86400000"),
    ("cache_ttl", "order_book=50,speed=100", "order_book"),
    ("cache_ttl", "Price=100", "order_book"),
    ("cache_ttl", "price=abc", "name=milliseconds"),
    ("cache_ttl", "price=-5", "name=milliseconds"),
    ("cache_ttl", "price=1.5", "name=milliseconds"),
    ("cache_ttl", "price=100=200", "name=milliseconds"),
    ("cache_ttl", "price=100 order_book=50", "name=milliseconds"),
    ("cache_ttl", "price=\u0661", "name=milliseconds"),
    ("cache_ttl", "price", "name=milliseconds"),
    ("cache_ttl", "=100", "name=milliseconds"),
    ("cache_ttl", "price=100,price=200", "each name once"),
    ("cache_memory_bytes", "-1", "greater than or equal to 0"),
    ("cache_memory_bytes", "256 MB", "valid integer"),
    ("cache_memory_bytes", str((1 << 44) + 1), "less than or equal to 17592186044416"),
    ("cache_memory_bytes", "1e9", "valid integer"),
    ("cache_disk_bytes", "-1", "greater than or equal to 0"),
    ("cache_disk_bytes", "4GiB", "valid integer"),
    ("cache_disk_bytes", str((1 << 50) + 1), "less than or equal to 1125899906842624"),
    ("cache_preload", "-1", "greater than or equal to 0"),
    ("cache_preload", "10001", "less than or equal to 10000"),
    ("cache_preload", "all", "valid integer"),
    ("cache_trading_hours", "", "mon-fri 08:00-17:00"),
    ("cache_trading_hours", "always", "mon-fri 08:00-17:00"),
    ("cache_trading_hours", "mon-fri", "mon-fri 08:00-17:00"),
    ("cache_trading_hours", "08:00-17:00", "mon-fri 08:00-17:00"),
    ("cache_trading_hours", "mon-fri 08:00-17:00,", "mon-fri 08:00-17:00"),
    ("cache_trading_hours", "mon-fry 08:00-17:00", "mon, tue"),
    ("cache_trading_hours", "mon 08:00-25:00", "from 00:00 to 24:00"),
    ("cache_trading_hours", "mon 08:61-17:00", "from 00:00 to 24:00"),
    ("redis_url", "", "redis://"),
    ("redis_url", "127.0.0.1:6379", "redis://"),
    ("redis_url", "redis://", "redis://"),
    ("redis_url", "http://me:hush@127.0.0.1/", "redis://"),
    ("redis_url", "redis://me:hush@127.0.0.1:port/0", "port from 1 to 65535"),
    ("redis_url", "redis://me:hush@127.0.0.1:0/0", "redis://"),
    ("redis_url", "redis://me:hush@127.0.0.1:65536/0", "port from 1 to 65535"),
    ("redis_url", "redis://me:hush@127.0.0.1:6379/first", "number of a database"),
    ("redis_url", "redis://me:hush@127.0.0.1:6379/-1", "number of a database"),
    ("redis_url", "redis://me:hush@one:6379,two:6379", "redis+cluster://"),
    ("redis_url", "redis+cluster://me:hush@one:6379/0", "no number of a database in a cluster"),
    ("redis_url", "redis://me:hush#ed@127.0.0.1:6379/0", "percent-encoded"),
    ("redis_url", "redis://me:hush@127.0.0.1:6379/0?ssl=no", "percent-encoded"),
    # Only the password, pasted into the wrong place.
    ("redis_url", "hush", "redis://"),
]
#: What a file can say and the environment cannot.
WRONG_IN_A_FILE = [
    ("cache_ttl", "{price = 0}", "whole milliseconds from 1 to 86400000"),
    ("cache_ttl", '{price = "100"}', "whole milliseconds from 1 to 86400000"),
    ("cache_ttl", "{price = true}", "whole milliseconds from 1 to 86400000"),
    ("cache_ttl", "{price = 99.5}", "whole milliseconds from 1 to 86400000"),
    ("cache_ttl", "{speed = 100}", "order_book"),
    ("cache_ttl", '["price=100"]', "name=milliseconds"),
    ("cache_ttl", "100", "name=milliseconds"),
    ("cache_memory_bytes", "1.5", "valid integer"),
    ("cache_path", "7", "path"),
    ("cache_trading_hours", '["mon-fri 08:00-17:00"]', "valid string"),
    ("redis_url", '["redis://me:hush@127.0.0.1/0"]', "valid string"),
]


@pytest.fixture
def taken() -> Iterator[int]:
    """A port in use: what was not refused before it is."""
    with closing(socket.create_server(("127.0.0.1", 0))) as one:
        yield one.getsockname()[1]


def refused(said: str, key: str, accepted: str) -> None:
    """It names the setting in both its forms and says what would be accepted, and no password."""
    assert f"{key} (CHANDLERY_{key.upper()}): " in said
    assert accepted in said.partition("expected")[2], said
    assert "hush" not in said


def refused_by(done: Outcome, key: str, accepted: str) -> None:
    """The command said it in one line, and nothing else."""
    assert done.code == 2, done.err
    assert done.err.count("\n") == 1, done.err
    assert done.out == ""
    refused(done.err, key, accepted)


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where settings are looked for: an empty folder."""
    for name in [name for name in os.environ if name.startswith("CHANDLERY_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("key", "value", "accepted"), WRONG)
def test_a_wrong_value(monkeypatch: pytest.MonkeyPatch, folder: Path, key: str, value: str, accepted: str) -> None:
    monkeypatch.setenv(f"CHANDLERY_{key.upper()}", value)
    with pytest.raises(BadInput) as from_environment:
        load()
    refused(str(from_environment.value), key, accepted)
    monkeypatch.delenv(f"CHANDLERY_{key.upper()}")
    # These JSON texts are TOML texts.
    (folder / FILE).write_text(f"{key} = {json.dumps(value, ensure_ascii=False)}\n")
    with pytest.raises(BadInput) as from_file:
        load()
    refused(str(from_file.value), key, accepted)


@pytest.mark.parametrize(("key", "written", "accepted"), WRONG_IN_A_FILE)
def test_a_wrong_value_that_only_a_file_can_have(folder: Path, key: str, written: str, accepted: str) -> None:
    (folder / FILE).write_text(f"{key} = {written}\n")
    with pytest.raises(BadInput) as found:
        load()
    refused(str(found.value), key, accepted)


@pytest.mark.parametrize(
    ("key", "value", "accepted"), list({key: (key, value, accepted) for key, value, accepted in WRONG}.values())
)
def test_a_service_does_not_start_with_it(
    chandlery: Command,
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    taken: int,
    key: str,
    value: str,
    accepted: str,
) -> None:
    monkeypatch.setenv(f"CHANDLERY_{key.upper()}", value)
    refused_by(chandlery("serve", "--port", taken), key, accepted)
    assert list(folder.iterdir()) == []
    monkeypatch.delenv(f"CHANDLERY_{key.upper()}")
    (folder / FILE).write_text(f"{key} = {json.dumps(value)}\n")
    refused_by(chandlery("serve", "--port", taken), key, accepted)
    assert [path.name for path in folder.iterdir()] == [FILE]


@pytest.mark.parametrize(
    "command",
    [
        ("up",),
        ("ingest", "--exchange", "simulated", "--symbols", "BTC/USDT"),
        ("safety", "set", "lockdown"),
        ("serve", "--workers", "2"),
    ],
    ids=" ".join,
)
def test_every_command_that_caches_refuses_it(
    chandlery: Command, monkeypatch: pytest.MonkeyPatch, folder: Path, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CHANDLERY_CACHE_TTL", "price=0")
    refused_by(chandlery(*command), "cache_ttl", "whole milliseconds")
    assert list(folder.iterdir()) == []


def test_a_misspelt_setting_is_refused(
    chandlery: Command, monkeypatch: pytest.MonkeyPatch, folder: Path, taken: int
) -> None:
    monkeypatch.setenv("CHANDLERY_CACHE_MEMORY_BYTE", "1")
    done = chandlery("serve", "--port", taken)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "CHANDLERY_CACHE_MEMORY_BYTES" in done.err
    monkeypatch.delenv("CHANDLERY_CACHE_MEMORY_BYTE")
    (folder / FILE).write_text('reddis_url = "redis://me:hush@127.0.0.1/0"\n')
    done = chandlery("serve", "--port", taken)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "reddis_url" in done.err
    assert "hush" not in done.err


def test_what_is_accepted_means_what_it_says(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The same from the environment and from the file; the environment has the last word."""
    monkeypatch.setenv("CHANDLERY_CACHE_TTL", " price = 250 , ticker=70,")
    monkeypatch.setenv("CHANDLERY_CACHE_TRADING_HOURS", "mon-fri 08:00-17:00, sun 22:00-24:00")
    monkeypatch.setenv("CHANDLERY_REDIS_URL", "rediss://me:hush@127.0.0.1:6380/3")
    from_environment = load()
    for key in ("TTL", "TRADING_HOURS"):
        monkeypatch.delenv(f"CHANDLERY_CACHE_{key}")
    monkeypatch.delenv("CHANDLERY_REDIS_URL")
    (folder / FILE).write_text(
        "cache_ttl = {price = 250, ticker = 70}\n"
        'cache_trading_hours = "mon-fri 08:00-17:00, sun 22:00-24:00"\n'
        'redis_url = "rediss://me:hush@127.0.0.1:6380/3"\n'
    )
    from_file = load()
    assert from_environment == from_file
    assert "hush" not in repr(from_file)
    assert "hush" not in str(from_file.shown())
    # 2024-06-03 was a Monday: noon, and midnight after it.
    noon, night = 1_717_416_000_000, 1_717_459_200_000
    times = from_file.times_to_live
    kinds = ("trades", "ticker", "order_book", "position", "candles")
    assert [times.milliseconds(kind, noon) for kind in kinds] == [250, 70, 50, 1_000, 300_000]
    assert [times.milliseconds(kind, night) for kind in kinds] == [2_500, 70, 50, 1_000, 300_000]
    times.operating = OperatingState.AGGRESSIVE
    assert [times.milliseconds(kind, noon) for kind in kinds] == [50, 70, 50, 1_000, 300_000]
    times.operating = OperatingState.DEFENSIVE
    assert [times.milliseconds(kind, noon) for kind in kinds] == [250, 70, 50, 5_000, 300_000]
    monkeypatch.setenv("CHANDLERY_CACHE_TTL", "")
    assert load().times_to_live.milliseconds("trades", noon) == 100
