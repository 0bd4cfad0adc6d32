"""The cache's policies, one by one: reading, writing, pushing, invalidating, with the shared tier and without."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from market.errors import BadInput, StoreReadOnly
from store.cache.cache import Cache
from store.cache.cached import CacheHealth
from store.cache.codec import Envelope
from store.cache.invalidation import Invalidation, SeriesRange
from store.cache.key import CacheKey
from store.cache.time_to_live import TimesToLive
from store.control import Control, OperatingState, SafetyState
from tests.conftest import ManualClock
from tests.support.shared_values import FakeSharedValues

TICKER = CacheKey.of("ticker", "binance", "BTC/USDT")
POSITION = CacheKey.of("position", "binance", "BTC/USDT")
CANDLES = CacheKey.of("candles", "binance", "BTC/USDT", "1h")


class Desk:
    """Two processes over one shared tier; each hears what the other says."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.control = Control()
        self.shared = FakeSharedValues(clock)
        self.mine, self.theirs = (self.cache(name) for name in ("mine", "theirs"))
        self.shared.listeners += [self.mine.apply, self.theirs.apply]
        self.loads = 0

    def cache(self, sender: str, **options: Any) -> Cache:
        return Cache(
            clock=self.clock,
            control=lambda: self.control,
            monotonic_ms=self.clock.now_ms,
            sender=sender,
            **{"limit_bytes": 100_000, "shared": self.shared, **options},
        )

    async def load(self) -> Any:
        self.loads += 1
        return {"amount": Decimal("1.50"), "load": self.loads}

    def safety(self, state: SafetyState) -> None:
        self.control = Control(safety=state)


@pytest.fixture
def desk(clock: ManualClock) -> Desk:
    return Desk(clock)


async def nothing() -> None:
    """A save that works."""


async def test_a_read_goes_through_the_tiers_and_says_which_and_how_old(desk: Desk) -> None:
    value = {"amount": Decimal("1.50"), "load": 1}
    assert await desk.mine.cache_aside(POSITION, desk.load) == (value, "database", 0)
    desk.clock.advance(300)
    assert await desk.mine.cache_aside(POSITION, desk.load) == (value, "memory", 300)
    answer = await desk.theirs.cache_aside(POSITION, desk.load)
    assert answer == (value, "router", 300)
    assert str(answer.value["amount"]) == "1.50"
    desk.clock.advance(699)
    assert desk.theirs.peek(POSITION) == (value, "memory", 999)
    desk.clock.advance(1)
    assert (desk.theirs.peek(POSITION), await desk.theirs.get(POSITION)) == (None, None)
    assert (await desk.theirs.cache_aside(POSITION, desk.load)).tier == "database"
    counts = {(one.tier, one.kind): one for one in desk.theirs.statistics.snapshot()}
    memory, router = counts["memory", "position"], counts["router", "position"]
    assert (memory.hits, memory.misses, router.hits, router.misses) == (1, 4, 1, 2)
    assert memory.bytes == desk.theirs.used_bytes > 0


async def test_a_thousand_cold_reads_are_one_load(desk: Desk) -> None:
    answers = await asyncio.gather(*(desk.mine.cache_aside(POSITION, desk.load) for _ in range(1_000)))
    assert (desk.loads, len(set(map(id, [answer.value for answer in answers])))) == (1, 1)


async def test_errors_are_never_kept_and_none_only_when_told(desk: Desk) -> None:
    async def fails() -> None:
        raise ValueError("database")

    async def absent() -> None:
        desk.loads += 1

    with pytest.raises(ValueError, match="database"):
        await desk.mine.cache_aside(POSITION, fails)
    assert [await desk.mine.cache_aside(POSITION, absent) for _ in range(2)] == [(None, "database", 0)] * 2
    assert (desk.loads, await desk.mine.get(POSITION)) == (2, None)
    await desk.mine.cache_aside(POSITION, absent, keep_none=True)
    assert await desk.mine.cache_aside(POSITION, absent) == (None, "memory", 0)
    assert await desk.theirs.get(POSITION) == (None, "router", 0)


