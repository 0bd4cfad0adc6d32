"""Dropping candles that the archive has: never before it is proven, and never so that they are silently missing.

The ledger then says `archived` instead of present, digests stay, and readers turn to the archive. The aggregates
stay, too, because nothing refreshes them over a dropped range (:mod:`store.postgres.aggregates`).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import sql
from market.clock import Clock, iso
from market.coverage import CoverageState, Covered
from market.errors import StoreBusy, StoreUnusable
from market.fingerprint import Digest
from market.instrument import Series
from market.interval import Interval, IntervalSet
from market.timeframe import DAY_MS, TIMEFRAMES, Timeframe
from store.archive.archive import Archive, period_bounds, period_digests, period_of
from store.archive.manifest import ArchiveFile
from store.candle_store import Chunk
from store.ledger import clip, joined, outside
from store.postgres.connection import Connection
from store.postgres.coverage import read_coverage, replace_coverage
from store.postgres.database import Database
from store.postgres.mode import Mode
from store.postgres.patience import patiently
from store.postgres.rows import QUERIES as CANDLE_QUERIES
from store.postgres.rows import find_series, to_chunk
from store.postgres.schema import TIMESCALE_QUERIES
from store.series_key import SeriesKey

QUERIES = sql.queries("postgres_maintenance")
_MONTH = TIMEFRAMES["1M"]
_ALWAYS = 2**62


@dataclass(frozen=True, kw_only=True)
class Obstacle:
    """Why nothing may be dropped."""

    #: None where it concerns all of them.
    series: Series | None
    #: ``boundary``, ``age``, ``policy``, ``aggregates``, ``archive`` or ``rows``.
    kind: str
    #: Where, epoch milliseconds, half-open; None for the date itself.
    interval: Interval | None
    #: In words.
    detail: str


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """What was dropped, or why nothing was."""

    #: Epoch milliseconds.
    before: int
    obstacles: tuple[Obstacle, ...] = ()
    candles: int = 0
    #: Chunks (TimescaleDB) or partitions.
    chunks: int = 0
    series: int = 0


@dataclass(frozen=True)
class _Leaving:
    """A series with candles to drop."""

    series: Series
    key: SeriesKey
    #: Of the range, archived ones included.
    chunks: tuple[Chunk, ...]
    #: Up to the end of the last bucket that opens in the range.
    ledger: tuple[Covered, ...]

    def periods(self, before: int) -> dict[str, Digest]:
        """The archive periods that lose candles, with the digests that their files must have."""
        inside = [one for one in self.chunks if one.start < before]
        leaving = {period_of(one.start, self.series.timeframe) for one in inside if one.archived != one.digest}
        whole = period_digests(inside, self.series.timeframe)
        return {period: whole[period] for period in sorted(leaving)}

    def split(self, before: int) -> str | None:
        """The archive period that would lose a part of its candles."""
        period = period_of(before, self.series.timeframe)
        start, _ = period_bounds(period)
        cut = any(start <= one.start < before and one.archived != one.digest for one in self.chunks)
        return period if cut and start != before else None


class Retention:
    """Drops candles that the archive has.

    :param compress_after_ms: what is younger is still expected to change, and stays.
    """

    def __init__(
        self, database: Database, mode: Mode, clock: Clock, archive: Archive, compress_after_ms: int
    ) -> None:
        self._database = database
        self._mode = mode
        self._clock = clock
        self._archive = archive
        self._compress_after_ms = compress_after_ms

    async def drop(self, before_ms: int) -> Dropped:
        """Drop every candle that opens before an instant, month by month, or say what forbids it.

        Each step is one transaction of the candles and the ledger; killed in between, some months are dropped and
        the others are not.

        :raises StoreBusy: somebody writes the archive, or holds a candle for too long, or wrote into the range
            after it was looked at; what was dropped before stays so.
        :raises StoreUnusable: the archive cannot be read.
        """
        with self._archive.held("retention"):
            obstacles, leaving = await patiently(
                self._database, lambda connection: self._look(connection, before_ms), snapshot=True
            )
            files: dict[Series, dict[str, ArchiveFile]] = {}
            for one in leaving:
                files[one.series], found = await asyncio.to_thread(self._archived, one, before_ms)
                obstacles += found
            if obstacles:
                return Dropped(before=before_ms, obstacles=tuple(obstacles))
            candles = chunks = 0
            for step in _steps(leaving, before_ms):

                async def work(connection: Connection, step: int = step) -> tuple[int, int]:
                    return await self._drop(connection, step, files)

                rows, dropped = await patiently(self._database, work, data=True)
                candles, chunks = candles + rows, chunks + dropped
        return Dropped(before=before_ms, candles=candles, chunks=chunks, series=len(leaving))

    async def _look(self, connection: Connection, before: int) -> tuple[list[Obstacle], list[_Leaving]]:
        """Everything that forbids the drop but the archive's files, and the series to look for there."""
        obstacles = await self._wrong_date(connection, before)
        leaving = await _leaving(connection, before)
        for one in leaving:
            if _MONTH.floor(before) == before and (period := one.split(before)):
                start, end = period_bounds(period)
                detail = f"the archive keeps {period} in one file: name {iso(start)[:10]} or {iso(end)[:10]}"
                obstacles.append(_obstacle("boundary", detail, Interval(start, end), one.series))
        if any(one.kind == "boundary" for one in obstacles):
            # Digests and files are those of whole periods: there is nothing to compare them with.
            return obstacles, []
        obstacles += await self._due(connection, before)
        there, expected = await _count(connection, before)
        if there != expected:
            obstacles.append(_obstacle("rows", _rows_differ(there, expected)))
        return obstacles, leaving

    async def _wrong_date(self, connection: Connection, before: int) -> list[Obstacle]:
        found = []
        if _MONTH.floor(before) != before:
            near = f"{iso(_MONTH.floor(before))[:10]} or {iso(_MONTH.ceil(before))[:10]}"
            found.append(_obstacle("boundary", f"the archive keeps whole months: name {near}"))
        now = min(self._clock.now_ms(), await connection.fetchval(QUERIES["server_now"]))
        oldest = now - self._compress_after_ms
        if before > oldest:
            days = self._compress_after_ms / DAY_MS
            detail = f"candles of the last {days:g} days still change: name an instant before {iso(oldest)}"
            found.append(_obstacle("age", detail))
        if self._mode is Mode.TIMESCALEDB:
            reach = await connection.fetchval(QUERIES["refresh_reach"])
            if reach is not None and before > reach:
                what = "everything" if reach <= -_ALWAYS else f"what is younger than {iso(reach)}"
                detail = f"a policy refreshes {what} in an aggregate, which would erase what was dropped from it"
                found.append(_obstacle("policy", detail))
        return found

    async def _due(self, connection: Connection, before: int) -> list[Obstacle]:
        if self._mode is not Mode.TIMESCALEDB:
            return []
        return [
            _obstacle(
                "aggregates",
                f"the aggregates of {row[0]} {row[1]} lack minutes; run `chandlery db maintain`",
                Interval(row[2], row[3]),
            )
            for row in await connection.fetch(QUERIES["due_before"], before)
        ]

    def _archived(self, one: _Leaving, before: int) -> tuple[dict[str, ArchiveFile], list[Obstacle]]:
        """The archive's files of what leaves, each read and compared; and what is wrong with them."""
        manifest = self._archive.manifest(one.series)
        files = {} if manifest is None else {file.period: file for file in manifest.files}
        wrong: list[Obstacle] = []
        sound: list[str] = []
        for period, expected in one.periods(before).items():
            file, detail = files.get(period), None
            if file is None:
                detail = f"{period} is not in the archive {self._archive.root}; run `chandlery archive`"
            elif Digest.of_hex(file.rows, file.digest) != expected:
                detail = f"the archive has other candles of {period} than the database; run `chandlery archive`"
            else:
                sound.append(period)
            if detail is not None:
                wrong.append(_obstacle("archive", detail, Interval(*period_bounds(period)), one.series))
        if sound:
            wrong += [
                _obstacle("archive", f"{line}; run `chandlery archive` after removing it", None, one.series)
                for line in self._archive.verify(one.series, sound)
            ]
        return files, wrong

    async def _drop(
        self, connection: Connection, before: int, files: dict[Series, dict[str, ArchiveFile]]
    ) -> tuple[int, int]:
        """One transaction: what was proven is proven again, as far as the database goes, then it is dropped."""
        if self._mode is Mode.TIMESCALEDB:
            await connection.execute(QUERIES["wait_for_refreshes"])
        await connection.execute(QUERIES["hold_series"])
        leaving = await _leaving(connection, before)
        current = all(
            (file := files.get(one.series, {}).get(period)) is not None
            and Digest.of_hex(file.rows, file.digest) == digest
            for one in leaving
            for period, digest in one.periods(before).items()
        )
        if not current or any(one.split(before) for one in leaving) or await self._due(connection, before):
            raise StoreBusy(
                f"somebody wrote candles before {iso(before)} meanwhile; nothing was dropped, archive and try again"
            )
        there, expected = await _count(connection, before)
        if there != expected:
            raise StoreUnusable(f"nothing was dropped: {_rows_differ(there, expected)}")
        for one in leaving:
            await self._note(connection, one, before, files[one.series])
        if self._mode is Mode.TIMESCALEDB:
            chunks = await connection.fetchval(QUERIES["drop_chunks"], before)
            await connection.execute(TIMESCALE_QUERIES["allow_decompression"])
            await connection.execute(QUERIES["delete_candles_before"], before)
        else:
            chunks = await connection.fetchval(QUERIES["drop_partitions"], "candles", "open_time", before)
        await connection.execute(
            QUERIES["save_drop"], before, self._clock.now_ms(), there, str(self._archive.root.absolute())
        )
        return there, int(chunks)

    async def _note(
        self, connection: Connection, one: _Leaving, before: int, files: dict[str, ArchiveFile]
    ) -> None:
        """Say in the ledger of a series, and at its digests, that the candles are in the archive."""
        now = max(self._clock.now_ms(), one.key.last_write + 1)
        evidence = {
            period: f"{self._archive.root.name}: {file.name}, digest {file.digest}"
            for period, file in files.items()
        }
        cut = _cut(one.series.timeframe, before, one.key.origin_ms)
        after = moved(one.ledger, cut, one.series.timeframe, one.key.origin_ms, evidence, now)
        await replace_coverage(connection, one.key, one.ledger, after)
        await connection.execute(QUERIES["mark_archived"], one.key.instrument_id, one.key.timeframe, before)
        await connection.execute(CANDLE_QUERIES["touch_series"], one.key.instrument_id, one.key.timeframe, now)


