"""Values kept in process memory: the least recently used go first when the bytes are used up."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from enum import StrEnum
from typing import Generic, TypeVar

from market.errors import BadInput

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Gone(StrEnum):
    """Why an entry is no longer kept."""

    #: The bytes were used up.
    EVICTED = "evicted"
    #: Its time was over.
    EXPIRED = "expired"
    #: Another value was put in its place.
    REPLACED = "replaced"
    #: Its owner took it out.
    REMOVED = "removed"


class Entries(Generic[K, V]):
    """Values by key, at most `limit_bytes` of them, each perhaps with an end.

    Bytes are what the owner says a value takes; the sum is exact. An entry larger than the limit is not kept. The
    end of an entry is looked at when it is asked for and when room is needed, so nothing runs in the background.
    For one thread (one event loop).

    :param limit_bytes: 0 keeps nothing.
    :param monotonic_ms: milliseconds that only go forward.
    :param gone: told of each entry that is no longer kept: key, value, bytes and why. It must not change entries.
    """

    __slots__ = ("_counts", "_expiring", "_gone", "_held", "_limit", "_monotonic_ms", "_refused", "_used", "frozen")

    def __init__(
        self,
        limit_bytes: int,
        *,
        monotonic_ms: Callable[[], float],
        gone: Callable[[K, V, int, Gone], None] | None = None,
    ) -> None:
        if isinstance(limit_bytes, bool) or limit_bytes < 0:
            raise BadInput("limit_bytes", limit_bytes, "bytes, 0 or more")
        self._limit = limit_bytes
        self._monotonic_ms = monotonic_ms
        self._gone = gone
        #: Key -> (value, bytes, end in monotonic milliseconds or None); the least recently used first.
        self._held: OrderedDict[K, tuple[V, int, float | None]] = OrderedDict()
        #: How many of them have an end: without any, there is no need to look for expired ones.
        self._expiring = 0
        self._used = 0
        self._refused = 0
        self._counts = dict.fromkeys(Gone, 0)
        #: While true nothing is added, changed, taken out or evicted; reading goes on.
        self.frozen = False

    def get(self, key: K) -> V | None:
        """The value, which is now the most recently used; None if it is not kept or its time is over."""
        entry = self._held.get(key)
        if entry is None:
            return None
        end = entry[2]
        if end is not None and self._monotonic_ms() >= end:
            if not self.frozen:
                self._drop(key, Gone.EXPIRED)
            return None
        self._held.move_to_end(key)
        return entry[0]

    def put(self, key: K, value: V, size: int, lifetime_ms: float | None = None) -> bool:
        """Keep a value, in place of an older one of that key; False if it is not kept.

        It is not kept while frozen (and the older one stays), if it is larger than the limit or has no time to
        live (and the older one goes, since it is no longer true).

        :param size: bytes, 0 or more.
        :param lifetime_ms: from now; None: no end.
        """
        if size < 0:
            raise BadInput("size", size, "bytes, 0 or more")
        if self.frozen:
            return False
        if key in self._held:
            self._drop(key, Gone.REPLACED)
        if size > self._limit or (lifetime_ms is not None and lifetime_ms <= 0):
            self._refused += 1
            return False
        if self._used + size > self._limit:
            self._make_room(size)
        end = None
        if lifetime_ms is not None:
            end = self._monotonic_ms() + lifetime_ms
            self._expiring += 1
        self._held[key] = (value, size, end)
        self._used += size
        return True

    def pop(self, key: K) -> V | None:
        """Take an entry out; its value, or None if it was not kept (or its time was over). None while frozen."""
        entry = self._held.get(key)
        if entry is None or self.frozen:
            return None
        over = entry[2] is not None and self._monotonic_ms() >= entry[2]
        self._drop(key, Gone.EXPIRED if over else Gone.REMOVED)
        return None if over else entry[0]

    def pop_where(self, matches: Callable[[K], bool]) -> int:
        """Take out the entries whose key matches; how many. None of them while frozen."""
        if self.frozen:
            return 0
        found = [key for key in self._held if matches(key)]
        for key in found:
            self._drop(key, Gone.REMOVED)
        return len(found)

    def clear(self) -> int:
        """Take out all entries; how many. None of them while frozen."""
        return self.pop_where(lambda _: True)

    def sweep(self) -> int:
        """Drop the entries whose time is over; how many. None of them while frozen."""
        if self.frozen or not self._expiring:
            return 0
        now = self._monotonic_ms()
        found = [key for key, (_, _, end) in self._held.items() if end is not None and now >= end]
        for key in found:
            self._drop(key, Gone.EXPIRED)
        return len(found)

    @property
    def limit_bytes(self) -> int:
        """The most bytes that are kept."""
        return self._limit

    @limit_bytes.setter
    def limit_bytes(self, limit: int) -> None:
        if isinstance(limit, bool) or limit < 0:
            raise BadInput("limit_bytes", limit, "bytes, 0 or more")
        self._limit = limit
        if not self.frozen and self._used > limit:
            self._make_room(0)

    @property
    def used_bytes(self) -> int:
        """The bytes of all entries kept, expired ones that nobody asked for included."""
        return self._used

    @property
    def refused(self) -> int:
        """How many values were not kept because of their size or because their time was already over."""
        return self._refused

    def count(self, why: Gone) -> int:
        """How many entries are no longer kept, for this reason, since the start."""
        return self._counts[why]

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[K]:
        """The keys, the least recently used first."""
        return iter(self._held)

    def __contains__(self, key: K) -> bool:
        """Whether it would be served now; changes nothing."""
        entry = self._held.get(key)
        return entry is not None and (entry[2] is None or self._monotonic_ms() < entry[2])

    def _make_room(self, size: int) -> None:
        """Drop the least recently used ones until `size` more bytes fit; the expired go when they are met."""
        now = self._monotonic_ms() if self._expiring else 0.0
        while self._used + size > self._limit:
            key, (_, _, end) = next(iter(self._held.items()))
            self._drop(key, Gone.EXPIRED if end is not None and now >= end else Gone.EVICTED)

    def _drop(self, key: K, why: Gone) -> None:
        value, size, end = self._held.pop(key)
        self._used -= size
        self._expiring -= end is not None
        self._counts[why] += 1
        if self._gone is not None:
            self._gone(key, value, size, why)
