"""One load per key at a time: who joins, who gets the error, what cancelling does, what is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.errors import BadInput, StoreBusy, StoreUnavailable
from store.cache.single_flight import SingleFlight


class Database:
    """Loads that end when the test says."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.running: dict[str, asyncio.Future[Any]] = {}
        self.cancelled: list[str] = []

    def load(self, key: str) -> Any:
        async def load() -> Any:
            assert key not in self.running, "two loads of one key at a time"
            self.begun.append(key)
            self.running[key] = asyncio.get_running_loop().create_future()
            try:
                return await self.running[key]
            except asyncio.CancelledError:
                self.cancelled.append(key)
                raise
            finally:
                del self.running[key]

        return load

    def end(self, key: str, value: object) -> None:
        future = self.running[key]
        if isinstance(value, BaseException):
            future.set_exception(value)
        else:
            future.set_result(value)


async def settled() -> None:
    """All tasks have run as far as they can."""
    for _ in range(10):
        await asyncio.sleep(0)


def flights(**limits: Any) -> SingleFlight[str, Any]:
    return SingleFlight(**limits)


async def test_a_thousand_callers_cause_one_load() -> None:
    one, database = flights(), Database()
    callers = [asyncio.create_task(one.run("a", database.load("a"))) for _ in range(1_000)]
    await settled()
    database.end("a", 7)
    assert await asyncio.gather(*callers) == [7] * 1_000
    assert (database.begun, one.loads, one.joined, one.loading) == (["a"], 1, 999, 0)


async def test_all_get_the_error_and_it_is_not_remembered() -> None:
    one, database = flights(), Database()
    callers = [asyncio.create_task(one.run("a", database.load("a"))) for _ in range(3)]
    await settled()
    database.end("a", ValueError("no"))
    assert [str(error) for error in await asyncio.gather(*callers, return_exceptions=True)] == ["no"] * 3
    again = asyncio.create_task(one.run("a", database.load("a")))
    await settled()
    database.end("a", 1)
    assert await again == 1


async def test_cancelling_the_first_leaves_the_load_to_the_others() -> None:
    one, database = flights(), Database()
    callers = [asyncio.create_task(one.run("a", database.load("a"))) for _ in range(3)]
    await settled()
    callers[0].cancel()
    callers[2].cancel()
    await settled()
    assert database.cancelled == []
    database.end("a", 7)
    assert await callers[1] == 7
    assert (callers[0].cancelled(), callers[2].cancelled()) == (True, True)


async def test_the_load_is_cancelled_when_nobody_waits_and_the_next_begins_after_it() -> None:
    one, database = flights(), Database()
    callers = [asyncio.create_task(one.run("a", database.load("a"))) for _ in range(2)]
    await settled()
    for caller in callers:
        caller.cancel()
    # This one comes before the load has noticed.
    await asyncio.sleep(0)
    late = asyncio.create_task(one.run("a", database.load("a")))
    await settled()
    assert (database.cancelled, database.begun) == (["a"], ["a", "a"])
    database.end("a", 3)
    assert await late == 3
    assert one.loading == 0


async def test_an_outdated_load_is_not_joined() -> None:
    one, database = flights(), Database()
    early = asyncio.create_task(one.run("a", database.load("a")))
    await settled()
    one.outdate_where(lambda key: key == "a")
    late = [asyncio.create_task(one.run("a", database.load("a"))) for _ in range(3)]
    await settled()
    assert database.begun == ["a"]
    late.pop().cancel()
    database.end("a", "old")
    await settled()
    assert (early.result(), database.begun) == ("old", ["a", "a"])
    database.end("a", "new")
    assert await asyncio.gather(*late) == ["new", "new"]


async def test_who_waits_for_the_next_load_may_give_up() -> None:
    one, database = flights(), Database()
    early = asyncio.create_task(one.run("a", database.load("a")))
    await settled()
    one.outdate("a")
    late = asyncio.create_task(one.run("a", database.load("a")))
    await settled()
    late.cancel()
    await settled()
    database.end("a", 1)
    await settled()
    assert (early.result(), database.begun, one.loading) == (1, ["a"], 0)


async def test_a_load_that_is_too_old_is_not_joined() -> None:
    now = [0.0]
    one, database = flights(monotonic_ms=lambda: now[0]), Database()
    first = asyncio.create_task(one.run("a", database.load("a")))
    await settled()
    now[0] = 99
    second = asyncio.create_task(one.run("a", database.load("a"), younger_than_ms=100))
    await settled()
    now[0] = 100
    third = asyncio.create_task(one.run("a", database.load("a"), younger_than_ms=100))
    await settled()
    database.end("a", 1)
    await settled()
    database.end("a", 2)
    assert [await caller for caller in (first, second, third)] == [1, 1, 2]


