"""Telling of an order book's best levels often enough, and not more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ingest.route import Spawn
from market.book_message import BookSnapshot
from market.clock import Clock


class BookTop:
    """Tells of the newest best levels at most every so often; the last of several quick changes is told too.

    :param top: the best levels now, or None where nothing may be told.
    :param tell: returns at once and never raises; None tells nobody.
    """

    def __init__(
        self,
        top: Callable[[], BookSnapshot | None],
        tell: Callable[[BookSnapshot], None] | None,
        every_ms: int,
        clock: Clock,
        spawn: Spawn,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._top = top
        self._tell = tell
        self._every_ms = every_ms
        self._clock = clock
        self._spawn = spawn
        self._sleep = sleep
        self._told_at = 0
        self._waits = False

    def changed(self, now_ms: int) -> None:
        """The book has changed.

        :param now_ms: epoch milliseconds of our clock.
        """
        if self._waits or self._tell is None:
            return
        if now_ms - self._told_at < self._every_ms:
            self._waits = True
            self._spawn(self._later((self._told_at + self._every_ms - now_ms) / 1000))
        else:
            self._now(now_ms)

    async def _later(self, seconds: float) -> None:
        try:
            await self._sleep(seconds)
        finally:
            self._waits = False
        self._now(self._clock.now_ms())

    def _now(self, now_ms: int) -> None:
        self._told_at = now_ms
        top = self._top()
        if top is not None and self._tell is not None:
            self._tell(top)
