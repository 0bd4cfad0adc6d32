"""What tells a reader that a series has changed: every change that he can see, and no other."""

from __future__ import annotations

import asyncio
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.candle import CandleState, by_open_time, open_times_ms
from market.coverage import Covered
from market.fingerprint import digest
from market.instrument import Instrument, Series
from market.timeframe import DAY_MS, DEFAULT_ORIGIN_MS, ONE_MINUTE, TIMEFRAMES
from store.candle_store import SeriesVersion
from store.control import Control
from store.merge import chunk_starts
from tests.conftest import ManualClock
from tests.contract.test_candle_store_model import BAD, WHOLE, Row, Write, to_batch, writes
from tests.support.candle_stores import STORES
from tests.support.made_candles import BTC, ETH, START, absence, at, batch, made, made_at

ALL = -(2**40)
BAD_ROW = Write(rows=(Row(11, BAD),), state=CandleState.CLOSED, absences=(), source="rest", pause=0)
RUNS = int(os.environ.get("CHANDLERY_TEST_VERSIONS", "12"))
THREE_DAYS = BTC.at(TIMEFRAMES["3d"])


async def version(store: Any, series: Series = BTC) -> SeriesVersion:
    found, _ = await store.versions([series])
    one: SeriesVersion = found[series]
    return one


async def test_series_that_are_not_stored_are_left_out(store: Any) -> None:
    assert await store.versions([]) == ({}, Control())
    assert await store.versions([BTC, ETH]) == ({}, Control())
    assert await store.delta(BTC, since=-1, after_ms=ALL, limit=10) is None
    await store.write(batch(made([0])))
    hours = BTC.at(TIMEFRAMES["1h"])
    found, control = await store.versions([ETH, BTC, hours, BTC])
    assert found == {BTC: SeriesVersion(revision=1, origin_ms=DEFAULT_ORIGIN_MS)}
    assert control == await store.control()


async def test_many_series_are_told_apart(store: Any) -> None:
    many = [Series("binance", f"S{number}/USDT", ONE_MINUTE) for number in range(40)]
    await store.write_all([batch(made([0]), series=one) for one in many])
    await store.write_all([batch(made([1]), series=one) for one in many[::3]])
    found, _ = await store.versions(many[::-1])
    assert {one: told.revision for one, told in found.items()} == {
        one: 2 if place % 3 == 0 else 1 for place, one in enumerate(many)
    }


async def test_what_a_reader_sees_changes_the_version_and_nothing_else_does(store: Any) -> None:
    seen = []
    for change in (
        batch(made(range(10))),
        batch(made([5], version=1)),
        batch(absences=[absence(20, 30)]),
        batch(absences=[absence(20, 30, evidence="asked again")]),
        batch(made([25])),
    ):
        await store.write(change)
        seen.append((await version(store)).revision)
    assert seen == [1, 2, 3, 4, 5]
    # The same again, then more final; refused rows; another series; what the exchange says of the market.
    await store.write(batch(made(range(5))))
    await store.write(batch(made(range(5)), state=CandleState.VERIFIED))
    await store.write(batch(made([0], version=1)))
    await store.write(to_batch(BAD_ROW, BTC))
    await store.write(batch(made([0]), series=ETH))
    await store.save_instruments([instrument(None)])
    assert len(await store.quarantined(BTC)) == 1
    assert (await version(store)).revision == (await store.facts(BTC)).revision == 5


def instrument(listed_ms: int | None) -> Instrument:
    return Instrument(
        exchange="binance",
        symbol="BTC/USDT",
        exchange_symbol="BTCUSDT",
        base="BTC",
        quote="USDT",
        listed_ms=listed_ms,
    )


async def test_three_days_count_from_the_first_candle_then_from_the_listing(store: Any) -> None:
    first = START + 2 * DAY_MS
    await store.write(batch(made_at([first, first + 3 * DAY_MS]), series=THREE_DAYS))
    assert await version(store, THREE_DAYS) == SeriesVersion(revision=1, origin_ms=first)
    earlier = first - 6 * DAY_MS
    await store.write(batch(made_at([earlier]), series=THREE_DAYS))
    assert await version(store, THREE_DAYS) == SeriesVersion(revision=2, origin_ms=earlier)
    # The listing changes no row, and what three-day candles of the minutes count from.
    listed = START - 4 * DAY_MS
    await store.write(batch(made([0])))
    await store.save_instruments([instrument(listed + 5)])
    assert await version(store, THREE_DAYS) == SeriesVersion(revision=2, origin_ms=listed)
    assert await version(store) == SeriesVersion(revision=1, origin_ms=listed)
    delta = await store.delta(BTC, since=-1, after_ms=ALL, limit=10)
    assert delta.facts == await store.facts(BTC)
    assert delta.facts.origin_ms == listed


