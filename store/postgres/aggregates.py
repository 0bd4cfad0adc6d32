"""Larger candles kept ready by TimescaleDB's continuous aggregates, and never served older than the minutes.

Each write notes in its own transaction which minutes changed (`aggregates_due`). A reader takes these from the
minutes and the rest from the aggregate. A refresh brings exactly the noted ranges up to date and then forgets the
notes it had read before it began. Killed in between, the notes are still there.

Where candles were dropped (:mod:`store.postgres.retention`), the aggregates stay, and nothing may be refreshed: it
would erase them. Minutes that are written there later keep their notes, and readers make larger candles of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

import pyarrow as pa
import structlog

from market.candle import by_open_time, open_times_ms
from market.coverage import Covered, archived
from market.errors import Retryable, StoreBusy, StoreReadOnly, Terminal
from market.interval import Interval, IntervalSet
from market.rollup import roll_up
from market.timeframe import DAY_MS, MINUTE_MS, Timeframe
from store.postgres.columns import Instant, read_table
from store.postgres.connection import Connection
from store.postgres.database import Database
from store.postgres.rows import read_candles
from store.postgres.schema import TIMESCALE_QUERIES
from store.series_key import SeriesKey

log = structlog.get_logger(__name__)

#: Timeframes with an aggregate, each made of the one before.
TIMEFRAMES_KEPT = ("5m", "15m", "1h", "4h", "1d")
#: The views, in the order in which they are refreshed.
VIEWS = (*(f"candles_{name}" for name in TIMEFRAMES_KEPT), "daily_statistics")
#: A refresh makes every instrument's candles of a touched range anew, so that a backfill of many is refreshed once,
#: when it pauses for this long,
_QUIET_SECONDS = 3.0
#: or when it goes on for this long. Readers do not notice: they take the minutes until then.
_LONGEST_SECONDS = 600.0
#: How often an aggregate is refreshed until nothing of it is left.
_TRIES = 5


async def read_aggregate(
    connection: Connection, key: SeriesKey, timeframe: Timeframe, interval: Interval
) -> tuple[pa.Table, IntervalSet]:
    """Larger candles of whole buckets: what is due from the minutes, the rest from the aggregate.

    :return: the candles, and where they were made of minutes.
    """
    rows = await connection.fetch(
        TIMESCALE_QUERIES["read_aggregates_due"], key.instrument_id, interval.start, interval.end
    )
    due = IntervalSet(Interval(timeframe.floor(row[0]), timeframe.ceil(row[1])) for row in rows).clip(
        interval.start, interval.end
    )
    parts: list[pa.Table] = []
    for run in due:
        parts.append(roll_up(await read_candles(connection, key, run), timeframe).table)
    rest = (IntervalSet([interval]) - due).hull
    if rest is not None:
        query = TIMESCALE_QUERIES[f"read_candles_{timeframe.name}"]
        kept = await read_table(connection, query, key.instrument_id, Instant(rest.start), Instant(rest.end))
        if due:
            kept = kept.filter(pa.array(~due.contains_all(open_times_ms(kept))))
        parts.append(kept)
    return by_open_time(pa.concat_tables(parts)), due


async def erased(
    connection: Connection,
    key: SeriesKey,
    timeframe: Timeframe,
    interval: Interval,
    ledger: Sequence[Covered],
    from_minutes: IntervalSet,
) -> IntervalSet:
    """Where the aggregate lacks archived minutes: somebody refreshed it after the drop, and so erased them.

    :param ledger: of the minutes, inside `interval`, which is whole buckets.
    :param from_minutes: where :func:`read_aggregate` did not ask the aggregate.
    """
    there = IntervalSet(one.interval for one in ledger if one.state.has_candles)
    buckets = IntervalSet(Interval(timeframe.floor(one.start), timeframe.ceil(one.end)) for one in archived(ledger))
    lacking: list[Interval] = []
    for run in buckets.clip(interval.start, interval.end) - from_minutes:
        found = await connection.fetchval(
            TIMESCALE_QUERIES[f"minutes_in_{timeframe.name}"], key.instrument_id, run.start, run.end
        )
        if found * MINUTE_MS != there.clip(run.start, run.end).duration:
            lacking.append(run)
    return IntervalSet(lacking)


class Aggregates:
    """Keeps the continuous aggregates of one database current. Open with :meth:`running`.

    :param tell: is told when the end has to wait for a refresh.
    """

    def __init__(self, database: Database, tell: Callable[[str], None] | None = None) -> None:
        self._database = database
        self._tell = tell
        self._lock = asyncio.Lock()
        #: True while something may be noted that no refresh has read yet; what a killed process left counts.
        self._due = True
        self._closing = asyncio.Event()
        self._wake = asyncio.Event()
        self._wake.set()
        #: By the clock of the event loop.
        self._noted_at = 0.0
        self._told = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Refresh in the background what is noted, and at the end what is left.

        Left by an error or an interruption, the rest stays noted: the next process does it.
        """
        task = asyncio.create_task(self._run())
        try:
            yield
        except BaseException:
            task.cancel()
            await asyncio.wait([task])
            raise
        if self._due and self._tell is not None:
            self._tell("bringing the aggregates up to date; stopped, the next command that writes goes on with it")
        # A refresh under way is waited for: the server would go on with it, and stand in the way of the last one.
        self._closing.set()
        self._wake.set()
        await task

    def note(self) -> None:
        """Something was written that the aggregates do not have yet."""
        self._due = True
        self._noted_at = asyncio.get_running_loop().time()
        self._wake.set()

    async def refresh(self) -> IntervalSet:
        """Bring every noted range up to date; the ranges that were refreshed, in whole days.

        :raises StoreBusy: another process refreshes the same; what is noted stays noted.
        """
        async with self._lock:
            self._due = False
            rows = await self._database.write_data(
                lambda connection: connection.fetch(TIMESCALE_QUERIES["list_aggregates_due"])
            )
            ranges = IntervalSet(Interval(row[1] // DAY_MS * DAY_MS, -(-row[2] // DAY_MS) * DAY_MS) for row in rows)
            if ranges:
                await self._database.outside(lambda connection: self._refresh(connection, ranges))
            done = [row[0] for row in rows]
            if done:
                await self._database.write_data(
                    lambda connection: connection.execute(TIMESCALE_QUERIES["delete_aggregates_due"], done)
                )
            return ranges

    async def _refresh(self, connection: Connection, ranges: IntervalSet) -> None:
        facts = self._database.primary.facts
        if facts is not None and not facts.pooled:
            # Held until the connection ends. Behind a pooler there is no such thing, and the look below must do.
            await connection.execute(TIMESCALE_QUERIES["hold_refresh"])
        for run in ranges:
            for view in VIEWS:
                # Somebody may have dropped candles since the ranges were read.
                start = max(run.start, await connection.fetchval(TIMESCALE_QUERIES["drop_horizon"]))
                if start < run.end:
                    await self._refresh_whole(connection, view, start, run.end)

    async def _refresh_whole(self, connection: Connection, view: str, start: int, end: int) -> None:
        """A refresh says that it is done and may not be: what is due is forgotten only when nothing is left."""
        for _ in range(_TRIES):
            await connection.execute(TIMESCALE_QUERIES["refresh_aggregate"], view, start, end)
            if not await connection.fetchval(TIMESCALE_QUERIES["left_undone"], view, start, end):
                return
        raise StoreBusy(f"{self._database.location}: {view} changes faster than it can be refreshed; try again")

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._settled()
            refreshed = await self._refreshed() if self._due else True
            if self._closing.is_set() and (not refreshed or not self._due):
                return
            if self._due:
                self._wake.set()

    async def _settled(self) -> None:
        """Return when nothing was written for a while, when that takes too long, or when all is being closed."""
        clock = asyncio.get_running_loop().time
        end = clock() + _LONGEST_SECONDS
        while not self._closing.is_set() and clock() < min(self._noted_at + _QUIET_SECONDS, end):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), _QUIET_SECONDS)

    async def _refreshed(self) -> bool:
        """Refresh; False where it has to be tried again."""
        try:
            await self.refresh()
        except StoreReadOnly:
            # An operator's will, and no trouble; what is due stays noted.
            self.note()
            return False
        except Retryable as error:
            # Readers take the minutes until then; the next round, or the next process, tries again. Not at once:
            # whoever is in the way is not done in no time.
            self.note()
            level = log.warning if self._closing.is_set() else log.info
            level("aggregates are not refreshed yet; larger candles are made of minutes", error=str(error))
            return False
        except Terminal as error:
            # A role that is not their owner, say: the next write tries again, the log has it once.
            if not self._told:
                log.error("aggregates cannot be refreshed; larger candles are made of minutes", error=str(error))
                self._told = True
        return True


def has_aggregate(timeframe: Timeframe) -> bool:
    """True where candles of `timeframe` are kept ready."""
    return timeframe.name in TIMEFRAMES_KEPT