async def test_what_a_load_took_is_part_of_the_age(desk: Desk) -> None:
    async def slow() -> int:
        desk.clock.advance(400)
        return 1

    assert await desk.mine.cache_aside(POSITION, slow) == (1, "database", 400)
    desk.clock.advance(600)
    assert await desk.mine.get(POSITION) is None


async def test_the_operating_state_of_the_reader_decides(desk: Desk) -> None:
    await desk.mine.cache_aside(TICKER, desk.load)
    desk.clock.advance(50)
    assert desk.mine.peek(TICKER) is not None
    desk.control = Control(operating=OperatingState.AGGRESSIVE)
    assert (desk.mine.peek(TICKER), await desk.theirs.get(TICKER)) == (None, None)
    assert desk.mine.times.operating is OperatingState.AGGRESSIVE


def test_the_operator_decides_from_the_first_call_on(desk: Desk) -> None:
    cache = desk.cache("third", times=TimesToLive(operating=OperatingState.DEFENSIVE))
    cache.peek(TICKER)
    assert cache.times.operating is OperatingState.BALANCED


async def test_client_calls(desk: Desk) -> None:
    ethereum = TICKER._replace(parts=("binance", "ETH/USDT"))
    await desk.mine.set(TICKER, [1, (2, b"x")], ttl_ms=5_000)
    await desk.mine.set(ethereum, 2)
    desk.clock.advance(99)
    desk.shared.calls.clear()
    assert await desk.theirs.get_many([TICKER, ethereum, POSITION, TICKER]) == {
        TICKER: ([1, (2, b"x")], "router", 99),
        ethereum: (2, "router", 99),
    }
    assert desk.shared.calls == ["get"]
    desk.clock.advance(4_900)
    # Its own time to live wins, but another process asks again after that of the kind.
    assert (await desk.mine.get(TICKER), await desk.theirs.get(TICKER)) == (
        ([1, (2, b"x")], "memory", 4_999),
        ([1, (2, b"x")], "router", 4_999),
    )
    await desk.mine.set(TICKER, 3)
    assert await desk.theirs.get(TICKER) == (3, "router", 0)
    await desk.theirs.delete(TICKER)
    assert (await desk.mine.get(TICKER), await desk.theirs.get(TICKER)) == (None, None)
    assert await desk.mine.health_check() == CacheHealth(True, "router", 0.0, "")


@pytest.mark.parametrize("ttl", [0, -1, 86_400_001, True])
async def test_what_cannot_be_kept_is_refused_before_anything_is_done(desk: Desk, ttl: int) -> None:
    with pytest.raises(BadInput, match="ttl_ms"):
        await desk.mine.set(TICKER, 1, ttl_ms=ttl)
    with pytest.raises(BadInput, match="kind"):
        await desk.mine.set(CacheKey("bar", ()), 1)
    saved = []
    with pytest.raises(BadInput, match="value"):
        await desk.mine.write_through(POSITION, object(), lambda: saved.append(1))  # type: ignore[arg-type,func-returns-value]
    with pytest.raises(BadInput, match="codecs"):
        desk.cache("other", codecs={"bar": None})
    assert (saved, desk.shared.calls) == ([], [])


async def test_write_through_saves_first(desk: Desk) -> None:
    order: list[str] = []

    async def save() -> None:
        order.append("saved")
        assert desk.shared.calls == []

    await desk.mine.write_through(POSITION, 7, save)
    assert (order, desk.shared.calls) == (["saved"], ["put", "publish"])
    assert (await desk.mine.get(POSITION), await desk.theirs.get(POSITION)) == (
        (7, "memory", 0),
        (7, "router", 0),
    )

    async def fails() -> None:
        raise ValueError("constraint")

    with pytest.raises(ValueError, match="constraint"):
        await desk.mine.write_through(POSITION, 8, fails)
    assert (await desk.mine.get(POSITION), await desk.theirs.get(POSITION)) == (
        (7, "memory", 0),
        (7, "memory", 0),
    )
    # The other process drops what it had as soon as it hears of the next.
    await desk.mine.write_through(POSITION, 9, nothing)
    assert await desk.theirs.get(POSITION) == (9, "router", 0)


