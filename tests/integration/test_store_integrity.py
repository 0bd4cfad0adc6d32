"""The integrity check finds what somebody else changed in the tables, and nothing where all is well."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from market.rollup import roll_up
from market.timeframe import TIMEFRAMES
from store.integrity import Finding, check_series
from store.sqlite.store import DATABASE_NAME, SqliteStore
from tests.support.made_candles import BTC, MINUTE, START, absence, at, batch, made

M15 = TIMEFRAMES["15m"]


def change(path: Path, statement: str) -> None:
    """Somebody with another program."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute(statement).rowcount == 1
        connection.commit()


def told(findings: list[Finding]) -> list[tuple[str, int, int]]:
    return [(one.kind, (one.start - START) // MINUTE, (one.end - START) // MINUTE) for one in findings]


async def checked(path: Path, clock: Any, series: Any = BTC) -> list[Finding]:
    async with SqliteStore.opened(path, clock, read_only=True) as store:
        return await check_series(store, series, clock)


@pytest.fixture
async def path(tmp_path: Path, clock: Any) -> Path:
    """A database whose only flaw is a gap of two minutes."""
    path = tmp_path / DATABASE_NAME
    async with SqliteStore.opened(path, clock) as store:
        absences = [absence(3000, 3010, expires_at=clock.now_ms() + 1000)]
        await store.write(batch(made([*range(100), *range(102, 3000)]), absences=absences))
        fifteen = roll_up(made(range(60)), M15).table
        await store.write(batch(fifteen, series=BTC.at(M15)))
    return path


async def test_only_the_gap_is_found(path: Path, clock: Any) -> None:
    (gap,) = await checked(path, clock)
    assert told([gap]) == [("gap", 100, 102)]
    assert gap.detail == "2 candles are neither stored nor known to be empty"
    assert await checked(path, clock, BTC.at(M15)) == []
    clock.advance(1000)
    assert told(await checked(path, clock)) == [("gap", 100, 102), ("gap", 3000, 3010)]


async def test_a_changed_value_is_found_by_digest_rule_and_derivation(path: Path, clock: Any) -> None:
    change(path, f"UPDATE candles SET high = 1 WHERE timeframe = 60 AND open_time = {at(20)}")
    findings = await checked(path, clock)
    assert [one.kind for one in findings] == ["gap", "rule", "digest"]
    assert told(findings)[1] == ("rule", 20, 21)
    assert "something else changed the table" in findings[2].detail
    change(path, f"UPDATE candles SET close = 3 WHERE timeframe = 60 AND open_time = {at(29)}")
    own = await checked(path, clock, BTC.at(M15))
    assert told(own) == [("derived", 15, 30)]
    assert own[0].detail.startswith("close is ")
    assert own[0].detail.endswith("the minutes make 3.0")


async def test_a_missing_row_is_found(path: Path, clock: Any) -> None:
    change(path, f"DELETE FROM candles WHERE timeframe = 60 AND open_time = {at(50)}")
    findings = await checked(path, clock)
    assert told(findings)[:2] == [("gap", 100, 102), ("ledger", 50, 51)]
    assert findings[1].detail == "the ledger says present, but no candle is stored"
    assert findings[2].kind == "digest"


async def test_a_row_beside_the_ledger_is_found(path: Path, clock: Any) -> None:
    change(path, f"UPDATE candles SET open_time = {at(101)} WHERE timeframe = 60 AND open_time = {at(2999)}")
    assert ("ledger", 101, 102) in told(await checked(path, clock))
    assert ("ledger", 2999, 3000) in told(await checked(path, clock))


async def test_a_candle_that_its_minutes_do_not_make_is_found(path: Path, clock: Any) -> None:
    async with SqliteStore.opened(path, clock) as store:
        # A window whose minutes are known to be empty, and one of which some are unknown: only the first is odd.
        own = roll_up(made([*range(90, 105), *range(3000, 3010)]), M15).table
        await store.write(batch(absences=[absence(3010, 3030)]))
        await store.write(batch(own, series=BTC.at(M15)))
    (found,) = [one for one in await checked(path, clock, BTC.at(M15)) if one.kind != "gap"]
    assert told([found]) == [("derived", 3000, 3015)]
    assert found.detail == "the exchange has a 2023-01-03T02:00:00Z candle, its minutes make none"