def moved(
    ledger: Sequence[Covered], cut: int, timeframe: Timeframe, origin_ms: int, evidence: dict[str, str], now_ms: int
) -> list[Covered]:
    """The ledger after every candle that opens before `cut` has moved to the archive.

    :param cut: the end of a bucket.
    :param evidence: by archive period.
    :param now_ms: since when it is so.
    """
    found: list[Covered] = []
    for one in clip(ledger, Interval(-_ALWAYS, cut)):
        if one.state is CoverageState.PRESENT:
            found += [
                replace(
                    one, interval=run, state=CoverageState.ARCHIVED, evidence=evidence[period], learned_at=now_ms
                )
                for period, run in _by_period(one.interval, timeframe, origin_ms)
            ]
        else:
            found.append(one)
    return joined([*found, *outside(ledger, IntervalSet([Interval(-_ALWAYS, cut)]))])


def _by_period(interval: Interval, timeframe: Timeframe, origin_ms: int) -> Iterator[tuple[str, Interval]]:
    """The parts of an interval of candles by the archive periods in which these open."""
    start = interval.start
    while start < interval.end:
        period = period_of(start, timeframe)
        end = min(interval.end, timeframe.ceil(period_bounds(period)[1], origin_ms))
        yield period, Interval(start, end)
        start = end


