"""``check`` with two databases lists what was changed in one of them, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from market.clock import SystemClock, iso
from market.instrument import Series
from store.sqlite.store import DATABASE_NAME, SqliteStore
from tests.acceptance.conftest import Command
from tests.support.made_candles import BTC, ETH, absence, at, batch, made

CLOCK = SystemClock()


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """A home with two equal databases; the path of the second one."""

    async def make() -> None:
        for path in (tmp_path / DATABASE_NAME, tmp_path / "second.sqlite3"):
            async with SqliteStore.opened(path, CLOCK) as store:
                await store.write(batch(made(range(50_000)), absences=[absence(50_000, 50_010)]))
                await store.write(batch(made(range(100)), series=ETH))

    asyncio.run(make())
    return tmp_path / "second.sqlite3"


@pytest.fixture
def check(chandlery: Command, second: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """Checks both; what it found as lists of series, start, end and detail."""

    def run(*arguments: str) -> list[list[str]]:
        monkeypatch.setenv("CHANDLERY_SECONDARY_URL", f"sqlite:///{second}")
        outcome = chandlery("check", "--home", second.parent, "--json", *arguments)
        report = outcome.json
        assert outcome.code == (1 if report["findings"] else 0), outcome.err
        assert {one["kind"] for one in report["findings"]} <= {"primary/secondary"}
        assert report["database"] == []
        return [[one[key] for key in ("series", "start", "end", "detail")] for one in report["findings"]]

    return run


def change(path: Path, *statements: str) -> None:
    """Somebody with another program; neither digests nor ledger hear of it."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount >= 1, statement
        connection.commit()


def row(minute: int) -> str:
    return f"WHERE instrument_id = 1 AND timeframe = 60 AND open_time = {at(minute)}"


def span(start: int, end: int) -> list[str]:
    return [iso(at(start)), iso(at(end))]


def test_two_equal_databases_are_equal(check: Callable[..., list[list[str]]]) -> None:
    assert check() == []


def test_what_was_changed_in_the_second_is_listed_exactly(
    check: Callable[..., list[list[str]]], second: Path
) -> None:
    columns = "timeframe, open_time, open, high, low, close, volume, quote_volume, trades, state, learned_at"
    change(
        second,
        f"UPDATE candles SET close = close + 1, trades = NULL, high = high + 1 {row(40_000)}",
        f"UPDATE candles SET early_close_time = {at(18)} {row(17)}",
        f"DELETE FROM candles {row(3)}",
        f"DELETE FROM candles WHERE instrument_id = 1 AND open_time BETWEEN {at(20_001)} AND {at(20_003)}",
        f"INSERT INTO candles (instrument_id, {columns}) "
        f"SELECT instrument_id, {columns.replace('open_time', str(at(50_002)))} FROM candles {row(10)}",
        f"UPDATE coverage SET state = 'own_outage' WHERE interval_start = {at(50_000)}",
        "UPDATE instruments SET tick_size = '0.5' WHERE symbol = 'ETH/USDT'",
    )
    before = made([40_000]).to_pylist()[0]
    btc = str(BTC)
    assert check() == [
        [btc, *span(3, 4), "1 candle is missing on the secondary"],
        [
            btc,
            *span(17, 18),
            f"early_close_time is none on the primary and {iso(at(18))} on the secondary",
        ],
        [btc, *span(20_001, 20_004), "3 candles are missing on the secondary"],
        [
            btc,
            *span(40_000, 40_001),
            f"high is {before['high']} on the primary and {before['high'] + 1} on the secondary; "
            f"close is {before['close']} on the primary and {before['close'] + 1} on the secondary; "
            f"trades is {before['trades']} on the primary and none on the secondary",
        ],
        [btc, *span(50_002, 50_003), "1 candle is missing on the primary"],
        [
            btc,
            *span(50_000, 50_010),
            "the ledger is verified_empty on the primary and own_outage on the secondary",
        ],
        [
            "binance ETH/USDT",
            None,
            None,
            "tick_size is None on the primary and 0.5 on the secondary",
        ],
    ]
    assert check("--symbol", "ETH/USDT") == [
        ["binance ETH/USDT", None, None, "tick_size is None on the primary and 0.5 on the secondary"]
    ]


def test_digests_alone_and_a_series_of_the_second_alone_are_listed(
    check: Callable[..., list[list[str]]], second: Path
) -> None:
    async def add() -> None:
        async with SqliteStore.opened(second, CLOCK) as store:
            await store.write(batch(made([5, 6, 9]), series=Series("kraken", "A/B", BTC.timeframe)))

    asyncio.run(add())
    change(
        second,
        "UPDATE candle_chunks SET digest = '00000000000000000000000000000001' "
        f"WHERE instrument_id = 1 AND chunk_start = {at(1440)}",
    )
    found = check()
    assert [one[:3] for one in found] == [
        [str(BTC), *span(1440, 2880)],
        ["kraken A/B 1m", *span(5, 7)],
        ["kraken A/B 1m", *span(9, 10)],
        ["kraken A/B 1m", *span(5, 7)],
        ["kraken A/B 1m", *span(9, 10)],
        ["kraken A/B", None, None],
    ]
    assert found[0][3].startswith("the rows are equal, but their digest is ")
    assert found[1][3] == "2 candles are missing on the primary"
    assert found[3][3] == "the ledger is unknown on the primary and present on the secondary"
    assert found[5][3] == "the instrument is missing on the primary"


def test_people_get_a_table_and_a_missing_second_database_is_a_finding(
    chandlery: Command, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHANDLERY_SECONDARY_URL", f"sqlite:///{second}")
    change(second, f"DELETE FROM candles {row(3)}", "UPDATE instruments SET active = 0 WHERE symbol = 'BTC/USDT'")
    outcome = chandlery("check", "--home", second.parent)
    assert outcome.code == 1
    assert "1 candle is missing on the secondary" in outcome.out
    assert "active is True on the primary and False on the secondary" in outcome.out
    assert "2 series, 50,100 candles: 2 findings" in outcome.err
    second.rename(second.with_suffix(".gone"))
    outcome = chandlery("check", "--home", second.parent)
    assert outcome.code == 1
    assert "secondary" in outcome.err
    assert "does not answer" in outcome.err


def test_the_same_database_twice_is_refused(
    chandlery: Command, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHANDLERY_SECONDARY_URL", f"sqlite:///{second.parent / DATABASE_NAME}")
    outcome = chandlery("check", "--home", second.parent)
    assert outcome.code == 2
    assert "CHANDLERY_SECONDARY_URL" in outcome.err
    assert "another database" in outcome.err
