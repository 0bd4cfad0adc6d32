"""One file of the journal: a header, then records that are only ever added.

::

    header   magic 8 bytes | version of the records u32 | id of the file u64
    record   length u32 | crc32 u32, over the length and the payload | payload

All numbers are little-endian. What a kill or a power cut leaves behind the last whole record was never
acknowledged.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

MAGIC = b"CHNDLJRN"
_HEADER = struct.Struct("<8sIQ")
HEADER_BYTES = _HEADER.size
_RECORD = struct.Struct("<II")
_LENGTH = struct.Struct("<I")
RECORD_BYTES = _RECORD.size


class Place(NamedTuple):
    """Where a record ends: the number of its file, and the byte behind it."""

    segment: int
    offset: int


class Entry(NamedTuple):
    """A record as it is read."""

    #: Where it ends; everything up to here is told to be finished with :meth:`ingest.journal.Journal.done`.
    place: Place
    payload: bytes


@dataclass
class Segment:
    """What is known of one file."""

    number: int
    path: Path
    #: Drawn at random, so that a remembered place is never taken for one in another file of the same number.
    id: int
    #: Bytes up to the end of the last whole record.
    end: int = HEADER_BYTES

    @property
    def place(self) -> Place:
        """Its end."""
        return Place(self.number, self.end)


def header(version: int, segment_id: int) -> bytes:
    """The first bytes of a file."""
    return _HEADER.pack(MAGIC, version, segment_id)


def framed(payload: bytes) -> bytes:
    """A record."""
    length = _LENGTH.pack(len(payload))
    return length + _LENGTH.pack(zlib.crc32(payload, zlib.crc32(length))) + payload


def read_header(file: BinaryIO) -> tuple[bytes, int, int]:
    """Magic, version and id; raises EOFError where the file is shorter than that."""
    read = file.read(HEADER_BYTES)
    if len(read) < HEADER_BYTES:
        raise EOFError
    magic, version, segment_id = _HEADER.unpack(read)
    return magic, version, segment_id


def whole_records(file: BinaryIO, offset: int) -> Iterator[tuple[int, bytes]]:
    """Each record from `offset` on, and where it ends; stops at the first one that is torn or damaged."""
    size = os.fstat(file.fileno()).st_size
    file.seek(offset)
    while size - offset >= RECORD_BYTES:
        length, crc = _RECORD.unpack(file.read(RECORD_BYTES))
        if length > size - offset - RECORD_BYTES:
            return
        payload = file.read(length)
        if zlib.crc32(payload, zlib.crc32(_LENGTH.pack(length))) != crc:
            return
        offset += RECORD_BYTES + length
        yield offset, payload


def goes_on(file: BinaryIO, offset: int) -> bool:
    """Whether a whole record follows the bad one at `offset`: then the bad one is damaged and not just torn."""
    file.seek(offset)
    start = file.read(RECORD_BYTES)
    if len(start) < RECORD_BYTES:
        return False
    length, _ = _RECORD.unpack(start)
    following = offset + RECORD_BYTES + length
    return any(True for _ in whole_records(file, following))