async def test_a_delta_has_what_changed_since(store: Any) -> None:
    day = 1440
    await store.write(batch(made([*range(3), *range(day, day + 3)]), absences=[absence(3, 10)]))
    before = await version(store)
    await store.write(batch(made([day + 1, 2 * day], version=1)))
    delta = await store.delta(BTC, since=before.revision, after_ms=at(day), limit=10)
    assert [one.start for one in delta.chunks] == [at(day), at(2 * day)]
    assert delta.chunks == (await store.chunks(BTC))[1:]
    assert delta.facts == await store.facts(BTC)
    assert delta.coverage == await store.coverage(BTC)
    assert delta.rows == await store.read(BTC, at(day) + 1, at(10 * day))
    assert not delta.more
    everything = await store.delta(BTC, since=-1, after_ms=ALL, limit=7)
    assert everything.chunks == await store.chunks(BTC)
    assert everything.rows == await store.read(BTC, START, at(10 * day))
    assert not everything.more
    nothing = await store.delta(BTC, since=delta.facts.revision, after_ms=at(2 * day), limit=0)
    assert (nothing.chunks, nothing.rows.num_rows, nothing.more) == ([], 0, False)
    assert nothing.rows.schema == delta.rows.schema


async def test_a_limit_keeps_the_oldest_rows(store: Any) -> None:
    await store.write(batch(made(range(20))))
    for limit, more in ((0, True), (9, True), (10, False), (11, False)):
        delta = await store.delta(BTC, since=1, after_ms=at(9), limit=limit)
        assert delta.rows == made(range(10, 10 + min(limit, 10)))
        assert delta.more is more


async def test_a_series_without_anything_has_an_empty_delta(store: Any) -> None:
    await store.write(batch())
    delta = await store.delta(BTC, since=-1, after_ms=ALL, limit=10)
    assert (delta.facts.revision, delta.facts.known, delta.coverage, delta.chunks) == (0, None, [], [])


async def test_a_delta_is_of_one_moment(store: Any) -> None:
    """Each batch is one minute of two days; a delta never has one without the other."""
    await store.write(batch(made([0, 1440])))

    async def write() -> None:
        for number in range(1, 25):
            await store.write(batch(made([number, 1440 + number])))

    writing = asyncio.create_task(write())
    while not writing.done():
        delta = await store.delta(BTC, since=-1, after_ms=ALL, limit=10_000)
        rows = delta.rows.num_rows
        assert [one.digest.rows for one in delta.chunks] == [rows // 2] * 2
        assert delta.facts.revision == rows // 2 == max(one.revision for one in delta.chunks)
        assert sum(one.interval.duration for one in delta.coverage) == rows * 60_000
        found, _ = await store.versions([BTC])
        assert found[BTC].revision >= delta.facts.revision
    await writing


async def test_a_mark_changes_with_every_commit_and_not_by_itself(store: Any) -> None:
    if store.change_mark() is None:
        pytest.skip("only the server of this store knows")
    marks = [store.change_mark()]
    assert store.change_mark() == marks[0]
    for number in range(5):
        await store.write(batch(made([number])))
        marks.append(store.change_mark())
        assert store.change_mark() == marks[-1]
    assert len(set(marks)) == 6
    await store.read(BTC, START, at(10))
    await store.versions([BTC])
    assert store.change_mark() == marks[-1]


# --- all of it, at random ---


def seen(table: pa.Table, ledger: list[Covered]) -> tuple[Any, ...]:
    return digest(by_open_time(table)), tuple(ledger)


def by_chunk(table: pa.Table) -> dict[int, Any]:
    """The digest of the rows of each chunk."""
    starts = chunk_starts(open_times_ms(table), ONE_MINUTE)
    return {int(one): digest(table.filter(pa.array(starts == one))) for one in np.unique(starts)}


@pytest.mark.parametrize("kind", list(STORES))
def test_versions_follow_what_readers_see(kind: str, clock: ManualClock, tmp_path: Path) -> None:
    """One store, opened once; each plan has a series of its own."""
    numbers = itertools.count(1)
    with asyncio.Runner() as runner:
        opened = STORES[kind](tmp_path, clock)
        store = runner.run(opened.__aenter__())

        @settings(max_examples=RUNS)
        @given(plan=st.lists(writes(), min_size=1, max_size=8))
        def follows(plan: list[Write]) -> None:
            series = Series("binance", f"S{next(numbers)}/USDT", ONE_MINUTE)
            runner.run(follow(store, series, clock, plan))

        try:
            follows()
        finally:
            runner.run(opened.__aexit__(None, None, None))


async def follow(store: Any, series: Series, clock: ManualClock, plan: list[Write]) -> None:
    """Carry out a plan; look at everything after each write."""
    page = await store.page(series, WHOLE)
    revision = 0
    chunks: dict[int, Any] = {}
    for one in plan:
        clock.advance(one.pause)
        mark = store.change_mark()
        await store.write(to_batch(one, series))
        new = await store.page(series, WHOLE)
        told = (await version(store, series)).revision
        changed = seen(new.table, new.coverage) != seen(page.table, page.coverage)
        assert (told != revision) is changed, one
        assert told >= revision
        if mark is not None and changed:
            assert store.change_mark() != mark
        delta = await store.delta(series, since=revision, after_ms=ALL, limit=10_000)
        now = by_chunk(new.table)
        differ = {start for start in chunks.keys() | now.keys() if chunks.get(start) != now.get(start)}
        assert [chunk.start for chunk in delta.chunks] == sorted(differ)
        assert {chunk.start: chunk.digest for chunk in delta.chunks} == {start: now[start] for start in differ}
        assert delta.rows == new.table
        assert delta.coverage == await store.coverage(series)
        assert delta.facts == await store.facts(series)
        page, revision, chunks = new, told, now
    # Everything again is no change.
    await store.write(batch(page.table, series=series, source="rest"))
    assert (await version(store, series)).revision == revision
