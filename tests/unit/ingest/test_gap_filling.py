"""Backfill against a scripted exchange: gaps, absences, retries, reports."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import stamina
from hypothesis import given, settings
from hypothesis import strategies as st

from exchange.page import CandlePage
from ingest.backfill import BackfillRules, backfill
from ingest.patience import Patience
from ingest.report import SeriesReport
from market.candle import CandleState, no_candles, open_times_ms
from market.clock import SystemClock
from market.coverage import CoverageState
from market.errors import (
    BadInput,
    ExchangeRefused,
    ExchangeUnavailable,
    Mismatch,
    NotFound,
    RateLimited,
    StoreUnusable,
)
from market.interval import Interval, IntervalSet
from market.timeframe import DAY_MS, ONE_MINUTE, TIMEFRAMES, Timeframe
from tests.unit.ingest.scripted import BTC, ETH, MINUTE, START, MemoryStore, ScriptedHistory, minutes

RULES = BackfillRules(patience=Patience(attempts=3))


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """Tries follow each other at once."""
    with stamina.set_testing(True, attempts=3, cap=True):
        yield


def run(
    history: ScriptedHistory, store: MemoryStore, start: int, end: int, *symbols: str, rules: BackfillRules = RULES
) -> list[SeriesReport]:
    """A backfill of the minutes [start, end) after START."""
    wanted = Interval(START + start * MINUTE, START + end * MINUTE)
    return asyncio.run(
        backfill(history, store, SystemClock(), symbols or ("BTC/USDT",), ONE_MINUTE, wanted, rules=rules)
    )


def span(start: int, end: int) -> IntervalSet:
    return IntervalSet.of((START + start * MINUTE, START + end * MINUTE))


def failing(times: int, error: Exception, question: str = "candles") -> Callable[[str], None]:
    """A script that raises `error` for the first `times` of `question`."""
    left = [times]

    def before(asked: str) -> None:
        if asked == question and left[0]:
            left[0] -= 1
            raise error

    return before


class TestFilling:
    def test_stores_every_candle_page_by_page(self) -> None:
        history, store = ScriptedHistory(minutes(*range(25)), page=10), MemoryStore()
        (report,) = run(history, store, 0, 25)
        assert store.times(BTC) == minutes(*range(25))
        assert (report.stored, report.written, report.verified_empty, report.missing) == (25, 25, 0, 0)
        assert report.complete
        assert history.count("candles") == 3

    def test_a_run_over_what_is_known_finds_what_the_exchange_changed(self) -> None:
        history, store = ScriptedHistory(minutes(*range(25)), page=10), MemoryStore()
        run(history, store, 0, 25)
        history.changed = {START + 3 * MINUTE, START + 20 * MINUTE}
        (plain,) = run(history, store, 0, 25)
        assert plain.written == 0
        (again,) = run(history, store, 0, 25, rules=replace(RULES, again=True))
        assert (again.stored, again.written, again.missing) == (25, 2, 0)

    def test_a_run_over_what_is_known_keeps_what_the_exchange_no_longer_has(self) -> None:
        history, store = ScriptedHistory(minutes(*range(25)), page=10), MemoryStore()
        run(history, store, 0, 25)
        history.times = history.times[:20]
        run(history, store, 0, 25, rules=replace(RULES, again=True))
        assert store.times(BTC) == minutes(*range(25))

    def test_a_second_run_asks_for_nothing_and_writes_nothing(self) -> None:
        history, store = ScriptedHistory(minutes(*range(25)), page=10), MemoryStore()
        run(history, store, 0, 25)
        history.asked.clear()
        (report,) = run(history, store, 0, 25)
        assert report.written == 0
        assert report.requests == 1
        assert history.count("candles", "first_open") == 0

    def test_only_the_gap_is_asked_for(self) -> None:
        history, store = ScriptedHistory(minutes(*range(30))), MemoryStore()
        run(history, store, 0, 10)
        run(history, store, 20, 30)
        history.asked.clear()
        run(history, store, 0, 30)
        assert [asked for asked in history.asked if asked[0] == "candles"] == [
            ("candles", START + 10 * MINUTE, START + 20 * MINUTE)
        ]

    def test_the_forming_candle_and_the_unsettled_one_are_not_stored(self) -> None:
        history, store = ScriptedHistory(minutes(*range(10))), MemoryStore()
        history.now = START + 9 * MINUTE + 1_000
        (report,) = run(history, store, 0, 100)
        assert store.times(BTC) == minutes(*range(8))
        assert report.missing == 0

    def test_unaligned_bounds_mean_the_buckets_that_open_between_them(self) -> None:
        history, store = ScriptedHistory(minutes(*range(10))), MemoryStore()
        wanted = Interval(START + 1, START + 5 * MINUTE + 59_999)
        asyncio.run(backfill(history, store, SystemClock(), ["BTC/USDT"], ONE_MINUTE, wanted, rules=RULES))
        assert store.times(BTC) == minutes(1, 2, 3, 4, 5)

    def test_candles_that_closed_just_now_are_closed_and_older_ones_verified(self) -> None:
        history, store = ScriptedHistory(minutes(*range(10))), MemoryStore()
        history.now = START + 10 * MINUTE + 5_000
        run(history, store, 0, 10)
        states = [(batch.state, batch.table.num_rows) for batch in store.batches]
        assert states == [(CandleState.VERIFIED, 9), (CandleState.CLOSED, 1)]

    def test_a_wait_after_the_question_makes_no_candle_verified(self) -> None:
        class Waits(ScriptedHistory):
            """The second read of a page waits two minutes."""

            async def candles(self, symbol: str, timeframe: Timeframe, start_ms: int, end_ms: int) -> CandlePage:
                if self.count("candles") == 1:
                    local.ahead += 2 * MINUTE
                return await super().candles(symbol, timeframe, start_ms, end_ms)

        class Local:
            ahead = 0

            def now_ms(self) -> int:
                return START + self.ahead

        local = Local()
        history, store = Waits(minutes(*range(5), *range(6, 10))), MemoryStore()
        history.now = START + 10 * MINUTE + 3_000
        wanted = Interval(START, START + 10 * MINUTE)
        asyncio.run(backfill(history, store, local, ["BTC/USDT"], ONE_MINUTE, wanted, rules=RULES))
        states = {one.state: open_times_ms(one.table).tolist() for one in store.batches}
        assert states[CandleState.CLOSED] == minutes(9)


class TestAbsence:
    def test_a_hole_is_verified_by_a_second_read(self) -> None:
        history, store = ScriptedHistory(minutes(*range(10), *range(18, 30))), MemoryStore()
        (report,) = run(history, store, 0, 30)
        assert store.in_state(BTC, CoverageState.EMPTY) == span(10, 18)
        assert report.verified_empty == 8
        assert history.asked[-1] == ("candles", START + 10 * MINUTE, START + 18 * MINUTE)

    def test_many_holes_of_a_page_cost_one_more_request(self) -> None:
        history, store = ScriptedHistory(minutes(*range(0, 100, 2))), MemoryStore()
        (report,) = run(history, store, 0, 100)
        assert report.verified_empty == 50
        assert history.count("candles") == 2

    def test_rows_that_only_the_second_read_brings_are_stored(self) -> None:
        history, store = ScriptedHistory(minutes(*range(31))), MemoryStore()
        history.lossy = lambda index: index == 1
        (report,) = run(history, store, 0, 31)
        assert store.times(BTC) == minutes(*range(31))
        assert report.verified_empty == 0

    def test_before_the_listing_costs_a_handful_of_requests(self) -> None:
        history, store = ScriptedHistory(minutes(*range(50_000, 50_010)), page=10, windows=True), MemoryStore()
        (report,) = run(history, store, 0, 50_010)
        (empty,) = [one for one in store.ledger[BTC] if one.state is CoverageState.EMPTY]
        assert report.complete
        assert report.requests < 8
        assert empty.evidence == (
            "before the first candle of BTC/USDT on scripted, which opens at 2023-04-28T05:20:00Z"
        )

    def test_a_range_that_ends_before_the_listing(self) -> None:
        history, store = ScriptedHistory(minutes(500, 501)), MemoryStore()
        (report,) = run(history, store, 0, 100)
        assert (report.stored, report.verified_empty, report.missing) == (0, 100, 0)
        assert "before the first candle" in (store.ledger[BTC][0].evidence or "")

    def test_an_exchange_without_any_candle_ends(self) -> None:
        for windows in (False, True):
            history, store = ScriptedHistory([], page=10, windows=windows), MemoryStore()
            (report,) = run(history, store, 0, 10_000)
            assert (report.verified_empty, report.missing) == (10_000, 0)
            assert report.requests < 10

    def test_recent_absence_expires_within_the_hour_and_old_absence_after_a_month(self) -> None:
        history, store = ScriptedHistory(minutes(0, 1, 3, 9_999)), MemoryStore()
        history.now = START + 10_000 * MINUTE + 2_000
        started = SystemClock().now_ms()
        run(history, store, 0, 10_000)
        history.times = history.times[history.times < START + 100 * MINUTE]
        ages = {one.interval.start: (one.expires_at or 0) - started for one in store.ledger[BTC]}
        assert ages[START + 2 * MINUTE] == pytest.approx(30 * DAY_MS, abs=60_000)
        assert ages[START + 4 * MINUTE] == pytest.approx(3_600_000, abs=60_000)

    def test_an_answer_that_does_not_advance_is_a_mismatch(self) -> None:
        class Stuck(ScriptedHistory):
            async def candles(self, symbol: str, timeframe: object, start_ms: int, end_ms: int) -> CandlePage:
                return CandlePage(table=no_candles(), reaches=start_ms)

        (report,) = run(Stuck([]), MemoryStore(), 0, 10)
        assert isinstance(report.error, Mismatch)
        assert "does not advance" in str(report.error)
        assert report.missing == 10

    def test_newest_candles_only_leave_the_rest_unknown(self) -> None:
        class NewestOnly(ScriptedHistory):
            async def candles(self, symbol: str, timeframe: object, start_ms: int, end_ms: int) -> CandlePage:
                page = await super().candles(symbol, ONE_MINUTE, start_ms, end_ms)
                return CandlePage(table=page.table, reaches=start_ms)

        store = MemoryStore()
        (report,) = run(NewestOnly(minutes(*range(50, 60))), store, 0, 60)
        assert store.times(BTC) == minutes(*range(50, 60))
        assert (report.missing, report.missing_intervals) == (50, span(0, 50))
        assert not report.complete

    @pytest.mark.parametrize("hole", [None, 30, 95])
    def test_an_answer_cut_off_in_front_makes_nothing_empty(self, hole: int | None) -> None:
        class CutInFront(ScriptedHistory):
            """Gives the last twenty rows of a window of a hundred."""

            async def candles(self, symbol: str, timeframe: Timeframe, start_ms: int, end_ms: int) -> CandlePage:
                page = await super().candles(symbol, timeframe, start_ms, end_ms)
                table = page.table.slice(max(0, page.table.num_rows - 20))
                return CandlePage(table=table, reaches=page.reaches)

        times = minutes(*(at for at in range(150) if at != hole))
        store = MemoryStore()
        (report,) = run(CutInFront(times, page=100, windows=True), store, 0, 150)
        assert store.times(BTC) == times
        assert (report.verified_empty, report.complete) == (hole is not None, True)

    def test_candles_that_are_not_aligned_are_refused_and_their_buckets_are_not_empty(self) -> None:
        shifted = [time + 7_000 for time in minutes(*range(5, 25))]
        history, store = ScriptedHistory([*minutes(*range(5)), *shifted], page=10), MemoryStore()
        (report,) = run(history, store, 0, 30)
        assert (report.stored, report.refused, report.missing) == (5, 20, 20)
        assert report.missing_intervals == span(5, 25)
        assert store.in_state(BTC, CoverageState.EMPTY) == span(25, 30)
        assert not report.complete

    def test_three_day_candles_count_from_the_first_one_where_no_listing_day_is_told(self) -> None:
        days = TIMEFRAMES["3d"]
        listed = 19_439 * DAY_MS  # 2023-03-23; the default origin is a day off
        history, store = ScriptedHistory([listed + at * 3 * DAY_MS for at in range(4)]), MemoryStore()
        history.now = listed + 12 * DAY_MS + MINUTE
        wanted = Interval(listed - DAY_MS, history.now)
        asyncio.run(backfill(history, store, SystemClock(), ["BTC/USDT"], days, wanted, rules=RULES))
        assert {one.symbol: one.listed_ms for one in store.instruments} == {"BTC/USDT": listed, "ETH/USDT": None}
        assert [open_times_ms(one.table).tolist() for one in store.batches if one.table.num_rows] == [
            history.times.tolist()
        ]


class TestTrouble:
    def test_a_passing_trouble_is_sat_out(self) -> None:
        history, store = ScriptedHistory(minutes(*range(10))), MemoryStore()
        history.before = failing(2, ExchangeUnavailable("scripted sent a web page instead of JSON"))
        (report,) = run(history, store, 0, 10)
        assert report.complete
        assert report.requests == 4

    def test_a_lasting_trouble_is_reported_and_the_others_go_on(self) -> None:
        history, store = ScriptedHistory(minutes(*range(10))), MemoryStore()
        history.before = failing(3, ExchangeUnavailable("no answer"))
        rules = BackfillRules(concurrency=1, patience=Patience(attempts=3))
        broken, whole = run(history, store, 0, 10, "BTC/USDT", "ETH/USDT", rules=rules)
        assert isinstance(broken.error, ExchangeUnavailable)
        assert (broken.missing, broken.missing_intervals) == (10, span(0, 10))
        assert whole.complete
        assert store.times(ETH) == minutes(*range(10))

    def test_a_symbol_that_is_listed_but_not_served_does_not_stop_the_others(self) -> None:
        history, store = ScriptedHistory(minutes(*range(10))), MemoryStore()
        history.before = failing(1, NotFound("symbol", "BTC/USDT", hint="a symbol that is traded"))
        rules = BackfillRules(concurrency=1)
        gone, whole = run(history, store, 0, 10, "BTC/USDT", "ETH/USDT", rules=rules)
        assert isinstance(gone.error, NotFound)
        assert gone.missing == 10
        assert whole.complete

    def test_a_refusal_is_not_repeated(self) -> None:
        history = ScriptedHistory(minutes(*range(10)))
        history.before = failing(1, ExchangeRefused("bad interval"))
        (report,) = run(history, MemoryStore(), 0, 10)
        assert isinstance(report.error, ExchangeRefused)
        assert history.count("candles") == 1

    def test_a_rate_limit_holds_back_every_series(self) -> None:
        history, store = ScriptedHistory(minutes(*range(10))), MemoryStore()
        history.before = failing(1, RateLimited("slow down", 0.01))
        reports = run(history, store, 0, 10, "BTC/USDT", "ETH/USDT")
        assert all(report.complete for report in reports)

    def test_a_ban_longer_than_we_wait_stops_every_series(self) -> None:
        history, store = ScriptedHistory(minutes(*range(10))), MemoryStore()
        history.before = failing(1, RateLimited("banned", 86_400, banned=True))
        rules = BackfillRules(concurrency=1, patience=Patience(attempts=3))
        reports = run(history, store, 0, 10, "BTC/USDT", "ETH/USDT", rules=rules)
        assert all(isinstance(report.error, RateLimited) and report.error.banned for report in reports)
        assert history.count("candles") == 1

    def test_an_unknown_symbol_stops_before_anything_is_fetched(self) -> None:
        history = ScriptedHistory(minutes(*range(10)))
        with pytest.raises(NotFound, match=r"symbol: 'BTC/USDC' .* such as BTC/USDT"):
            run(history, MemoryStore(), 0, 10, "ETH/USDT", "BTC/USDC")
        assert history.count("candles") == 0

    def test_a_start_in_the_future_of_the_exchange(self) -> None:
        history = ScriptedHistory(minutes(*range(10)))
        history.now = START + 10 * MINUTE
        with pytest.raises(BadInput, match=r"since: '2023-03-24T12:10:00Z' .* now, 2023-03-24T12:10:00"):
            run(history, MemoryStore(), 10, 20)

    def test_a_broken_store_stops_everything(self) -> None:
        store = MemoryStore()

        def full() -> None:
            raise StoreUnusable("the disk is full")

        store.before_write = full
        with pytest.raises(StoreUnusable):
            run(ScriptedHistory(minutes(*range(10))), store, 0, 10, "BTC/USDT", "ETH/USDT")

    def test_cancelled_in_a_page_nothing_of_it_is_stored_and_nobody_goes_on(self) -> None:
        store = MemoryStore()

        class Waiting(ScriptedHistory):
            """Answers two pages, then never again."""

            async def candles(self, symbol: str, timeframe: Timeframe, start_ms: int, end_ms: int) -> CandlePage:
                if self.count("candles") == 2:
                    waiting.set()
                    await asyncio.Event().wait()
                return await super().candles(symbol, timeframe, start_ms, end_ms)

        async def main() -> int:
            work = backfill(
                Waiting(minutes(*range(100)), page=10), store, SystemClock(), ["BTC/USDT"], ONE_MINUTE, whole
            )
            task = asyncio.create_task(work)
            await waiting.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return len(asyncio.all_tasks())

        waiting, whole = asyncio.Event(), Interval(START, START + 100 * MINUTE)
        assert asyncio.run(main()) == 1
        assert store.times(BTC) == minutes(*range(20))

    def test_instruments_are_saved(self) -> None:
        store = MemoryStore()
        run(ScriptedHistory(minutes(0)), store, 0, 1)
        assert [one.symbol for one in store.instruments] == ["BTC/USDT", "ETH/USDT"]


class Killed(BaseException):
    """The process dies here."""


@settings(max_examples=200, deadline=None)
@given(
    market=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 25)), max_size=8),
    page=st.integers(1, 30),
    windows=st.booleans(),
    bounds=st.tuples(st.integers(0, 120), st.integers(1, 150)),
    losses=st.lists(st.booleans(), max_size=40),
    kills=st.lists(st.tuples(st.booleans(), st.integers(1, 9)), max_size=6),
)
def test_interrupted_runs_end_with_the_market_and_a_true_ledger(
    market: list[tuple[int, int]],
    page: int,
    windows: bool,
    bounds: tuple[int, int],
    losses: list[bool],
    kills: list[tuple[bool, int]],
) -> None:
    """Whatever the holes, the paging, the lost rows and the kills: rows equal the market, the ledger the truth."""
    times, at = [], 0
    for skip, length in market:
        times += range(at + skip, at + skip + length)
        at += skip + length
    start, end = bounds[0], bounds[0] + bounds[1]
    history = ScriptedHistory(minutes(*times), page=page, windows=windows)
    history.lossy = lambda index: index < len(losses) and losses[index]
    store = MemoryStore()
    for in_write, after in kills:
        left = [after]

        def die(left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] <= 0:
                raise Killed

        history.before = (lambda question: None) if in_write else (lambda question, die=die: die())
        store.before_write = die if in_write else (lambda: None)
        try:
            run(history, store, start, end)
        except Killed:
            continue
    history.before, store.before_write = (lambda question: None), (lambda: None)
    (report,) = run(history, store, start, end)

    held = [index for index in times if start <= index < end]
    present = IntervalSet.of_candles(history.times, ONE_MINUTE).clip(START + start * MINUTE, START + end * MINUTE)
    assert store.times(BTC) == minutes(*held)
    assert store.in_state(BTC, CoverageState.PRESENT) == present
    assert store.in_state(BTC, CoverageState.EMPTY) == span(start, end) - present
    assert report.complete
    assert (report.stored, report.verified_empty) == (len(held), end - start - len(held))
