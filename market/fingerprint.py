"""Fingerprints: equal candles give equal fingerprints on every store, file and machine.

Each row is hashed to 128 bits and a set of rows is the sum of its hashes, so a digest can be kept current when
a row is added or replaced without reading the others. A dataset's fingerprint is a SHA-256 over the digests of its
parts. The row hash is made for telling data apart, not for withstanding someone who forges data on purpose;
archive files carry a SHA-256 of their bytes for that.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from market.candle import CANDLE_SCHEMA, INSTANT
from market.candle_row import CandleRow
from market.instrument import Series

_Words = npt.NDArray[np.uint64]
_MASK = (1 << 64) - 1
#: What stands for a null: a NaN bit pattern that arithmetic never makes.
_NULL = np.uint64(0x7FF8_DEAD_BEEF_0001)
#: Rows hashed at a time, so that the working set stays in the processor's cache.
_BLOCK = 1 << 14


def _odd_constants(seed: int, count: int) -> list[np.uint64]:
    digest = b"".join(
        hashlib.sha256(f"chandlery candle {seed} {index}".encode()).digest()[:8] for index in range(count)
    )
    return [np.uint64(int(word) | 1) for word in np.frombuffer(digest, "<u8")]


#: Two lanes with their own multiplier for each column.
_LANES = tuple(_odd_constants(seed, len(CANDLE_SCHEMA)) for seed in (1, 2))
_PLAIN_LANES = tuple([int(constant) for constant in lane] for lane in _LANES)
_NULL_FOLDED = int(_NULL) ^ (int(_NULL) >> 32)
#: Added to the values of a row: -0.0 and 0.0 are the same number and must hash alike.
_ZEROS = tuple(0.0 if field.type == pa.float64() else 0 for field in CANDLE_SCHEMA)
_VALUES = struct.Struct("<" + "".join("d" if field.type == pa.float64() else "q" for field in CANDLE_SCHEMA))
_WORDS = struct.Struct(f"<{len(CANDLE_SCHEMA)}Q")


@dataclass(frozen=True)
class Digest:
    """The sum of row hashes: two 64-bit lanes and the number of rows. Adding digests joins disjoint sets."""

    rows: int = 0
    low: int = 0
    high: int = 0

    def __add__(self, other: Digest) -> Digest:
        return Digest(self.rows + other.rows, (self.low + other.low) & _MASK, (self.high + other.high) & _MASK)

    def __sub__(self, other: Digest) -> Digest:
        return Digest(self.rows - other.rows, (self.low - other.low) & _MASK, (self.high - other.high) & _MASK)

    @property
    def hex(self) -> str:
        """32 hexadecimal digits."""
        return f"{self.high:016x}{self.low:016x}"

    @staticmethod
    def of_hex(rows: int, text: str) -> Digest:
        """The digest that :attr:`hex` wrote."""
        return Digest(rows, int(text[16:], 16), int(text[:16], 16))


def row_hashes(table: pa.Table) -> tuple[_Words, _Words]:
    """Two uint64 hashes of each row, over all columns of the candle schema, in that order."""
    words = [_words(table, index) for index in range(len(CANDLE_SCHEMA))]
    low, high = np.empty(table.num_rows, np.uint64), np.empty(table.num_rows, np.uint64)
    for start in range(0, table.num_rows, _BLOCK):
        block = slice(start, start + _BLOCK)
        mixed = [_folded(column[block]) for column in words]
        for lane, out in zip(_LANES, (low, high), strict=True):
            out[block] = _hash_block(mixed, lane)
    return low, high


def _words(table: pa.Table, index: int) -> _Words:
    field = CANDLE_SCHEMA.field(index)
    column = table.column(index).combine_chunks()
    if field.type == INSTANT:
        column = column.cast(pa.int64())
    nulls = column.null_count
    values = column.fill_null(0).to_numpy(zero_copy_only=False) if nulls else column.to_numpy(zero_copy_only=False)
    if values.dtype == np.float64:
        values = values + 0.0  # -0.0 and 0.0 are the same number and must hash alike
    words: _Words = np.ascontiguousarray(values).view(np.uint64)
    if nulls:
        words = np.where(column.is_null().to_numpy(zero_copy_only=False), _NULL, words)
    return words


def _folded(words: _Words) -> _Words:
    # Short decimals have their low mantissa bits zero; fold the high half down before multiplying.
    folded: _Words = words ^ (words >> np.uint64(32))
    return folded


def _hash_block(mixed: list[_Words], lane: list[np.uint64]) -> _Words:
    total = np.zeros(len(mixed[0]), np.uint64)
    for words, constant in zip(mixed, lane, strict=True):
        product = words * constant
        product ^= product >> np.uint64(29)
        # Rotating the running total makes the hash depend on which column a value stands in.
        total = (total << np.uint64(13)) | (total >> np.uint64(51))
        total += product
    total ^= total >> np.uint64(33)
    total *= np.uint64(0xFF51_AFD7_ED55_8CCD)
    total ^= total >> np.uint64(33)
    return total


def row_digest(row: CandleRow) -> Digest:
    """The digest of one row: :func:`row_hashes` without numpy, whose calls cost more than one row is worth."""
    filled = [0 if value is None else value + number for value, number in zip(row, _ZEROS, strict=True)]
    mixed = [
        _NULL_FOLDED if value is None else word ^ (word >> 32)
        for value, word in zip(row, _WORDS.unpack(_VALUES.pack(*filled)), strict=True)
    ]
    return Digest(1, *(_hash_row(mixed, lane) for lane in _PLAIN_LANES))


def _hash_row(mixed: list[int], lane: list[int]) -> int:
    """What :func:`_hash_block` does, in numbers that have to be cut to 64 bits."""
    total = 0
    for word, constant in zip(mixed, lane, strict=True):
        product = word * constant & _MASK
        total = ((total << 13) + (total >> 51) + (product ^ (product >> 29))) & _MASK
    total ^= total >> 33
    total = total * 0xFF51_AFD7_ED55_8CCD & _MASK
    return total ^ (total >> 33)


def digest(table: pa.Table) -> Digest:
    """The digest of all rows of a table."""
    low, high = row_hashes(table)
    return Digest(table.num_rows, int(low.sum(dtype=np.uint64)), int(high.sum(dtype=np.uint64)))


def group_digests(table: pa.Table, starts: npt.NDArray[np.int64]) -> list[Digest]:
    """The digest of each group of rows; `starts` holds the index of each group's first row, 0 first."""
    low, high = row_hashes(table)
    rows = np.diff(np.append(starts, table.num_rows))
    return [
        Digest(int(count), int(a), int(b))
        for count, a, b in zip(rows, np.add.reduceat(low, starts), np.add.reduceat(high, starts), strict=True)
    ]


def dataset_fingerprint(parts: Iterable[tuple[Series, Digest]]) -> str:
    """SHA-256 (hex) of a dataset: the digests of its series, in an order of their own names."""
    text = "\n".join(
        sorted(
            f"{series.exchange}|{series.symbol}|{series.timeframe}|{one.rows}|{one.hex}" for series, one in parts
        )
    )
    return hashlib.sha256(text.encode()).hexdigest()
