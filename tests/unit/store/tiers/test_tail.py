"""A tail notices whatever it does not have as the database does."""

from __future__ import annotations

from dataclasses import replace

from market.fingerprint import digest
from market.interval import Interval
from market.timeframe import DAY_MS, ONE_MINUTE
from store.candle_store import Chunk
from store.tiers.tail import Tail, copied
from tests.support.made_candles import BTC, START, made
from tests.support.stored_series import Stored

EVERYTHING = Interval(0, 2**62)


def of(minutes: range, version: int = 0) -> Stored:
    return Stored(BTC).written([START + one * 60_000 for one in minutes], version)


def test_a_tail_of_one_snapshot_is_right_and_grows_right() -> None:
    stored, more = of(range(1400, 1500)), of(range(1400, 3000))
    tail = Tail.read(START, stored.table(0, 2**62), stored.told())
    assert (tail.first_wrong(), tail.last) == (None, START + 1499 * 60_000)
    told = tail.told(more.told())
    # What the database has and the tail does not is wrong until it is there.
    assert told.first_wrong() == START + DAY_MS
    grown = told
    for first in range(1500, 3000, 20):
        grown = grown.grown(made(range(first, first + 20)), ONE_MINUTE)
    assert grown.first_wrong() is None
    assert grown.rows(EVERYTHING).equals(more.table(0, 2**62))
    assert grown.table.column(0).num_chunks <= 33
    assert tail.rows(EVERYTHING).equals(stored.table(0, 2**62))


def test_a_correction_a_late_candle_and_a_lost_one_are_noticed_where_they_are() -> None:
    stored = of(range(0, 5000, 2))
    tail = Tail.read(START, stored.table(0, 2**62), stored.told())
    times = [START + one * 60_000 for one in (100, 3000, 1441)]
    for time, version, expected in zip(times, (1, 1, 0), (START, START + 2 * DAY_MS, START + DAY_MS), strict=True):
        told = tail.told(stored.written([time], version).told())
        assert told.first_wrong() == expected
        before = told.before(expected)
        assert before.last < expected
        assert before.first_wrong() == expected
    lost = replace(stored, rows={one: 0 for one in stored.rows if one < START + DAY_MS})
    assert tail.told([Chunk(start=START + DAY_MS, digest=digest(lost.table(START + DAY_MS, 2**62)), revision=9)])
    assert (
        tail.told(
            [Chunk(start=START + DAY_MS, digest=digest(lost.table(START + DAY_MS, 2**62)), revision=9)]
        ).first_wrong()
        == START + DAY_MS
    )


def test_what_is_before_the_tail_is_not_its_business() -> None:
    stored = of(range(3000))
    tail = Tail.read(START + DAY_MS, stored.table(START + DAY_MS, 2**62), stored.told())
    assert tail.told(stored.written([START], 1).told()).first_wrong() is None


def test_a_copied_part_keeps_nothing_of_the_rest() -> None:
    table = made(range(10_000))
    part = copied(table.slice(9_990))
    assert part.equals(table.slice(9_990))
    assert part.column("open").chunk(0).buffers()[1].size < 1000
    assert copied(table.slice(0, 0)).equals(table.slice(0, 0))
    whole = Tail.read(START, table, of(range(10_000)).told())
    cut = whole.since(START + 6 * DAY_MS)
    assert cut.first_wrong() is None
    assert cut.table.column("open").chunk(0).buffers()[1].size < 20_000
