"""The candle store on SQLite: what :class:`store.market_data.MarketData`, ingest and the archive call."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pyarrow as pa

from market.candle import Refusal, no_candles, open_times_ms
from market.clock import Clock
from market.coverage import Covered
from market.fingerprint import Digest
from market.instrument import Series
from market.interval import Interval
from market.timeframe import DEFAULT_ORIGIN_MS, Timeframe
from store.answer import SeriesInfo
from store.batch import CandleBatch, Written
from store.candle_store import Chunk, SeriesFacts, StoredPage
from store.derived import rolled_page
from store.ledger import clip, counts
from store.series_key import SeriesKey
from store.sqlite import schema
from store.sqlite.change_mark import ChangeMark
from store.sqlite.coverage import read_coverage
from store.sqlite.database import Database, check_home
from store.sqlite.instruments import SqliteInstruments
from store.sqlite.merge import write_batch
from store.sqlite.notes import SqliteNotes
from store.sqlite.rows import QUERIES, add_series, fetched, find_series, named
from store.sqlite.trades import SqliteTrades
from store.sqlite.versions import SqliteVersions
from store.sqlite.writing import data_transaction

DATABASE_NAME = "market_data.sqlite3"


class SqliteStore(SqliteTrades, SqliteNotes, SqliteInstruments, SqliteVersions):
    """Candles, trades, ledgers, corrections and quarantine in one file. Open with :meth:`opened`."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._mark = ChangeMark(database.path)

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, path: Path, clock: Clock, read_only: bool = False) -> AsyncIterator[SqliteStore]:
        """Open the file, make or upgrade its schema (unless `read_only`), close at the end.

        :raises NotFound: `read_only` and there is no database.
        :raises StoreUnusable: read-only place, damaged, another program's file, newer schema.
        """
        await asyncio.to_thread(check_home, path, read_only)
        database = Database(path, read_only=read_only)
        try:
            if read_only:
                await database.read(lambda connection: schema.check_current(connection, path))
            else:
                await database.write(lambda connection: schema.upgrade(connection, path))
            store = cls(database, clock)
            with contextlib.closing(store._mark):
                yield store
        finally:
            await database.close()

    @staticmethod
    async def upgraded(path: Path) -> list[int]:
        """Make the file or bring its schema up to date; the versions that this call applied."""
        await asyncio.to_thread(check_home, path, False)
        database = Database(path, read_only=False)
        try:
            return await database.write(lambda connection: schema.upgrade(connection, path))
        finally:
            await database.close()

    @property
    def path(self) -> Path:
        """The database file."""
        return self._database.path

    @property
    def location(self) -> str:
        """The database file."""
        return str(self.path)

    async def schema_version(self) -> int:
        """The version of the file's schema."""
        return await self._database.read(schema.version)

    async def write(self, batch: CandleBatch) -> Written:
        """One batch in one transaction: quarantine, candles, corrections, coverage. Durable when it returns.

        :raises StoreBusy: another process held the write lock for too long; nothing was written.
        """
        return (await self.write_all([batch]))[0]

    async def write_all(self, batches: Sequence[CandleBatch]) -> list[Written]:
        """All batches in one transaction, each as by :meth:`write`; durable when it returns.

        :raises StoreBusy: another process held the write lock for too long; nothing was written.
        """

        def work(connection: sqlite3.Connection) -> list[Written]:
            with data_transaction(connection):
                return [
                    write_batch(connection, add_series(connection, one.series), one, self._clock.now_ms())
                    for one in batches
                ]

        return await self._database.write(work)

    async def read(
        self,
        series: Series,
        start_ms: int,
        end_ms: int,
        *,
        limit: int | None = None,
        newest: bool = False,
        as_of_ms: int | None = None,
    ) -> pa.Table:
        """Stored candles with ``start_ms <= open_time < end_ms``, sorted, in the candle schema.

        :param limit: at most this many rows: the first ones, or the last ones where `newest`.
        :param as_of_ms: the rows as they were known then; epoch milliseconds of our clock.
        """

        def work(connection: sqlite3.Connection) -> pa.Table:
            key = find_series(connection, series)
            if key is None:
                return no_candles()
            return _read(connection, key, Interval(start_ms, end_ms), limit, newest, as_of_ms)

        return await self._database.read(work)

    async def page(
        self,
        series: Series,
        interval: Interval,
        *,
        limit: int | None = None,
        newest: bool = False,
        as_of_ms: int | None = None,
    ) -> StoredPage:
        """:meth:`read` with the ledger of the part that was read, both from one snapshot of the database."""

        def work(connection: sqlite3.Connection) -> StoredPage:
            key = find_series(connection, series)
            if key is None:
                return StoredPage(table=no_candles(), coverage=[])
            table = _read(connection, key, interval, limit, newest, as_of_ms)
            start, end = interval.start, interval.end
            if limit is not None and table.num_rows == limit:
                times = open_times_ms(table)
                start, end = (int(times[0]), end) if newest else (start, series.timeframe.next(int(times[-1])))
            inside = Interval(start, end)
            coverage = clip(read_coverage(connection, key, start, end), inside)
            return StoredPage(table=table, coverage=coverage, revision=key.revision)

        return await self._database.read(work)

    async def rolled(self, series: Series, interval: Interval, timeframe: Timeframe, origin_ms: int) -> StoredPage:
        """Larger candles made of the stored candles of `series` that open in `interval`, and the ledger of these.

        :param interval: whole buckets of `timeframe`.
        """
        return rolled_page(await self.page(series, interval), timeframe, origin_ms)

    async def facts(self, series: Series) -> SeriesFacts | None:
        """What a reader must know of a series first; None where it is not stored."""

        def work(connection: sqlite3.Connection) -> SeriesFacts | None:
            key = find_series(connection, series)
            if key is None:
                return None
            first, last = connection.execute(QUERIES["coverage_bounds"], named(key)).fetchone()
            hull = None if first is None else Interval(first, last)
            return SeriesFacts(revision=key.revision, origin_ms=key.origin_ms, known=hull)

        return await self._database.read(work)

    async def coverage(self, series: Series, interval: Interval | None = None) -> list[Covered]:
        """The ledger, sorted and disjoint; clipped to `interval` where one is given."""

        def work(connection: sqlite3.Connection) -> list[Covered]:
            key = find_series(connection, series)
            if key is None:
                return []
            if interval is None:
                return read_coverage(connection, key, 0, 2**62)
            return clip(read_coverage(connection, key, interval.start, interval.end), interval)

        return await self._database.read(work)

    async def chunks(self, series: Series) -> list[Chunk]:
        """The digests of all chunks of a series, oldest first."""

        def work(connection: sqlite3.Connection) -> list[Chunk]:
            key = find_series(connection, series)
            if key is None:
                return []
            rows = connection.execute(QUERIES["read_chunks"], named(key) | {"start": 0, "end": 2**62})
            return [Chunk(start=row[0], digest=Digest.of_hex(row[1], row[3]), revision=row[4]) for row in rows]

        return await self._database.read(work)

    async def series(self) -> list[SeriesInfo]:
        """Every series with its metadata, by exchange, symbol and timeframe."""

        def work(connection: sqlite3.Connection) -> list[SeriesInfo]:
            return [
                _info(connection, row, self._clock.now_ms())
                for row in connection.execute(QUERIES["list_series"]).fetchall()
            ]

        return await self._database.read(work)

    async def quarantined(self, series: Series, limit: int = 100) -> list[Refusal]:
        """The newest refused rows of a series."""

        def work(connection: sqlite3.Connection) -> list[Refusal]:
            key = find_series(connection, series)
            if key is None:
                return []
            rows = connection.execute(QUERIES["read_quarantine"], named(key) | {"limit": limit})
            return [Refusal(row=at, open_time=row[0], reason=row[1], raw=row[2]) for at, row in enumerate(rows)]

        return await self._database.read(work)

    async def count(self) -> tuple[int, int]:
        """How many series, and candles in all of them."""

        def work(connection: sqlite3.Connection) -> tuple[int, int]:
            series, rows = connection.execute(QUERIES["count_all"]).fetchone()
            return int(series), int(rows)

        return await self._database.read(work)

    async def size(self) -> tuple[int, int]:
        """Bytes of the file, and bytes free inside it."""

        def work(connection: sqlite3.Connection) -> tuple[int, int]:
            used, free = connection.execute(QUERIES["database_size"]).fetchone()
            return int(used), int(free)

        return await self._database.read(work)

    async def integrity(self) -> list[str]:
        """What SQLite's own check finds wrong with the file; empty when sound."""

        def work(connection: sqlite3.Connection) -> list[str]:
            try:
                found = [row[0] for row in connection.execute("PRAGMA quick_check(20)")]
            except sqlite3.DatabaseError as error:
                # Some damage stops the check itself.
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT:
                    raise
                found = [str(error)]
            return [] if found == ["ok"] else found

        return await self._database.read(work)


