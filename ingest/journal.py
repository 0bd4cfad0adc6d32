"""The journal: what could not reach the database is on the disk before it counts as safe, and comes back in order.

A folder of numbered files (:mod:`ingest.journal_segment`), written by one process at a time. A file is removed once
all of it has reached the database. What cannot be read or is refused is renamed to ``*.refused`` and never removed;
a single refused record is a file of its own, which the next start takes back once it is renamed to ``*.journal``.

Nothing here is async: call it from one thread that is not the event loop's.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
import struct
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import structlog

from ingest.journal_record import VERSION
from ingest.journal_segment import (
    HEADER_BYTES,
    MAGIC,
    Entry,
    Place,
    Segment,
    framed,
    goes_on,
    header,
    read_header,
    whole_records,
)
from market.errors import StoreUnusable
from store.files import locked, sync

log = structlog.get_logger(__name__)

#: Bytes that all files together may take.
MOST_BYTES = 4 << 30
#: Bytes after which a new file is begun.
SEGMENT_BYTES = 64 << 20
_NUMBERED = re.compile(r"(\d{20})\.")
#: Id and number of a file, an offset in it, crc32 of the three.
_POSITION = struct.Struct("<QQQ")
_CRC = struct.Struct("<I")
_FOREIGN = "it is not a file of this journal"


class Journal:
    """Open with :meth:`opened`."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder = folder
        #: Records that are not finished.
        self.records = 0
        #: Bytes of the files that hold them.
        self.bytes = 0
        #: Bytes of what was set aside; they count towards the limit too.
        self.refused_bytes = 0
        self._most_bytes = most_bytes
        self._segment_bytes = segment_bytes
        self._segments: deque[Segment] = deque()
        #: Up to here the first file is finished.
        self._offset = HEADER_BYTES
        #: The last file, where it is open for writing.
        self._writing: int | None = None
        self._remembered: int | None = None
        self._handed: list[Place] = []
        self._numbers = itertools.count(1)

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls, folder: Path, *, most_bytes: int = MOST_BYTES, segment_bytes: int = SEGMENT_BYTES
    ) -> Iterator[Journal]:
        """Make the folder or take up what another process left in it; a torn end is cut off.

        :raises StoreBusy: another process has it open.
        :raises StoreUnusable: it cannot be read or written.
        """
        with locked(folder / "lock", "ingest"):
            journal = cls(folder, most_bytes, segment_bytes)
            try:
                try:
                    journal._take_up()
                except OSError as error:
                    raise StoreUnusable(f"the journal {folder} cannot be read: {_said(error)}") from error
                yield journal
            finally:
                journal._stop_writing()
                if journal._remembered is not None:
                    os.close(journal._remembered)

    def append(self, payloads: Sequence[bytes]) -> None:
        """Add records. They are on the disk when this returns, and survive a power cut.

        :raises StoreUnusable: they are not, and there is no trace of them: the disk is full or fails, or the
            journal is as large as it may become.
        """
        data = b"".join(framed(payload) for payload in payloads)
        self._check_room(len(data))
        last = self._segments[-1] if self._segments else None
        try:
            if self._writing is None or last is None or last.end + len(data) > self._segment_bytes:
                self._begin(data)
            else:
                _write(self._writing, data, last.end)
                os.fsync(self._writing)
                last.end += len(data)
                self.bytes += len(data)
        except OSError as error:
            self._cut_back()
            raise StoreUnusable(
                f"the journal {self.folder} takes no more: {_said(error)}; it needs {len(data):,} bytes for "
                "what the database could not take. All earlier records are safe; make room and start again"
            ) from error
        self.records += len(payloads)

    def read(self, most: int = 1000, most_bytes: int = 1 << 20) -> list[Entry]:
        """The oldest unfinished records in order, the first one at least; the same ones until they are finished.

        :raises StoreUnusable: a file was damaged since it was written.
        """
        found: list[Entry] = []
        size = 0
        for entry in self._unfinished():
            if found and (len(found) >= most or size + len(entry.payload) > most_bytes):
                break
            found.append(entry)
            size += len(entry.payload)
        self._handed = [entry.place for entry in found]
        return found

    def done(self, up_to: Place) -> None:
        """Everything up to this place, which the last :meth:`read` gave, has reached the database."""
        self.records -= sum(place <= up_to for place in self._handed)
        self._handed = [place for place in self._handed if place > up_to]
        while self._segments and self._segments[0].place <= up_to:
            self._remove(self._segments.popleft())
        if self._segments and self._segments[0].number == up_to.segment:
            self._offset = up_to.offset
            self._remember(self._segments[0])

    def set_aside(self, payload: bytes, reason: str) -> Path:
        """Keep a record that no store takes, where it is in nobody's way.

        :raises StoreUnusable: it could not be written.
        """
        number = next(self._numbers)
        path = self.folder / f"{number:020}.refused"
        data = header(VERSION, secrets.randbits(64)) + framed(payload)
        self._check_room(len(data))
        try:
            descriptor = self._create(path, data)
        except OSError as error:
            raise StoreUnusable(f"{path} cannot be written: {_said(error)}") from error
        os.close(descriptor)
        self.refused_bytes += len(data)
        log.error("record_set_aside", path=str(path), bytes=len(payload), reason=reason)
        return path

    def _unfinished(self) -> Iterator[Entry]:
        offset = self._offset
        for segment in self._segments:
            try:
                with segment.path.open("rb") as file:
                    for end, payload in whole_records(file, offset):
                        offset = end
                        yield Entry(Place(segment.number, end), payload)
                        if end >= segment.end:
                            break
            except OSError as error:
                raise StoreUnusable(f"{segment.path} cannot be read: {_said(error)}") from error
            if offset < segment.end:
                raise StoreUnusable(f"{segment.path} was damaged at byte {offset:,} after it was written")
            offset = HEADER_BYTES

    # Writing.

    def _check_room(self, size: int) -> None:
        used = self.bytes + self.refused_bytes
        if used + size > self._most_bytes:
            raise StoreUnusable(
                f"the journal {self.folder} holds {used:,} bytes and may hold {self._most_bytes:,}; it needs "
                f"{size:,} more for what the database could not take. All earlier records are safe; bring the "
                "database back, or allow a larger journal"
            )

    def _begin(self, data: bytes) -> None:
        """Begin a file with these records."""
        self._stop_writing()
        number, segment_id = next(self._numbers), secrets.randbits(64)
        path = self.folder / f"{number:020}.journal"
        self._writing = self._create(path, header(VERSION, segment_id) + data)
        segment = Segment(number, path, segment_id, HEADER_BYTES + len(data))
        if not self._segments:
            self._offset = HEADER_BYTES
        self._segments.append(segment)
        self.bytes += segment.end

    def _create(self, path: Path, data: bytes) -> int:
        """A new file with `data`, on the disk together with its name; or no file."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            _write(descriptor, data, 0)
            os.fsync(descriptor)
            sync(self.folder)
        except OSError:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        return descriptor

    def _cut_back(self) -> None:
        """After a failure: take what was half-written away, and never write to that file again.

        After a failed fsync nobody knows what the disk has of it; the next record begins a new file.
        """
        if self._writing is not None:
            # What cannot be cut off now is cut off, or read as never acknowledged records, by the next start.
            with contextlib.suppress(OSError):
                os.ftruncate(self._writing, self._segments[-1].end)
                os.fsync(self._writing)
            self._stop_writing()

    def _stop_writing(self) -> None:
        if self._writing is not None:
            os.close(self._writing)
            self._writing = None

    # Finishing.

    def _remove(self, segment: Segment) -> None:
        if not self._segments:
            self._stop_writing()
        # The name may outlive this, or a power cut bring it back: its records are then written once more.
        with contextlib.suppress(OSError):
            segment.path.unlink()
        self.bytes -= segment.end
        self._offset = HEADER_BYTES

    def _remember(self, segment: Segment) -> None:
        """Note how far the first file is finished. Not synced: forgotten, its records are written once more."""
        data = _POSITION.pack(segment.id, segment.number, self._offset)
        with contextlib.suppress(OSError):
            if self._remembered is None:
                self._remembered = os.open(self.folder / "position", os.O_RDWR | os.O_CREAT, 0o644)
            os.pwrite(self._remembered, data + _CRC.pack(zlib.crc32(data)), 0)

    def _position(self) -> tuple[int, Place] | None:
        """The id of a file and how far it is finished."""
        with contextlib.suppress(FileNotFoundError):
            data = (self.folder / "position").read_bytes()
            if len(data) == _POSITION.size + _CRC.size:
                packed = data[: _POSITION.size]
                if _CRC.pack(zlib.crc32(packed)) == data[_POSITION.size :]:
                    segment_id, number, offset = _POSITION.unpack(packed)
                    return segment_id, Place(number, offset)
        return None

    # Opening.

    def _take_up(self) -> None:
        position = self._position()
        highest = 0
        for path in sorted(self.folder.iterdir()):
            if numbered := _NUMBERED.match(path.name):
                highest = max(highest, int(numbered[1]))
            if path.suffix == ".refused":
                self.refused_bytes += path.stat().st_size
            elif path.suffix == ".journal":
                segment = self._inspect(path, int(numbered[1])) if numbered else None
                if segment is not None:
                    self._segments.append(segment)
                elif not numbered:
                    self._refuse(path, "its name is no number of 20 digits")
        self._numbers = itertools.count(highest + 1)
        self.bytes = sum(segment.end for segment in self._segments)
        if position is not None and any(
            (one.id, one.number) == (position[0], position[1][0]) for one in self._segments
        ):
            while self._segments and self._segments[0].place <= position[1]:
                self._remove(self._segments.popleft())
            if self._segments and self._segments[0].number == position[1].segment:
                self._offset = position[1].offset
        self.records = sum(1 for _ in self._unfinished())
        if self.records:
            log.warning("journal_left_behind", folder=str(self.folder), records=self.records, bytes=self.bytes)

    def _inspect(self, path: Path, number: int) -> Segment | None:
        """What a file holds, its torn end cut off; None where it holds nothing or was set aside."""
        with path.open("rb") as file:
            try:
                magic, version, segment_id = read_header(file)
            except EOFError:
                file.seek(0)
                self._torn_at_birth(path, file.read())
                return None
            if magic != MAGIC or version != VERSION:
                ours = f"its records have version {version}, this release knows {VERSION}"
                self._refuse(path, ours if magic == MAGIC else _FOREIGN)
                return None
            end = max((end for end, _ in whole_records(file, HEADER_BYTES)), default=HEADER_BYTES)
            file.seek(end)
            tail = file.read()
            damaged = bool(tail) and goes_on(file, end)
        if tail:
            self._cut_off(path, end, tail, damaged)
        if end == HEADER_BYTES:
            path.unlink()
            return None
        return Segment(number, path, segment_id, end)

    def _torn_at_birth(self, path: Path, content: bytes) -> None:
        """A file that ends inside its header: nothing in it was ever acknowledged, if it is ours."""
        if MAGIC.startswith(content[: len(MAGIC)]):
            path.unlink()
        else:
            self._refuse(path, _FOREIGN)

    def _cut_off(self, path: Path, end: int, tail: bytes, damaged: bool) -> None:
        if damaged:
            # Whole records follow: this is no kill in the middle of a write.
            aside = self._free(path.with_suffix(".tail.refused"))
            os.close(self._create(aside, tail))
            self.refused_bytes += len(tail)
            log.error("journal_damaged", path=str(path), byte=end, bytes=len(tail), kept=str(aside))
        else:
            log.warning("journal_torn", path=str(path), byte=end, bytes=len(tail))
        with path.open("r+b") as file:
            file.truncate(end)
            os.fsync(file.fileno())

    def _refuse(self, path: Path, reason: str) -> None:
        target = self._free(path.with_name(path.name + ".refused"))
        path.rename(target)
        sync(self.folder)
        self.refused_bytes += target.stat().st_size
        log.error("journal_file_set_aside", path=str(target), reason=reason)

    @staticmethod
    def _free(path: Path) -> Path:
        """`path`, or where that is taken, one with a number before its end."""
        names = itertools.chain([path], (path.with_suffix(f".{count}.refused") for count in itertools.count(2)))
        return next(name for name in names if not name.exists())


def _write(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of it: the system may take less than it is given."""
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written


def _said(error: OSError) -> str:
    return error.strerror or str(error)
