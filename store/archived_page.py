"""Pages that reach back into the archive: the database's candles, and before them the ones it has dropped."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pyarrow as pa

from market.candle import by_open_time, open_times_ms
from market.clock import iso
from market.coverage import CoverageState
from market.errors import BadInput, StoreUnusable
from market.instrument import Series
from market.interval import Interval, IntervalSet
from market.rollup import roll_up
from market.timeframe import Timeframe
from store.archive.archive import Archive
from store.candle_store import StoredPage
from store.ledger import clip

#: The tier of what was read from the archive.
ARCHIVE_TIER = "archive"


async def with_archived(
    archive: Archive | None,
    series: Series,
    interval: Interval,
    page: StoredPage,
    limit: int | None,
    newest: bool,
    as_of_ms: int | None,
) -> StoredPage:
    """A page of `interval` with the candles that it lacks because the archive alone has them.

    :param limit: of the page; both what it has and what the archive has is cut to that.
    :raises BadInput: naming ``as_of``: the archive has no history, so it answers as of the drop or later only.
    :raises StoreUnusable: there is no archive to read, or it lacks what the ledger says it has.
    """
    entries = [one for one in page.coverage if one.state is CoverageState.ARCHIVED]
    dropped_at = max(one.learned_at for one in entries)
    until = max(one.interval.end for one in entries)
    if as_of_ms is not None and as_of_ms < dropped_at:
        raise BadInput(
            "as_of",
            iso(as_of_ms),
            f"an instant at or after {iso(dropped_at)}, when the candles of {series} before {iso(until)} moved to "
            f"the archive, which has no history; or a start at or after {iso(until)}",
        )
    if archive is None:
        raise StoreUnusable(
            f"{series}: the candles before {iso(until)} are in the archive and no longer in the database "
            f"({entries[-1].evidence}); this reader was given no archive"
        )
    old = await asyncio.to_thread(archive.read, series, page.unread, limit, newest)
    table = by_open_time(pa.concat_tables([old, page.table]))
    answered = interval
    if limit is not None and table.num_rows >= limit:
        table = table.slice(table.num_rows - limit) if newest else table.slice(0, limit)
        times = open_times_ms(table)
        first, last = int(times[0]), series.timeframe.next(int(times[-1]))
        answered = Interval(first, interval.end) if newest else Interval(interval.start, last)
    return replace(
        page, table=table, coverage=clip(page.coverage, answered), unread=IntervalSet(), tier=ARCHIVE_TIER
    )


def unread_buckets(page: StoredPage, run: Interval, timeframe: Timeframe, origin_ms: int) -> IntervalSet:
    """The buckets inside `run` of which a page of larger candles lacks something."""
    found = IntervalSet(
        Interval(timeframe.floor(one.start, origin_ms), timeframe.ceil(one.end, origin_ms)) for one in page.unread
    )
    return found.clip(run.start, run.end)


def with_buckets(
    page: StoredPage, buckets: IntervalSet, minutes: pa.Table, timeframe: Timeframe, origin_ms: int
) -> StoredPage:
    """A page of larger candles with those of `buckets` made of all their minutes."""
    kept = page.table.filter(pa.array(~buckets.contains_all(open_times_ms(page.table))))
    made = roll_up(minutes, timeframe, origin_ms).table
    return replace(
        page, table=by_open_time(pa.concat_tables([kept, made])), unread=IntervalSet(), tier=ARCHIVE_TIER
    )
