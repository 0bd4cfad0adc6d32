"""Who may put a value: nobody who began to look for it before it was said to be untrue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from store.cache.key import CacheKey


class Lease:
    """The right to put what was found for a key, until the key is invalidated."""

    __slots__ = ("_lost",)

    def __init__(self) -> None:
        self._lost = False

    def holds(self) -> bool:
        """Whether what was found may be put."""
        return not self._lost

    def lose(self) -> None:
        """What was found is no longer true."""
        self._lost = True


class Leases:
    """The leases of loads and writes that are under way; nothing is remembered of keys that nobody works on."""

    def __init__(self) -> None:
        self._held: dict[CacheKey, set[Lease]] = {}
        #: Key -> its lock, and how many hold it or wait for it.
        self._writers: dict[CacheKey, tuple[asyncio.Lock, int]] = {}

    @contextmanager
    def held(self, key: CacheKey) -> Iterator[Lease]:
        """A lease for as long as the value is looked for and put."""
        lease = Lease()
        of_key = self._held.setdefault(key, set())
        of_key.add(lease)
        try:
            yield lease
        finally:
            of_key.discard(lease)
            if not of_key:
                self._held.pop(key, None)

    def outdate(self, key: CacheKey) -> None:
        """Whatever is looked for now under this key must not be put."""
        for lease in self._held.get(key, ()):
            lease.lose()

    def outdate_where(self, matches: Callable[[CacheKey], bool]) -> None:
        """:meth:`outdate` for all keys that match."""
        for key in [key for key in self._held if matches(key)]:
            self.outdate(key)

    def doubtful(self, key: CacheKey) -> bool:
        """Whether somebody who lost the lease may just be putting an untrue value into the shared tier."""
        return any(not lease.holds() for lease in self._held.get(key, ()))

    @asynccontextmanager
    async def writing(self, key: CacheKey) -> AsyncIterator[None]:
        """One writer per key at a time; the others wait for their turn."""
        lock, others = self._writers.get(key) or (asyncio.Lock(), 0)
        self._writers[key] = lock, others + 1
        try:
            async with lock:
                yield
        finally:
            lock, others = self._writers.pop(key)
            if others > 1:
                self._writers[key] = lock, others - 1
