"""The order book of one instrument, whatever its stream and its exchange do. Time is moved by the tests."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.book_rules import BookRules
from ingest.route import Path
from market.book_message import BookChain, BookStart
from market.errors import BadInput, ExchangeRefused, ExchangeUnavailable, NotFound, RateLimited
from market.order_book import BookState
from tests.support.notes import eventually
from tests.unit.ingest.book_world import BookWorld
from tests.unit.market.true_market import AT, Event

BID = Event(True, 10, 3)
OTHER_BID = Event(True, 9, 3)


async def live(world: BookWorld) -> None:
    """Connected, and right."""
    world.route.connected()
    world.deliver(BID)
    await world.settle()
    assert world.route.book_status().state is BookState.LIVE


def path_of(world: BookWorld) -> tuple[BookState, Path]:
    status = world.route.book_status()
    return status.state, status.path


async def test_a_book_begins_with_a_snapshot_and_is_live() -> None:
    world = BookWorld()
    assert path_of(world) == (BookState.SYNCING, Path.STARTING)
    assert world.route.top(5) is None
    world.answer_takes = 300
    world.route.connected()
    assert path_of(world) == (BookState.SYNCING, Path.REFILL)
    world.deliver(BID)
    assert world.route.top(5) is None
    await world.pass_time(300)
    assert path_of(world) == (BookState.LIVE, Path.STREAM)
    top = world.route.top(1)
    assert top is not None
    assert (top.last_id, top.bids, top.asks) == (101, [(10.0, 3.0)], [(20.0, 1.0)])
    assert world.asked == [(AT, 1000)]
    status = world.route.status()
    assert (status.path, status.messages, status.since) == (Path.STREAM, 1, AT + 300)


async def test_old_answers_are_asked_for_again_more_slowly_each_time() -> None:
    world = BookWorld()
    for _ in range(5):
        world.lose(OTHER_BID)
    world.answers.extend([5, 4, 3, ExchangeUnavailable("no answer"), 2, 0])
    world.route.connected()
    world.deliver(BID)
    await world.pass_time(20_000)
    assert path_of(world) == (BookState.LIVE, Path.STREAM)
    waits = [later[0] - sooner[0] for sooner, later in pairwise(world.asked)]
    assert waits[:5] == [500, 1000, 2000, 4000, 8000]


async def test_a_hole_is_not_served_and_healed() -> None:
    world = BookWorld()
    await live(world)
    world.answer_takes = 100
    world.lose(BID)
    world.deliver(OTHER_BID)
    assert world.route.top(5) is None
    assert world.route.why() == "stale (refill): hole: the snapshot ends at 101, and the next follows 102"
    await world.pass_time(700)
    status = world.route.book_status()
    assert (status.state, status.resyncs, status.last_id) == (BookState.LIVE, 1, 103)
    assert [mark.state for mark in world.marks] == [
        BookState.SYNCING,
        BookState.LIVE,
        BookState.STALE,
        BookState.LIVE,
    ]


async def test_only_one_question_at_a_time() -> None:
    world = BookWorld()
    world.answer_takes = 5_000
    world.route.connected()
    for _ in range(20):
        world.deliver(BID)
        await world.pass_time(100)
    assert len(world.asked) == 1


async def test_an_answer_asked_for_on_an_earlier_connection_is_not_used() -> None:
    world = BookWorld()
    world.answer_takes = 1_000
    world.route.connected()
    await world.pass_time(500)
    world.route.disconnected("cut")
    world.lose(BID)
    world.route.connected()
    await world.pass_time(501)
    assert world.route.top(5) is None
    await world.pass_time(3_000)
    top = world.route.top(5)
    assert top is not None
    assert top.last_id == 101


async def test_disconnected_is_stale_at_once_and_rest_takes_over() -> None:
    world = BookWorld()
    await live(world)
    world.answer_takes = 200
    world.route.disconnected("cut")
    assert world.route.top(5) is None
    world.lose(BID)
    await world.pass_time(200)
    assert path_of(world) == (BookState.LIVE, Path.REST)
    assert world.asked[-1][1] == 100
    world.route.disconnected("still cut")
    assert world.route.book_status().resyncs == 1
    # Every ten seconds a new one.
    await world.pass_time(60_000)
    assert path_of(world) == (BookState.LIVE, Path.REST)
    assert 6 <= world.route.status().refilled <= 8
    world.route.connected()
    world.deliver(BID)
    await world.pass_time(3_000)
    assert path_of(world) == (BookState.LIVE, Path.STREAM)


async def test_what_rest_said_is_served_for_half_a_minute_only() -> None:
    world = BookWorld()
    await live(world)
    world.route.disconnected("cut")
    await world.settle()
    assert path_of(world) == (BookState.LIVE, Path.REST)
    world.answers.extend([ExchangeUnavailable("away")] * 10)
    await world.pass_time(29_999)
    assert world.route.top(5) is not None
    await world.pass_time(1)
    assert world.route.top(5) is None
    assert world.route.why() == "stale (rest): away"


async def test_an_old_or_crossed_answer_is_not_served() -> None:
    world = BookWorld()
    await live(world)
    world.answers.append(1)
    world.route.disconnected("cut")
    await world.settle()
    assert world.route.top(5) is None
    assert world.route.why() == "stale (rest): REST answers with 100, but 101 had been seen"


async def test_a_silent_stream_is_doubted_and_goes_on_where_nothing_was_missed() -> None:
    world = BookWorld()
    await live(world)
    await world.pass_time(9_000)
    assert path_of(world) == (BookState.LIVE, Path.STREAM)
    assert world.route.silent_since(world.clock.now_ms()) is None
    await world.pass_time(1_000)
    assert world.route.silent_since(world.clock.now_ms()) == AT
    assert path_of(world) == (BookState.LIVE, Path.REST)
    await world.pass_time(60_000)
    assert path_of(world) == (BookState.LIVE, Path.REST)
    # The market itself was quiet: no new connection would help.
    assert not world.route.missing_out
    asked = len(world.asked)
    world.deliver(BID)
    assert path_of(world) == (BookState.LIVE, Path.STREAM)
    assert (len(world.asked), world.route.book_status().resyncs) == (asked, 0)


async def test_a_silent_stream_that_misses_out_asks_for_a_new_connection() -> None:
    world = BookWorld()
    await live(world)
    await world.pass_time(12_000)
    world.lose(BID)
    await world.pass_time(20_000)
    assert world.route.missing_out
    assert path_of(world) == (BookState.LIVE, Path.REST)
    world.deliver(BID)
    assert world.route.book_status().resyncs == 1
    await world.pass_time(5_000)
    assert path_of(world) == (BookState.LIVE, Path.STREAM)
    assert not world.route.missing_out


async def test_repeated_changes_do_not_break_the_silence() -> None:
    world = BookWorld()
    await live(world)
    again = world.market.happen([BID])
    for _ in range(11):
        world.route.on_message(again)
        await world.pass_time(1_000)
    assert world.route.book_status().path is Path.REST
    assert world.route.status().repeated == 10


async def test_a_rate_limit_is_obeyed_even_over_a_new_connection() -> None:
    world = BookWorld()
    world.answers.append(RateLimited("slow down", 30.0))
    world.route.connected()
    await world.pass_time(10_000)
    world.route.disconnected("cut")
    world.route.connected()
    await world.pass_time(19_000)
    assert len(world.asked) == 1
    await world.pass_time(3_000)
    assert world.route.book_status().state is BookState.LIVE


@pytest.mark.parametrize("error", [ExchangeRefused("no such symbol"), NotFound("symbol", "BTC/USDT")])
async def test_a_refusal_is_reported_and_asked_again_seldom(error: ExchangeRefused | NotFound) -> None:
    world = BookWorld()
    world.answers.append(error)
    world.route.connected()
    await world.pass_time(100_000)
    assert world.reports == [error]
    assert path_of(world) == (BookState.SYNCING, Path.REFUSED)
    assert world.route.why().endswith(str(error))
    assert len(world.asked) == 1
    await world.pass_time(210_000)
    # The market was quiet all along, so the answer stands alone.
    assert world.route.top(5) is not None
    assert len(world.reports) == 1


async def test_a_question_without_an_answer_is_given_up() -> None:
    world = BookWorld(rules=BookRules(request_seconds=0.01))
    world.answer_takes = 10**9
    world.route.connected()

    async def given_up() -> bool:
        return world.route.why() == "syncing (refill): no snapshot within 0.01 s"

    await eventually(given_up, "the question is given up")
    world.answer_takes = 0
    await world.pass_time(1_000)
    assert world.route.book_status().state is BookState.LIVE


async def test_the_book_is_held_against_rest_and_agrees() -> None:
    world = BookWorld(rules=BookRules(compare_ms=60_000))
    await live(world)
    world.answer_takes = 1_500
    for _ in range(70):
        world.deliver(BID)
        await world.pass_time(1_000)
    status = world.route.book_status()
    assert (status.agreements, status.differences, status.missed_comparisons, status.resyncs) == (1, 0, 0, 0)
    assert len(world.asked) == 2


async def test_a_difference_from_rest_makes_the_book_stale_and_new() -> None:
    world = BookWorld(rules=BookRules(compare_ms=60_000))
    await live(world)
    # A level that the exchange has and the stream never told of.
    bids, asks = world.market.books[world.market.now]
    world.market.books[world.market.now] = ({**bids, 7.0: 5.0}, asks)
    for _ in range(70):
        world.deliver(BID)
        await world.pass_time(1_000)
    status = world.route.book_status()
    assert (status.agreements, status.differences, status.resyncs) == (0, 1, 1)
    assert [mark.reason for mark in world.marks if mark.state is BookState.STALE] == [
        "not what REST says: bid 7 has 0 here and 5 there"
    ]
    top = world.route.top(100)
    assert top is not None
    assert (7.0, 5.0) in top.bids


async def test_an_old_snapshot_is_no_comparison() -> None:
    world = BookWorld(rules=BookRules(compare_ms=60_000, renew_ms=5_000))
    await live(world)
    for second in range(75):
        world.deliver(BID)
        if second == 55:
            world.answers.append(20)
        await world.pass_time(1_000)
    status = world.route.book_status()
    assert (status.missed_comparisons, status.agreements, status.differences) == (1, 1, 0)


async def test_a_thin_book_is_renewed_before_the_market_leaves_what_it_knows() -> None:
    world = BookWorld(rules=BookRules(levels=3, renew_ms=2_000))
    world.market.happen([Event(True, price, 1) for price in range(1, 10)])
    world.market.happen([Event(False, price, 1) for price in range(20, 30)])
    await live(world)
    # Bids go one by one, from 10 down to 2.
    for price in range(10, 2, -1):
        world.deliver(Event(True, price, 0))
        await world.pass_time(4_000)
        top = world.route.top(1)
        assert top is not None
        assert top.bids[0][0] == price - 1
    assert world.route.book_status().agreements >= 3


async def test_the_best_levels_are_told_ten_times_a_second_and_the_last_is_not_left_out() -> None:
    world = BookWorld()
    await live(world)
    world.tops.clear()
    await world.pass_time(1_000)
    for quantity in range(1, 31):
        world.deliver(Event(True, 10, quantity))
        await world.pass_time(10)
    await world.pass_time(500)
    times = [at for at, _ in world.tops]
    assert len(times) == 4
    assert all(later - sooner >= 100 for sooner, later in pairwise(times))
    assert world.tops[-1][1].bids[0] == (10.0, 30.0)
    # Nothing is told of a book that is not LIVE.
    world.answers.extend([ExchangeUnavailable("away")] * 3)
    world.deliver(BID)
    world.deliver(BID)
    told = len(world.tops)
    world.route.disconnected("cut")
    await world.pass_time(500)
    assert len(world.tops) == told


async def test_a_book_that_comes_over_the_stream_needs_no_question() -> None:
    world = BookWorld(BookChain.COUNTED, BookStart.STREAM, asks=False)
    # The whole book may come before the router knows of the connection.
    world.deliver_whole()
    world.route.connected()
    assert path_of(world) == (BookState.LIVE, Path.STREAM)
    world.deliver(BID)
    assert not world.route.missing_out
    world.lose(BID)
    world.deliver(BID)
    assert path_of(world) == (BookState.STALE, Path.REFILL)
    # Nothing but a new connection brings a whole book.
    assert world.route.missing_out
    world.route.disconnected("replaced")
    world.route.connected()
    assert not world.route.missing_out
    world.deliver_whole()
    assert path_of(world) == (BookState.LIVE, Path.STREAM)


async def test_a_whole_book_that_does_not_come_asks_for_a_new_connection() -> None:
    world = BookWorld(BookChain.COUNTED, BookStart.STREAM, asks=False)
    world.route.connected()
    await world.pass_time(9_000)
    assert not world.route.missing_out
    await world.pass_time(1_000)
    assert world.route.missing_out


async def test_a_quiet_book_without_numbers_is_confirmed_by_rest() -> None:
    world = BookWorld(BookChain.CONNECTION, BookStart.STREAM)
    world.deliver_whole()
    await world.pass_time(10_000)
    assert path_of(world) == (BookState.LIVE, Path.STREAM)
    assert world.route.why() == "live (stream): REST shows the same"
    # And again: an hour without a change asks a few hundred times, and for no new connection.
    await world.pass_time(60_000)
    assert not world.route.missing_out
    assert (len(world.asked), world.route.book_status().resyncs) == (7, 0)
    world.deliver(BID)
    assert world.route.book_status().last_id == 0
    assert world.route.top(1) is not None


async def test_a_book_without_numbers_that_missed_something_is_not_served_from_the_stream() -> None:
    world = BookWorld(BookChain.CONNECTION, BookStart.STREAM)
    world.deliver_whole()
    await world.pass_time(5_000)
    world.lose(BID)
    await world.pass_time(5_000)
    assert path_of(world) == (BookState.LIVE, Path.REST)
    world.deliver(OTHER_BID)
    assert world.route.book_status().path is Path.REST
    assert not world.route.missing_out
    await world.pass_time(11_000)
    assert world.route.missing_out
    top = world.route.top(1)
    assert top is not None
    assert top.bids == [(10.0, 3.0)]


async def test_a_quiet_book_without_numbers_and_without_rest_begins_anew() -> None:
    world = BookWorld(BookChain.CONNECTION, BookStart.STREAM, asks=False)
    world.deliver_whole()
    await world.pass_time(10_000)
    assert world.route.top(5) is None
    assert not world.route.missing_out
    world.deliver(BID)
    assert world.route.missing_out
    assert world.route.why() == "stale (refill): changes may be missing: no change for 10000 ms"


def test_a_book_that_begins_over_rest_needs_someone_to_ask() -> None:
    with pytest.raises(BadInput, match="ask"):
        BookWorld(asks=False)


EVENTS = st.lists(
    st.builds(Event, buys=st.booleans(), price=st.integers(1, 30), quantity=st.integers(0, 3)),
    min_size=1,
    max_size=3,
)
HAPPENINGS = st.lists(
    st.one_of(
        st.tuples(st.just("deliver"), EVENTS),
        st.tuples(st.just("deliver"), EVENTS),
        st.tuples(st.just("lose"), EVENTS),
        st.tuples(st.just("twice"), EVENTS),
        st.tuples(st.just("wait"), st.sampled_from([50, 400, 3_000, 12_000])),
        st.tuples(st.just("cut"), st.just(0)),
        st.tuples(st.just("connect"), st.just(0)),
        st.tuples(st.just("old answer"), st.integers(1, 12)),
        st.tuples(st.just("error"), st.sampled_from([ExchangeUnavailable("away"), RateLimited("slow", 2.0)])),
        st.tuples(st.just("slow answers"), st.sampled_from([0, 30, 700])),
    ),
    min_size=5,
    max_size=40,
)


@pytest.mark.parametrize("chain", [BookChain.FIRST_ID, BookChain.PREVIOUS_ID])
@given(happenings=HAPPENINGS, levels=st.sampled_from([3, 1000]))
@settings(max_examples=50)
def test_what_is_served_is_true_and_it_is_served_again_after_the_faults(
    chain: BookChain, happenings: list[tuple[str, Any]], levels: int
) -> None:
    asyncio.run(play(chain, happenings, levels))


async def play(chain: BookChain, happenings: list[tuple[str, Any]], levels: int) -> None:
    rules = BookRules(levels=levels, poll_levels=levels, compare_ms=5_000, renew_ms=1_000, longest_wait=8.0)
    world = BookWorld(chain, rules=rules)
    for kind, what in happenings:
        if kind in ("deliver", "twice"):
            change = world.market.happen(what)._replace(received_at=world.clock.now_ms())
            for _ in range(1 if kind == "deliver" else 2):
                world.route.on_message(change)
        elif kind == "lose":
            world.lose(*what)
        elif kind == "wait":
            await world.pass_time(what)
        elif kind == "cut":
            world.route.disconnected("cut")
            assert world.route.book_status().path is not Path.STREAM
        elif kind == "connect":
            world.route.connected()
        elif kind in ("old answer", "error"):
            world.answers.append(what)
        else:
            world.answer_takes = what
        await world.settle()
        verify(world)
    world.answers.clear()
    world.answer_takes = 0
    world.route.connected()
    # More than the longest wait between two questions.
    for second in range(40):
        world.deliver(Event(True, 5, 1 + second % 2))
        await world.pass_time(1_000)
        verify(world)
    assert path_of(world) == (BookState.LIVE, Path.STREAM)
    assert world.route.book_status().last_id == world.market.now
    # No comparison ever found fault with a book that was served.
    assert world.route.book_status().differences == 0
    assert not world.reports
    world.close()


def verify(world: BookWorld) -> None:
    """Whatever is served was true at its number."""
    top = world.route.top(1000)
    if top is None:
        return
    bids, asks = world.market.books[top.last_id]
    assert list(top.bids) == sorted(bids.items(), reverse=True)[: len(top.bids)]
    assert list(top.asks) == sorted(asks.items())[: len(top.asks)]
    assert bool(top.bids) == bool(bids)
    assert bool(top.asks) == bool(asks)


async def test_where_changes_have_no_numbers_a_message_that_could_not_be_used_loses_the_book() -> None:
    world = BookWorld(BookChain.CONNECTION, BookStart.STREAM)
    world.route.connected()
    world.deliver_whole()
    world.deliver(BID)
    await world.settle()
    assert path_of(world) == (BookState.LIVE, Path.STREAM)
    world.lose(OTHER_BID)
    world.route.refused("changes: is missing")
    assert path_of(world) != (BookState.LIVE, Path.STREAM)
    assert world.marks[-1].state is BookState.STALE
    assert world.marks[-1].reason == "a message could not be used: changes: is missing"
    # Changes alone do not heal it: a new connection begins with the whole book.
    world.deliver(BID)
    await world.settle()
    assert path_of(world) != (BookState.LIVE, Path.STREAM)
    assert world.route.missing_out
    world.route.disconnected("replaced")
    world.route.connected()
    world.deliver_whole()
    assert path_of(world) == (BookState.LIVE, Path.STREAM)
    await world.settle()


@pytest.mark.parametrize("chain, start", [
    (BookChain.FIRST_ID, BookStart.REST),
    (BookChain.PREVIOUS_ID, BookStart.REST),
    (BookChain.SNAPSHOT_CHAIN, BookStart.STREAM),
    (BookChain.COUNTED, BookStart.STREAM),
])  # fmt: skip
async def test_where_changes_have_numbers_the_next_one_shows_what_was_missed(
    chain: BookChain, start: BookStart
) -> None:
    world = BookWorld(chain, start)
    world.route.connected()
    if start is BookStart.STREAM:
        world.deliver_whole()
    world.deliver(BID)
    await world.settle()
    world.route.refused("of something else, perhaps")
    assert path_of(world) == (BookState.LIVE, Path.STREAM)
    world.deliver(OTHER_BID)
    assert path_of(world) == (BookState.LIVE, Path.STREAM)
    world.lose(BID)
    world.route.refused("p: is missing")
    world.deliver(OTHER_BID)
    assert path_of(world) != (BookState.LIVE, Path.STREAM)
    await world.settle()


async def test_without_a_connection_there_is_no_book_to_lose() -> None:
    world = BookWorld(BookChain.CONNECTION, BookStart.STREAM)
    before = len(world.marks)
    world.route.refused("anything")
    assert len(world.marks) == before