async def test_loads_wait_for_their_turn_and_too_many_are_refused() -> None:
    one, database = flights(most_loads=2, most_waiting=1), Database()
    callers = {key: asyncio.create_task(one.run(key, database.load(key))) for key in "abc"}
    await settled()
    assert (database.begun, one.waiting, one.loading) == (["a", "b"], 1, 3)
    with pytest.raises(StoreBusy, match=r"^d was not loaded: 1 loads are waiting already$"):
        await one.run("d", database.load("d"))
    # Joining a load that waits takes no place.
    joined = asyncio.create_task(one.run("c", database.load("c")))
    await settled()
    database.end("a", 1)
    await settled()
    assert database.begun == ["a", "b", "c"]
    database.end("c", 3)
    database.end("b", 2)
    assert [await caller for caller in (*callers.values(), joined)] == [1, 2, 3, 3]
    assert (one.waiting, one.loading, one.refused) == (0, 0, 1)


async def test_a_load_waits_for_its_turn_for_so_long_only() -> None:
    one, database = flights(most_loads=1, wait_seconds=0.01), Database()
    first = asyncio.create_task(one.run("a", database.load("a")))
    await settled()
    with pytest.raises(StoreBusy, match=r"^b was not loaded: 1 other loads took all of 0.01 s$"):
        await one.run("b", database.load("b"))
    database.end("a", 1)
    assert await first == 1
    assert (one.waiting, one.loading) == (0, 0)


async def test_a_load_that_was_cancelled_by_others_is_an_error_of_the_store() -> None:
    one, database = flights(), Database()
    callers = [asyncio.create_task(one.run("a", database.load("a"))) for _ in range(2)]
    await settled()
    database.running["a"].cancel()
    for caller in callers:
        with pytest.raises(StoreUnavailable, match="the load of a was cancelled"):
            await caller


@pytest.mark.parametrize("wrong", [{"most_loads": 0}, {"most_waiting": -1}])
def test_wrong_limits_are_refused_by_name(wrong: dict[str, int]) -> None:
    with pytest.raises(BadInput) as caught:
        flights(**wrong)
    assert caught.value.field == next(iter(wrong))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.sampled_from("abc")),
        st.tuples(st.just("end"), st.sampled_from("abc")),
        st.tuples(st.just("fail"), st.sampled_from("abc")),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("write"), st.sampled_from("abc")),
        st.tuples(st.just("turn"), st.none()),
    ),
    max_size=60,
)


class Play:
    """Calls, writes and cancellations in some order; whoever asked must not get what was untrue already."""

    def __init__(self, most_loads: int) -> None:
        self.flights = flights(most_loads=most_loads)
        self.database = Database()
        self.written = dict.fromkeys("abc", 0)
        #: Task -> what was written when it asked.
        self.callers: dict[asyncio.Task[Any], int] = {}

    def load(self, key: str) -> Any:
        inner = self.database.load(key)

        async def load() -> int:
            seen = self.written[key]
            await inner()
            return seen

        return load

    def end(self, key: str, value: object) -> None:
        if key in self.database.running and not self.database.running[key].done():
            self.database.end(key, value)

    async def step(self, name: str, of: Any) -> None:
        match name:
            case "call":
                task = asyncio.create_task(self.flights.run(of, self.load(of)))
                self.callers[task] = self.written[of]
                await asyncio.sleep(0)
            case "end":
                self.end(of, None)
            case "fail":
                self.end(of, ValueError("no"))
            case "cancel" if of < len(self.callers):
                list(self.callers)[of].cancel()
            case "write":
                self.written[of] += 1
                self.flights.outdate(of)
            case "turn":
                await settled()

    async def finish(self) -> None:
        for _ in range(len(self.callers) + 1):
            await settled()
            for key in "abc":
                self.end(key, None)
        await settled()
        assert all(caller.done() for caller in self.callers)
        for caller, seen in self.callers.items():
            if not caller.cancelled() and caller.exception() is None:
                assert caller.result() >= seen
        assert (self.flights.loading, self.flights.waiting, self.database.running) == (0, 0, {})


@settings(max_examples=100)
@given(STEPS, st.integers(1, 3))
def test_nobody_gets_what_was_no_longer_true_when_he_asked(steps: list[tuple[str, Any]], most_loads: int) -> None:
    async def play() -> None:
        one = Play(most_loads)
        for name, of in steps:
            await one.step(name, of)
        await one.finish()

    asyncio.run(play())
