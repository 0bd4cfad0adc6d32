"""Shared values alike in memory, in a Redis and in a real cluster of six: kept, ended, forgotten, told."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest

from market.clock import SystemClock
from store.cache.invalidation import Invalidation, SeriesRange
from store.cache.key import CacheKey
from store.cache.shared_values import SharedValues
from tests.support import servers
from tests.support.notes import eventually
from tests.support.redis_cluster import PrivateCluster
from tests.support.redis_server import PrivateRedis
from tests.support.redis_values import opened_values
from tests.support.shared_values import FakeSharedValues

LONG = 600_000


def server(kind: str) -> PrivateRedis | PrivateCluster:
    return servers.redis() if kind == "redis" else servers.redis_cluster()


@pytest.fixture(params=["memory", "redis", "redis cluster"])
async def values(request: pytest.FixtureRequest) -> AsyncIterator[SharedValues]:
    if request.param == "memory":
        yield FakeSharedValues(SystemClock())
        return
    async with opened_values(server(request.param).url) as one:
        yield one.values


@pytest.fixture
def exchange() -> str:
    """The test's own: servers are shared."""
    return f"x{uuid.uuid4().hex[:12]}"


def market(exchange: str, number: int, kind: str = "ticker", *parts: str) -> CacheKey:
    return CacheKey.of(kind, exchange, f"C{number}/USDT", *parts)


async def test_what_was_put_is_found_in_the_order_of_the_keys(values: SharedValues, exchange: str) -> None:
    await values.put([(market(exchange, n), b"%d" % n, LONG) for n in range(5)])
    asked = [market(exchange, n) for n in (3, 9, 0, 3)]
    assert await values.get(asked) == [b"3", None, b"0", b"3"]


async def test_nothing_asked_is_nothing_found(values: SharedValues) -> None:
    assert await values.get([]) == []
    await values.put([])
    await values.delete([])


async def test_a_later_value_replaces_the_earlier(values: SharedValues, exchange: str) -> None:
    key = market(exchange, 1)
    await values.put([(key, b"one", LONG)])
    await values.put([(key, b"two", LONG)])
    assert await values.get([key]) == [b"two"]
    await values.put([(key, b"three", LONG), (key, b"four", LONG)])
    assert await values.get([key]) == [b"four"]


async def test_a_value_ends_with_its_time(values: SharedValues, exchange: str) -> None:
    short, long = market(exchange, 1), market(exchange, 2)
    await values.put([(short, b"short", 30), (long, b"long", LONG)])

    async def ended() -> bool:
        return await values.get([short]) == [None]

    await eventually(ended, "the value has ended")
    assert await values.get([long]) == [b"long"]


async def test_a_new_value_has_a_new_time(values: SharedValues, exchange: str) -> None:
    key, other = market(exchange, 1), market(exchange, 2)
    await values.put([(key, b"short", 200), (other, b"short", 200)])
    await values.put([(key, b"long", LONG)])

    async def ended() -> bool:
        return await values.get([other]) == [None]

    await eventually(ended, "the other has ended")
    assert await values.get([key]) == [b"long"]


async def test_deleted_is_not_there_and_deleting_again_is_no_error(values: SharedValues, exchange: str) -> None:
    keys = [market(exchange, n) for n in range(4)]
    await values.put([(key, b"x", LONG) for key in keys])
    await values.delete([*keys[:2], market(exchange, 77)])
    await values.delete(keys[:1])
    assert await values.get(keys) == [None, None, b"x", b"x"]


@pytest.mark.parametrize(
    "value",
    [b"", b"\x00", b"\r\n$-1\r\n", bytes(range(256)), b"x" * 3_000_000],
    ids=["empty", "zero", "protocol", "all bytes", "3 MB"],
)
async def test_bytes_come_back_as_they_were(values: SharedValues, exchange: str, value: bytes) -> None:
    key = market(exchange, 1)
    await values.put([(key, value, LONG)])
    assert await values.get([key, market(exchange, 2)]) == [value, None]


async def test_many_at_once(values: SharedValues, exchange: str) -> None:
    """More than one round trip takes, over all servers."""
    keys = [market(exchange, n, "candles", "1m") for n in range(3_000)]
    await values.put([(key, b"%d" % n, LONG) for n, key in enumerate(keys)])
    assert await values.get(keys) == [b"%d" % n for n in range(3_000)]
    assert await values.delete_matching(f"candles:{exchange}:*") == 3_000
    assert await values.get(keys) == [None] * 3_000


