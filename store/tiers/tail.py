"""The newest candles of a series in process memory: one table that grows as candles close."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from market.candle import no_candles, open_times_ms
from market.fingerprint import Digest, group_digests
from market.interval import Interval
from market.timeframe import Int64s, Timeframe
from store.candle_store import Chunk
from store.merge import chunk_starts
from store.tiers.periods import opening_in

#: Pieces that a table may consist of before it is put together.
_MOST_PIECES = 32


def copied(table: pa.Table) -> pa.Table:
    """The same rows in memory of their own: a part of a table keeps all of it. Arrow combines many pieces only."""
    columns = [pa.concat_arrays(column.chunks) if column.num_chunks else column for column in table.columns]
    return pa.Table.from_arrays(columns, schema=table.schema)


@dataclass(frozen=True)
class Tail:
    """Every stored candle from `start` on, up to the last one. Immutable; it grows by making another one.

    Each chunk's digest is known from the database, and the rows are held to it, so a correction anywhere in the
    tail is noticed, whoever wrote it and wherever.
    """

    #: Where a chunk starts, epoch milliseconds.
    start: int
    #: Candle schema, sorted.
    table: pa.Table = field(default_factory=no_candles)
    #: Open times of the rows.
    times: Int64s = field(default_factory=lambda: np.empty(0, np.int64))
    #: What the database says of each chunk, and what the rows come to.
    wanted: Mapping[int, Digest] = field(default_factory=dict)
    held: Mapping[int, Digest] = field(default_factory=dict)

    @property
    def last(self) -> int:
        """The open time of the last row; just before the start without rows."""
        return int(self.times[-1]) if len(self.times) else self.start - 1

    @property
    def bytes(self) -> int:
        """What it takes in memory, about."""
        return int(self.table.nbytes) + self.times.nbytes + 200 * len(self.wanted) + 1000

    @classmethod
    def read(cls, start: int, rows: pa.Table, chunks: Iterable[Chunk]) -> Tail:
        """From one snapshot: all rows from `start` on and the chunks beside them, which need no checking."""
        digests = {one.start: one.digest for one in chunks if one.start >= start}
        return cls(start, rows.combine_chunks(), open_times_ms(rows), digests, digests)

    def told(self, chunks: Iterable[Chunk]) -> Tail:
        """With what the database now says of some chunks."""
        return replace(
            self, wanted={**self.wanted, **{one.start: one.digest for one in chunks if one.start >= self.start}}
        )

    def grown(self, rows: pa.Table, timeframe: Timeframe) -> Tail:
        """With rows after the last one."""
        if not rows.num_rows:
            return self
        times = open_times_ms(rows)
        chunks = chunk_starts(times, timeframe)
        firsts = np.flatnonzero(np.concatenate(([True], chunks[1:] != chunks[:-1])))
        held = dict(self.held)
        for start, digest in zip(chunks[firsts].tolist(), group_digests(rows, firsts), strict=True):
            held[start] = held.get(start, Digest()) + digest
        table = pa.concat_tables([self.table, rows])
        if table.column(0).num_chunks > _MOST_PIECES:
            table = table.combine_chunks()
        return replace(self, table=table, times=np.concatenate((self.times, times)), held=held)

    def first_wrong(self) -> int | None:
        """The first chunk whose rows are not what the database says; None where all are."""
        starts = self.wanted.keys() | self.held.keys()
        wrong = [one for one in starts if self.wanted.get(one, Digest()) != self.held.get(one, Digest())]
        return min(wrong, default=None)

    def before(self, instant: int) -> Tail:
        """Without the rows from the chunk that starts at `instant` on."""
        count = int(np.searchsorted(self.times, instant))
        held = {start: digest for start, digest in self.held.items() if start < instant}
        return replace(self, table=self.table.slice(0, count), times=self.times[:count], held=held)

    def since(self, start: int) -> Tail:
        """Without the rows before the chunk that starts at `start`; copied, so that they can be freed."""
        first = int(np.searchsorted(self.times, start))
        return Tail(
            start,
            copied(self.table.slice(first)),
            self.times[first:].copy(),
            {one: digest for one, digest in self.wanted.items() if one >= start},
            {one: digest for one, digest in self.held.items() if one >= start},
        )

    def rows(self, interval: Interval) -> pa.Table:
        """Those that open in `interval`."""
        return opening_in(self.table, self.times, interval)
