"""Reading through tiers whatever the state of things: right answers, and few questions to the database."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from market.clock import LATEST_MS
from market.errors import StoreBusy, StoreUnavailable, StoreUnusable
from market.interval import Interval
from market.timeframe import DAY_MS, ONE_MINUTE, TIMEFRAMES
from store.candle_store import CandleStore
from store.control import Control, SafetyState
from store.live_source import LocalMarket
from store.market_data import MarketData
from store.tiers.held_view import HeldView
from store.tiers.view import ReadAhead
from tests.conftest import ManualClock
from tests.support.failing_store import until
from tests.support.made_candles import BTC, MINUTE, START
from tests.support.stored_series import OneSeriesStore, Stored
from tests.support.tiered import tiered


class _SlowDisk:
    """A disk tier that takes its time to be emptied."""

    def __init__(self) -> None:
        self.frozen = self.dropping = False
        self.release = threading.Event()

    def drop(self) -> None:
        self.dropping = True
        self.release.wait(30)


@dataclass
class Read:
    """One series, read through tiers."""

    memory_bytes: int = 64 << 20
    clock: ManualClock = field(default_factory=lambda: ManualClock(START + 100 * DAY_MS))

    def __post_init__(self) -> None:
        self.store = OneSeriesStore(BTC)
        store = cast(CandleStore, self.store)
        self.views = tiered(store, None, self.clock, None, memory_bytes=self.memory_bytes)
        self.data = MarketData(store, LocalMarket.empty(self.clock), self.clock, views=self.views)
        self.write(range(0, 40 * DAY_MS, 10 * MINUTE))

    def write(self, offsets: range | list[int], version: int = 0) -> None:
        self.store.now = self.store.now.written([START + one for one in offsets], version)
        # Time goes on, so that what is held is asked for again.
        self.clock.advance(1000)

    async def newest(self, limit: int, *, most: int) -> str:
        """The tier of the newest rows, which are what is stored; at most so many questions were asked."""
        self.clock.advance(1000)
        self.store.calls.clear()
        answer = await self.data.candles(BTC, limit=limit)
        truth = self.store.now.table(0, LATEST_MS)
        assert answer.table.drop_columns("missing").equals(truth.slice(max(0, truth.num_rows - limit)))
        assert sum(self.store.calls.values()) <= most, self.store.calls
        return answer.tier

    async def held(self) -> HeldView:
        (view,) = await self.views.of([BTC])
        assert isinstance(view, HeldView)
        return view


async def test_while_memory_is_read_only_a_longer_tail_is_not_read_in_vain() -> None:
    read = Read()
    await read.newest(10, most=10)
    read.store.control = Control(safety=SafetyState.FAIL)
    assert await read.newest(10, most=1) == "memory"
    # The version, and the rows.
    assert await read.newest(4000, most=4) == "database"


async def test_while_memory_is_read_only_unknown_digests_are_not_read_in_vain() -> None:
    read = Read()
    await read.newest(10, most=10)
    read.write([0], version=1)
    await read.newest(10, most=5)
    read.store.control = Control(safety=SafetyState.FAIL)
    for timeframe in (ONE_MINUTE, TIMEFRAMES["1h"]):
        read.clock.advance(1000)
        read.store.calls.clear()
        answer = await read.data.candles(BTC.at(timeframe), start_ms=START, end_ms=START + 3 * DAY_MS)
        assert (answer.table.num_rows, answer.tier) == (
            3 * DAY_MS // max(timeframe.milliseconds, 10 * MINUTE),
            "database",
        )
        assert sum(read.store.calls.values()) <= 5, read.store.calls


@pytest.mark.parametrize("memory_bytes", [0, 20_000, 150_000])
async def test_a_tail_that_does_not_fit_is_not_read_again_and_again(memory_bytes: int) -> None:
    read = Read(memory_bytes)
    for _ in range(3):
        await read.newest(4000, most=8)
        assert read.views.used_bytes <= memory_bytes


@pytest.mark.parametrize("day", [20, 33, 39, 60])
async def test_what_is_in_the_archive_alone_is_not_looked_for_in_a_tail_again_and_again(day: int) -> None:
    read = Read()
    read.store.now = read.store.now.dropped(START + day * DAY_MS + 5)
    for limit in (10, 1000, 5000):
        await read.newest(limit, most=8)
        await read.newest(limit, most=3)
    if day < 39:
        assert await read.newest(10, most=1) == "memory"


async def test_rows_are_not_those_of_a_server_that_lags() -> None:
    read = Read()
    old = read.store.now
    read.write([40 * DAY_MS - 10 * MINUTE], version=1)
    read.store.lagging = old
    # Far from the tail, so that they are read straight; the last candle as it was.
    view = await read.held()
    page = old.page(Interval(START, START + 41 * DAY_MS), None, False)
    assert not await read.views.agrees(view._held, page, Interval(START + 39 * DAY_MS, START + 40 * DAY_MS))
    # The other way round: newer, but not there.
    read.store.lagging = None
    page = read.store.now.page(Interval(START, START + DAY_MS), None, False)
    read.write([39 * DAY_MS], version=2)
    page = read.store.now.page(Interval(START, START + DAY_MS), None, False)
    assert await read.views.agrees(view._held, page, Interval(START, START + DAY_MS))
    assert not await read.views.agrees(view._held, page, Interval(START, START + 40 * DAY_MS))


async def test_a_tail_read_while_the_series_is_followed_is_not_lost() -> None:
    read = Read()
    view = await read.held()
    read.write([40 * DAY_MS])
    read.store.calls.clear()
    release = read.store.held_back["delta"] = asyncio.Event()
    following = asyncio.create_task(read.views.of([BTC]))
    await until(lambda: read.store.calls["delta"] == 1)
    # The tail of the newer revision comes first.
    del read.store.held_back["delta"]
    with pytest.raises(ReadAhead):
        await read.views.reach(view._held, START + 20 * DAY_MS)
    release.set()
    (found,) = await following
    assert isinstance(found, HeldView)
    assert found._held.tail is not None
    assert found._held.tail.start == START + 20 * DAY_MS
    assert found._held.tail.last == START + 40 * DAY_MS


async def test_kept_bytes_tell_their_age_while_the_database_is_away() -> None:
    read = Read()
    read.store.mark = 1
    await read.newest(10, most=10)
    assert read.views.age_ms([BTC]) == 0
    read.store.mark, read.store.error = 2, StoreUnavailable("away")
    read.clock.advance(5000)
    assert (await read.data.candles(BTC, limit=10)).age_ms == read.views.age_ms([BTC]) >= 5000


async def test_a_series_that_is_there_and_is_not_is_an_error_that_can_be_tried_again() -> None:
    read = Read()
    read.store.hidden = True
    with pytest.raises(StoreBusy):
        await read.data.candles(BTC, limit=10)


@pytest.mark.parametrize("error", [StoreUnavailable("away"), StoreUnusable("it may not be read")])
async def test_looking_at_the_safety_state_goes_on_whatever_the_database_says(error: Exception) -> None:
    read = Read()
    read.store.error = error
    await read.views.look()
    read.store.error, read.store.control = None, Control(safety=SafetyState.FAIL)
    read.clock.advance(1000)
    await read.views.look()
    assert read.views.control.safety is SafetyState.FAIL


async def test_all_are_told_of_a_lockdown_though_who_found_it_has_gone_away() -> None:
    told: list[Control] = []
    read = Read()
    disk = _SlowDisk()
    operating = read.views._operating
    operating._on_control, operating._disk = told.append, cast(Any, disk)
    read.store.control = Control(safety=SafetyState.LOCKDOWN)
    reader = asyncio.create_task(read.views.of([BTC]))
    await until(lambda: disk.dropping)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    disk.release.set()
    assert told == [read.store.control]


async def test_sparse_candles_after_dense_ones_do_not_make_a_tail_of_all() -> None:
    read = Read()
    # Three dense weeks, nothing till the end of the month, then three months with two candles a day.
    read.store.now = Stored(BTC).written(range(START + 31 * DAY_MS, START + 52 * DAY_MS, MINUTE), 0)
    read.write(range(0, 20 * DAY_MS, MINUTE))
    read.write(range(59 * DAY_MS, 150 * DAY_MS, 12 * 60 * MINUTE))
    await read.newest(150, most=12)
    await read.newest(1000, most=12)
    view = await read.held()
    assert view._held.tail is not None
    assert len(view._held.tail.times) <= 21 * 1440 + 182
