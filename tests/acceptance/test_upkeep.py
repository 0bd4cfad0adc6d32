"""``db maintain`` and ``db status`` as an operator types them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from store.postgres.mode import Mode
from tests.acceptance.conftest import Command
from tests.support.postgres_server import PASSWORD

SERIES = ("--exchange", "binance", "--symbol", "BTC/USDT", "--timeframe", "1m")


@pytest.fixture(params=list(Mode), ids=lambda mode: mode.value)
def mode(request: pytest.FixtureRequest, chandlery: Command, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mode]:
    """The environment of the commands names a new database of that mode."""
    server = request.getfixturevalue("timescaledb" if request.param is Mode.TIMESCALEDB else "postgres")
    name = server.create_database()
    monkeypatch.setenv("CHANDLERY_DATABASE_URL", server.url(name))
    monkeypatch.setenv("CHANDLERY_DATABASE_MODE", request.param.value)
    yield request.param
    server.drop_database(name)


def csv(path: Path) -> Path:
    """Two days of minutes, one on each side of a month's end."""
    lines = ["open_time,open,high,low,close,volume"]
    for minute in range(2 * 1440):
        opened = 1_675_123_200_000 + minute * 60_000
        lines.append(f"{opened},{100 + minute % 7},{110 + minute % 7},90,{101 + minute % 5},1.5")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_candles_leave_the_database_once_they_are_archived(mode: Mode, chandlery: Command, tmp_path: Path) -> None:
    home = ("--home", tmp_path / "home")
    assert chandlery("import", csv(tmp_path / "btc.csv"), *SERIES, *home).code == 0
    assert chandlery("db", "maintain", *home).code == 0
    refused = chandlery("db", "maintain", "--drop-before", "2023-02-01", *home, "--json")
    assert refused.code == 1
    (obstacle,) = refused.json["dropped"]["obstacles"]
    assert (obstacle["kind"], obstacle["start"], obstacle["end"]) == (
        "archive",
        "2023-01-01T00:00:00Z",
        "2023-02-01T00:00:00Z",
    )
    told = chandlery("db", "maintain", "--drop-before", "2023-02-02", *home)
    assert (told.code, "2023-02-01 or 2023-03-01" in told.out) == (1, True)
    assert "nothing was dropped: 1 obstacles" in told.err

    assert chandlery("archive", *home).code == 0
    before, after = tmp_path / "before.csv", tmp_path / "after.csv"
    assert chandlery("export", *SERIES, "--out", before, *home).code == 0
    done = chandlery("db", "maintain", "--drop-before", "2023-02-01", *home)
    assert done.code == 0, done.err
    assert "dropped 1,440 candles of 1 series before 2023-02-01T00:00:00Z; the archive has them" in done.err
    assert chandlery("export", *SERIES, "--out", after, *home).code == 0
    assert after.read_bytes() == before.read_bytes()
    assert len(after.read_text().splitlines()) == 2 * 1440 + 1
    (one,) = chandlery("series", *home, "--json").json["series"]
    assert one["rows"] == 2 * 1440
    checked = chandlery("check", *home)
    assert checked.code == 0, checked.out
    assert "1,440 candles are in the archive alone and were not looked at" in checked.err
    assert chandlery("archive", *home, "--json").json["series"][0]["written"] == 0

    status = chandlery("db", "status", *home, "--json").json
    assert (status["mode"], status["archived_candles"], len(status["drops"])) == (mode.value, 1440, 1)
    assert bool(status["hypertables"]) == bool(status["jobs"]) == (mode is Mode.TIMESCALEDB)
    assert bool(status["partitions"]) == (mode is Mode.PLAIN)
    shown = chandlery("db", "status", *home)
    assert "\ndrops\n" in shown.out
    assert ("\njobs\n" if mode is Mode.TIMESCALEDB else "\npartitions\n") in shown.out
    assert PASSWORD not in shown.out + shown.err


def test_settings_reach_a_database_that_is_there(
    mode: Mode, chandlery: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode is not Mode.TIMESCALEDB:
        pytest.skip("plain PostgreSQL has neither chunks nor compression")
    assert chandlery("db", "upgrade", "--home", tmp_path).code == 0
    monkeypatch.setenv("CHANDLERY_CHUNK_DAYS", "7")
    monkeypatch.setenv("CHANDLERY_COMPRESS_AFTER_DAYS", "30")
    told = chandlery("db", "maintain", "--home", tmp_path)
    assert "new chunks of candles are 7 days long, not 1 day" in told.err
    assert chandlery("db", "maintain", "--home", tmp_path, "--json").json["settings"] == []
    monkeypatch.setenv("CHANDLERY_CHUNK_DAYS", "2")
    assert chandlery("db", "upgrade", "--home", tmp_path).code == 0
    candles, *_ = chandlery("db", "status", "--home", tmp_path, "--json").json["hypertables"]
    assert candles["chunk_seconds"] == 2 * 86_400
    monkeypatch.setenv("CHANDLERY_CHUNK_DAYS", "0")
    assert "chunk_days" in chandlery("db", "maintain", "--home", tmp_path).err


def test_a_file_has_nothing_to_maintain_and_drops_nothing(chandlery: Command, tmp_path: Path) -> None:
    home = ("--home", tmp_path / "home")
    assert chandlery("import", csv(tmp_path / "btc.csv"), *SERIES, *home).code == 0
    assert chandlery("db", "maintain", *home).code == 0
    refused = chandlery("db", "maintain", "--drop-before", "2023-02-01", *home)
    assert refused.code == 2
    assert "--drop-before" in refused.err
    assert chandlery("db", "maintain", "--drop-before", "yesterday", *home).code == 2