async def test_writes_of_one_key_are_saved_one_after_the_other(desk: Desk) -> None:
    order: list[str] = []
    saving, go = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        saving.set()
        await go.wait()
        order.append("first")

    async def second() -> None:
        order.append("second")

    writes = [asyncio.create_task(desk.mine.write_through(POSITION, 1, first))]
    await saving.wait()
    writes.append(asyncio.create_task(desk.mine.write_through(POSITION, 2, second)))
    # Another key does not wait.
    await desk.mine.write_through(CANDLES, 3, nothing)
    assert order == []
    go.set()
    await asyncio.gather(*writes)
    assert order == ["first", "second"]
    assert (await desk.mine.get(POSITION), await desk.theirs.get(POSITION)) == (
        (2, "memory", 0),
        (2, "router", 0),
    )


@pytest.mark.parametrize("failures", [[True], [False, True], [True, True], [False, True, True]])
async def test_a_shared_tier_that_fails_after_the_save_keeps_nobody_on_the_old_value(
    desk: Desk, failures: list[bool]
) -> None:
    await desk.mine.write_through(POSITION, 1, nothing)
    assert await desk.theirs.get(POSITION) == (1, "router", 0)
    desk.shared.failures = list(failures)
    await desk.mine.write_through(POSITION, 2, nothing)
    assert desk.mine.peek(POSITION) is None
    # What could not be deleted is deleted before anything is read.
    assert await desk.mine.settle()
    assert (await desk.mine.get(POSITION), await desk.theirs.get(POSITION), desk.mine.owed) == (None, None, 0)


async def test_reads_go_on_without_the_shared_tier(desk: Desk) -> None:
    desk.shared.away = True
    assert (await desk.mine.cache_aside(POSITION, desk.load)).tier == "database"
    assert (await desk.mine.cache_aside(POSITION, desk.load)).tier == "memory"
    await desk.mine.set(TICKER, 1)
    assert await desk.mine.get_many([TICKER]) == {TICKER: (1, "memory", 0)}
    await desk.mine.invalidate(POSITION)
    health = await desk.mine.health_check()
    assert (health.healthy, health.source, health.error) == (False, "memory", "get: away, as the test said")
    assert desk.mine.owed > 0
    assert not await desk.mine.settle()
    desk.shared.away = False
    assert await desk.mine.settle()
    assert desk.mine.owed == 0
    errors = {(one.tier, one.kind): one.errors for one in desk.mine.statistics.snapshot()}
    assert errors["router", "position"] >= 1


async def test_what_is_owed_is_bounded(desk: Desk) -> None:
    desk.shared.away = True
    for number in range(1_001):
        await desk.mine.invalidate(CacheKey.of("query", str(number)))
    assert desk.mine.owed == 1
    await desk.theirs.settle()
    desk.shared.away = False
    await desk.theirs.set(TICKER, 1)
    assert await desk.mine.settle()
    # One message that names everything.
    assert (desk.theirs.peek(TICKER), desk.shared.kept) == (None, {})


async def test_readers_who_wait_for_a_debt_to_be_settled_do_not_add_up_their_failures(desk: Desk) -> None:
    desk.shared.away = True
    await desk.mine.invalidate(POSITION)
    desk.shared.calls.clear()
    keys = [CacheKey.of("query", str(number)) for number in range(50)]
    await asyncio.gather(*(desk.mine.get(key) for key in keys))
    assert desk.shared.calls.count("delete") == 1


