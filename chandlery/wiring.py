"""The composition root: with `chandlery.exchanges` the only place that names concrete classes together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

from chandlery.settings import Settings
from market.clock import SystemClock
from store.archive.archive import Archive
from store.files import locked
from store.live import LiveCandles
from store.market_data import MarketData
from store.sqlite.store import SqliteStore

CLOCK = SystemClock()


@contextlib.asynccontextmanager
async def opened_store(settings: Settings, *, read_only: bool = False) -> AsyncIterator[SqliteStore]:
    """The candle store of a home, for as long as the context lasts.

    :param read_only: never writes and never makes a database; for commands that only look.
    """
    async with SqliteStore.opened(settings.database_path, CLOCK, read_only) as store:
        yield store


@contextlib.asynccontextmanager
async def opened_market_data(settings: Settings) -> AsyncIterator[MarketData]:
    """The read interface over a home that must exist already."""
    async with opened_store(settings, read_only=True) as store:
        yield MarketData(store, LiveCandles(CLOCK), CLOCK)


@contextlib.asynccontextmanager
async def served_market_data(settings: Settings) -> AsyncIterator[MarketData]:
    """The read interface for a service: makes the database of a new home, leaves a read-only one as it is."""
    folder = settings.database_path.parent
    writable = os.access(folder if folder.exists() else _nearest(folder), os.W_OK)
    async with opened_store(settings, read_only=not writable) as store:
        yield MarketData(store, LiveCandles(CLOCK), CLOCK)


def holding(settings: Settings, what: str) -> contextlib.AbstractContextManager[None]:
    """Hold the right to keep this home current; one process at a time has it.

    :raises StoreBusy: naming the process that has it.
    """
    return locked(settings.home / ".ingest.lock", what)


async def upgraded(settings: Settings) -> list[int]:
    """Bring the database of a home to this release's schema; the versions that were applied."""
    return await SqliteStore.upgraded(settings.database_path)


def archive(settings: Settings) -> Archive:
    """The Parquet archive of a home."""
    return Archive(settings.archive_path)


def _nearest(folder: Path) -> Path:
    return next(parent for parent in folder.absolute().parents if parent.exists())
