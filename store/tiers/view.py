"""What a read of candles goes through: one series as of one moment, whichever tiers are behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Protocol

import pyarrow as pa

from market.coverage import Covered
from market.instrument import Series
from market.interval import Interval
from market.timeframe import Timeframe
from store.archive.archive import Archive
from store.archived_page import unread_buckets, with_archived, with_buckets
from store.candle_store import CandleStore, SeriesFacts, StoredPage


class Moved(Exception):
    """The series has changed while it was being read: what was read so far is to be thrown away."""


class ReadAhead(Moved):
    """What was not held has been read: the next view has it."""


class UnknownPeriods(Moved):
    """The digests of periods have to be read again first."""


class SeriesView(Protocol):
    """A stored series; facts, candles and ledger agree with each other."""

    @property
    def facts(self) -> SeriesFacts: ...

    async def page(
        self, interval: Interval, *, limit: int | None = None, newest: bool = False, as_of_ms: int | None = None
    ) -> StoredPage:
        """Candles that open in `interval` and the ledger of it, archived ones included.

        :param limit: at most this many rows: the first ones, or the last ones where `newest`.
        :raises Moved: read it again from a new view.
        """
        ...

    async def rolled(self, interval: Interval, timeframe: Timeframe, origin_ms: int) -> StoredPage:
        """Larger candles made of those that open in `interval`, and the ledger of these.

        :param interval: whole buckets of `timeframe`.
        :raises Moved: read it again from a new view.
        """
        ...

    async def coverage(self, interval: Interval) -> list[Covered]:
        """The ledger, clipped to `interval`."""
        ...


class SeriesViews(Protocol):
    """Where views come from."""

    async def of(self, series: Sequence[Series]) -> list[SeriesView | None]:
        """A view of each; None where a series is not stored."""
        ...

    async def version(self, series: Sequence[Series]) -> Hashable | None:
        """What everything that can be read of these series depends on; None where it cannot be told."""
        ...


class StoredView:
    """A series read from the database, each time anew, and from the archive where the database has dropped it."""

    def __init__(self, store: CandleStore, archive: Archive | None, series: Series, facts: SeriesFacts) -> None:
        self._store = store
        self._archive = archive
        self._series = series
        self._facts = facts

    @property
    def facts(self) -> SeriesFacts:
        """As they were when the view was made."""
        return self._facts

    async def page(
        self, interval: Interval, *, limit: int | None = None, newest: bool = False, as_of_ms: int | None = None
    ) -> StoredPage:
        """See :meth:`SeriesView.page`; never moves.

        :raises StoreUnusable: the archive, which alone has a part of the range, lacks it or was not given.
        """
        page = await self._store.page(self._series, interval, limit=limit, newest=newest, as_of_ms=as_of_ms)
        if not page.unread:
            return page
        return await with_archived(self._archive, self._series, interval, page, limit, newest, as_of_ms)

    async def rolled(self, interval: Interval, timeframe: Timeframe, origin_ms: int) -> StoredPage:
        """See :meth:`SeriesView.rolled`; never moves."""
        page = await self._store.rolled(self._series, interval, timeframe, origin_ms)
        buckets = unread_buckets(page, interval, timeframe, origin_ms)
        if not buckets:
            return page
        pages = [await self.page(one) for one in buckets]
        if any(one.revision != page.revision for one in pages):
            page = replace(page, revision=None)
        minutes = pa.concat_tables([one.table for one in pages])
        return await asyncio.to_thread(with_buckets, page, buckets, minutes, timeframe, origin_ms)

    async def coverage(self, interval: Interval) -> list[Covered]:
        """See :meth:`SeriesView.coverage`."""
        return await self._store.coverage(self._series, interval)


class StoredViews:
    """Views that read the database each time: no memory, nothing to be out of date."""

    def __init__(self, store: CandleStore, archive: Archive | None) -> None:
        self._store = store
        self._archive = archive

    async def of(self, series: Sequence[Series]) -> list[SeriesView | None]:
        """See :meth:`SeriesViews.of`."""
        return [await self._one(one) for one in series]

    async def version(self, series: Sequence[Series]) -> None:
        """Not told: nothing that is read is kept."""

    async def _one(self, series: Series) -> StoredView | None:
        facts = await self._store.facts(series)
        return None if facts is None else StoredView(self._store, self._archive, series, facts)
