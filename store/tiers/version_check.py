"""Asking the database for versions: one question for everybody who wants to know at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from market.instrument import Series
from store.candle_store import SeriesVersion
from store.control import Control

_Answer = tuple[dict[Series, SeriesVersion], Control]


class VersionCheck:
    """Joins questions that come while another one is on its way into the next one. Used from one event loop.

    :param ask: the store's :meth:`store.candle_store.CandleStore.versions`.
    """

    def __init__(self, ask: Callable[[Sequence[Series]], Awaitable[_Answer]]) -> None:
        self._ask = ask
        self._waiting: dict[Series, None] = {}
        self._next: asyncio.Task[_Answer] | None = None
        self._under_way: asyncio.Task[_Answer] | None = None

    async def of(self, series: Sequence[Series]) -> _Answer:
        """The versions of at least `series`, as of some moment after this call."""
        self._waiting.update(dict.fromkeys(series))
        if self._next is None:
            self._next = asyncio.create_task(self._asked(self._under_way))
            # Whoever asked may have gone away, and then nobody looks at an error.
            self._next.add_done_callback(lambda done: done.cancelled() or done.exception())
        # Others wait for the same answer: whoever goes away must not take it from them.
        return await asyncio.shield(self._next)

    async def _asked(self, before: asyncio.Task[_Answer] | None) -> _Answer:
        if before is not None:
            await asyncio.wait([before])
        else:
            # Whoever asks in the same turn of the loop is asked for together.
            await asyncio.sleep(0)
        wanted, self._waiting = list(self._waiting), {}
        self._under_way, self._next = self._next, None
        return await self._ask(wanted)
