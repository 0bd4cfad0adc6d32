"""Which series are read most: over restarts, between processes, and with a file that is not what it should be."""

from __future__ import annotations

import fcntl
import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from market.instrument import Series
from market.timeframe import ONE_MINUTE, TIMEFRAMES
from store.tiers import frequent
from store.tiers.frequent import FrequentSeries
from tests.conftest import ManualClock
from tests.support.made_candles import BTC, DAY, ETH, MINUTE

XRP = Series("kraken", "XRP/USD", TIMEFRAMES["1M"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home/frequent.json"


def counted(path: Path, clock: ManualClock, **reads: int) -> FrequentSeries:
    found = FrequentSeries(path, clock)
    for name, count in reads.items():
        found.count({"btc": BTC, "eth": ETH, "xrp": XRP}[name], count)
    return found


def scores(path: Path) -> dict[str, float]:
    return {row[1]: row[3] for row in json.loads(path.read_bytes())["series"]}


def test_the_most_read_come_first_and_are_kept(path: Path, clock: ManualClock) -> None:
    first = counted(path, clock, eth=2, btc=5, xrp=3)
    for _ in range(4):
        first.count(ETH)
    assert first.top(2) == [ETH, BTC]
    assert first.save(at_once=True)
    assert FrequentSeries(path, clock).top(9) == [ETH, BTC, XRP]
    assert FrequentSeries(path, clock).top(0) == []


def test_it_is_written_once_a_minute(path: Path, clock: ManualClock) -> None:
    one = FrequentSeries(path, clock)
    clock.advance(MINUTE)
    assert not one.save()
    assert not path.exists()
    one.count(BTC)
    assert one.save()
    one.count(BTC)
    clock.advance(MINUTE - 1)
    assert not one.save()
    clock.advance(1)
    assert one.save()
    assert scores(path)["BTC/USDT"] == pytest.approx(2, rel=0.01)
    # Nothing new, nothing written.
    before = path.stat().st_ino
    clock.advance(MINUTE)
    assert not one.save()
    assert path.stat().st_ino == before


def test_a_read_counts_half_a_day_later(path: Path, clock: ManualClock) -> None:
    counted(path, clock, btc=16, xrp=3).save(at_once=True)
    clock.advance(2 * DAY)
    later = counted(path, clock, eth=5)
    assert later.top(3) == [ETH, BTC, XRP]
    later.save(at_once=True)
    assert scores(path) == pytest.approx({"BTC/USDT": 4, "ETH/USDT": 5, "XRP/USD": 0.75})
    clock.advance(20 * DAY)
    counted(path, clock, xrp=1).save(at_once=True)
    assert set(scores(path)) == {"XRP/USD"}


def test_a_read_after_a_quiet_week_counts_whole(path: Path, clock: ManualClock) -> None:
    one = FrequentSeries(path, clock)
    clock.advance(7 * DAY)
    one.count(BTC)
    one.save()
    assert scores(path) == {"BTC/USDT": 1.0}


def test_what_cannot_be_saved_ages_too(path: Path, clock: ManualClock) -> None:
    path.parent.write_text("no folder")
    one = counted(path, clock, btc=8)
    with capture_logs() as said:
        for _ in range(3):
            clock.advance(DAY)
            assert not one.save()
            assert one.top(1) == [BTC]
    assert [entry["event"] for entry in said] == ["which series are read most is not kept"]
    path.parent.unlink()
    assert one.save(at_once=True)
    assert scores(path) == {"BTC/USDT": 1.0}


def test_processes_add_to_one_file(path: Path, clock: ManualClock) -> None:
    one, other = counted(path, clock, btc=2), counted(path, clock, btc=3, eth=4)
    assert one.save(at_once=True)
    assert other.save(at_once=True)
    assert other.top(2) == one.top(2) == [BTC, ETH]
    one.count(ETH, 2)
    one.save(at_once=True)
    assert scores(path) == {"BTC/USDT": 5, "ETH/USDT": 6}


def test_while_another_process_writes_nobody_waits(path: Path, clock: ManualClock) -> None:
    one = counted(path, clock, btc=2)
    path.parent.mkdir()
    held = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert not one.save(at_once=True)
    os.close(held)
    assert one.save(at_once=True)
    assert scores(path) == {"BTC/USDT": 2}


GOOD = {"version": 1, "as_of": 1_700_000_000_000, "series": [["binance", "BTC/USDT", "1m", 2.0]]}
GARBAGE = [
    b"",
    b"{",
    b"\xff\xfe",
    b"[1, 2]",
    b"null",
    b"[" * 100_000,
    b"1" * 10_000,
    json.dumps(GOOD | {"version": 2}).encode(),
    json.dumps(GOOD | {"as_of": "yesterday"}).encode(),
    json.dumps(GOOD | {"as_of": float("inf")}).encode(),
    json.dumps(GOOD | {"as_of": -(10**300)}).encode(),
    json.dumps(GOOD | {"series": 7}).encode(),
    json.dumps(GOOD | {"series": [[]]}).encode(),
    json.dumps(GOOD | {"series": ["abcd"]}).encode(),
    *(
        json.dumps(GOOD | {"series": [row]}).encode()
        for row in (
            ["binance", "BTC/USDT", "1m"],
            ["../..", "BTC/USDT", "1m", 1.0],
            ["binance", "BTC", "1m", 1.0],
            ["binance", "BTC/USDT", "7m", 1.0],
            ["binance", ["BTC/USDT"], {}, 1.0],
            ["binance", "BTC/USDT", "1m", float("nan")],
            ["binance", "BTC/USDT", "1m", float("inf")],
            ["binance", "BTC/USDT", "1m", -1],
            ["binance", "BTC/USDT", "1m", 10**400],
            ["binance", "BTC/USDT", "1m", None],
        )
    ),
    json.dumps(GOOD).encode() + b" " * (1 << 20),
]


@pytest.mark.parametrize("data", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_ignored_and_rewritten(path: Path, clock: ManualClock, data: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(data)
    one = counted(path, clock, xrp=1)
    assert one.top(5) == [XRP]
    assert one.save(at_once=True)
    assert scores(path) == {"XRP/USD": 1}


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/nowhere/at/all")])
def test_what_is_no_file_is_replaced(path: Path, clock: ManualClock, make: Any) -> None:
    path.parent.mkdir()
    make(path)
    one = counted(path, clock, xrp=1)
    assert one.top(5) == [XRP]
    assert one.save(at_once=True)
    assert scores(path) == {"XRP/USD": 1}


def test_a_clock_set_back_neither_blows_up_nor_stops(path: Path, clock: ManualClock) -> None:
    one = counted(path, clock, btc=4)
    one.save(at_once=True)
    clock.advance(-5 * DAY)
    one.count(ETH)
    assert one.save()
    assert scores(path) == {"BTC/USDT": 4, "ETH/USDT": 1}


def test_its_size_is_bounded(path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frequent, "_MOST", 10)
    monkeypatch.setattr(frequent, "_MOST_COUNTED", 30)
    one = counted(path, clock, btc=3, eth=2)
    for number in range(200):
        one.count(Series("binance", f"A{number}/USDT", ONE_MINUTE))
        assert len(one._counted) <= 30
    one.save(at_once=True)
    assert one.top(2) == [BTC, ETH]
    assert len(scores(path)) == 10


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from([BTC, ETH, XRP]), st.integers(0, 3 * DAY), st.booleans()), max_size=12))
def test_the_order_is_that_of_the_formula(
    tmp_path_factory: pytest.TempPathFactory, reads: list[tuple[Series, int, bool]]
) -> None:
    path, clock = tmp_path_factory.mktemp("home") / "frequent.json", ManualClock()
    processes = FrequentSeries(path, clock), FrequentSeries(path, clock)
    expected = dict.fromkeys((BTC, ETH, XRP), 0.0)
    for series, later, second in reads:
        clock.advance(later)
        expected = {one: score * 0.5 ** (later / DAY) for one, score in expected.items()}
        processes[second].count(series)
        assert processes[second].save(at_once=True)
        expected[series] += 1
    found = processes[0].top(3)
    assert set(found) <= set(expected)
    # Less than a hundredth of a read is forgotten, and the file has four decimals.
    ranks = [expected[one] for one in found]
    assert all(one >= other - 0.05 for one, other in pairwise(ranks))
    assert all(expected[one] < 0.05 for one in expected if one not in found)
