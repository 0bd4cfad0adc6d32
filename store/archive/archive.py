"""Building, checking and restoring the Parquet archive. Every step can be killed; running again completes it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ParamSpec, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from market.candle import (
    CANDLE_SCHEMA,
    PRICES,
    QUANTITIES,
    CandleState,
    by_open_time,
    no_candles,
    open_times_ms,
)
from market.clock import LATEST_MS, Clock, iso
from market.coverage import CoverageState, Covered
from market.errors import SchemaTooNew, StoreUnusable
from market.fingerprint import Digest, digest
from market.instrument import Series
from market.interval import Interval, IntervalSet
from market.timeframe import DAY_MS, TIMEFRAMES, Timeframe
from store.archive.manifest import (
    MANIFEST,
    ArchiveFile,
    Manifest,
    read_manifest,
    read_manifests,
    series_folder,
)
from store.batch import Absence, CandleBatch, Written
from store.candle_store import CandleStore, Chunk
from store.files import UNFINISHED, locked, replacing
from store.ledger import joined

_P = ParamSpec("_P")
_T = TypeVar("_T")

_LOCK = ".archive.lock"
_YEAR = 12
_SHORTEST_MONTH_MS = 28 * DAY_MS
#: Against Arrow's defaults, on a year of recorded minutes: a third smaller, read a third faster, written twice as
#: fast. Times and counts are stored as differences, quantities byte by byte, prices as they are (they repeat).
_ENCODINGS = {
    **dict.fromkeys(("open_time", "trades", "early_close_time"), "DELTA_BINARY_PACKED"),
    **dict.fromkeys(PRICES, "PLAIN"),
    **dict.fromkeys(QUANTITIES, "BYTE_STREAM_SPLIT"),
}


@dataclass(frozen=True, kw_only=True)
class ArchiveReport:
    """What one run did for one series."""

    series: Series
    #: Files in the manifest now.
    files: int
    rows: int
    #: Files written by this run; 0 where the archive was current.
    written: int
    #: Left-overs of an interrupted run, and replaced files, that were removed.
    removed: int
    #: Size of all files, bytes.
    size: int
    fingerprint: str


class Archive:
    """The archive under one local folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def manifest(self, series: Series) -> Manifest | None:
        """What is archived of a series, or None."""
        return read_manifest(self.root, series)

    def manifests(self) -> list[Manifest]:
        """Everything archived."""
        return read_manifests(self.root)

    def path(self, series: Series, file: ArchiveFile) -> Path:
        """Where a file of a manifest stands."""
        return series_folder(self.root, series) / file.name

    async def build(self, store: CandleStore, series: Series) -> ArchiveReport:
        """Bring the archive of one series up to the store: periods whose digest differs are written anew.

        New files are written and read back before the manifest is swapped; replaced files go afterwards. Candles
        that the store has dropped because they are archived stay as they are.

        :raises StoreBusy: another process is archiving into this folder.
        :raises StoreUnusable: the store has dropped candles that are not in this archive, or are damaged.
        :raises StoreUnusable: the folder cannot be written; the old state is untouched.
        """
        with self.held("archive"):
            before = await asyncio.to_thread(self._readable_manifest, series)
            had = {one.period: one for one in before.files} if before else {}
            # The ledger first: rows that arrive in between are then more than it says, never less.
            coverage = _as_archived(await store.coverage(series))
            chunks = await store.chunks(series)
            files: list[ArchiveFile] = []
            written = 0
            for period, expected in period_digests(chunks, series.timeframe).items():
                kept = had.get(period)
                if kept and Digest.of_hex(kept.rows, kept.digest) == expected and self._stands(series, kept):
                    files.append(kept)
                    continue
                table = await self._whole_period(store, series, period, chunks)
                files.append(await _to_its_end(self._write_file, series, period, table))
                written += 1
            manifest = Manifest(series=series, files=tuple(files), coverage=tuple(coverage))
            removed = await _to_its_end(self._swap, manifest, before)
        return ArchiveReport(
            series=series,
            files=len(files),
            rows=manifest.digest.rows,
            written=written,
            removed=removed,
            size=sum(one.size for one in files),
            fingerprint=manifest.fingerprint,
        )

    def held(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Nobody else changes a file of this archive meanwhile.

        :raises StoreBusy: another process has it.
        """
        return locked(self.root / _LOCK, what)

    def read(self, series: Series, where: IntervalSet, limit: int | None = None, newest: bool = False) -> pa.Table:
        """The archived candles that open in `where`, sorted; each file is compared with the manifest's digest.

        :param where: instants of which a ledger says that the archive has all their candles.
        :param limit: at most this many rows: the first ones, or the last ones where `newest`.
        :raises StoreUnusable: a candle is missing, or a file is damaged.
        """
        manifest = self.manifest(series)
        hull = where.hull
        if hull is None:
            return no_candles()
        files = [] if manifest is None else manifest.files_in(hull)
        parts: list[pa.Table] = []
        rows = 0
        for file in files[::-1] if newest else files:
            if limit is not None and rows >= limit:
                break
            if not where.clip(file.first_open, file.last_open + 1):
                continue
            table = self._read_file(series, file)
            parts.append(table.filter(pa.array(where.contains_all(open_times_ms(table)))))
            rows += parts[-1].num_rows
        found = by_open_time(pa.concat_tables(parts)) if parts else no_candles()
        if limit is not None and rows > limit:
            found = found.slice(rows - limit) if newest else found.slice(0, limit)
        self._check_whole(series, where, found, limit, newest)
        return found

    def _read_file(self, series: Series, file: ArchiveFile) -> pa.Table:
        path = self.path(series, file)
        table = read_candles(path)
        if digest(table).hex != file.digest:
            raise StoreUnusable(f"{path}: the rows differ from the manifest's digest; restore it from a backup")
        return table

    def _check_whole(
        self, series: Series, where: IntervalSet, found: pa.Table, limit: int | None, newest: bool
    ) -> None:
        """What the ledger says is archived must be there, as far as a limit lets us look."""
        times = open_times_ms(found)
        if limit is not None and len(times) == limit:
            ends = (int(times[0]), LATEST_MS) if newest else (0, int(times[-1]))
            where = where.clip(*ends)
        shortest = series.timeframe.milliseconds if series.timeframe.name != "1M" else _SHORTEST_MONTH_MS
        # Less than a bucket: the beginning or the end of one that opens, or is asked for, outside.
        lacking = [
            one for one in where - IntervalSet.of_candles(times, series.timeframe) if one.duration >= shortest
        ]
        if lacking:
            raise StoreUnusable(
                f"{series}: the database dropped the candles of {lacking[0]} because they were archived, and "
                f"{self.root} lacks them; restore that archive from a backup, or name the one that has them"
            )

    async def _whole_period(
        self, store: CandleStore, series: Series, period: str, chunks: Sequence[Chunk]
    ) -> pa.Table:
        """All candles of a period: from the store, and what this has dropped from the file that must have it."""
        page = await store.page(series, Interval(*period_bounds(period)))
        if not page.unread:
            return page.table
        kept = await asyncio.to_thread(self.read, series, page.unread)
        inside = (one.archived for one in chunks if period_of(one.start, series.timeframe) == period)
        if digest(kept) != sum(inside, Digest()):
            raise StoreUnusable(
                f"{series}: {self.root} has other candles of {period} than were archived when the database dropped "
                "them; restore it from a backup, or name the archive that has them"
            )
        return by_open_time(pa.concat_tables([kept, page.table]))

    def _readable_manifest(self, series: Series) -> Manifest | None:
        """The manifest to go on from; None for a damaged one, which is then written anew."""
        try:
            return self.manifest(series)
        except SchemaTooNew:
            raise
        except StoreUnusable:
            return None

    def _stands(self, series: Series, file: ArchiveFile) -> bool:
        """True if the file is there in its full length; :meth:`verify` reads it."""
        try:
            return self.path(series, file).stat().st_size == file.size
        except OSError:
            return False

    def _write_file(self, series: Series, period: str, table: pa.Table) -> ArchiveFile:
        times = open_times_ms(table)
        content = digest(table)
        name = f"{period}.{content.hex[:12]}.parquet"
        path = series_folder(self.root, series) / name
        with replacing(path) as temporary:
            pq.write_table(
                table,
                temporary,
                compression="zstd",
                compression_level=3,
                use_dictionary=False,
                column_encoding=_ENCODINGS,
                sorting_columns=[pq.SortingColumn(0)],
            )
            if digest(read_candles(temporary)) != content:
                raise StoreUnusable(
                    f"{path}: what was read back differs from what was written; the disk is not to be trusted"
                )
            sha256 = _sha256(temporary)
            size = temporary.stat().st_size
        return ArchiveFile(
            period=period,
            name=name,
            rows=table.num_rows,
            first_open=int(times[0]),
            last_open=int(times[-1]),
            sha256=sha256,
            digest=content.hex,
            size=size,
        )

    def _swap(self, manifest: Manifest, before: Manifest | None) -> int:
        """Make `manifest` the truth, then remove every file that it does not name."""
        folder = series_folder(self.root, manifest.series)
        if manifest != before:
            with replacing(folder / MANIFEST) as temporary:
                temporary.write_bytes(manifest.to_json())
        named = {one.name for one in manifest.files} | {MANIFEST}
        # Only what a run of ours may have left; whatever else stands there is somebody's.
        litter = [
            one for one in folder.iterdir() if one.name not in named and one.suffix in (".parquet", UNFINISHED)
        ]
        try:
            for path in litter:
                path.unlink()
        except OSError as error:
            raise StoreUnusable(
                f"{path} cannot be removed: {error.strerror}; the manifest does not name it"
            ) from error
        return len(litter)

    def verify(self, series: Series, periods: Collection[str] | None = None) -> list[str]:
        """Every file against the manifest: size, SHA-256, rows, digest. Returns what is wrong, in words.

        :param periods: only the files of these.
        """
        manifest = self.manifest(series)
        if manifest is None:
            return [f"{series} is not archived"]
        wrong = []
        for file in manifest.files:
            if periods is not None and file.period not in periods:
                continue
            path = self.path(series, file)
            try:
                if _sha256(path) != file.sha256:
                    wrong.append(f"{path}: the bytes differ from the manifest's SHA-256")
                elif digest(read_candles(path)).hex != file.digest:
                    wrong.append(f"{path}: the rows differ from the manifest's digest")
            except OSError as error:
                wrong.append(f"{path}: {error.strerror}")
            except StoreUnusable as error:
                wrong.append(str(error))
        return wrong

    async def restore(self, store: CandleStore, series: Series, clock: Clock) -> Written:
        """Write an archived series into a store: rows, and what was known to be empty.

        :raises StoreUnusable: a file is missing or damaged; files before it have been restored.
        """
        manifest = await asyncio.to_thread(self.manifest, series)
        if manifest is None:
            return Written()
        total = Written()
        async for batch in self._batches(manifest, clock):
            total += await store.write(batch)
        return total

    async def _batches(self, manifest: Manifest, clock: Clock) -> AsyncIterator[CandleBatch]:
        source = f"archive {self.root.name}"
        for file in manifest.files:
            table = await asyncio.to_thread(self._read_file, manifest.series, file)
            now_ms = max(clock.now_ms(), manifest.series.timeframe.next(file.last_open))
            yield CandleBatch(
                series=manifest.series, source=source, now_ms=now_ms, table=table, state=CandleState.VERIFIED
            )
        absences = tuple(
            Absence(interval=one.interval, state=one.state, evidence=one.evidence or "", expires_at=one.expires_at)
            for one in manifest.coverage
            if not one.state.has_candles
        )
        if absences:
            yield CandleBatch(series=manifest.series, source=source, now_ms=clock.now_ms(), absences=absences)


def read_candles(path: Path) -> pa.Table:
    """The candles of one archive file.

    :raises StoreUnusable: missing, damaged in any way, or not in the candle schema.
    """
    try:
        # A handle of our own: a ParquetFile over a path keeps the file open until it is collected.
        with path.open("rb") as handle, pq.ParquetFile(handle) as parquet:
            table = parquet.read()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StoreUnusable(f"{path} cannot be read as Parquet: {error}") from error
    if not table.schema.equals(CANDLE_SCHEMA):
        raise StoreUnusable(f"{path} does not have the columns of candles: {', '.join(table.schema.names)}")
    return table


def period_of(open_time: int, timeframe: Timeframe) -> str:
    """The archive period of a candle: its month (timeframes under an hour) or its year."""
    return iso(open_time)[:7] if timeframe.seconds < 3600 else iso(open_time)[:4]


def period_bounds(period: str) -> tuple[int, int]:
    """``[start, end)`` of a period in epoch milliseconds."""
    month = TIMEFRAMES["1M"]
    year, _, number = period.partition("-")
    start = month.next(0, (int(year) - 1970) * _YEAR + (int(number) - 1 if number else 0))
    return start, month.next(start, 1 if number else _YEAR)


async def _to_its_end(work: Callable[_P, _T], *args: _P.args, **named: _P.kwargs) -> _T:
    """Run `work` in a thread. Cancelled, wait for it first: it must not go on after the lock is given back."""
    task = asyncio.create_task(asyncio.to_thread(work, *args, **named))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        # Looked at, so that nobody is told of an error that nobody waits for.
        task.exception()
        raise


def period_digests(chunks: Iterable[Chunk], timeframe: Timeframe) -> dict[str, Digest]:
    """The digest of each archive period, from those of its chunks; sorted as the chunks are."""
    periods: dict[str, Digest] = {}
    for one in chunks:
        period = period_of(one.start, timeframe)
        periods[period] = periods.get(period, Digest()) + one.digest
    return periods


def _as_archived(ledger: Iterable[Covered]) -> list[Covered]:
    """The ledger in the archive's words: what the database keeps no longer is present here."""
    return joined(
        replace(one, state=CoverageState.PRESENT, evidence=None) if one.state is CoverageState.ARCHIVED else one
        for one in ledger
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