def _cut(timeframe: Timeframe, before: int, origin_ms: int) -> int:
    """The end of the last bucket that opens before an instant."""
    return timeframe.ceil(before, origin_ms)


async def _leaving(connection: Connection, before: int) -> list[_Leaving]:
    found = []
    for row in await connection.fetch(QUERIES["series_with_candles"], before):
        series = Series(row["exchange"], row["symbol"], Timeframe.of_seconds(row["timeframe"]))
        key = await find_series(connection, series)
        assert key is not None
        chunks = await connection.fetch(
            CANDLE_QUERIES["read_chunks"], key.instrument_id, key.timeframe, -_ALWAYS, before
        )
        ledger = await read_coverage(connection, key, -_ALWAYS, _cut(series.timeframe, before, key.origin_ms))
        found.append(
            _Leaving(
                series,
                key,
                tuple(to_chunk(one) for one in chunks),
                tuple(ledger),
            )
        )
    return found


def _steps(leaving: Iterable[_Leaving], before: int) -> list[int]:
    """Where to cut: each month, but never through an archive period. A transaction holds the locks of one step."""
    series = list(leaving)
    firsts = [chunk.start for one in series for chunk in one.chunks if chunk.archived != chunk.digest]
    if not firsts:
        return []
    following = _MONTH.next(_MONTH.floor(min(firsts)))
    months = itertools.takewhile(
        lambda month: month < before, (_MONTH.next(following, at) for at in itertools.count())
    )
    return [*(month for month in months if not any(one.split(month) for one in series)), before]


async def _count(connection: Connection, before: int) -> tuple[int, int]:
    row = await connection.fetchrow(QUERIES["count_candles_before"], before)
    assert row is not None
    return row[0], row[1]


def _rows_differ(there: int, expected: int) -> str:
    return (
        f"the table has {there:,} candles, their digests speak of {expected:,}: something else changed the table; "
        "run `chandlery check`"
    )


def _obstacle(kind: str, detail: str, interval: Interval | None = None, series: Series | None = None) -> Obstacle:
    return Obstacle(series=series, kind=kind, interval=interval, detail=detail)
