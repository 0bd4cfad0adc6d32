"""The coverage ledger's rows."""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from market.coverage import CoverageState, Covered
from market.interval import Interval
from store.postgres.connection import Connection
from store.postgres.rows import QUERIES, storable
from store.series_key import SeriesKey


async def read_coverage(connection: Connection, key: SeriesKey, start: int, end: int) -> list[Covered]:
    """Entries that overlap or touch ``[start, end]``, whole, oldest first."""
    rows = await connection.fetch(QUERIES["read_coverage"], key.instrument_id, key.timeframe, start, end)
    return [to_covered(row) for row in rows]


def to_covered(row: asyncpg.Record) -> Covered:
    """A row of ``read_coverage``."""
    return Covered(
        interval=Interval(row[0], row[1]),
        state=CoverageState(row[2]),
        source=row[3],
        learned_at=row[4],
        expires_at=row[5],
        evidence=row[6],
    )


async def replace_coverage(
    connection: Connection, key: SeriesKey, before: Sequence[Covered], after: Sequence[Covered]
) -> bool:
    """Make the entries `before` into `after`; only rows that differ are written.

    :return: true if anything was written.
    """
    were, are = set(before), set(after)
    gone = [one for one in before if one not in are]
    new = [one for one in after if one not in were]
    if gone:
        await connection.executemany(
            QUERIES["delete_coverage"], [(key.instrument_id, key.timeframe, one.interval.start) for one in gone]
        )
    if new:
        await connection.executemany(
            QUERIES["insert_coverage"],
            [
                (
                    key.instrument_id,
                    key.timeframe,
                    one.interval.start,
                    one.interval.end,
                    one.state.value,
                    storable(one.source),
                    one.learned_at,
                    one.expires_at,
                    None if one.evidence is None else storable(one.evidence),
                )
                for one in new
            ],
        )
    return bool(gone or new)
