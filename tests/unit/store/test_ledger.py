"""How the ledger learns: small cases by hand, and a property against a dictionary of minutes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from market.coverage import CoverageState, Covered
from market.interval import Interval, IntervalSet
from store.batch import Absence
from store.ledger import clip, joined, learn, outside

PRESENT, EMPTY, OUTAGE = CoverageState.PRESENT, CoverageState.EMPTY, CoverageState.EXCHANGE_OUTAGE


def entry(start: int, end: int, state: CoverageState = PRESENT, learned_at: int = 1) -> Covered:
    evidence = None if state is PRESENT else "seen"
    return Covered(interval=Interval(start, end), state=state, source="a", learned_at=learned_at, evidence=evidence)


def gone(start: int, end: int, state: CoverageState = EMPTY) -> Absence:
    return Absence(interval=Interval(start, end), state=state, evidence="seen")


def test_present_beats_an_absence_that_is_known_and_one_that_is_new() -> None:
    known = [entry(0, 10, EMPTY)]
    assert learn(known, IntervalSet.of((3, 5)), [gone(2, 8, OUTAGE)], "a", 2) == [
        entry(0, 2, EMPTY),
        entry(2, 3, OUTAGE, 2),
        entry(3, 5, PRESENT, 2),
        entry(5, 8, OUTAGE, 2),
        entry(8, 10, EMPTY),
    ]


def test_what_is_said_again_is_not_learned_again() -> None:
    known = [entry(0, 10, EMPTY), entry(10, 20)]
    assert learn(known, IntervalSet.of((12, 15)), [gone(2, 8), gone(11, 13)], "a", 9) == known


def test_what_is_said_again_and_further_grows() -> None:
    assert learn([entry(5, 10, EMPTY)], IntervalSet(), [gone(2, 12)], "a", 9) == [entry(2, 12, EMPTY, 9)]


def test_overlapping_claims_of_one_batch_share_nothing() -> None:
    learned = learn([], IntervalSet(), [gone(5, 9, OUTAGE), gone(0, 6)], "a", 1)
    assert learned == [entry(0, 6, EMPTY), entry(6, 9, OUTAGE)]


def test_an_absence_that_has_expired_does_not_replace_one_that_holds() -> None:
    stale = Absence(interval=Interval(0, 20), state=EMPTY, evidence="long ago", expires_at=5)
    known = [entry(4, 10, EMPTY)]
    learned = learn(known, IntervalSet(), [stale, gone(20, 22)], "a", 9)
    assert [(one.interval.start, one.interval.end, one.evidence) for one in learned] == [
        (0, 4, "long ago"),
        (4, 10, "seen"),
        (10, 20, "long ago"),
        (20, 22, "seen"),
    ]


def test_parts_outside_walls() -> None:
    entries = [entry(0, 10), entry(20, 30)]
    walls = IntervalSet.of((2, 3), (5, 22), (29, 40))
    assert [(one.interval.start, one.interval.end) for one in outside(entries, walls)] == [(0, 2), (3, 5), (22, 29)]
    assert [(one.interval.start, one.interval.end) for one in clip(entries, Interval(4, 21))] == [(4, 10), (20, 21)]


def test_joining_needs_touching_neighbours_that_say_the_same() -> None:
    assert joined([entry(0, 1), entry(1, 2, PRESENT, 7), entry(3, 4), entry(4, 5, EMPTY)]) == [
        entry(0, 2, PRESENT, 7),
        entry(3, 4),
        entry(4, 5, EMPTY),
    ]


intervals = st.tuples(st.integers(0, 30), st.integers(1, 8)).map(lambda pair: Interval(pair[0], sum(pair)))
absences = st.lists(
    st.builds(
        Absence,
        interval=intervals,
        state=st.sampled_from([EMPTY, OUTAGE]),
        evidence=st.sampled_from(["x", "y"]),
        expires_at=st.sampled_from([None, 100]),
    ),
    max_size=3,
)
steps = st.lists(st.tuples(st.lists(intervals, max_size=3), absences, st.sampled_from(["a", "b"])), max_size=6)


@settings(max_examples=150)
@given(steps=steps)
def test_learning_agrees_with_a_dictionary(steps: list[tuple[list[Interval], list[Absence], str]]) -> None:
    ledger: list[Covered] = []
    model: dict[int, tuple[object, ...]] = {}
    for time, (candles, claims, source) in enumerate(steps):
        before = dict(model)
        ledger_before = ledger
        ledger = learn(ledger, IntervalSet(candles), claims, source, time)
        for one in candles:
            for instant in range(one.start, one.end):
                if model.get(instant, (None,))[0] is not PRESENT:
                    model[instant] = PRESENT, source, None, None
        claimed: dict[int, tuple[object, ...]] = {}
        for claim in sorted(claims, key=lambda one: one.interval):
            for instant in range(claim.interval.start, claim.interval.end):
                claimed.setdefault(instant, (claim.state, source, claim.evidence, claim.expires_at))
        model |= {at: said for at, said in claimed.items() if model.get(at, (None,))[0] is not PRESENT}
        found = {
            instant: (one.state, one.source, one.evidence, one.expires_at)
            for one in ledger
            for instant in range(one.interval.start, one.interval.end)
        }
        assert found == model
        # Sorted, disjoint, and no two neighbours that say the same.
        assert sum(one.interval.duration for one in ledger) == len(model)
        assert joined(sorted(ledger, key=lambda one: one.interval)) == ledger
        if model == before:
            assert ledger == ledger_before
