"""The coverage ledger: what is present, what is absent and how we know, and what stays unknown."""

from __future__ import annotations

from typing import Any

import pytest

from market.coverage import CoverageState, gaps, known
from market.interval import Interval
from tests.support.made_candles import BTC, MINUTE, START, absence, at, batch, made

PRESENT, EMPTY = CoverageState.PRESENT, CoverageState.EMPTY
OUTAGE, OURS = CoverageState.EXCHANGE_OUTAGE, CoverageState.OWN_OUTAGE


async def ledger(store: Any, interval: Interval | None = None) -> list[tuple[int, int, CoverageState]]:
    return [
        ((one.interval.start - START) // MINUTE, (one.interval.end - START) // MINUTE, one.state)
        for one in await store.coverage(BTC, interval)
    ]


async def test_candles_are_present_and_the_rest_is_unknown(store: Any) -> None:
    await store.write(batch(made([0, 1, 2, 5, 9])))
    assert await ledger(store) == [(0, 3, PRESENT), (5, 6, PRESENT), (9, 10, PRESENT)]


@pytest.mark.parametrize("state", [EMPTY, OUTAGE, OURS])
async def test_absences_are_kept_with_their_evidence(store: Any, clock: Any, state: CoverageState) -> None:
    told = absence(3, 8, state, expires_at=clock.now_ms() + 1000, evidence="two reads agree")
    await store.write(batch(made([0, 1, 2]), absences=[told], source="binance rest"))
    assert await ledger(store) == [(0, 3, PRESENT), (3, 8, state)]
    entry = (await store.coverage(BTC))[1]
    assert (entry.source, entry.evidence, entry.expires_at, entry.learned_at) == (
        "binance rest", "two reads agree", clock.now_ms() + 1000, clock.now_ms()
    )  # fmt: skip


async def test_a_candle_beats_an_absence_before_after_and_in_one_batch(store: Any) -> None:
    await store.write(batch(absences=[absence(0, 10)]))
    await store.write(batch(made([4, 5])))
    expected = [(0, 4, EMPTY), (4, 6, PRESENT), (6, 10, EMPTY)]
    assert await ledger(store) == expected
    await store.write(batch(absences=[absence(3, 7, OUTAGE)]))
    assert await ledger(store) == [(0, 3, EMPTY), (3, 4, OUTAGE), (4, 6, PRESENT), (6, 7, OUTAGE), (7, 10, EMPTY)]
    await store.write(batch(made([20]), absences=[absence(18, 23)]))
    assert (await ledger(store))[-3:] == [(18, 20, EMPTY), (20, 21, PRESENT), (21, 23, EMPTY)]


async def test_a_refused_row_is_not_present(store: Any) -> None:
    bad = made(range(3))
    opens = bad.column("open").to_pylist()
    bad = bad.set_column(1, bad.schema.field(1), [[opens[0], float("nan"), opens[2]]])
    await store.write(batch(bad))
    assert [one[:2] for one in await ledger(store)] == [(0, 1), (2, 3)]


async def test_neighbours_that_say_the_same_are_one_whatever_the_order(store: Any) -> None:
    for minutes in ([0, 1], [4, 5], [2], [3], [6]):
        await store.write(batch(made(minutes)))
        await store.write(batch(absences=[absence(6, 9)]))
    assert await ledger(store) == [(0, 7, PRESENT), (7, 9, EMPTY)]


async def test_neighbours_of_other_sources_stay_apart(store: Any) -> None:
    await store.write(batch(made([0, 1]), source="a"))
    await store.write(batch(made([1, 2]), source="b"))
    assert [(one.interval.duration // MINUTE, one.source) for one in await store.coverage(BTC)] == [
        (2, "a"),
        (1, "b"),
    ]


async def test_an_expired_absence_is_a_gap_again(store: Any, clock: Any) -> None:
    expires = clock.now_ms() + 10_000
    await store.write(batch(made([0]), absences=[absence(1, 5, expires_at=expires)]))
    wanted = Interval(at(0), at(5))
    covered = await store.coverage(BTC)
    assert not gaps(wanted, covered, expires - 1)
    assert [(one.start, one.end) for one in gaps(wanted, covered, expires)] == [(at(1), at(5))]
    assert known(covered, expires).duration == MINUTE
    assert (await store.series())[0].missing == 0
    clock.advance(10_000)
    assert (await store.series())[0].missing == 4
    # Looked at again: a later expiry is news, and changes the ledger.
    await store.write(batch(absences=[absence(1, 5, expires_at=expires + 50_000)]))
    assert not gaps(wanted, await store.coverage(BTC), clock.now_ms())
    assert (await store.facts(BTC)).revision == 2


async def test_the_same_absence_again_is_no_news(store: Any, clock: Any) -> None:
    await store.write(batch(made([0]), absences=[absence(1, 5), absence(8, 12, OUTAGE)]))
    before = await store.coverage(BTC), await store.series()
    clock.advance(1000)
    await store.write(batch(made([0]), absences=[absence(1, 5), absence(9, 11, OUTAGE)]))
    assert (await store.coverage(BTC), await store.series()) == before


async def test_the_ledger_is_cut_to_what_is_asked(store: Any) -> None:
    await store.write(batch(made(range(5)), absences=[absence(5, 9)]))
    assert await ledger(store, Interval(at(2), at(6))) == [(2, 5, PRESENT), (5, 6, EMPTY)]
    assert await ledger(store, Interval(at(5), at(6))) == [(5, 6, EMPTY)]
    assert await ledger(store, Interval(at(9), at(16))) == []
    assert await ledger(store, Interval(at(-5), at(0))) == []


async def test_what_is_known_runs_from_the_first_to_the_last_instant(store: Any) -> None:
    await store.write(batch(made([5]), absences=[absence(0, 3), absence(8, 9)]))
    assert (await store.facts(BTC)).known == Interval(at(0), at(9))
