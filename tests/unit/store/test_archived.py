"""Candles that are in the archive alone, as far as no server is needed: the ledger, a merge, the archive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.candle import CandleState
from market.clock import to_ms
from market.coverage import CoverageState, Covered, archived, gaps
from market.errors import BadInput, StoreUnusable
from market.fingerprint import digest
from market.interval import Interval, IntervalSet
from market.timeframe import DAY_MS, DEFAULT_ORIGIN_MS, ONE_MINUTE, TIMEFRAMES
from store.archive.archive import Archive
from store.batch import Absence
from store.ledger import learn
from store.merge import Merge, StoredChunk
from store.postgres.retention import moved
from store.series_key import SeriesKey
from store.sqlite.store import DATABASE_NAME, SqliteStore
from tests.support.made_candles import BTC, NOW, START, at, batch, made

PRESENT, ARCHIVED, EMPTY = CoverageState.PRESENT, CoverageState.ARCHIVED, CoverageState.EMPTY
KEY = SeriesKey(1, 60, 5, 0, DEFAULT_ORIGIN_MS)


def entry(start: int, end: int, state: CoverageState = PRESENT, **given: Any) -> Covered:
    return Covered(interval=Interval(start, end), state=state, source="rest", learned_at=1, **given)


def test_an_archived_range_is_known_and_neither_candles_nor_absences_replace_it() -> None:
    known = [entry(0, 10, ARCHIVED, evidence="file"), entry(10, 20)]
    nothing = Absence(interval=Interval(5, 25), state=EMPTY, evidence="asked")
    learned = learn(known, IntervalSet.of((0, 12)), [nothing], "again", 9)
    assert learned[:2] == known
    assert [(one.interval, one.state) for one in learned[2:]] == [(Interval(20, 25), EMPTY)]
    assert gaps(Interval(0, 30), known, 99) == IntervalSet.of((20, 30))
    assert archived(known) == IntervalSet.of((0, 10))


@pytest.mark.parametrize("state", [PRESENT, ARCHIVED])
def test_nobody_claims_candles_without_bringing_them(state: CoverageState) -> None:
    with pytest.raises(BadInput, match="absence"):
        Absence(interval=Interval(0, 1), state=state, evidence="")


def test_what_leaves_is_split_where_the_archive_has_another_file() -> None:
    january, february, march = (to_ms(f"2023-0{month}-01") for month in (1, 2, 3))
    ledger = [
        entry(january, february - DAY_MS, EMPTY, expires_at=7),
        entry(february - DAY_MS, march + DAY_MS),
        entry(march + DAY_MS, march + 2 * DAY_MS, EMPTY),
    ]
    evidence = {"2023-01": "one", "2023-02": "two"}
    after = moved(ledger, march, ONE_MINUTE, DEFAULT_ORIGIN_MS, evidence, 50)
    assert [(one.interval.start, one.interval.end, one.state, one.evidence, one.learned_at) for one in after] == [
        (january, february - DAY_MS, EMPTY, None, 1),
        (february - DAY_MS, february, ARCHIVED, "one", 50),
        (february, march, ARCHIVED, "two", 50),
        (march, march + DAY_MS, PRESENT, None, 1),
        (march + DAY_MS, march + 2 * DAY_MS, EMPTY, None, 1),
    ]
    # A second time, later, changes nothing of what has moved.
    assert moved(after, march, ONE_MINUTE, DEFAULT_ORIGIN_MS, evidence, 90) == after


def test_a_week_that_opens_before_the_drop_leaves_whole() -> None:
    week, year = TIMEFRAMES["1w"], to_ms("2023-01-01")
    first = week.floor(year)
    cut = week.ceil(year)
    after = moved([entry(first - 7 * DAY_MS, cut + 7 * DAY_MS)], cut, week, DEFAULT_ORIGIN_MS, {"2022": "x"}, 5)
    assert [(one.interval.start, one.interval.end, one.state) for one in after] == [
        (first - 7 * DAY_MS, cut, ARCHIVED),
        (cut, cut + 7 * DAY_MS, PRESENT),
    ]


def chunk(minutes: range) -> dict[int, StoredChunk]:
    """The first day: these minutes of it are in the archive alone."""
    whole = digest(made(minutes))
    return {START: StoredChunk(whole, 0, 3, whole)}


def merging(minutes: range, version: int = 0) -> Merge:
    return Merge.of(batch(made(minutes, version), state=CandleState.VERIFIED), KEY, NOW)


def test_a_batch_with_exactly_the_archived_rows_changes_nothing_of_them() -> None:
    where = IntervalSet.of((START, at(100)))
    merge = merging(range(100))
    assert merge.meet(chunk(range(100)), where) == []
    assert (merge.written().unchanged, merge.changed, merge.present) == (100, IntervalSet(), IntervalSet())
    # With more of the same day: only that is met with what is stored.
    merge = merging(range(110))
    (span,) = merge.meet(chunk(range(100)), where)
    assert span == Interval(at(100), at(109) + 1)
    merge.compare(span, made([]), np.empty(0, np.int64))
    assert (merge.written().unchanged, merge.written().inserted) == (100, 10)
    assert merge.chunks[START].digest == digest(made(range(110)))
    assert merge.chunks[START].archived == digest(made(range(100)))


@pytest.mark.parametrize(("minutes", "version"), [(range(99), 0), (range(100), 1), (range(99, 120), 0)])
def test_other_rows_in_the_place_of_archived_ones_are_refused(minutes: range, version: int) -> None:
    with pytest.raises(StoreUnusable, match="2023-01-01T00:00:00Z were archived"):
        merging(minutes, version).meet(chunk(range(100)), IntervalSet.of((START, at(100))))


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9))),
    st.lists(st.integers(-5, 70)),
)
def test_a_set_contains_an_instant_or_not(bounds: list[tuple[int, int]], instants: list[int]) -> None:
    found = IntervalSet(Interval(start, start + length) for start, length in bounds)
    told = found.contains_all(np.array(instants, np.int64))
    assert told.tolist() == [one in found for one in instants]


async def test_the_archive_reads_what_a_ledger_promises_or_says_what_it_lacks(tmp_path: Path, clock: Any) -> None:
    archive = Archive(tmp_path / "archive")
    minutes = [*range(100), *range(200, 300), *range(45_000, 45_100)]
    async with SqliteStore.opened(tmp_path / DATABASE_NAME, clock) as store:
        await store.write(batch(made(minutes)))
        await archive.build(store, BTC)
        assert [one.archived.rows for one in await store.chunks(BTC)] == [0, 0]
    whole = IntervalSet.of((START, at(100)), (at(200), at(300)), (at(45_000), at(45_100)))
    assert archive.read(BTC, whole) == made(minutes)
    assert archive.read(BTC, whole, limit=150) == made(minutes[:150])
    assert archive.read(BTC, whole, limit=150, newest=True) == made(minutes[-150:])
    assert archive.read(BTC, whole.clip(at(50) + 1, at(210) + 1)) == made([*range(51, 100), *range(200, 211)])
    assert archive.read(BTC, IntervalSet()).num_rows == 0
    with pytest.raises(StoreUnusable, match="lacks them"):
        archive.read(BTC, whole | IntervalSet.of((at(100), at(101))))
    # A limit looks no further than it must.
    assert archive.read(BTC, whole | IntervalSet.of((at(300), at(400))), limit=200) == made(minutes[:200])
    with pytest.raises(StoreUnusable, match="lacks them"):
        Archive(tmp_path / "empty").read(BTC, whole)
