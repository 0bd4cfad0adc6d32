"""The feed: candles of many series from the archive's Parquet files, read by DuckDB in bounded slices.

Files are found through manifests, never by globbing. Every read is checked against the manifest, and hashed, so
that a run knows the fingerprint of exactly the rows it used.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import duckdb
import pyarrow as pa

from backtest.source import Source
from market.candle import CANDLE_SCHEMA, by_open_time, open_times_ms
from market.clock import iso
from market.coverage import CoverageState
from market.errors import Mismatch, StoreUnusable
from market.fingerprint import Digest, dataset_fingerprint, digest
from market.instrument import Series
from market.interval import Interval, IntervalSet
from market.rollup import roll_up
from store.archive.manifest import ArchiveFile, series_folder

#: Archived rows in memory for all series together, at most about.
READ_ROWS = 250_000

#: Rows of some files with start <= open_time < end, in the candle schema's order of columns.
_ROWS = """
SELECT open_time, open, high, low, close, volume, quote_volume, trades, taker_buy_volume,
       taker_buy_quote_volume, early_close_time
FROM read_parquet($files)
WHERE open_time >= CAST($start AS TIMESTAMPTZ) AND open_time < CAST($end AS TIMESTAMPTZ)
"""


@dataclass(frozen=True)
class Piece:
    """Consecutive candles of one series."""

    #: Candle schema, sorted.
    table: pa.Table
    #: True for the first piece after a hole, and the very first: indicators begin anew.
    begins: bool


class Feed:
    """Reads sources of one archive. A context manager; holds a DuckDB connection."""

    def __init__(self, root: Path, read_rows: int = READ_ROWS) -> None:
        self._root = root
        self._read_rows = read_rows
        # DuckDB and hashing let go of the interpreter, so the next slice is read while this one is being used.
        # One thread, so that the connection has one user.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="backtest-feed")
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._used: dict[tuple[Series, Series], Digest] = {}

    def __enter__(self) -> Self:
        # Extensions are never fetched: a backtest works without a network.
        self._connection = duckdb.connect(
            ":memory:", config={"autoinstall_known_extensions": False, "autoload_known_extensions": False}
        )
        self._connection.execute("SET TimeZone = 'UTC'")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.shutdown(wait=True, cancel_futures=True)
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def fingerprint(self) -> str:
        """Over exactly the archived rows read so far.

        Equal to the manifest's where one series was read whole. A series read for several subscriptions counts
        once for each, unless it was read alike.
        """
        parts = {(base, used) for (base, _), used in self._used.items()}
        return dataset_fingerprint(parts)

    @property
    def rows(self) -> int:
        """Archived rows read so far."""
        return sum(one.rows for one in self._used.values())

    def pieces(self, source: Source, interval: Interval, share: int = 1) -> Iterator[Piece]:
        """The candles of `source` over `interval` and the lead-in before it, oldest first.

        :param share: how many sources are read at the same time.
        """
        # One slice is being used while the next one is read.
        rows = max(self._read_rows // (2 * share), 1)
        key = (source.manifest.series, source.series)
        self._used[key] = Digest()
        ahead: deque[Future[tuple[Piece, Digest]]] = deque()
        for begins, span, files in _steps(source, interval, rows):
            ahead.append(self._reader.submit(self._load, source, files, span, begins))
            if len(ahead) > 1:
                yield from self._used_piece(key, ahead.popleft())
        while ahead:
            yield from self._used_piece(key, ahead.popleft())

    def _used_piece(self, key: tuple[Series, Series], read: Future[tuple[Piece, Digest]]) -> Iterator[Piece]:
        piece, used = read.result()
        self._used[key] += used
        yield piece

    def _load(
        self, source: Source, files: Sequence[ArchiveFile], span: Interval, begins: bool
    ) -> tuple[Piece, Digest]:
        """One slice: read, checked, and rolled up where the series is a larger one. Runs in the reading thread."""
        table = self._read(source, files, span)
        used = self._checked(source, files, span, table)
        if source.derived:
            table = roll_up(table, source.series.timeframe).table
        return Piece(table, begins), used

    def _read(self, source: Source, files: Sequence[ArchiveFile], span: Interval) -> pa.Table:
        folder = series_folder(self._root, source.manifest.series)
        paths = [folder / one.name for one in files]
        try:
            table = self._query(paths, span)
        except duckdb.Error as error:
            raise StoreUnusable(self._damage(files, paths, span, error)) from error
        return by_open_time(table)

    def _query(self, paths: Sequence[Path], span: Interval) -> pa.Table:
        if self._connection is None:
            raise StoreUnusable("the feed is not open")
        if not paths:
            return CANDLE_SCHEMA.empty_table()
        answer = self._connection.sql(
            _ROWS,
            params={"files": [_literal(path) for path in paths], "start": iso(span.start), "end": iso(span.end)},
        )
        return answer.to_arrow_table().cast(CANDLE_SCHEMA)

    def _damage(
        self, files: Sequence[ArchiveFile], paths: Sequence[Path], span: Interval, error: duckdb.Error
    ) -> str:
        """Which file is at fault, in words."""
        advice = "run `chandlery archive` to write it again"
        for file, path in zip(files, paths, strict=True):
            if not path.is_file():
                return f"{path} is named by the manifest and is not there; {advice}"
            if path.stat().st_size != file.size:
                return (
                    f"{path} is damaged: {path.stat().st_size} bytes where the manifest says {file.size}; {advice}"
                )
            try:
                self._query([path], span)
            except duckdb.Error as own:
                return f"{path} is damaged: {str(own).splitlines()[0]}; {advice}"
        return f"cannot read {paths[0].parent}: {error}"

    def _checked(self, source: Source, files: Sequence[ArchiveFile], span: Interval, table: pa.Table) -> Digest:
        """The digest of the rows, after comparing them with what the manifest promises.

        :raises StoreUnusable: whole files were read and are not what the manifest says.
        :raises Mismatch: the ledger says present where there is no row.
        """
        found = digest(table)
        if all(span.start <= one.first_open and one.last_open < span.end for one in files):
            promised = Digest()
            for one in files:
                promised += Digest.of_hex(one.rows, one.digest)
            if found != promised:
                names = ", ".join(one.name for one in files)
                folder = series_folder(self._root, source.manifest.series)
                raise StoreUnusable(
                    f"{folder}: the rows of {names} are not those of the manifest; "
                    "run `chandlery archive` to write them again"
                )
        absent = self._absent(source, span, table)
        if absent:
            raise Mismatch(
                f"the archive's ledger says candles of {source.manifest.series} are present in "
                f"{', '.join(str(one) for one in absent)}, and no file holds them"
            )
        return found

    @staticmethod
    def _absent(source: Source, span: Interval, table: pa.Table) -> IntervalSet:
        """Where the ledger says present and there are no rows."""
        present = IntervalSet(
            one.interval for one in source.manifest.coverage if one.state is CoverageState.PRESENT
        ).clip(span.start, span.end)
        timeframe = source.manifest.series.timeframe
        return present - IntervalSet.of_candles(open_times_ms(table), timeframe)


def _steps(source: Source, interval: Interval, rows: int) -> Iterator[tuple[bool, Interval, list[ArchiveFile]]]:
    """Every slice to read, and whether it is the first of a run without holes."""
    for segment in source.segments(interval):
        begins = True
        for span, files in source.slices(segment, rows):
            yield begins, span, files
            begins = False


def _literal(path: Path) -> str:
    """A path that DuckDB will not take for a pattern."""
    text = str(path)
    return (
        text.replace("[", "[[]").replace("*", "[*]").replace("?", "[?]") if any(c in text for c in "[*?") else text
    )
