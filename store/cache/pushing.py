"""Pushed values on their way to the shared tier."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack

from market.clock import Clock
from store.cache.codec import Envelope
from store.cache.invalidation import of_keys
from store.cache.key import CacheKey
from store.cache.lease import Leases
from store.cache.shared_values import Held, SharedTier
from store.cache.time_to_live import TimesToLive


class Pushing:
    """The newest value of each key that is not in the shared tier yet, sent one batch at a time.

    Bounded by the number of keys: a newer value takes the place of an older one. What could not be sent is sent
    with the next, unless its time is over.
    """

    def __init__(self, shared: SharedTier, leases: Leases, times: TimesToLive, clock: Clock, sender: str) -> None:
        self._shared = shared
        self._leases = leases
        self._times = times
        self._clock = clock
        self._sender = sender
        self._unsent: dict[CacheKey, Envelope] = {}
        self._sending = asyncio.Lock()

    def put(self, key: CacheKey, envelope: Envelope) -> None:
        """Send this with the next batch."""
        if self._shared.values is not None:
            self._unsent[key] = envelope

    def forget(self, key: CacheKey) -> None:
        """Do not send it."""
        self._unsent.pop(key, None)

    def forget_where(self, matches: Callable[[CacheKey], bool]) -> None:
        """:meth:`forget` for all keys that match."""
        for key in [key for key in self._unsent if matches(key)]:
            del self._unsent[key]

    async def send(self) -> None:
        """Put what waits into the shared tier; one after the other, so that older never follows newer."""
        if not self._unsent:
            return
        async with self._sending:
            batch, self._unsent = self._unsent, {}
            if batch:
                await self._send(batch)

    async def _send(self, batch: dict[CacheKey, Envelope]) -> None:
        sent = False
        with ExitStack() as stack:
            leases = {key: stack.enter_context(self._leases.held(key)) for key in batch}
            try:
                sent = await self._shared.write(list(batch.items()))
            finally:
                untrue = [key for key, lease in leases.items() if not lease.holds()]
                if untrue:
                    self._shared.owe(of_keys(self._sender, untrue))
                if not sent:
                    again = {
                        key: batch[key] for key in batch if leases[key].holds() and self._lasts(key, batch[key])
                    }
                    self._unsent = again | self._unsent
            if untrue:
                await self._shared.settle()

    def _lasts(self, key: CacheKey, one: Envelope) -> bool:
        now = self._clock.now_ms()
        return Held(None, one.stored_at, one.ttl_ms, 0).left_ms(now, self._times.milliseconds(key.kind, now)) > 0
