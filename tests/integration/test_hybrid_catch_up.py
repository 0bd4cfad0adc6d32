"""Bringing the secondary store up to the primary: whatever happened, in the end both answer alike."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from market.candle import CandleState, open_times_ms
from market.coverage import CoverageState
from market.errors import StoreBusy, StoreUnavailable, StoreUnusable
from market.instrument import Instrument, Series
from market.timeframe import TIMEFRAMES
from store.batch import CandleBatch, Written
from store.difference import chunk_differences
from store.hybrid import catch_up
from store.hybrid.store import HybridStore
from tests.contract.test_candle_store_model import Write, to_batch, writes
from tests.support.failing_store import Pair, Switch, ledger, until
from tests.support.made_candles import BTC, DAY, ETH, START, absence, at, batch, buckets, made, made_at

WHOLE = (START, at(100_000))
VERIFIED = CandleState.VERIFIED


@pytest.fixture
def pair(tmp_path: Path, clock: Any) -> Pair:
    return Pair(tmp_path, clock, Switch(), Switch())


async def test_corrections_and_the_states_of_candles_end_alike(pair: Pair) -> None:
    async with pair.opened() as store:
        await store.write(batch(made(range(100))))
        await store.catch_up()
        pair.secondary.down()
        await store.write(batch(made([3, 4], version=1)))
        await store.write(batch(made([7], version=2), state=VERIFIED))
        pair.secondary.up()
        await until(lambda: store.status.current)
        # On the secondary 3 and 4 are verified now, so that it outranks the next correction; it is copied again.
        assert await store.write(batch(made([3], version=5))) == Written(corrected=1)
        assert (await store.write(batch(made([7], version=5)))).outranked == 1
        await until(lambda: not store.status.behind)
    await pair.assert_agree()


async def test_a_correction_that_hits_two_rows_in_two_ways_is_seen(pair: Pair) -> None:
    """Each store corrects one row, but not the same one: the counts agree, the rows do not."""
    async with pair.each() as (first, second):
        await first.write(batch(made([0]), state=VERIFIED))
        await first.write(batch(made([1])))
        await second.write(batch(made([0])))
        await second.write(batch(made([1]), state=VERIFIED))
    async with pair.opened() as store:
        await store.catch_up()
        assert await store.write(batch(made([0, 1], version=1))) == Written(corrected=1, outranked=1)
        await store.catch_up()
    await pair.assert_agree()


async def test_absences_come_with_evidence_and_expiry(pair: Pair) -> None:
    expires = pair.clock.now_ms() + 60_000
    async with pair.opened() as store:
        await store.write(batch(made(range(10)), absences=[absence(20, 30)]))
        await store.catch_up()
        pair.secondary.down()
        told = [absence(10, 20, expires_at=expires, evidence="asked"), absence(25, 40, CoverageState.OWN_OUTAGE)]
        await store.write(batch(absences=told, source="another"))
        await store.write(batch(made([27])))
        pair.secondary.up()
        await until(lambda: store.status.current)
    await pair.assert_agree()
    async with pair.each() as (first, second):
        assert len(await ledger(first, BTC)) == 6
        sources = [[(one.interval, one.source) for one in await each.coverage(BTC)] for each in (first, second)]
        assert sources[0] == sources[1]


async def test_a_series_that_is_behind_is_not_written_along(pair: Pair) -> None:
    """Else the secondary would learn of a range from a later batch than the primary did."""
    held = asyncio.Event()

    async def hold(_: Any) -> None:
        await held.wait()

    async with pair.opened() as store:
        pair.secondary.down()
        await store.write(batch(made(range(5)), source="first"))
        pair.secondary.before_write = hold
        pair.secondary.up()
        await until(lambda: store.status.secondary_outage is None)
        writing = asyncio.create_task(store.write(batch(made(range(8)), source="second")))
        # Whoever copies a little holds the series; nothing else keeps the write back.
        held.set()
        await writing
        await until(lambda: store.status.current)
    async with pair.each() as (first, second):
        told = [[(one.interval, one.source) for one in await each.coverage(BTC)] for each in (first, second)]
        assert told[0] == told[1]
        assert [source for _, source in told[0]] == ["first", "second"]


async def test_an_absence_that_expired_meanwhile_does_not_keep_it_busy(pair: Pair) -> None:
    async with pair.opened() as store:
        await store.write(batch(made([0]), absences=[absence(1, 9)]))
        await store.catch_up()
        pair.secondary.down()
        expires = pair.clock.now_ms() + 1000
        await store.write(batch(absences=[absence(1, 9, expires_at=expires, evidence="another look")]))
        pair.clock.advance(5000)
        pair.secondary.up()
        await until(lambda: store.status.differing == (BTC,))
        assert not store.status.behind
        # The primary calls it a gap again, so somebody looks again, and both learn the same.
        await store.write(batch(absences=[absence(1, 9, expires_at=expires + 99_000, evidence="third look")]))
        await store.catch_up()
        assert store.status.differing == ()
    await pair.assert_agree()


async def test_candles_of_the_secondary_alone_are_kept_and_told_once(pair: Pair) -> None:
    async with pair.each() as (first, second):
        await first.write(batch(made(range(10))))
        await second.write(batch(made(range(5, 15))))
        await second.write(batch(made([3]), series=ETH))
    with capture_logs() as logs:
        async with pair.opened() as store:
            for _ in range(3):
                await store.catch_up()
                assert store.status.differing == (BTC,)
            assert not store.status.behind
            writes = pair.secondary.calls.count("write")
            await store.catch_up()
            assert pair.secondary.calls.count("write") == writes
            # The series is written along as before.
            await store.write(batch(made([20])))
            assert not store.status.behind
    told = [one for one in logs if one["log_level"] == "warning"]
    assert [one["series"] for one in told] == [str(BTC)]
    async with pair.each() as (_, second):
        assert await second.read(BTC, *WHOLE) == made([*range(15), 20])
        assert await second.read(ETH, *WHOLE) == made([3])


async def test_instruments_are_brought_up(pair: Pair) -> None:
    told = Instrument(
        exchange="binance", symbol="BTC/USDT", exchange_symbol="BTCUSDT", base="BTC", quote="USDT",
        tick_size=Decimal("0.01"), listed_ms=START + DAY,
    )  # fmt: skip
    days = BTC.at(TIMEFRAMES["3d"])
    async with pair.opened() as store:
        await store.save_instruments([told])
        await store.catch_up()
        pair.secondary.down(StoreBusy("locked"))
        await store.save_instruments([replace(told, tick_size=Decimal("0.1")), replace(told, symbol="A/B")])
        # Three-day candles count from the listing.
        await store.write(batch(made_at([START + DAY + 3 * DAY * one for one in range(4)]), series=days))
        pair.secondary.up()
        await until(lambda: store.status.current)
        await store.catch_up()
    await pair.assert_agree()


async def test_instruments_that_others_save_or_that_were_refused_are_brought_up(pair: Pair) -> None:
    told = Instrument(exchange="binance", symbol="A/B", exchange_symbol="AB", base="A", quote="B")
    async with pair.each() as (first, second), pair.opened() as store:

        async def alike() -> bool:
            return await second.instruments() == await first.instruments()

        await until(lambda: store.status.current)
        await first.save_instruments([told])
        await store.catch_up()
        assert await alike()
        # Nothing but this fails, so nothing else has to be compared.
        pair.secondary.only = "save_instruments"
        pair.secondary.down(StoreUnusable("refused"))
        await store.save_instruments([replace(told, active=False)])
        assert not await alike()
        pair.secondary.up()
        await until(alike)


@pytest.mark.parametrize("name", list(TIMEFRAMES))
async def test_every_timeframe_is_brought_up(pair: Pair, name: str) -> None:
    timeframe = TIMEFRAMES[name]
    series = BTC.at(timeframe)
    times = buckets(timeframe, 60)
    async with pair.opened() as store:
        await store.write(batch(made_at(times), series=series, now_ms=times[-1] * 2))
        pair.secondary.down()
        await store.write(batch(made_at(times[5:9], version=1), series=series, now_ms=times[-1] * 2))
        pair.secondary.up()
        await until(lambda: store.status.current)
    await pair.assert_agree()


async def test_many_differences_are_worked_off_in_parts(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catch_up, "_ITEMS_AT_ONCE", 20)
    pair.rules = replace(pair.rules, rows_at_once=1000)
    async with pair.each() as (first, second):
        minutes = range(0, 6000, 7)
        await first.write(batch(made(minutes), absences=[absence(one + 1, one + 3) for one in minutes]))
        # Nothing can be done about these.
        await second.write(batch(absences=[absence(one + 4, one + 5) for one in range(0, 700, 7)]))
    async with pair.opened() as store:
        await store.catch_up()
        assert store.status.differing == (BTC,)
    async with pair.each() as (first, second):
        assert await second.read(BTC, *WHOLE) == await first.read(BTC, *WHOLE)
        assert set(await ledger(first, BTC)) < set(await ledger(second, BTC))


async def test_writes_while_it_catches_up_are_not_lost(pair: Pair) -> None:
    """Many writers of the same series, each correcting what the others wrote, while chunk after chunk is copied."""
    pair.rules = replace(pair.rules, rows_at_once=1440)
    async with pair.each() as (first, _):
        await first.write(batch(made(range(20_000))))
    async with pair.opened() as store:

        async def write(version: int) -> None:
            for start in range(0, 20_000, 400):
                await store.write(batch(made(range(start, start + 30), version=version)))

        async with asyncio.TaskGroup() as group:
            for version in range(1, 4):
                group.create_task(write(version))
        await store.catch_up()
        assert not store.status.behind
    await pair.assert_agree()


async def test_two_processes_may_do_it_at_once(pair: Pair) -> None:
    async with pair.each() as (first, _):
        await first.write(batch(made(range(20_000))))
    pair.rules = replace(pair.rules, rows_at_once=1440)
    async with pair.opened() as one, pair.opened() as other:

        async def write(store: HybridStore, version: int) -> None:
            for start in range(0, 20_000, 800):
                await store.write(batch(made(range(start, start + 20), version=version)))

        async with asyncio.TaskGroup() as group:
            group.create_task(write(one, 1))
            group.create_task(write(other, 2))
        # Each compares what it wrote; the last one sees what both left.
        await asyncio.gather(one.catch_up(), other.catch_up())
        await one.catch_up()
    await pair.assert_agree()


async def test_two_processes_that_write_in_two_orders_are_found_without_being_asked(pair: Pair) -> None:
    """Ours reaches the primary first and the secondary last; both stores count one correction for each write."""
    pair.rules = replace(pair.rules, compare_every_s=0.01, compare_all_every_s=1e9)
    async with pair.each() as (first, second), pair.opened() as store:

        async def other(_: Any) -> None:
            pair.secondary.before_write = None
            await first.write(batch(made([0], version=2)))
            await second.write(batch(made([0], version=2)))

        await store.write(batch(made([0])))
        await until(lambda: store.status.current)
        pair.secondary.before_write = other
        assert await store.write(batch(made([0], version=1))) == Written(corrected=1)
        assert await second.read(BTC, *WHOLE) == made([0], version=1)

        async def right() -> bool:
            return bool(await second.read(BTC, *WHOLE) == made([0], version=2))

        await until(right)
    await pair.assert_agree()


async def test_a_write_between_the_copy_and_the_comparison_is_not_lost(pair: Pair) -> None:
    """Another process corrects a candle after it was read for copying and before the copy is written."""
    async with pair.each() as (first, second):
        await first.write(batch(made(range(100))))

        async def correct(_: Any) -> None:
            pair.secondary.before_write = None
            await first.write(batch(made([50], version=1), state=VERIFIED))
            await second.write(batch(made([50], version=1), state=VERIFIED))

        pair.secondary.before_write = correct
        async with pair.opened() as store:
            await store.catch_up()
            assert await second.read(BTC, at(50), at(51)) == made([50], version=1)
    await pair.assert_agree()


async def test_what_the_secondary_refuses_for_one_day_does_not_keep_the_rest_away(pair: Pair) -> None:
    """As a database does that has archived the day."""
    pair.rules = replace(pair.rules, rows_at_once=1440)

    async def refuse(one: CandleBatch) -> None:
        if one.series == BTC and {at(5), at(6)} & set(open_times_ms(one.table).tolist()):
            raise StoreUnusable("archived")

    async with pair.opened() as store:
        await store.write(batch(made(range(3000))))
        await store.write(batch(made(range(10)), series=ETH))
        await store.catch_up()
        pair.secondary.before_write = refuse
        with capture_logs() as logs:
            pair.secondary.down()
            await store.write(batch(made([5], version=1)))
            await store.write(batch(made(range(2990, 3100), version=1)))
            await store.write(batch(made(range(20)), series=ETH))
            pair.secondary.up()
            async with pair.each() as (first, second):

                async def lacks(series: Series, *days: int) -> bool:
                    found = chunk_differences(await first.chunks(series), await second.chunks(series))
                    return [one.start for one in found] == [START + day * DAY for day in days]

                await until(lambda: lacks(BTC, 0))
                await until(lambda: lacks(ETH))
            await until(lambda: list(store.status.behind) == [BTC])
            assert [one["event"] for one in logs if one["log_level"] == "warning"] == [
                "the secondary store is behind; it will catch up by itself"
            ]
        pair.secondary.before_write = None
        await until(lambda: store.status.current)
    await pair.assert_agree()


@dataclass(frozen=True)
class Event:
    """Something that happens to a hybrid store."""

    #: ``down``, ``up``, ``commits and fails``, ``primary commits and fails``, ``reopen`` or ``catch up``.
    name: str


@settings(max_examples=60)
@given(
    plan=st.lists(
        st.one_of(
            writes(),
            writes(),
            st.builds(
                Event,
                st.sampled_from(
                    ["down", "up", "commits and fails", "primary commits and fails", "reopen", "catch up"]
                ),
            ),
        ),
        max_size=14,
    )
)
def test_after_any_outages_both_answer_alike(plan: list[Write | Event]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_live_through(Pair(Path(folder), _Clock(), Switch(), Switch()), plan))


async def _live_through(pair: Pair, plan: list[Write | Event]) -> None:
    parts: list[list[Write | Event]] = [[]]
    for one in plan:
        if isinstance(one, Event) and one.name == "reopen":
            parts.append([])
        else:
            parts[-1].append(one)
    for part in parts:
        async with pair.opened() as store:
            for one in part:
                await _do(pair, store, one)
    pair.secondary.up()
    pair.primary.after_commit = pair.secondary.after_commit = None
    async with pair.opened() as store:
        await store.catch_up()
        assert not store.status.behind
        assert store.status.differing == ()
    await pair.assert_agree()


async def _do(pair: Pair, store: HybridStore, one: Write | Event) -> None:
    lost = StoreUnavailable("the connection was lost")
    if isinstance(one, Write):
        pair.clock.time_ms += one.pause
        with contextlib.suppress(StoreUnavailable):
            await store.write(to_batch(one, BTC))
    elif one.name == "down":
        pair.secondary.down()
    elif one.name == "up":
        pair.secondary.up()
    elif one.name == "commits and fails":
        pair.secondary.after_commit = lost
    elif one.name == "primary commits and fails":
        pair.primary.after_commit = lost
    elif pair.secondary.error is None:
        pair.secondary.after_commit = None
        await store.catch_up()


class _Clock:
    def __init__(self) -> None:
        self.time_ms = 1_700_000_000_000

    def now_ms(self) -> int:
        return self.time_ms
