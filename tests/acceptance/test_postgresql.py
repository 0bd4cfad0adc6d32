"""The main job on PostgreSQL and TimescaleDB, by the commands; and what a user is told when something is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import polars as pl
import pytest

import chandlery as client
from store.postgres.mode import Mode
from store.postgres.schema import LATEST
from tests.acceptance.conftest import Command, Outcome, started
from tests.support.postgres_server import PASSWORD, PrivatePostgres
from tests.support.server_process import free_port

MAY = (
    "--exchange",
    "simulated",
    "--symbols",
    "BTC/USDT,ETH/USDT",
    "--since",
    "2024-05-25",
    "--until",
    "2024-06-01",
)
BTC = ("--exchange", "simulated", "--symbol", "BTC/USDT")


@dataclass(frozen=True)
class Place:
    """A new database, as the settings name it."""

    server: PrivatePostgres
    name: str
    mode: Mode

    @property
    def url(self) -> str:
        return self.server.url(self.name)


@pytest.fixture(params=list(Mode), ids=lambda mode: mode.value)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    server = request.getfixturevalue("timescaledb" if request.param is Mode.TIMESCALEDB else "postgres")
    name = server.create_database()
    yield Place(server, name, request.param)
    server.drop_database(name)


@pytest.fixture
def database(place: Place, chandlery: Command, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The environment of the commands names the new database."""
    monkeypatch.setenv("CHANDLERY_DATABASE_URL", place.url)
    monkeypatch.setenv("CHANDLERY_DATABASE_MODE", place.mode.value)
    return place


def one_line(outcome: Outcome, code: int, *parts: str) -> None:
    assert outcome.code == code, outcome.err
    assert outcome.err.count("\n") == 1, outcome.err
    for part in parts:
        assert part in outcome.err, outcome.err
    assert PASSWORD not in outcome.err + outcome.out
    assert "wrong-secret" not in outcome.err + outcome.out


def test_backfill_check_archive_export_and_back(
    database: Place, chandlery: Command, tmp_path: Path, exchange_url: str
) -> None:
    done = chandlery("db", "upgrade", "--json")
    assert done.json == {"applied": list(range(1, LATEST + 1)), "version": LATEST}
    assert chandlery("db", "upgrade", "--json").json == {"applied": [], "version": LATEST}
    ask = ("backfill", *MAY, "--exchange-url", exchange_url, "--home", tmp_path, "--json")
    report = chandlery(*ask).json["series"]
    assert [one["missing"] for one in report] == [0, 0]
    assert [one["written"] for one in chandlery(*ask).json["series"]] == [0, 0]
    assert chandlery("check", "--home", tmp_path).code == 0
    # Larger candles are current at once, and the same as those of an SQLite home made from the archive.
    assert chandlery("archive", "--home", tmp_path).code == 0
    embedded = tmp_path / "embedded"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CHANDLERY_DATABASE_URL")
        patch.delenv("CHANDLERY_DATABASE_MODE")
        assert chandlery("import", tmp_path / "archive", "--home", embedded).code == 0
    with client.connect(database.url) as ours, client.connect(embedded) as theirs:
        for timeframe in ("1m", "5m", "15m", "30m", "1h", "4h", "1d"):
            one = ours.candles("BTC/USDT", timeframe, exchange="simulated")
            assert one.equals(theirs.candles("BTC/USDT", timeframe, exchange="simulated"))
            assert one.height
    out = tmp_path / "btc.parquet"
    assert chandlery("export", *BTC, "--timeframe", "1h", "--out", out, "--home", tmp_path).code == 0
    assert pl.read_parquet(out).height == 7 * 24
    told = chandlery("doctor", "--home", tmp_path)
    assert told.code in (0, 1)
    assert PASSWORD not in told.out + told.err
    assert database.name in told.out


def test_the_service_answers_from_the_server(
    database: Place, chandlery: Command, tmp_path: Path, exchange_url: str
) -> None:
    assert chandlery("backfill", *MAY, "--exchange-url", exchange_url, "--home", tmp_path).code == 0
    env = {"CHANDLERY_DATABASE_URL": database.url}
    with started("serve", "--home", tmp_path, "--port", 0, "--workers", 2, ready="serving on", env=env) as (
        _,
        line,
    ):
        url = "http://" + line.split("http://")[1].split()[0]
        names = {"exchange": "simulated", "symbol": "BTC/USDT", "timeframe": "1h", "limit": "5"}
        answer = httpx.get(f"{url}/v1/candles", params=names, timeout=60).json()
        assert (len(answer["data"]), answer["meta"]["complete"]) == (5, True)
        assert httpx.get(f"{url}/v1/ready", timeout=60).status_code == 200


def test_the_demonstration_runs_on_a_server(database: Place, chandlery: Command, tmp_path: Path) -> None:
    done = chandlery("up", "--demo", "--home", tmp_path)
    assert done.code == 0, done.err
    assert "result hash" in done.out
    assert not list(tmp_path.glob("*.sqlite3"))


def test_what_is_wrong_is_said_in_one_line(
    postgres: PrivatePostgres, chandlery: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = postgres.create_database()
    good = postgres.url(name)
    nobody = f"postgresql://me:wrong-secret@127.0.0.1:{free_port()}/x"
    cases = [
        (
            2,
            "mysql://me:wrong-secret@db/x",
            ["database_url (CHANDLERY_DATABASE_URL)", "mysql://me:***@db/x", "sqlite:///"],
        ),
        (2, "postgresql://me:wrong-secret@db", ["CHANDLERY_DATABASE_URL", "name of a database"]),
        (2, "postgresql://me:wrong-secret@db:99999/x", ["CHANDLERY_DATABASE_URL", "65535"]),
        (2, "postgresql://me:wrong-secret@no-such-host.invalid/x", ["database_url", "no-such-host.invalid"]),
        (2, postgres.url(name, password="wrong-secret"), ["database_url", "password"]),
        (2, postgres.url("nowhere"), ["database_url", "nowhere"]),
        (1, nobody, ["does not answer"]),
    ]
    for code, url, parts in cases:
        monkeypatch.setenv("CHANDLERY_DATABASE_URL", url)
        for command in (("db", "upgrade"), ("series",)):
            one_line(chandlery(*command, "--home", tmp_path), code, *parts)
    monkeypatch.setenv("CHANDLERY_DATABASE_URL", good)
    one_line(chandlery("series", "--home", tmp_path), 1, "schema version 0", "chandlery db upgrade")
    monkeypatch.setenv("CHANDLERY_DATABASE_MODE", "sharded")
    one_line(chandlery("series", "--home", tmp_path), 2, "CHANDLERY_DATABASE_MODE", "sharded", "timescaledb")
    monkeypatch.delenv("CHANDLERY_DATABASE_MODE")
    monkeypatch.setenv("CHANDLERY_POOL_MIN", "30")
    one_line(chandlery("series", "--home", tmp_path), 2, "pool_min", "30", "pool_max")
    monkeypatch.delenv("CHANDLERY_POOL_MIN")
    monkeypatch.setenv("CHANDLERY_DATABASE_URLS", "postgresql://me:wrong-secret@db/x")
    one_line(chandlery("series", "--home", tmp_path), 2, "CHANDLERY_DATABASE_URL")
    postgres.drop_database(name)
