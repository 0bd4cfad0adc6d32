"""``chandlery safety``: shown, switched, and what the other commands say then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import Command
from tests.support.postgres_server import PrivatePostgres

DAY = ("--exchange", "simulated", "--symbols", "BTC/USDT", "--since", "2024-05-31", "--until", "2024-06-01")
BTC = ("--exchange", "simulated", "--symbol", "BTC/USDT")


@pytest.fixture(params=["sqlite", "postgresql", "both"])
def database(request: pytest.FixtureRequest, chandlery: Command, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where the commands keep candles: a file, a server, or a server with a file beside it."""
    if request.param == "sqlite":
        yield
        return
    server: PrivatePostgres = request.getfixturevalue("postgres")
    name = server.create_database()
    monkeypatch.setenv("CHANDLERY_DATABASE_URL", server.url(name))
    monkeypatch.setenv("CHANDLERY_DATABASE_MODE", "plain")
    if request.param == "both":
        folder: Path = request.getfixturevalue("tmp_path")
        monkeypatch.setenv("CHANDLERY_SECONDARY_URL", f"sqlite:///{folder / 'second.sqlite3'}")
    yield
    server.drop_database(name)


@pytest.mark.usefixtures("database")
def test_nothing_is_written_until_it_is_allowed_again(
    chandlery: Command, tmp_path: Path, exchange_url: str
) -> None:
    home = ("--home", tmp_path)
    backfill = ("backfill", *DAY, "--exchange-url", exchange_url, *home, "--json")
    assert chandlery("db", "upgrade", *home).code == 0
    shown = chandlery("safety", *home, "--json")
    assert shown.json == {"safety": "normal", "operating": "balanced", "reason": "", "changed_at": None}
    assert chandlery(*backfill).code == 0
    exported = tmp_path / "day.csv"
    assert chandlery("export", *BTC, "--out", exported, *home).code == 0

    switched = chandlery("safety", "set", "fail", "--reason", "the disk is failing", *home, "--json")
    assert switched.code == 0, switched.err
    assert (switched.json["safety"], switched.json["reason"]) == ("fail", "the disk is failing")
    assert chandlery("safety", *home, "--json").json == switched.json
    said = "chandlery: the safety state is fail (the disk is failing): nothing was written; "
    for refused in (chandlery(*backfill), chandlery("import", exported, *BTC, *home)):
        assert refused.code == 1
        assert refused.err.splitlines()[-1].startswith(said), refused.err
    # Who only reads does not notice.
    assert chandlery("series", *home).code == 0
    assert chandlery("check", *home).code == 0

    # What stands before the word `set` holds for it as well.
    assert chandlery("safety", *home, "--json", "set", "normal").json["safety"] == "normal"
    assert chandlery(*backfill).json["series"][0]["missing"] == 0
    assert chandlery("import", exported, *BTC, *home).code == 0


def test_it_is_shown_as_a_list(chandlery: Command, tmp_path: Path) -> None:
    home = ("--home", tmp_path)
    assert chandlery("safety", "set", "warning", "--operating", "defensive", *home).code == 0
    lines = [line.split() for line in chandlery("safety", *home).out.splitlines()]
    assert lines[:3] == [["safety", "warning"], ["operating", "defensive"], ["reason", "-"]]
    assert lines[3][0] == "changed_at"
    only = chandlery("safety", "set", "--operating", "aggressive", *home, "--json").json
    assert (only["safety"], only["operating"]) == ("warning", "aggressive")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["set"], ("state", "normal, warning, fail, lockdown")),
        (["set", "off"], ("state", "'off'", "normal, warning, fail, lockdown")),
        (["set", "FAIL"], ("state", "'FAIL'")),
        (["set", "--operating", "fast"], ("--operating", "'fast'", "aggressive, balanced, defensive")),
        (["set", "fail", "--reason", "two\nlines"], ("reason", "one line")),
        (["set", "fail", "--reason", "x" * 501], ("reason", "500")),
        (["unset"], ("unset",)),
        ([], ("home", "run a backfill or an import first")),
    ],
)
def test_bad_input(chandlery: Command, tmp_path: Path, arguments: list[str], named: tuple[str, ...]) -> None:
    done = chandlery("safety", *arguments, *([] if arguments == ["unset"] else ["--home", tmp_path]))
    assert done.code == 2
    assert done.err.count("\n") == 1
    for part in named:
        assert part in done.err
    # Nothing was switched, wherever it was noticed.
    if (shown := chandlery("safety", "--home", tmp_path, "--json")).code == 0:
        assert shown.json["changed_at"] is None