async def test_a_long_deletion_keeps_only_what_it_names_from_being_read(desk: Desk) -> None:
    await desk.theirs.set(POSITION, 1)
    await desk.theirs.set(TICKER, 2)
    deleting, go = asyncio.Event(), asyncio.Event()

    async def wait(name: str) -> None:
        if name == "delete_matching":
            deleting.set()
            await go.wait()

    desk.shared.before = wait
    invalidation = asyncio.create_task(desk.mine.invalidate_matching("position:*"))
    await deleting.wait()
    assert await desk.mine.get_many([POSITION, TICKER]) == {TICKER: (2, "router", 0)}
    assert (await desk.mine.cache_aside(POSITION, desk.load)).tier == "database"
    go.set()
    await invalidation
    misses = {(one.tier, one.kind): one.misses for one in desk.mine.statistics.snapshot()}
    assert (misses["router", "position"], misses.get(("router", "ticker"), 0), desk.mine.owed) == (2, 0, 0)


async def test_pushed_values_are_never_loaded_and_newer_ones_win(desk: Desk) -> None:
    assert await desk.mine.pushed(TICKER) is None
    await desk.mine.push(TICKER, 1, lifetime_ms=5_000)
    assert await desk.theirs.pushed(TICKER) == (1, "router", 0)
    desk.clock.advance(99)
    await desk.mine.push(TICKER, 2, lifetime_ms=5_000)
    # Within the time to live of its kind the other one has not asked again.
    assert await desk.theirs.pushed(TICKER) == (1, "memory", 99)
    desk.clock.advance(1)
    assert await desk.theirs.pushed(TICKER) == (2, "router", 1)
    desk.clock.advance(4_999)
    assert (await desk.mine.pushed(TICKER), await desk.theirs.pushed(TICKER)) == (None, None)


async def test_pushes_while_the_shared_tier_is_busy_or_away_leave_the_newest_there(desk: Desk) -> None:
    gate = asyncio.Event()

    async def wait(name: str) -> None:
        await gate.wait()

    desk.shared.before = wait
    pushes = [asyncio.create_task(desk.mine.push(TICKER, number, 5_000)) for number in range(50)]
    for _ in range(10):
        await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*pushes)
    assert desk.shared.calls == ["put", "put"]
    assert await desk.theirs.pushed(TICKER) == (49, "router", 0)
    desk.shared.away = True
    await desk.mine.push(TICKER, 50, 5_000)
    desk.shared.away = False
    # The next push of anything takes it along.
    await desk.mine.push(POSITION, 1)
    desk.clock.advance(100)
    assert await desk.theirs.pushed(TICKER) == (50, "router", 100)


async def test_a_load_from_before_an_invalidation_is_not_put_and_not_joined(desk: Desk) -> None:
    begun, gates = asyncio.Event(), [asyncio.Event(), asyncio.Event()]

    async def load() -> int:
        desk.loads += 1
        begun.set()
        await gates[desk.loads - 1].wait()
        return desk.loads

    early = asyncio.create_task(desk.mine.cache_aside(POSITION, load))
    await begun.wait()
    await desk.mine.invalidate(POSITION)
    late = asyncio.create_task(desk.mine.cache_aside(POSITION, load))
    gates[0].set()
    assert (await early).value == 1
    assert (desk.mine.peek(POSITION), desk.shared.kept) == (None, {})
    gates[1].set()
    assert await late == (2, "database", 0)
    assert await desk.mine.get(POSITION) == (2, "memory", 0)


@pytest.mark.parametrize("landed", [False, True])
async def test_a_put_that_an_invalidation_overtakes_is_taken_back(desk: Desk, landed: bool) -> None:
    putting, go = asyncio.Event(), asyncio.Event()

    async def wait(name: str) -> None:
        if name == "put":
            putting.set()
            await go.wait()

    setattr(desk.shared, "after" if landed else "before", wait)
    read = asyncio.create_task(desk.mine.cache_aside(POSITION, desk.load))
    await putting.wait()
    # As if heard from another process: it deletes nothing in the shared tier.
    desk.mine.apply(Invalidation(sender="theirs", keys=(POSITION,)))
    assert await desk.mine.get(POSITION) is None
    assert bool(desk.shared.kept) == landed
    go.set()
    await read
    assert (desk.mine.peek(POSITION), desk.shared.kept) == (None, {})


