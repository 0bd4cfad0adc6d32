"""What an operator has switched, as the tiers have last seen it, and obeying that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from market.clock import LATEST_MS, Clock
from market.errors import ChandleryError
from market.instrument import Series
from store.cache.time_to_live import TimesToLive
from store.candle_store import CandleStore, SeriesVersion
from store.control import Control
from store.tiers.disk import DiskTier
from store.tiers.process_memory import ProcessMemory
from store.tiers.version_check import VersionCheck

log = structlog.get_logger(__name__)

#: The kind of value, for times to live, that says whether candles have changed, and what an operator has switched.
VERSION_KIND = "candle_version"


class Operating:
    """The control state: it comes with every answer to whether series have changed. Used from one event loop.

    :param on_control: told of each state that is another one than before, once memory obeys it.
    """

    def __init__(
        self,
        store: CandleStore,
        clock: Clock,
        entries: ProcessMemory,
        disk: DiskTier | None,
        times: TimesToLive,
        on_control: Callable[[Control], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._entries = entries
        self._disk = disk
        self._times = times
        self._on_control = on_control
        self._check = VersionCheck(store.versions)
        self.control = Control()
        #: From before it was last asked for: the database's mark, our clock and the count of writes here.
        self._mark: int | None = None
        self._at = -LATEST_MS
        self._writes = 0

    @property
    def fresh(self) -> bool:
        """Whether the state may be taken to hold without asking the database."""
        mark = self._store.change_mark()
        if mark is not None:
            return mark == self._mark
        if self._writes != self._store.writes_here():
            return False
        now = self._clock.now_ms()
        return 0 <= now - self._at < self._times.milliseconds(VERSION_KIND, now)

    async def look(self) -> None:
        """See what holds, if nobody has looked for a while; where that is not to be learnt, what held goes on."""
        if self.fresh:
            return
        try:
            await self.versions([])
        except ChandleryError:
            log.warning("the safety state cannot be read", exc_info=True)

    async def versions(self, series: Sequence[Series]) -> dict[Series, SeriesVersion]:
        """The versions of at least `series`, as of some moment after this call; the state beside them is obeyed."""
        mark, at, writes = self._store.change_mark(), self._clock.now_ms(), self._store.writes_here()
        found, control = await self._check.of(series)
        self._mark, self._at, self._writes = mark, at, writes
        if control != self.control:
            await self._switch(control)
        return found

    async def _switch(self, control: Control) -> None:
        self.control = control
        self._times.operating = control.operating
        self._entries.frozen = not control.safety.writes
        if self._disk is not None:
            self._disk.frozen = not control.safety.writes
        if not control.safety.reads_cache:
            self._entries.frozen = False
            self._entries.clear()
            self._entries.frozen = True
        # Told before anything is waited for: whoever waits may be cancelled.
        self._on_control(control)
        if self._disk is not None and not control.safety.reads_cache:
            await asyncio.to_thread(self._disk.drop)
