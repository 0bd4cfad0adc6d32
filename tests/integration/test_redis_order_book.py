"""Order books in a real Redis: never half changed, never two sizes for one price, whoever writes."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market.book_message import BookSnapshot
from market.clock import SystemClock
from store.cache.breaker import CircuitBreaker
from store.redis.address import RedisUrl
from store.redis.command import command
from store.redis.connection import RedisConnection
from store.redis.live_keys import live_key
from store.redis.node import RedisRules
from store.redis.order_book import LevelChanges, RedisOrderBook, read_book, written
from store.redis.ownership import Call, Outcome
from tests.support import servers

EXCHANGE = "binance"
LIFETIME = 30_000
#: A writer that has not been heard of for so long is gone.
LEASE = 60_000
RUNS = int(os.environ.get("CHANDLERY_TEST_BOOKS", "25"))
#: Servers of the tests are often busy with something else.
PATIENT = RedisRules(answer_seconds=10, connect_seconds=10)
_NAMES = itertools.count()
_NOW = 1_700_000_000_000

Model = tuple[dict[float, float], dict[float, float]]


@asynccontextmanager
async def connected(url: str, rules: RedisRules = PATIENT) -> AsyncIterator[RedisConnection]:
    breaker = CircuitBreaker("redis", SystemClock(), lambda event: None)
    async with RedisConnection.opened(RedisUrl.parse(url), rules, breaker) as connection:
        yield connection


def new_symbol() -> str:
    return f"T{next(_NAMES)}X{os.getpid()}/USDT"


class Writer:
    """One owner of a book, which numbers its calls."""

    def __init__(self, connection: RedisConnection, symbol: str, owner: str = "a", lease: int = LEASE) -> None:
        self.book = RedisOrderBook(EXCHANGE, symbol)
        self.connection, self.owner, self.lease = connection, owner, lease
        self.number = 0
        #: The last call that was done: what this writer knows to be there, if nobody else came.
        self.left = 0

    def call(self) -> Call:
        self.number += 1
        return Call(self.owner, self.number, self.lease)

    async def replace(self, snapshot: BookSnapshot, lifetime: int = LIFETIME) -> Outcome:
        return await self._said(self.book.replace(self.call(), snapshot, lifetime))

    async def apply(self, changes: LevelChanges, after: int | None = None, lifetime: int = LIFETIME) -> Outcome:
        after = self.left if after is None else after
        return await self._said(self.book.apply(self.call(), after, changes, lifetime))

    async def remove(self, why: str = "stale: a hole") -> Outcome:
        return await self._said(self.book.remove(self.call(), why, LIFETIME))

    async def _said(self, said: Any) -> Outcome:
        (reply,) = await self.connection.pipeline([said])
        outcome = written(reply).outcome
        if outcome is Outcome.DONE:
            self.left = self.number
        return outcome


async def read(connection: RedisConnection, symbol: str, levels: int = 1000) -> BookSnapshot | str | None:
    (reply,) = await connection.pipeline([RedisOrderBook(EXCHANGE, symbol).read(levels)])
    return read_book(reply)


def snapshot(last_id: int, bids: dict[float, float], asks: dict[float, float]) -> BookSnapshot:
    return BookSnapshot(last_id, sorted(bids.items(), reverse=True), sorted(asks.items()), None, _NOW)


def changes(last_id: int, bids: dict[float, float], asks: dict[float, float]) -> LevelChanges:
    return LevelChanges(last_id, _NOW - 5, _NOW, bids, asks)


def sides(book: BookSnapshot | str | None) -> tuple[list[Any], list[Any]]:
    assert isinstance(book, BookSnapshot), book
    return list(book.bids), list(book.asks)


def expected(model: Model, levels: int = 1000) -> tuple[list[Any], list[Any]]:
    return sorted(model[0].items(), reverse=True)[:levels], sorted(model[1].items())[:levels]


@pytest.fixture(params=["one", "cluster"])
def url(request: pytest.FixtureRequest) -> str:
    return servers.redis().url if request.param == "one" else servers.redis_cluster().url


prices = st.one_of(
    st.integers(1, 12).map(lambda number: number / 10),
    st.sampled_from([0.1 + 0.2, 0.3, 1e-8, 12345.678901234567, 1e22, 57000.0]),
)
sizes = st.one_of(st.just(0.0), st.sampled_from([1.0, 0.1, 2.5, 1e-9, 123456789.12345679]))
levels_of_change = st.dictionaries(prices, sizes, max_size=6)
steps = st.lists(
    st.tuples(
        st.sampled_from(["apply"] * 8 + ["replace"] * 3 + ["remove", "old", "forget"]),
        st.sampled_from(["a", "a", "a", "b"]),
        levels_of_change,
        levels_of_change,
    ),
    min_size=10,
    max_size=30,
)


def without_zeros(bids: dict[float, float], asks: dict[float, float]) -> Model:
    first, second = ({price: size for price, size in one.items() if size} for one in (bids, asks))
    return first, second


@settings(max_examples=RUNS, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps, levels=st.sampled_from([1, 3, 1000]))
def test_every_read_is_the_book_after_some_call(url: str, steps: list[Any], levels: int) -> None:
    asyncio.run(_every_read(url, steps, levels))


async def _every_read(url: str, steps: list[Any], levels: int) -> None:
    symbol = new_symbol()
    async with connected(url) as connection, connected(url) as other:
        # No lease: the two take the book from one another all the time.
        writers = {name: Writer(one, symbol, name, 0) for name, one in (("a", connection), ("b", other))}
        model: Model | None = None
        there: tuple[str, int] | None = None
        allowed: list[Any] = [None]
        seen: list[Any] = []
        done = asyncio.Event()

        async def look() -> None:
            while not done.is_set():
                seen.append(await read(other, symbol, levels))

        looking = asyncio.create_task(look())
        try:
            for last_id, (what, name, bids, asks) in enumerate(steps, start=1):
                writer = writers[name]
                if what == "replace":
                    assert await writer.replace(snapshot(last_id, bids, asks)) is Outcome.DONE
                    model = without_zeros(bids, asks)
                elif what == "remove":
                    assert await writer.remove(f"why {last_id}") is Outcome.DONE
                    model = None
                elif what == "forget":
                    await connection.pipeline([command("DEL", key) for key in writer.book._keys])
                    model = None
                    there = None
                    allowed.append(None)
                    continue
                else:
                    # A book that another has put down, or that is gone, is not changed.
                    after = writer.left - 1 if what == "old" else writer.left
                    fits = model is not None and there == (name, after)
                    outcome = await writer.apply(changes(last_id, bids, asks), after)
                    assert outcome is (Outcome.DONE if fits else Outcome.REFUSED)
                    if not fits:
                        continue
                    assert model is not None
                    model = without_zeros(model[0] | bids, model[1] | asks)
                there = name, writer.number
                if model is None:
                    allowed.append(f"why {last_id}")
                else:
                    found = await read(connection, symbol, levels)
                    assert sides(found) == expected(model, levels)
                    assert isinstance(found, BookSnapshot)
                    assert (found.last_id, found.received_at) == (last_id, _NOW)
                    allowed.append((last_id, *expected(model, levels)))
        finally:
            done.set()
            await looking
        known = [(one.last_id, *sides(one)) if isinstance(one, BookSnapshot) else one for one in seen]
        assert all(one in allowed for one in known)


async def test_a_book_is_changed_by_nobody_but_its_owner(url: str) -> None:
    symbol = new_symbol()
    async with connected(url) as connection:
        first, second = Writer(connection, symbol, "a"), Writer(connection, symbol, "b")
        book = snapshot(5, {1.0: 2.0, 0.1: 1.0}, {1.5: 1.0})
        assert await first.replace(book) is Outcome.DONE
        # The numbers agree, the owners do not; and the first one was heard of lately.
        for outcome in (
            await second.apply(changes(6, {1.1: 1.0}, {}), 1), await second.replace(book), await second.remove()
        ):  # fmt: skip
            assert outcome is Outcome.KEPT_BY_ANOTHER
        second.lease = 0
        assert await second.apply(changes(6, {1.1: 1.0}, {}), 1) is Outcome.REFUSED
        assert await first.apply(changes(6, {0.10: 3.0, 1.1: 0.0}, {})) is Outcome.DONE
        assert sides(await read(connection, symbol)) == ([(1.0, 2.0), (0.1, 3.0)], [(1.5, 1.0)])
        assert await second.replace(snapshot(9, {1.2: 1.0}, {})) is Outcome.DONE
        assert await first.apply(changes(7, {1.1: 1.0}, {})) is not Outcome.DONE
        assert sides(await read(connection, symbol)) == ([(1.2, 1.0)], [])


async def test_a_call_that_comes_late_undoes_nothing(url: str) -> None:
    symbol = new_symbol()
    async with connected(url) as connection:
        writer = Writer(connection, symbol)
        late = writer.book.replace(writer.call(), snapshot(1, {9.0: 9.0}, {}), LIFETIME)
        late_removal = writer.book.remove(writer.call(), "late", LIFETIME)
        assert await writer.replace(snapshot(5, {1.0: 2.0}, {1.5: 1.0})) is Outcome.DONE
        for one in (late, late_removal):
            assert written((await connection.pipeline([one]))[0]).outcome is Outcome.REFUSED
        assert sides(await read(connection, symbol)) == ([(1.0, 2.0)], [(1.5, 1.0)])
        assert await writer.remove("why") is Outcome.DONE
        assert written((await connection.pipeline([late]))[0]).outcome is Outcome.REFUSED
        assert await read(connection, symbol) == "why"


@pytest.mark.parametrize("part", ["bid_sizes", "bid_prices", "ask_sizes", "ask_prices", "record"])
async def test_half_a_book_is_none(url: str, part: str) -> None:
    """Redis evicts key by key."""
    symbol = new_symbol()
    async with connected(url) as connection:
        writer = Writer(connection, symbol)
        assert await writer.replace(snapshot(5, {1.0: 2.0}, {1.5: 1.0})) is Outcome.DONE
        await connection.execute("DEL", live_key(EXCHANGE, symbol, "order_book", part))
        assert await read(connection, symbol) is None
        assert await writer.apply(changes(6, {1.1: 1.0}, {1.6: 1.0})) is Outcome.REFUSED
        assert await read(connection, symbol) is None
        assert await writer.replace(snapshot(6, {1.0: 2.0}, {1.5: 1.0})) is Outcome.DONE
        assert sides(await read(connection, symbol)) == ([(1.0, 2.0)], [(1.5, 1.0)])


async def test_a_long_book_is_written_and_read_whole(url: str) -> None:
    symbol = new_symbol()
    bids = {price / 7: 1.0 + price for price in range(1, 10_001)}
    asks = {2_000 + price / 7: 1.0 for price in range(5_001)}
    async with connected(url) as connection:
        writer = Writer(connection, symbol)
        assert await writer.replace(snapshot(5, bids, asks)) is Outcome.DONE
        assert sides(await read(connection, symbol, 20_000)) == expected((bids, asks), 20_000)
        assert await writer.apply(changes(6, dict.fromkeys(bids, 0.0), dict.fromkeys(asks, 2.0))) is Outcome.DONE
        assert sides(await read(connection, symbol, 20_000)) == ([], [(price, 2.0) for price in asks])
