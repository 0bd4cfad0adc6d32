"""The coverage ledger's rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from market.coverage import CoverageState, Covered
from market.interval import Interval
from store.series_key import SeriesKey
from store.sqlite.rows import QUERIES, named


def read_coverage(connection: sqlite3.Connection, key: SeriesKey, start: int, end: int) -> list[Covered]:
    """Entries that overlap or touch ``[start, end]``, whole, oldest first."""
    rows = connection.execute(QUERIES["read_coverage"], named(key) | {"start": start, "end": end})
    return [
        Covered(
            interval=Interval(row[0], row[1]),
            state=CoverageState(row[2]),
            source=row[3],
            learned_at=row[4],
            expires_at=row[5],
            evidence=row[6],
        )
        for row in rows
    ]


def replace_coverage(
    connection: sqlite3.Connection, key: SeriesKey, before: Sequence[Covered], after: Sequence[Covered]
) -> bool:
    """Make the entries `before` into `after`; only rows that differ are written.

    :return: true if anything was written.
    """
    were, are = set(before), set(after)
    gone = [one for one in before if one not in are]
    new = [one for one in after if one not in were]
    if gone:
        connection.executemany(
            QUERIES["delete_coverage"], [(key.instrument_id, key.timeframe, one.interval.start) for one in gone]
        )
    if new:
        connection.executemany(
            QUERIES["insert_coverage"],
            [
                (
                    key.instrument_id,
                    key.timeframe,
                    one.interval.start,
                    one.interval.end,
                    one.state.value,
                    one.source,
                    one.learned_at,
                    one.expires_at,
                    one.evidence,
                )
                for one in new
            ],
        )
    return bool(gone or new)