async def test_invalidation_by_pattern_series_and_everything(desk: Desk) -> None:
    other = CacheKey.of("candles", "binance", "ETH/USDT", "1h")
    keys = [TICKER, POSITION, CANDLES, other, CacheKey.of("instruments", "binance")]

    async def there() -> list[CacheKey]:
        mine, theirs = await desk.mine.get_many(keys), await desk.theirs.get_many(keys)
        assert list(mine) == list(theirs)
        return [key for key in keys if key in mine]

    for key in keys:
        await desk.mine.set(key, 1, ttl_ms=5_000)
    assert await there() == keys
    await desk.mine.invalidate_matching("ticker:binance:*")
    assert await there() == keys[1:]
    minutes = {"exchange": "binance", "symbol": "BTC/USDT", "timeframe": "1m", "start": 0, "end": 60_000}
    await desk.theirs.invalidate_series(SeriesRange(**minutes, revision=3))  # type: ignore[arg-type]
    assert await there() == [POSITION, other, keys[4]]
    await desk.theirs.clear()
    assert (await there(), desk.shared.kept, desk.mine.used_bytes) == ([], {}, 0)
    with pytest.raises(BadInput, match="pattern"):
        await desk.mine.invalidate_matching("ticker:[a-z]")


@pytest.mark.parametrize(
    "foreign", [b"", b"\xc1", b"{}", Envelope(1, 1, b"").packed().replace(b"\x01", b"\x02", 1)]
)
async def test_values_of_another_version_are_as_good_as_not_there(desk: Desk, foreign: bytes) -> None:
    desk.shared.kept[POSITION] = foreign, desk.clock.now_ms() + 1_000
    assert await desk.mine.get(POSITION) is None
    desk.shared.kept[POSITION] = Envelope(desk.clock.now_ms(), None, b"\xc1").packed(), desk.clock.now_ms() + 1_000
    assert (await desk.mine.cache_aside(POSITION, desk.load)).tier == "database"
    assert (await desk.theirs.get(POSITION)) is not None


async def test_an_age_is_never_negative(desk: Desk) -> None:
    envelope = Envelope(desk.clock.now_ms() + 400, None, b"\x01")
    desk.shared.kept[POSITION] = envelope.packed(), desk.clock.now_ms() + 1_000
    assert await desk.mine.get(POSITION) == (1, "router", 0)
    # A clock ahead of ours does not make it live longer here.
    desk.clock.advance(1_000)
    assert await desk.mine.get(POSITION) is None


async def test_memory_stays_under_its_limit(desk: Desk) -> None:
    cache = desk.cache("small", limit_bytes=20_000, shared=None)
    for number in range(200):
        await cache.set(CacheKey.of("query", str(number)), "x" * number)
        assert cache.used_bytes <= 20_000
    counts = cache.statistics.snapshot()[0]
    assert counts.evictions > 100
    assert counts.bytes == cache.used_bytes
    await cache.set(CacheKey.of("query", "0"), "x" * 30_000)
    assert await cache.get(CacheKey.of("query", "0")) is None


