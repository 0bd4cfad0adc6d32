"""Containers: what kind of file it is, and its rows in batches, before anyone asks what the columns mean.

Recognised by content, never by suffix. Text rows keep their text, so that numbers are converted in one place.
Memory is bounded by one batch, whatever the size of the file.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from market.candle import Refusal
from market.errors import BadInput
from market.timeframe import Int64s

#: Rows of one batch; text is held as Python strings for a moment, so its batches are smaller.
BATCH_ROWS = 100_000
_TEXT_ROWS = 40_000
_JSON_CHUNK = 1 << 20

#: What the readers of the containers raise at bytes they cannot make sense of.
#: A damaged length asks for more memory than there is.
_DAMAGE = (pa.ArrowException, MemoryError, zipfile.BadZipFile, zlib.error, EOFError, UnicodeDecodeError)

READABLE = "a CSV (also zipped), JSON, Parquet, Feather or Arrow file of candles"


@dataclass(frozen=True, kw_only=True)
class RowBatch:
    """Rows as they stand in the file."""

    #: Columns by the file's own names, or ``0``, ``1``, ... where it has none.
    table: pa.Table
    #: 0-based row of the file for each row of `table`.
    rows: Int64s
    #: Line of the text file for each row of `table`, from 1; None for other containers.
    lines: Int64s | None = None
    #: Rows that have another number of columns.
    broken: tuple[Refusal, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Container:
    """An open candle file."""

    #: ``CSV``, ``zipped CSV``, ``JSON``, ``Parquet``, ``Arrow file`` or ``Arrow stream``.
    kind: str
    #: Column names; None where the file has none.
    names: tuple[str, ...] | None
    #: How many columns a row has.
    width: int
    batches: Iterator[RowBatch]


@contextmanager
def opened(path: Path) -> Iterator[Container]:
    """The container at `path`, open until the block ends.

    :raises BadInput: naming ``file``: not there, a folder, empty, damaged, or nothing we can read. Damage past
        the first rows is found, and raised, while the batches are read.
    """
    try:
        if path.is_dir():
            raise BadInput("file", str(path), f"{READABLE}; this is a folder")
        with ExitStack() as open_files:
            file = open_files.enter_context(path.open("rb"))
            yield _container(file, path, open_files)
    except FileNotFoundError:
        raise BadInput("file", str(path), f"{READABLE}; there is no such file") from None
    except (*_DAMAGE, NotImplementedError) as error:
        raise BadInput(
            "file", str(path), f"a whole file; this one is damaged or cut off ({_line(error)})"
        ) from error
    except OSError as error:
        raise BadInput("file", str(path), f"{READABLE}; it cannot be read ({_line(error)})") from error


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _container(file: IO[bytes], path: Path, open_files: ExitStack) -> Container:
    head = file.read(4096)
    file.seek(0)
    if not head:
        raise BadInput("file", str(path), f"{READABLE}; this one is empty")
    if head.startswith(b"PAR1"):
        return _parquet(file)
    if head.startswith(b"ARROW1"):
        return _arrow_file(file)
    if head.startswith(b"\xff\xff\xff\xff"):
        return _arrow_stream(file)
    if head.startswith(b"PK\x03\x04"):
        return _zipped(file, path, open_files)
    if b"\0" in head or head.startswith((b"FEA1", b"\x1f\x8b")):
        raise BadInput("file", str(path), f"{READABLE}; its first bytes are {head[:8]!r}")
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith((b"[", b"{")):
        return _json(_text(file, open_files), path)
    return _csv(_text(file, open_files), path, "CSV")


def _parquet(file: IO[bytes]) -> Container:
    # Without buffering ahead, a column chunk is read as it is needed, not a whole row group in one go.
    reader = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
    names = tuple(reader.schema_arrow.names)
    tables = (pa.Table.from_batches([batch]) for batch in reader.iter_batches(batch_size=BATCH_ROWS))
    return Container(kind="Parquet", names=names, width=len(names), batches=_numbered(tables))


def _arrow_file(file: IO[bytes]) -> Container:
    reader = pa.ipc.open_file(file)
    names = tuple(reader.schema.names)
    batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
    return Container(kind="Arrow file", names=names, width=len(names), batches=_numbered(_slices(batches)))


def _arrow_stream(file: IO[bytes]) -> Container:
    reader = pa.ipc.open_stream(file)
    names = tuple(reader.schema.names)
    return Container(kind="Arrow stream", names=names, width=len(names), batches=_numbered(_slices(reader)))


def _slices(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    for batch in batches:
        table = pa.Table.from_batches([batch])
        for start in range(0, table.num_rows, BATCH_ROWS):
            yield table.slice(start, BATCH_ROWS)


def _numbered(tables: Iterable[pa.Table]) -> Iterator[RowBatch]:
    first = 0
    for table in tables:
        yield RowBatch(table=table, rows=np.arange(first, first + table.num_rows))
        first += table.num_rows


def _zipped(file: IO[bytes], path: Path, open_files: ExitStack) -> Container:
    archive = open_files.enter_context(zipfile.ZipFile(file))
    members = [one for one in archive.infolist() if not one.is_dir()]
    if len(members) != 1 or members[0].flag_bits & 1:
        found = ", ".join(one.filename for one in members[:5])
        raise BadInput(
            "file", str(path), f"a zip with one CSV file and no password; it holds: {found or 'nothing'}"
        )
    return _csv(_text(archive.open(members[0]), open_files), path, "zipped CSV")


def _text(file: IO[bytes], open_files: ExitStack) -> IO[str]:
    # utf-8-sig: spreadsheets put a byte order mark first.
    return open_files.enter_context(io.TextIOWrapper(file, "utf-8-sig"))


def _csv(text: IO[str], path: Path, kind: str) -> Container:
    numbered = _lines(text)
    start = next(numbered, None)
    if start is None:
        raise BadInput("file", str(path), f"{READABLE}; this one has only empty lines")
    line, first = start
    names = None if first[0][:1].isdigit() or first[0].startswith("-") else tuple(first)
    width = len(first)
    if names is None:
        numbered = _again(line, first, numbered)
    return Container(kind=kind, names=names, width=width, batches=_text_batches(numbered, names, width))


def _lines(text: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(text, 1):
        if line.strip():
            yield number, _cells(line)


def _cells(line: str) -> list[str]:
    # Numbers and times hold no commas, so quotes mean nothing here; and a lost quote cannot swallow rows.
    return [cell.strip() for cell in line.replace('"', "").split(",")]


def _again(line: int, cells: list[str], rest: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    yield line, cells
    yield from rest


def _text_batches(
    rows: Iterator[tuple[int, list[str]]], names: tuple[str, ...] | None, width: int
) -> Iterator[RowBatch]:
    """Batches of text columns from (line, cells); rows of another width become refusals."""
    columns = list(names) if names is not None else [str(index) for index in range(width)]
    good: list[list[str]] = []
    at: list[int] = []
    lines: list[int] = []
    broken: list[Refusal] = []
    for row, (line, cells) in enumerate(rows):
        if len(cells) == width:
            good.append(cells)
            at.append(row)
            lines.append(line)
        else:
            reason = f"line {line} has {len(cells)} columns, the others have {width}"
            broken.append(Refusal(row=row, open_time=None, reason=reason, raw=",".join(cells)[:1000]))
        if len(good) + len(broken) >= _TEXT_ROWS:
            yield _text_batch(columns, good, at, lines, broken)
            good, at, lines, broken = [], [], [], []
    if good or broken:
        yield _text_batch(columns, good, at, lines, broken)


def _text_batch(
    columns: list[str], rows: list[list[str]], at: list[int], lines: list[int], broken: list[Refusal]
) -> RowBatch:
    cells: Iterable[Any] = zip(*rows, strict=True) if rows else [()] * len(columns)
    arrays = [pa.array(column, pa.string()) for column in cells]
    return RowBatch(
        table=pa.Table.from_arrays(arrays, names=columns),
        rows=np.array(at, np.int64),
        lines=np.array(lines, np.int64),
        broken=tuple(broken),
    )


def _json(text: IO[str], path: Path) -> Container:
    rows = _json_rows(text, path)
    first = next(rows, None)
    if first is None:
        raise BadInput("file", str(path), f"{READABLE}; this list is empty")
    width = len(first)
    numbered = _again(1, first, ((1, row) for row in rows))
    batches = _text_batches(numbered, None, width)
    # Rows of JSON have no lines of their own.
    unlined = (RowBatch(table=one.table, rows=one.rows, broken=_unlined(one.broken)) for one in batches)
    return Container(kind="JSON", names=None, width=width, batches=unlined)


def _unlined(broken: tuple[Refusal, ...]) -> tuple[Refusal, ...]:
    return tuple(
        Refusal(
            row=one.row,
            open_time=None,
            reason=one.reason.replace("line 1 has", f"row {one.row} has", 1),
            raw=one.raw,
        )
        for one in broken
    )


def _json_rows(text: IO[str], path: Path) -> Iterator[list[str]]:
    """The rows of a list of lists as text cells, one chunk of the file in memory at a time."""
    expected = "a JSON list of rows [open time in ms, open, high, low, close, volume]"
    buffer = text.read(_JSON_CHUNK).lstrip()
    if not buffer.startswith("["):
        raise BadInput("file", str(path), expected)
    buffer = buffer[1:]
    while True:
        chunk = text.read(_JSON_CHUNK)
        if chunk:
            buffer += chunk
            # A row ends with "]," except the last one; rows hold no lists themselves.
            cut = buffer.rfind("],") + 1
            if not cut:
                continue
            piece, buffer = buffer[:cut], buffer[cut + 1 :]
        else:
            piece = buffer.rstrip()
            if not piece.endswith("]"):
                raise BadInput("file", str(path), f"{expected}; this one ends in the middle")
            piece = piece[:-1]
        try:
            # Numbers stay text: they are converted, and judged, where those of a CSV are.
            rows = json.loads(f"[{piece}]", parse_float=str, parse_int=str, parse_constant=str)
        except ValueError as error:
            raise BadInput("file", str(path), f"{expected}; it is not valid JSON ({error})") from error
        for row in rows:
            yield ["" if cell is None else str(cell) for cell in row] if isinstance(row, list) else [str(row)]
        if not chunk:
            return
