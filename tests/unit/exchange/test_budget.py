"""The rules of a request budget, and their record."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange.budget import (
    CUT,
    GROWTH,
    LEAST,
    MOST,
    MOST_WAITERS,
    SIZE,
    WAITER_SILENT_MS,
    Budget,
    Limit,
    Purpose,
    Waiter,
    rebuilt,
    unpacked,
)

LIVE, BACKFILL = Purpose.LIVE, Purpose.BACKFILL
MINUTE = 60_000
#: 2023-11-14T22:13:00Z, the start of a minute.
NOW = 1_699_999_980_000
ME, OTHER = 1, 2


def budget(weight: float = 1000, window_ms: int = MINUTE) -> Budget:
    return Budget(limit=Limit(weight=weight, window_ms=window_ms), changed_ms=NOW)


def spend(one: Budget, weight: float, purpose: Purpose = LIVE, now: int = NOW, waiter: int = ME) -> float:
    return one.spend(now, weight, purpose, waiter, now)


def fill(one: Budget, purpose: Purpose, weight: float = 10, now: int = NOW) -> float:
    """Spend until there is no room; how much that was."""
    spent = 0.0
    while not spend(one, weight, purpose, now):
        spent += weight
    return spent


class TestRoom:
    def test_backfill_may_use_sixty_percent_and_live_eighty(self) -> None:
        one = budget()
        assert fill(one, BACKFILL) == 600
        assert fill(one, LIVE) == 200
        assert one.used(NOW) == 800

    def test_what_live_uses_is_not_left_for_backfill(self) -> None:
        one = budget()
        assert fill(one, LIVE) == 800
        assert fill(one, BACKFILL) == 0

    def test_the_wait_said_is_the_wait_needed(self) -> None:
        one = budget()
        fill(one, BACKFILL, now=NOW)
        wait = spend(one, 10, BACKFILL, NOW + 5000)
        assert 55_000 <= wait <= 57_000
        assert spend(one, 10, BACKFILL, NOW + 5000 + int(wait) - 1) > 0
        assert spend(one, 10, BACKFILL, NOW + 5000 + int(wait)) == 0

    def test_a_request_dearer_than_all_that_is_allowed_goes_alone(self) -> None:
        one = budget(weight=100)
        assert spend(one, 1) == 0
        assert spend(one, 250) > 0
        assert spend(one, 250, now=NOW + 2 * MINUTE) == 0
        assert spend(one, 1, now=NOW + 2 * MINUTE) > 0

    def test_a_request_counts_until_a_window_after_its_answer(self) -> None:
        one = budget()
        assert spend(one, 100) == 0
        one.answered(NOW + 30_000, 100, NOW, None, True)
        assert one.used(NOW + 62_000) == 100
        assert one.used(NOW + 92_000) == 0


class TestTurns:
    def test_backfill_waits_while_live_waits_even_with_room(self) -> None:
        one = budget()
        one.wait(OTHER, Waiter(purpose=LIVE, count=1, since_ms=NOW, seen_ms=NOW))
        assert spend(one, 1, BACKFILL) > 0
        one.leave(OTHER)
        assert spend(one, 1, BACKFILL) == 0

    def test_live_does_not_wait_for_backfill(self) -> None:
        one = budget()
        one.wait(OTHER, Waiter(purpose=BACKFILL, count=1, since_ms=NOW - 5000, seen_ms=NOW))
        assert spend(one, 1, LIVE) == 0

    def test_who_waits_longest_goes_first(self) -> None:
        one = budget()
        one.wait(OTHER, Waiter(purpose=BACKFILL, count=1, since_ms=NOW - 5, seen_ms=NOW))
        assert spend(one, 1, BACKFILL) > 0
        assert one.spend(NOW, 1, BACKFILL, OTHER, NOW - 5) == 0

    def test_who_died_waiting_is_not_waited_for(self) -> None:
        one = budget()
        one.wait(OTHER, Waiter(purpose=LIVE, count=1, since_ms=NOW, seen_ms=NOW))
        assert spend(one, 1, BACKFILL, NOW + WAITER_SILENT_MS) > 0
        assert spend(one, 1, BACKFILL, NOW + WAITER_SILENT_MS + 1) == 0
        assert one.waiters == {}

    def test_the_waiters_are_bounded_and_the_longest_silent_is_forgotten(self) -> None:
        one = budget()
        for token in range(1, MOST_WAITERS + 3):
            one.wait(token, Waiter(purpose=LIVE, count=1, since_ms=NOW, seen_ms=NOW + token))
        assert sorted(one.waiters) == list(range(3, MOST_WAITERS + 3))


class TestRefusals:
    def test_a_ban_holds_live_too_and_until_its_end_only(self) -> None:
        one = budget()
        one.refused(NOW, 3000, banned=True)
        assert one.status("x", NOW).banned_until == NOW + 3000
        assert (spend(one, 1, LIVE), spend(one, 1, BACKFILL)) == (3000, 3000)
        assert spend(one, 1, LIVE, NOW + 2999) == 1
        assert spend(one, 1, LIVE, NOW + 3000) == 0
        assert one.status("x", NOW + 3000).banned_until is None

    def test_a_longer_wait_is_never_shortened(self) -> None:
        one = budget()
        one.refused(NOW, 60_000, banned=True)
        one.refused(NOW + 10, 1000, banned=False)
        assert spend(one, 1, now=NOW + 59_999) > 0

    def test_refusals_at_the_same_time_cut_once_and_later_ones_again_to_a_floor(self) -> None:
        one = budget()
        one.refused(NOW, 1000, banned=False)
        one.refused(NOW + 1, 1000, banned=False)
        assert one.share == pytest.approx(MOST * CUT)
        one.refused(NOW + 2000, 1000, banned=False)
        assert one.share == pytest.approx(MOST * CUT * CUT)
        for at in range(2, 40):
            one.refused(NOW + at * 2000, 1000, banned=False)
        assert one.share == LEAST

    def test_the_share_grows_back_with_answers_a_twentieth_a_minute_and_no_further(self) -> None:
        one = budget()
        one.refused(NOW, 1000, banned=False)
        for second in range(1, 61):
            one.answered(NOW + second * 1000, 1, NOW + second * 1000 - 50, None, True)
        assert one.share == pytest.approx(MOST * CUT + GROWTH)
        for second in range(61, 1000):
            one.answered(NOW + second * 1000, 1, NOW + second * 1000 - 50, None, True)
        assert one.share == MOST

    def test_silence_and_errors_of_the_exchange_do_not_grow_it(self) -> None:
        one = budget()
        one.refused(NOW, 1000, banned=False)
        one.answered(NOW + MINUTE, 1, NOW, None, False)
        assert one.share == pytest.approx(MOST * CUT)
        one.answered(NOW + 60 * MINUTE, 1, NOW, None, True)
        assert one.share == pytest.approx(MOST * CUT + GROWTH)

    def test_an_absurd_wait_is_cut_to_three_days(self) -> None:
        one = budget()
        one.refused(NOW, 1e15, banned=True)
        assert one.status("x", NOW).banned_until == NOW + 3 * 86_400_000


class TestWhatTheExchangeCounts:
    def test_what_others_on_the_address_use_counts(self) -> None:
        one = budget()
        sent = NOW + 20_000
        assert spend(one, 10, now=sent) == 0
        one.answered(sent + 100, 10, sent, 510.0, True)
        assert one.used(sent + 100) == 510
        # The next answers say the same again, which is known by now.
        assert spend(one, 10, now=sent + 200) == 0
        one.answered(sent + 300, 10, sent + 200, 520.0, True)
        assert one.used(sent + 300) == 520

    def test_a_smaller_count_changes_nothing(self) -> None:
        one = budget()
        fill(one, BACKFILL, now=NOW + 20_000)
        one.answered(NOW + 20_100, 10, NOW + 20_000, 15.0, True)
        assert one.used(NOW + 20_100) == 600

    @pytest.mark.parametrize("answered_after", [100, 4000, 9000])
    def test_an_answer_about_the_minute_before_is_not_taken_for_use_of_others(self, answered_after: int) -> None:
        one = budget()
        before = NOW - 10_000
        fill(one, BACKFILL, now=before)
        # Sent at the end of our minute, or at the start of the next while the exchange's clock is behind ours.
        for sent in (NOW - 50, NOW + 2000):
            one.answered(NOW + answered_after, 10, sent, 610.0, True)
        assert one.used(NOW + answered_after) == 600 + 2 * 10


class TestLimits:
    def test_what_the_exchange_told_replaces_what_was_assumed_and_use_stays_used(self) -> None:
        one = budget()
        fill(one, LIVE)
        one.learn(NOW, Limit(weight=6000, window_ms=5000, told=True))
        assert one.used(NOW) == 800
        one.assume(NOW, Limit(weight=1000))
        assert one.limit == Limit(weight=6000, window_ms=5000, told=True)

    def test_of_several_assumptions_the_strictest_holds_while_anything_counts(self) -> None:
        one = budget(weight=1000)
        spend(one, 1)
        one.assume(NOW, Limit(weight=2000))
        assert one.limit.weight == 1000
        one.assume(NOW, Limit(weight=500))
        assert one.limit.weight == 500
        one.assume(NOW + 2 * MINUTE, Limit(weight=2000))
        assert one.limit.weight == 2000


class TestClockSetBack:
    def test_times_in_the_future_do_not_hold_anything_up(self) -> None:
        one = budget()
        fill(one, LIVE)
        one.wait(OTHER, Waiter(purpose=LIVE, count=1, since_ms=NOW, seen_ms=NOW))
        earlier = NOW - 10 * 86_400_000
        one.held_until_ms = NOW
        assert spend(one, 1, BACKFILL, earlier) == 0


WAITERS = st.builds(
    Waiter,
    purpose=st.sampled_from(Purpose),
    count=st.integers(1, 1000),
    since_ms=st.integers(NOW - 100, NOW),
    seen_ms=st.integers(NOW - 100, NOW),
)
BUDGETS = st.builds(
    Budget,
    limit=st.builds(Limit, weight=st.floats(1, 1e6), window_ms=st.integers(1000, 3_600_000), told=st.booleans()),
    share=st.floats(LEAST, MOST),
    changed_ms=st.integers(0, NOW),
    held_until_ms=st.integers(0, NOW * 2),
    banned=st.booleans(),
    spent=st.dictionaries(st.integers(0, 2**40), st.floats(0.1, 1e6), max_size=60),
    waiters=st.dictionaries(st.integers(1, 2**63), WAITERS, max_size=MOST_WAITERS),
)


class TestRecord:
    @given(BUDGETS)
    def test_it_comes_back_as_it_was(self, one: Budget) -> None:
        packed = one.packed()
        assert len(packed) == SIZE
        assert unpacked(packed) == one

    @given(BUDGETS, st.integers(0, SIZE - 1), st.integers(1, 255))
    def test_any_wrong_byte_shows(self, one: Budget, at: int, change: int) -> None:
        packed = bytearray(one.packed())
        packed[at] ^= change
        assert unpacked(bytes(packed)) is None

    @given(BUDGETS, st.integers(0, SIZE))
    def test_half_a_record_shows(self, one: Budget, cut: int) -> None:
        assert unpacked(one.packed()[:cut]) is None or cut == SIZE
        assert unpacked(one.packed() + b"x") is None

    def test_one_that_was_lost_begins_carefully(self) -> None:
        one = rebuilt(Limit(weight=1000), NOW)
        assert one.used(NOW) == 400
        assert fill(one, BACKFILL) == 200
