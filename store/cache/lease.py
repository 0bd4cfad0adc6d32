"""Who may put a value: nobody who began to look for it before it was said to be untrue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from store.cache.key import CacheKey


class Lease:
    """The right to put what was found for a key, until the key is invalidated."""

    __slots__ = ("valid",)

    def __init__(self) -> None:
        self.valid = True


class Leases:
    """The leases of loads and writes that are under way; nothing is remembered of keys that nobody works on."""

    def __init__(self) -> None:
        self._held: dict[CacheKey, set[Lease]] = {}

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
            lease.valid = False

    def outdate_where(self, matches: Callable[[CacheKey], bool]) -> None:
        """:meth:`outdate` for all keys that match."""
        for key in [key for key in self._held if matches(key)]:
            self.outdate(key)

    def doubtful(self, key: CacheKey) -> bool:
        """Whether somebody who lost the lease may just be putting an untrue value into the shared tier."""
        return any(not lease.valid for lease in self._held.get(key, ()))