async def test_fail_serves_and_keeps_nothing_new(desk: Desk) -> None:
    await desk.mine.write_through(POSITION, 1, nothing)
    desk.safety(SafetyState.FAIL)
    kept, used = dict(desk.shared.kept), desk.mine.used_bytes
    assert (await desk.mine.get(POSITION), await desk.theirs.get(POSITION)) == (
        (1, "memory", 0),
        (1, "router", 0),
    )
    assert (await desk.mine.cache_aside(CANDLES, desk.load)).tier == "database"
    assert (await desk.mine.cache_aside(CANDLES, desk.load)).tier == "database"
    for refused in (
        desk.mine.set(TICKER, 1),
        desk.mine.push(TICKER, 1),
        desk.mine.delete(POSITION),
        desk.mine.clear(),
        desk.mine.write_through(POSITION, 2, desk.load),
    ):
        with pytest.raises(StoreReadOnly, match="the safety state is fail"):
            await refused
    assert (desk.loads, desk.shared.kept, desk.mine.used_bytes, desk.theirs.used_bytes) == (2, kept, used, 0)
    desk.clock.advance(1_000)
    assert (await desk.mine.get(POSITION), desk.mine.used_bytes) == (None, used)
    desk.safety(SafetyState.WARNING)
    await desk.mine.cache_aside(CANDLES, desk.load)
    assert (await desk.theirs.cache_aside(CANDLES, desk.load)).tier == "router"


async def test_fail_still_believes_that_something_is_untrue(desk: Desk) -> None:
    await desk.mine.set(POSITION, 1)
    desk.safety(SafetyState.FAIL)
    assert await desk.mine.get(POSITION) is not None
    await desk.theirs.invalidate(POSITION)
    assert (await desk.mine.get(POSITION), await desk.theirs.get(POSITION)) == (None, None)


async def test_fail_declared_during_a_save_keeps_neither_the_old_nor_the_new(desk: Desk) -> None:
    await desk.mine.set(POSITION, 1)

    async def save() -> None:
        desk.safety(SafetyState.FAIL)

    await desk.mine.write_through(POSITION, 2, save)
    assert (await desk.mine.get(POSITION), await desk.theirs.get(POSITION)) == (None, None)


@pytest.mark.parametrize("away", [False, True])
async def test_lockdown_empties_and_disables_and_normal_starts_empty(desk: Desk, away: bool) -> None:
    await desk.mine.set(POSITION, 1)
    await desk.theirs.get(POSITION)
    desk.shared.away = away
    desk.safety(SafetyState.LOCKDOWN)
    await desk.mine.apply_control(desk.control)
    assert (desk.mine.used_bytes, desk.shared.kept == {}) == (0, not away)
    for cache in (desk.mine, desk.theirs):
        assert (cache.peek(POSITION), await cache.get(POSITION), await cache.pushed(POSITION)) == (None, None, None)
        assert [(await cache.cache_aside(POSITION, desk.load)).tier for _ in range(2)] == ["database"] * 2
        with pytest.raises(StoreReadOnly, match="lockdown"):
            await cache.push(POSITION, 1)
        assert cache.used_bytes == 0
        assert (await cache.health_check()).source == "database"
    desk.shared.away = False
    desk.safety(SafetyState.NORMAL)
    assert (await desk.mine.get(POSITION), await desk.theirs.get(POSITION)) == (None, None)
    assert desk.shared.kept == {}
    await desk.mine.cache_aside(POSITION, desk.load)
    assert (await desk.theirs.cache_aside(POSITION, desk.load)).tier == "router"


async def test_a_load_that_lockdown_overtook_is_not_kept(desk: Desk) -> None:
    async def load() -> int:
        desk.safety(SafetyState.LOCKDOWN)
        await desk.mine.apply_control(desk.control)
        desk.safety(SafetyState.NORMAL)
        return 1

    assert await desk.mine.cache_aside(POSITION, load) == (1, "database", 0)
    assert (await desk.mine.get(POSITION), desk.shared.kept) == (None, {})


async def test_a_write_that_is_cancelled_while_saving_leaves_no_old_value(desk: Desk) -> None:
    await desk.mine.set(POSITION, 1)
    saving = asyncio.Event()

    async def save() -> None:
        saving.set()
        await asyncio.Event().wait()

    write = asyncio.create_task(desk.mine.write_through(POSITION, 2, save))
    await saving.wait()
    write.cancel()
    with pytest.raises(asyncio.CancelledError):
        await write
    assert await desk.mine.get(POSITION) is None
    assert await desk.theirs.get(POSITION) is None
