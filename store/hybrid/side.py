"""One of the two stores behind a hybrid one: opened as soon as it can be, and whether it answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Protocol, TypeVar

from market.clock import Clock
from market.errors import (
    BadInput,
    ChandleryError,
    NotFound,
    StoreBusy,
    StoreReadOnly,
    StoreUnavailable,
    StoreUnusable,
)
from store.candle_store import CandleStore
from store.settling import SettleStore
from store.trade_store import TradeStore

_T = TypeVar("_T")

#: The primary is away: reads go to the secondary. Anything else of the primary's is an answer.
AWAY: tuple[type[ChandleryError], ...] = (StoreBusy, StoreUnavailable)
#: The secondary cannot follow; the primary goes on without it. NotFound: opened for reading and not made yet.
#: StoreReadOnly: it was switched so alone, or a moment before the primary is seen to be.
UNABLE: tuple[type[ChandleryError], ...] = (*AWAY, StoreUnusable, StoreReadOnly, NotFound)


class WholeStore(CandleStore, TradeStore, SettleStore, Protocol):
    """Everything that one database keeps."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a store is, and how to open it."""

    #: For people and logs; never with a password.
    location: str
    #: A new context each time.
    open: Callable[[], AbstractAsyncContextManager[WholeStore]]


@dataclass(frozen=True, kw_only=True)
class Outage:
    """A store that does not do its part."""

    #: Epoch milliseconds of our clock.
    since: int
    #: What it said last.
    error: str


class Side:
    """One store. Open with :meth:`opened`; a store that is away then is opened when it is next needed.

    :param tolerated: errors that mean an outage; others are no matter of this class.
    """

    def __init__(self, place: Place, clock: Clock, tolerated: tuple[type[ChandleryError], ...]) -> None:
        self.location = place.location
        #: None while the store does its part.
        self.outage: Outage | None = None
        self._place = place
        self._clock = clock
        self._tolerated = tolerated
        self._stack = AsyncExitStack()
        self._store: WholeStore | None = None
        self._opening = asyncio.Lock()

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(
        cls, place: Place, clock: Clock, tolerated: tuple[type[ChandleryError], ...]
    ) -> AsyncIterator[Side]:
        """A side whose store was tried once, closed at the end.

        :raises BadInput: the user must change something, for example a password.
        """
        side = cls(place, clock, tolerated)
        async with side._stack:
            with contextlib.suppress(*tolerated):
                await side._open()
            yield side

    async def use(self, work: Callable[[WholeStore], Awaitable[_T]]) -> _T:
        """Run `work` on the store; keeps note of an outage that begins or ends with it.

        :raises ChandleryError: what the store raised.
        """
        try:
            result = await work(await self.store())
        except self._tolerated as error:
            self._failed(error)
            raise
        self.outage = None
        return result

    @property
    def answering(self) -> WholeStore | None:
        """The store, if it is open and not known to be away."""
        return self._store if self.outage is None else None

    async def store(self) -> WholeStore:
        """The store itself, opened if it was not; what is asked of it directly is no news of an outage.

        :raises ChandleryError: it cannot be opened.
        """
        return self._store or await self._open_again()

    async def _open(self) -> WholeStore:
        async with self._opening:
            if self._store is None:
                try:
                    self._store = await self._stack.enter_async_context(self._place.open())
                except self._tolerated as error:
                    self._failed(error)
                    raise
            return self._store

    async def _open_again(self) -> WholeStore:
        try:
            return await self._open()
        except BadInput as error:
            # At the start this was no mistake of the user's, so it is one of the store's now.
            raise StoreUnusable(str(error)) from error

    def _failed(self, error: ChandleryError) -> None:
        since = self._clock.now_ms() if self.outage is None else self.outage.since
        self.outage = Outage(since=since, error=str(error))
