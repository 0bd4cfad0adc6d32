"""Reading through the tiers: how often the database is asked, and what is served when it does not answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from market.candle import COLUMNS
from market.errors import StoreReadOnly, StoreUnavailable
from market.instrument import Series
from market.timeframe import ONE_MINUTE, TIMEFRAMES
from store.control import SafetyState
from store.live_source import LocalMarket
from store.market_data import MarketData
from store.sqlite.store import SqliteStore
from store.tiers.tiered_views import TieredViews
from tests.conftest import ManualClock
from tests.support.failing_store import FailingStore, Switch
from tests.support.made_candles import BTC, DAY, START, at, batch, made, made_at
from tests.support.tiered import tiered

MONTH = 31 * 1440


@dataclass
class Read:
    """A store behind a switch, read through tiers and straight."""

    store: SqliteStore
    switch: Switch
    views: TieredViews
    through: MarketData
    straight: MarketData
    folder: Path

    def asked(self) -> Counter[str]:
        """How often the store was asked for what, since the last time."""
        found = Counter(self.switch.calls)
        self.switch.calls.clear()
        return found

    async def same(self, series: Series = BTC, **asked: Any) -> str:
        """The tier of an answer that must be what the database says."""
        answer, truth = await self.through.candles(series, **asked), await self.straight.candles(series, **asked)
        assert answer.table.equals(truth.table)
        assert (answer.interval, answer.coverage, answer.gaps, answer.next_start, answer.derived_from) == (
            truth.interval, truth.coverage, truth.gaps, truth.next_start, truth.derived_from,
        )  # fmt: skip
        assert answer.fingerprint == truth.fingerprint
        return answer.tier


Opened = Callable[..., Any]


@pytest.fixture
def opened(tmp_path: Path, clock: ManualClock) -> Opened:
    @asynccontextmanager
    async def open_(**more: Any) -> AsyncIterator[Read]:
        async with SqliteStore.opened(tmp_path / "market_data.sqlite3", clock) as store:
            switch = Switch()
            failing: Any = FailingStore(store, switch)
            views = tiered(failing, None, clock, tmp_path / "cache", **more)
            through = MarketData(failing, LocalMarket.empty(clock), clock, views=views)
            straight = MarketData(store, LocalMarket.empty(clock), clock)
            yield Read(store, switch, views, through, straight, tmp_path / "cache")
            views.close()

    return open_


async def test_a_thousand_cold_reads_of_one_series_are_one_read_of_the_database(opened: Opened) -> None:
    async with opened() as read:
        await read.store.write(batch(made(range(3000))))
        answers = await asyncio.gather(*(read.through.candles(BTC, limit=1000) for _ in range(1000)))
        assert {answer.table.num_rows for answer in answers} == {1000}
        asked = read.asked()
        # One for the version, one for the chunks and the rows of the tail.
        assert asked["delta"] == 1
        assert asked["versions"] <= 2
        assert asked["page"] == asked["read"] == 0
        # And of old months: each period once, whoever wants it.
        await read.store.write(batch(made(range(MONTH, 3 * MONTH, 9))))
        wanted = [read.through.candles(BTC, start_ms=at(MONTH), end_ms=at(MONTH + 20_000)) for _ in range(1000)]
        tables = [answer.table for answer in await asyncio.gather(*wanted)]
        assert all(one.equals(tables[0]) for one in tables)
        assert read.asked()["page"] == 1


async def test_an_error_is_not_kept_and_does_not_pile_up(opened: Opened) -> None:
    async with opened() as read:
        await read.store.write(batch(made(range(3000))))
        read.switch.error = StoreUnavailable("the database does not answer")
        found = await asyncio.gather(
            *(read.through.candles(BTC, limit=1000) for _ in range(200)), return_exceptions=True
        )
        assert {type(one) for one in found} == {StoreUnavailable}
        read.switch.error = None
        assert await read.same(limit=1000) == "database"
        assert await read.same(limit=1000) == "memory"


async def test_what_is_held_is_served_for_a_while_when_the_database_does_not_answer(
    opened: Opened, clock: ManualClock
) -> None:
    async with opened() as read:
        await read.store.write(batch(made(range(3000))))
        before = await read.through.candles(BTC, limit=1000)
        # Something is committed, so that it has to be asked, and does not answer.
        await read.store.write(batch(made([3000])))
        read.switch.error = StoreUnavailable("the database does not answer")
        clock.advance(299_000)
        away = await read.through.candles(BTC, limit=1000)
        assert (away.table.equals(before.table), away.tier, away.age_ms) == (True, "memory", 299_000)
        # What is not held is not made up.
        with pytest.raises(StoreUnavailable):
            await read.through.candles(BTC, start_ms=START, end_ms=at(10))
        clock.advance(2000)
        with pytest.raises(StoreUnavailable):
            await read.through.candles(BTC, limit=1000)
        read.switch.error = None
        assert await read.same(limit=1000) == "memory"


async def test_a_tail_grows_without_being_read_again(opened: Opened) -> None:
    async with opened() as read:
        await read.store.write(batch(made(range(3000))))
        hours = BTC.at(TIMEFRAMES["1h"])
        await read.same(limit=1000)
        await read.same(hours, limit=20)
        read.asked()
        for minute in range(3000, 3070):
            await read.store.write(batch(made([minute])))
            assert await read.same(limit=1000) == "memory"
            assert await read.same(hours, limit=20) == "memory"
        asked = read.asked()
        assert asked["delta"] == 70
        assert asked["rolled"] == asked["page"] == asked["facts"] == 0


async def test_a_correction_is_seen_and_nothing_but_its_chunk_is_read_again(opened: Opened) -> None:
    async with opened() as read:
        await read.store.write(batch(made(range(0, 3 * MONTH, 5))))
        whole = {"start_ms": START, "end_ms": at(3 * MONTH)}
        days = BTC.at(TIMEFRAMES["1d"])
        await read.same(**whole)
        await read.same(days, **whole)
        assert await read.same(**whole) == "memory"
        read.asked()
        # In the first month, which is sealed; then in the tail.
        for minute in (5000, 3 * MONTH - 10):
            await read.store.write(batch(made([minute], version=1)))
            await read.same(**whole)
            await read.same(days, **whole)
            assert await read.same(**whole) == "memory"
            assert await read.same(days, **whole) == "memory"
        assert read.asked()["page"] == 1


async def test_sealed_periods_come_from_disk_after_a_restart(opened: Opened) -> None:
    # January and February; the tail is March's.
    whole = {"start_ms": START, "end_ms": START + 59 * DAY}
    async with opened() as read:
        await read.store.write(batch(made(range(0, 3 * MONTH, 5))))
        assert await read.same(**whole) == "database"
    async with opened() as read:
        assert await read.same(**whole) == "disk"
        assert read.asked()["page"] == 0
        files = sorted(read.folder.rglob("*.arrow"))
        assert len(files) == 2
        # Whatever becomes of the files, the answer stays right.
        files[0].write_bytes(files[0].read_bytes()[:-100])
        files[1].write_bytes(b"something else")
        read.views.forget()
        assert await read.same(**whole) == "database"


async def test_a_range_far_before_the_tail_leaves_the_tail_short(opened: Opened) -> None:
    month = {"start_ms": START + 59 * DAY, "end_ms": START + 85 * DAY}
    async with opened() as read:
        # March is the newest month.
        await read.store.write(batch(made(range(59 * 1440, 85 * 1440))))
        await read.same(limit=1000)
        used = read.views.used_bytes
        answers = await asyncio.gather(*(read.through.candles(BTC, **month) for _ in range(200)))
        assert all(one.table.equals(answers[0].table) for one in answers)
        assert read.asked()["page"] == 1
        assert await read.same(**month) == "memory"
        assert read.views.used_bytes > 3 * used
        # It grows with the tail, and is read again where something before the tail was corrected.
        await read.store.write(batch(made([85 * 1440])))
        assert await read.same(start_ms=START + 60 * DAY, end_ms=START + 86 * DAY) == "memory"
        await read.store.write(batch(made([60 * 1440], version=1)))
        assert await read.same(**month) == "database"
        assert await read.same(**month) == "memory"
        await read.store.write(batch(made([60 * 1440 + 1], version=1)))
        assert await read.same(**month, limit=5) == "database"
        assert await read.same(**month) == "memory"


async def test_process_memory_stays_within_its_bytes(opened: Opened) -> None:
    limit = 500_000
    series = [Series("binance", f"S{number}/USDT", ONE_MINUTE) for number in range(60)]
    async with opened(memory_bytes=limit) as read:
        for one in series:
            await read.store.write(batch(made(range(500)), series=one))
        for turn in range(2):
            for number in range(len(series)):
                await read.same(series[number * 17 % len(series)], limit=10 + turn)
                assert read.views.used_bytes <= limit
        assert len(read.views.entries) > 5


async def test_fail_keeps_what_is_there_and_adds_nothing(opened: Opened) -> None:
    other = Series("binance", "ETH/USDT", ONE_MINUTE)
    async with opened() as read:
        await read.store.write(batch(made(range(3000))))
        await read.store.write(batch(made(range(3000)), series=other))
        await read.same(limit=1000)
        await read.store.set_control(safety=SafetyState.FAIL, reason="a test")
        assert await read.same(limit=1000) == "memory"
        with pytest.raises(StoreReadOnly):
            await read.store.write(batch(made([3000])))
        used = read.views.used_bytes
        for _ in range(2):
            assert await read.same(other, limit=1000) == "database"
        assert read.views.used_bytes == used
        assert await read.same(limit=1000) == "memory"
        await read.store.set_control(safety=SafetyState.NORMAL)
        await read.store.write(batch(made([3000])))
        assert await read.same(limit=1000) == "memory"
        await read.same(other, limit=1000)
        assert await read.same(other, limit=1000) == "memory"


async def test_lockdown_empties_the_tiers_and_reads_the_database(opened: Opened) -> None:
    whole = {"start_ms": START, "end_ms": at(2 * MONTH)}
    async with opened() as read:
        await read.store.write(batch(made(range(0, 3 * MONTH, 5))))
        await read.same(**whole)
        await read.store.set_control(safety=SafetyState.LOCKDOWN, reason="a test")
        for _ in range(2):
            assert await read.same(**whole) == "database"
        assert read.views.used_bytes == 0
        assert not list(read.folder.rglob("*.arrow"))
        with pytest.raises(StoreReadOnly):
            await read.store.write(batch(made([3 * MONTH])))
        # A process that nobody asks anything finds out by itself.
        await read.store.set_control(safety=SafetyState.NORMAL)
        await read.same(**whole)
        assert read.views.used_bytes > 0
        await read.store.set_control(safety=SafetyState.LOCKDOWN)
        await read.views.look()
        assert read.views.used_bytes == 0
        await read.store.set_control(safety=SafetyState.NORMAL)
        await read.same(**whole)
        assert await read.same(**whole) == "memory"


async def test_sparse_series_are_read_right_from_the_end_and_from_the_beginning(opened: Opened) -> None:
    async with opened() as read:
        # A candle every few hours, over most of a year, and a silent month at the end of the ledger.
        times = [START + number * 7 * 3_600_000 // 60_000 * 60_000 for number in range(1000)]
        await read.store.write(batch(made_at(times)))
        for limit in (1, 5, 100, 999, 1000, 1001):
            await read.same(limit=limit)
            await read.same(end_ms=START + 100 * DAY, limit=limit)
            await read.same(start_ms=START + 90 * DAY, limit=limit)
            await read.same(BTC.at(TIMEFRAMES["1d"]), limit=limit)
            await read.same(BTC.at(TIMEFRAMES["1w"]), limit=limit)
            await read.same(BTC.at(TIMEFRAMES["1M"]), limit=limit)
        assert (await read.through.candles(BTC)).table.select(COLUMNS).num_rows == 1000
