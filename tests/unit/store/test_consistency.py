"""What two stores differ in: pure comparisons against plain dictionaries, and what has to be read for them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.candle import open_times_ms
from market.coverage import CoverageState, Covered
from market.fingerprint import Digest, digest
from market.instrument import Instrument
from market.interval import Interval, IntervalSet
from market.timeframe import DAY_MS, TIMEFRAMES
from store import consistency
from store.candle_store import Chunk, SeriesFacts
from store.consistency import differences
from store.difference import (
    ChunkDifference,
    Difference,
    DifferenceKind,
    Unequal,
    candle_differences,
    chunk_differences,
    chunk_interval,
    instrument_differences,
    ledger_differences,
)
from store.ledger import clip, joined
from store.merge import chunk_starts
from tests.support.made_candles import BTC, MINUTE, START, at, made

PRESENT, EMPTY, OUTAGE = CoverageState.PRESENT, CoverageState.EMPTY, CoverageState.EXCHANGE_OUTAGE

versions = st.dictionaries(st.integers(0, 12), st.integers(0, 2))


def table(stored: dict[int, int]) -> pa.Table:
    parts = [made([minute], version) for minute, version in sorted(stored.items())]
    return pa.concat_tables(parts) if parts else made([])


@given(versions, versions)
def test_candles_differ_where_their_rows_do(ours: dict[int, int], theirs: dict[int, int]) -> None:
    found = candle_differences(table(ours), table(theirs))
    assert found.only_primary.tolist() == [at(one) for one in sorted(ours.keys() - theirs.keys())]
    assert found.only_secondary.tolist() == [at(one) for one in sorted(theirs.keys() - ours.keys())]
    changed = {minute for minute in ours.keys() & theirs.keys() if ours[minute] != theirs[minute]}
    assert set(found.changed) == {at(one) for one in changed}
    for minute in changed:
        a, b = (made([minute], one[minute]).to_pylist()[0] for one in (ours, theirs))
        expected = [Unequal(key, str(a[key]), str(b[key])) for key in a if a[key] != b[key]]
        assert list(found.changed[at(minute)]) == expected
    assert bool(found) == (ours != theirs)
    assert not found & candle_differences(table(ours), table(ours))


def test_null_differs_from_a_number_and_not_from_null() -> None:
    one = made([0, 1])
    place = one.schema.get_field_index("early_close_time")
    early = pa.array([None, at(2) - 1]).cast(one.schema.field(place).type)
    other = one.set_column(place, one.schema.field(place), early)
    found = candle_differences(one, other)
    assert found.changed == {at(1): (Unequal("early_close_time", "none", "2023-01-01T00:01:59.999Z"),)}


def entry(start: int, end: int, state: CoverageState, source: str = "a", **more: Any) -> Covered:
    said = {"evidence": None if state is PRESENT else "seen", "learned_at": 1} | more
    return Covered(interval=Interval(start, end), state=state, source=source, **said)


@st.composite
def ledgers(draw: st.DrawFn) -> list[Covered]:
    states = draw(st.lists(st.sampled_from([None, PRESENT, EMPTY, OUTAGE]), max_size=10))
    entries = [
        entry(at, at + 1, state, draw(st.sampled_from("ab")), learned_at=draw(st.integers(1, 2)))
        for at, state in enumerate(states)
        if state is not None
    ]
    return joined(entries)


def by_instant(ledger: list[Covered]) -> dict[int, Any]:
    return {
        instant: one.state if one.state is PRESENT else (one.state, one.source)
        for one in ledger
        for instant in range(one.interval.start, one.interval.end)
    }


@given(ledgers(), ledgers())
def test_ledgers_differ_where_they_say_something_else(ours: list[Covered], theirs: list[Covered]) -> None:
    found = list(ledger_differences(ours, theirs))
    a, b = by_instant(ours), by_instant(theirs)
    inside = {
        instant: (one.primary, one.secondary)
        for one in found
        for instant in range(one.interval.start, one.interval.end)
    }
    assert set(inside) == {instant for instant in range(10) if a.get(instant) != b.get(instant)}
    for instant, (first, second) in inside.items():
        assert (first is None, second is None) == (instant not in a, instant not in b)
    for before, after in itertools.pairwise(found):
        assert before.interval.end <= after.interval.start


def test_expiry_and_evidence_count_for_absences_only() -> None:
    ours = [entry(0, 5, PRESENT, "a"), entry(5, 9, EMPTY, expires_at=7)]
    assert list(ledger_differences(ours, [entry(0, 5, PRESENT, "b"), ours[1]])) == []
    for changed in (
        entry(5, 9, EMPTY, expires_at=8),
        entry(5, 9, EMPTY, expires_at=7, evidence="x"),
        entry(5, 9, EMPTY),
    ):
        (found,) = ledger_differences(ours, [ours[0], changed])
        assert (found.interval, found.primary, found.secondary) == (Interval(5, 9), ours[1], changed)


def test_chunks_differ_by_their_digests() -> None:
    def chunk(start: int, low: int) -> Chunk:
        return Chunk(start=start, digest=Digest(1, low, 0), revision=start)

    ours = [chunk(0, 1), chunk(1, 1), chunk(2, 1)]
    theirs = [replace(chunk(1, 1), revision=9), chunk(2, 2), chunk(3, 1)]
    assert chunk_differences(ours, theirs) == [
        ChunkDifference(0, Digest(1, 1, 0), None),
        ChunkDifference(2, Digest(1, 1, 0), Digest(1, 2, 0)),
        ChunkDifference(3, None, Digest(1, 1, 0)),
    ]


@pytest.mark.parametrize("name", list(TIMEFRAMES))
def test_a_chunk_ends_where_the_next_one_starts(name: str) -> None:
    timeframe = TIMEFRAMES[name]
    times = timeframe.open_times(START, START + 3 * 366 * DAY_MS)
    starts = chunk_starts(times, timeframe)
    for start in set(starts.tolist()):
        inside = times[starts == start]
        period = chunk_interval(start, timeframe)
        assert period.start <= inside[0]
        assert inside[-1] < period.end
        later = times[times >= period.end]
        assert not len(later) or chunk_starts(later[:1], timeframe)[0] == period.end


def test_instruments_differ_field_by_field() -> None:
    one = Instrument(
        exchange="binance", symbol="BTC/USDT", exchange_symbol="BTCUSDT", base="BTC", quote="USDT",
        tick_size=Decimal("0.1"),
    )  # fmt: skip
    other = replace(one, symbol="ETH/USDT")
    found = instrument_differences([one, other], [replace(one, tick_size=None, active=False)])
    assert [(each.symbol, each.detail) for each in found] == [
        (
            "BTC/USDT",
            "tick_size is 0.1 on the primary and None on the secondary; "
            "active is True on the primary and False on the secondary",
        ),
        ("ETH/USDT", "the instrument is missing on the secondary"),
    ]
    assert instrument_differences([one, other], [other, one]) == []


class Fixed:
    """A store of one series in memory; counts the rows it gives."""

    def __init__(self, candles: pa.Table, absences: list[Covered] | None = None) -> None:
        self.candles = candles
        self.most = self.given = 0
        self.trusted: pa.Table = candles
        times = open_times_ms(candles)
        present = [entry(one.start, one.end, PRESENT) for one in IntervalSet.of_candles(times, BTC.timeframe)]
        self.ledger = sorted([*present, *(absences or [])], key=lambda one: one.interval)

    async def chunks(self, _: Any) -> list[Chunk]:
        starts = chunk_starts(open_times_ms(self.trusted), BTC.timeframe)
        return [
            Chunk(start=start, digest=digest(self.trusted.filter(pa.array(starts == start))), revision=1)
            for start in sorted(set(starts.tolist()))
        ]

    async def facts(self, _: Any) -> SeriesFacts:
        hull = IntervalSet(one.interval for one in self.ledger).hull
        return SeriesFacts(revision=1, origin_ms=0, known=hull)

    async def coverage(self, _: Any, interval: Interval) -> list[Covered]:
        return clip(self.ledger, interval)

    async def read(self, _: Any, start: int, end: int, limit: int | None = None, newest: bool = False) -> pa.Table:
        times = open_times_ms(self.candles)
        found = self.candles.filter(pa.array((times >= start) & (times < end)))
        if limit is not None:
            found = found.slice(max(0, found.num_rows - limit)) if newest else found.slice(0, limit)
        self.given += found.num_rows
        self.most = max(self.most, found.num_rows)
        return found


async def compared(ours: Fixed, theirs: Fixed, **more: Any) -> list[tuple[str, int, int, int]]:
    return [
        (one.kind.name, (one.interval.start - START) // MINUTE, (one.interval.end - START) // MINUTE, one.candles)
        async for one in differences(ours, theirs, BTC, **more)  # type: ignore[arg-type]
    ]


async def test_equal_digests_are_enough_where_they_are_trusted() -> None:
    ours, theirs = Fixed(made(range(20_000))), Fixed(made(range(20_000)))
    assert await compared(ours, theirs, rows=False) == []
    assert ours.given == theirs.given == 0
    # Behind the back of the digests only the rows tell.
    theirs.candles = made([*range(50), *range(51, 20_000)])
    assert await compared(ours, theirs, rows=False) == []
    assert await compared(ours, theirs) == [("ONLY_PRIMARY", 50, 51, 1)]


async def test_digests_say_what_must_be_read() -> None:
    ours, theirs = Fixed(made(range(20_000))), Fixed(made([*range(5000), *range(5001, 20_000)]))
    found = await compared(ours, theirs, rows=False)
    assert found == [("ONLY_PRIMARY", 5000, 5001, 1), ("LEDGER", 5000, 5001, 0)]
    # The day, twice.
    assert ours.given == 2 * 1440


async def test_runs_go_on_from_piece_to_piece_and_pieces_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consistency, "_ROWS_AT_ONCE", 100)
    monkeypatch.setattr(consistency, "_LEDGER_AT_ONCE", 70)
    gone = [entry(at(2000), at(3000), EMPTY)]
    ours, theirs = Fixed(made(range(1000)), gone), Fixed(made([*range(150), *range(730, 1000), *range(1100, 1450)]))
    assert await compared(ours, theirs) == [
        ("ONLY_PRIMARY", 150, 730, 580),
        ("ONLY_SECONDARY", 1100, 1450, 350),
        ("LEDGER", 150, 730, 0),
        ("LEDGER", 1100, 1450, 0),
        ("LEDGER", 2000, 3000, 0),
    ]
    assert ours.most <= 100
    assert theirs.most <= 100


async def test_equal_rows_with_unequal_digests_are_told() -> None:
    ours, theirs = Fixed(made(range(3000))), Fixed(made(range(3000)))
    theirs.trusted = made([*range(1500), *range(1501, 3000)])
    (found,) = [one async for one in differences(ours, theirs, BTC)]  # type: ignore[arg-type]
    assert found.kind is DifferenceKind.DIGEST
    assert found.interval == Interval(at(1440), at(2880))
    assert "1,440 rows" in found.detail
    assert "1,439 rows" in found.detail


async def test_a_write_under_way_is_no_difference() -> None:
    """The first reading finds one store without a row that the second reading finds in both."""
    ours, theirs = Fixed(made(range(100))), Fixed(made(range(99)))
    read = theirs.read

    async def late(*arguments: Any, **named: Any) -> pa.Table:
        found = await read(*arguments, **named)
        if named.get("limit") is None:
            theirs.__init__(made(range(100)))  # type: ignore[misc]
        return found

    theirs.read = late  # type: ignore[method-assign]
    assert await compared(ours, theirs) == []


def test_details_are_sentences() -> None:
    one = Difference(series=BTC, kind=DifferenceKind.ONLY_PRIMARY, interval=Interval(at(0), at(2000)), candles=2000)
    assert one.detail == "2,000 candles are missing on the secondary"
    assert replace(one, kind=DifferenceKind.ONLY_SECONDARY, candles=1).detail == (
        "1 candle is missing on the primary"
    )