@pytest.mark.parametrize(
    "part", ["{a}", "}{", "*", "?", "[x]", "a:b", "a|b", "a b", "ä€😀", "%", "%2A", "\\", "\n", "a}:ticker"]
)
async def test_no_part_means_anything_but_itself(values: SharedValues, exchange: str, part: str) -> None:
    odd = CacheKey.of("ticker", exchange, part)
    plain = CacheKey.of("ticker", exchange, "a")
    await values.put([(odd, b"odd", LONG), (plain, b"plain", LONG)])
    assert await values.get([odd, plain]) == [b"odd", b"plain"]
    assert await values.delete_matching(odd.text) == 1
    assert await values.get([odd, plain]) == [None, b"plain"]


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("ticker:{x}:C1/USDT", {"trades 1", "ticker 11", "candles 1", "query"}),
        ("ticker:{x}:*", {"trades 1", "candles 1", "query"}),
        ("ticker:{x}:C1*", {"trades 1", "candles 1", "query"}),
        ("ticker:{x}:C1?/USDT", {"ticker 1", "trades 1", "candles 1", "query"}),
        ("*:{x}:C1/USDT*", {"ticker 11", "query"}),
        ("candles:{x}:C1/USDT:*", {"ticker 1", "trades 1", "ticker 11", "query"}),
        ("candles:{x}:C1/USDT:?m", {"ticker 1", "trades 1", "ticker 11", "query"}),
        ("candles:{x}:C1/USDT:?h", {"ticker 1", "trades 1", "ticker 11", "candles 1", "query"}),
        ("query:{x}*", {"ticker 1", "trades 1", "ticker 11", "candles 1"}),
        ("t*{x}*", {"candles 1", "query"}),
        ("ticker:{x}", {"ticker 1", "trades 1", "ticker 11", "candles 1", "query"}),
        ("nothing*", {"ticker 1", "trades 1", "ticker 11", "candles 1", "query"}),
    ],
)
async def test_a_pattern_deletes_what_it_names(
    values: SharedValues, exchange: str, pattern: str, left: set[str]
) -> None:
    keys = {
        "ticker 1": market(exchange, 1),
        "ticker 11": market(exchange, 11),
        "trades 1": market(exchange, 1, "trades"),
        "candles 1": market(exchange, 1, "candles", "1m"),
        "query": CacheKey.of("query", exchange),
    }
    await values.put([(key, b"x", LONG) for key in keys.values()])
    deleted = await values.delete_matching(pattern.replace("{x}", exchange))
    found = await values.get(list(keys.values()))
    assert {name for name, value in zip(keys, found, strict=True) if value is not None} == left
    assert deleted == len(keys) - len(left)


async def test_the_star_alone_deletes_everything(values: SharedValues, exchange: str) -> None:
    keys = [market(exchange, 1), CacheKey.of("query", exchange), CacheKey.of("order", "s", "1", "2")]
    await values.put([(key, b"x", LONG) for key in keys])
    assert await values.delete_matching("*") >= 3
    assert await values.get(keys) == [None, None, None]


@pytest.mark.parametrize("kind", ["redis", "redis cluster"])
async def test_the_others_hear_what_is_told_and_the_teller_does_not(kind: str, exchange: str) -> None:
    told = [
        Invalidation(sender=exchange, keys=(market(exchange, 1), market(exchange, 2))),
        Invalidation(sender=exchange, pattern=f"ticker:{exchange}:*"),
        Invalidation(
            sender=exchange,
            series=SeriesRange(
                exchange=exchange, symbol="C1/USDT", timeframe="1m", start=0, end=60_000, revision=7
            ),
        ),
        Invalidation(sender=exchange, everything=True),
    ]
    url = server(kind).url
    async with opened_values(url) as teller, opened_values(url) as other:

        async def listening() -> bool:
            return teller.invalidations.listening and other.invalidations.listening

        await eventually(listening, "both listen")
        first = Invalidation(sender=exchange, pattern="ticker:*")
        await teller.values.publish(first)

        async def known() -> bool:
            return other.heard == [first]

        # From now on it counts what the teller says.
        await eventually(known, "the first was heard")
        other.heard.clear()
        missed = len(other.missed)
        for one in told:
            await teller.values.publish(one)

        async def heard() -> bool:
            return len(other.heard) >= len(told)

        await eventually(heard, "all was heard")
        assert other.heard == told
        assert teller.heard == []
        assert len(other.missed) == missed
