"""`chandlery db upgrade` on a server: by four processes at the same moment, and of what must be left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import polars as pl
import pytest

import chandlery as client
from market.candle import COLUMNS
from store.postgres.mode import Mode
from store.postgres.schema import LATEST
from tests.acceptance.conftest import ROOT, Command
from tests.support.pgbouncer_server import PgBouncer
from tests.support.postgres_server import PASSWORD, PrivatePostgres

PROCESSES = 4
VERSIONS = list(range(1, LATEST + 1))
#: Tables of the schema that people see, chunks and partitions left out.
TABLES = "SELECT count(*) FROM pg_class WHERE relname = 'candles' AND relkind IN ('r', 'p')"


@pytest.fixture(params=list(Mode), ids=lambda mode: mode.value)
def mode(request: pytest.FixtureRequest) -> Mode:
    found: Mode = request.param
    request.getfixturevalue("timescaledb" if found is Mode.TIMESCALEDB else "postgres")
    return found


@pytest.fixture
def name(postgres: PrivatePostgres) -> Iterator[str]:
    made = postgres.create_database()
    yield made
    postgres.drop_database(made)


def upgrade_at_once(url: str, mode: Mode, home: Path) -> list[subprocess.Popen[str]]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("CHANDLERY_")}
    env |= {"CHANDLERY_DATABASE_URL": url, "CHANDLERY_DATABASE_MODE": mode.value, "CHANDLERY_HOME": str(home)}
    return [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "chandlery", "db", "upgrade", "--json"],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(PROCESSES)
    ]


@pytest.mark.parametrize("pooled", [False, True], ids=["direct", "pooled"])
def test_four_commands_upgrade_at_the_same_moment(
    postgres: PrivatePostgres, name: str, mode: Mode, tmp_path: Path, pooled: bool
) -> None:
    with PgBouncer(postgres) if pooled else nullcontext() as pooler:
        url = (pooler or postgres).url(name)
        done = [(*one.communicate(timeout=300), one.returncode) for one in upgrade_at_once(url, mode, tmp_path)]
    assert [code for _, _, code in done] == [0] * PROCESSES, done
    # Each version by one of them.
    assert sorted(version for out, _, _ in done for version in json.loads(out)["applied"]) == VERSIONS
    assert {json.loads(out)["version"] for out, _, _ in done} == {LATEST}
    assert not [err for _, err, _ in done if PASSWORD in err or "Traceback" in err]
    assert postgres.sql(name, TABLES) == "1"
    found = postgres.sql(name, "SELECT version, mode FROM schema_versions ORDER BY version")
    assert found.split() == [f"{version}|{mode.value}" for version in VERSIONS]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("CREATE TABLE candles (a integer)", "tables of another program under our names"),
        ("CREATE TABLE schema_versions (id integer)", "tables of another program under our names"),
        (
            "CREATE TABLE schema_versions (version integer, mode text, note text); "
            "INSERT INTO schema_versions VALUES (99, 'plain')",
            "has schema version 99, this release knows",
        ),
    ],
)
def test_what_is_not_ours_or_newer_is_refused_in_one_line(
    postgres: PrivatePostgres,
    name: str,
    chandlery: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    made: str,
    said: str,
) -> None:
    postgres.sql(name, made)
    monkeypatch.setenv("CHANDLERY_DATABASE_URL", postgres.url(name))
    monkeypatch.setenv("CHANDLERY_DATABASE_MODE", "plain")
    before = postgres.sql(name, "SELECT relname FROM pg_class ORDER BY oid")
    for command in (("db", "upgrade"), ("db", "status"), ("series",)):
        done = chandlery(*command, "--home", tmp_path)
        assert done.code == 1, done.err
        assert (done.err.count("\n"), said in done.err, PASSWORD in done.err) == (1, True, False), done.err
    assert postgres.sql(name, "SELECT relname FROM pg_class ORDER BY oid") == before


@pytest.mark.recorded
def test_a_recorded_file_is_imported_and_proven(
    postgres: PrivatePostgres,
    name: str,
    mode: Mode,
    chandlery: Command,
    tmp_path: Path,
    recorded: Path,
    recorded_candles: Callable[[str, str], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHANDLERY_DATABASE_URL", postgres.url(name))
    monkeypatch.setenv("CHANDLERY_DATABASE_MODE", mode.value)
    assert chandlery("db", "upgrade").code == 0
    (file,) = (recorded / "candles").glob("binance_spot_ARBUSDT_1m_*")
    named = ("--exchange", "binance", "--symbol", "ARB/USDT", "--timeframe", "1m", "--home", tmp_path)
    for inserted, unchanged in ((231_090, 0), (0, 231_090)):
        done = chandlery("import", file, *named, "--json")
        assert done.code == 0, done.err
        report = done.json["series"][0]
        assert (report["inserted"], report["unchanged"]) == (inserted, unchanged)
    done = chandlery("check", "--home", tmp_path, "--json")
    # The archive of one day lacks minutes, and nobody asked the exchange about them.
    assert {one["kind"] for one in done.json["findings"]} == {"gap"}
    with client.connect(postgres.url(name)) as store:
        for timeframe, windows in (("15m", 10_848), ("1h", 3_123)):
            theirs = pl.from_arrow(recorded_candles(f"binance_spot_ARBUSDT_{timeframe}", timeframe))
            assert isinstance(theirs, pl.DataFrame)
            ours = store.candles("ARB/USDT", timeframe, exchange="binance")
            both = ours.join(theirs.select("open_time"), on="open_time")
            assert both.height == windows
            assert both.select(COLUMNS).equals(theirs)
