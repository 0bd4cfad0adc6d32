"""The shared tier in memory: what Redis does for the cache, without Redis, failing when told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from market.clock import Clock
from store.cache.invalidation import Invalidation
from store.cache.key import CacheKey, pattern_regex
from store.cache.shared_values import SharedAway


class FakeSharedValues:
    """Bytes by key with an end, for all caches of a test.

    :param clock: ends the values.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.kept: dict[CacheKey, tuple[bytes, int]] = {}
        #: Everything published; also given to each of `listeners`.
        self.published: list[Invalidation] = []
        self.listeners: list[Callable[[Invalidation], None]] = []
        #: While true every call fails before it does anything.
        self.away = False
        #: One for each call to come: True fails it before it does anything; empty: no failure.
        self.failures: list[bool] = []
        #: Awaited in each call before it does anything, with the name of the call.
        self.before: Callable[[str], Awaitable[None]] | None = None
        #: Awaited in each call after it was done: what fails here was done all the same.
        self.after: Callable[[str], Awaitable[None]] | None = None
        #: Names of the calls made.
        self.calls: list[str] = []

    async def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.before is None:
            await asyncio.sleep(0)
        else:
            await self.before(name)
        if self.away or (self.failures and self.failures.pop(0)):
            raise SharedAway(f"{name}: away, as the test said")

    async def _done(self, name: str) -> None:
        if self.after is not None:
            await self.after(name)

    async def get(self, keys: Sequence[CacheKey]) -> list[bytes | None]:
        await self._call("get")
        found = [self._get(key) for key in keys]
        await self._done("get")
        return found

    async def put(self, items: Sequence[tuple[CacheKey, bytes, int]]) -> None:
        await self._call("put")
        for key, data, ttl_ms in items:
            assert ttl_ms >= 1
            self.kept[key] = data, self._clock.now_ms() + ttl_ms
        await self._done("put")

    async def delete(self, keys: Sequence[CacheKey]) -> None:
        await self._call("delete")
        for key in keys:
            self.kept.pop(key, None)
        await self._done("delete")

    async def delete_matching(self, pattern: str) -> int:
        await self._call("delete_matching")
        matches = pattern_regex(pattern).match
        found = [key for key in self.kept if matches(key.text)]
        for key in found:
            del self.kept[key]
        await self._done("delete_matching")
        return len(found)

    async def publish(self, invalidation: Invalidation) -> None:
        await self._call("publish")
        unpacked = Invalidation.unpack(invalidation.packed())
        assert unpacked == invalidation
        self.published.append(unpacked)
        for listener in self.listeners:
            listener(unpacked)
        await self._done("publish")

    def _get(self, key: CacheKey) -> bytes | None:
        data, end = self.kept.get(key, (None, 0))
        return data if self._clock.now_ms() < end else None