def _read(
    connection: sqlite3.Connection,
    key: SeriesKey,
    interval: Interval,
    limit: int | None,
    newest: bool,
    as_of_ms: int | None,
) -> pa.Table:
    name = "read_newest_candles" if newest else "read_candles"
    asked = named(key) | {"start": interval.start, "end": interval.end, "limit": -1 if limit is None else limit}
    if as_of_ms is not None:
        name, asked = name + "_as_of", asked | {"as_of": as_of_ms}
    return fetched(connection.execute(QUERIES[name], asked), newest)


def _info(connection: sqlite3.Connection, row: tuple[str, str, int, int, int, int, int], now_ms: int) -> SeriesInfo:
    exchange, symbol, seconds, revision, last_write, instrument_id, rows = row
    series = Series(exchange, symbol, Timeframe.of_seconds(seconds))
    key = SeriesKey(instrument_id, seconds, revision, last_write, DEFAULT_ORIGIN_MS)
    first, last = connection.execute(QUERIES["series_bounds"], named(key)).fetchone()
    corrections, quarantined = connection.execute(QUERIES["series_counts"], named(key)).fetchone()
    sources = [row[0] for row in connection.execute(QUERIES["coverage_sources"], named(key))]
    missing, empty = _counts(connection, key, series.timeframe, now_ms)
    return SeriesInfo(
        series=series,
        rows=rows,
        first_open=first,
        last_open=last,
        last_write=last_write or None,
        revision=revision,
        sources=tuple(sources),
        corrections=corrections,
        quarantined=quarantined,
        missing=missing,
        verified_empty=empty,
    )


def _counts(connection: sqlite3.Connection, key: SeriesKey, timeframe: Timeframe, now_ms: int) -> tuple[int, int]:
    """Buckets between the first and the last known instant that nothing is known of, and that are known empty."""
    if timeframe.name != "1M":
        # A sparse series has an interval for every few candles: added up where they are.
        start, end, there, empty = connection.execute(
            QUERIES["coverage_sums"], named(key) | {"now": now_ms}
        ).fetchone()
        length = timeframe.milliseconds
        return (0, 0) if start is None else ((end - start - there) // length, empty // length)
    return counts(read_coverage(connection, key, 0, 2**62), timeframe, now_ms)
