"""The composition root: with `chandlery.exchanges` the only place that names concrete classes together."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Protocol

from chandlery.output import remark
from chandlery.redis import opened_live
from chandlery.settings import Settings, is_sqlite, sqlite_path
from chandlery.tiers import opened_tiers
from market.clock import SystemClock
from market.errors import BadInput
from store.archive.archive import Archive
from store.candle_store import CandleStore
from store.files import locked
from store.hybrid.side import Place
from store.hybrid.store import HybridStore
from store.live_source import LocalMarket
from store.market_data import MarketData
from store.postgres.address import DatabaseUrl
from store.settling import SettleStore
from store.sqlite import schema as sqlite_schema
from store.sqlite.store import SqliteStore
from store.trade_store import TradeStore

CLOCK = SystemClock()


class Store(CandleStore, TradeStore, SettleStore, Protocol):
    """Everything that a database keeps."""


@contextlib.asynccontextmanager
async def opened_store(settings: Settings, *, read_only: bool = False) -> AsyncIterator[Store]:
    """The candle store of a home, for as long as the context lasts: a file, a server, or two stores as one.

    :param read_only: never writes and never makes a database; for commands that only look.
    """
    primary = _place("database_url", settings.database_url, settings, read_only)
    if settings.secondary_url is None:
        async with primary.open() as store:
            yield store
        return
    secondary = _place("secondary_url", settings.secondary_url, settings, read_only)
    if secondary.location == primary.location:
        raise BadInput(
            "secondary_url (CHANDLERY_SECONDARY_URL)", secondary.location, "another database than the first one"
        )
    async with HybridStore.opened(primary, secondary, CLOCK, read_only=read_only) as both:
        yield both


def _place(setting: str, url: str | None, settings: Settings, read_only: bool) -> Place:
    """The store that a setting names."""
    if url is None or is_sqlite(url):
        path = settings.database_path if url is None else sqlite_path(url)
        return Place(
            location=str(path.absolute()), open=lambda: SqliteStore.opened(path, CLOCK, read_only=read_only)
        )
    address = DatabaseUrl.parse(url, setting)
    # The replicas are those of the first store.
    replicas = settings.replica_urls if setting == "database_url" else ()
    others = [DatabaseUrl.parse(one, "replica_urls") for one in replicas]

    def opened() -> contextlib.AbstractAsyncContextManager[Store]:
        postgres = postgres_module(address)
        rules = postgres.pool_rules(settings.pool_min, settings.pool_max, settings.database_timeout)
        store: contextlib.AbstractAsyncContextManager[Store] = postgres.PostgresStore.opened(
            address, CLOCK, read_only, rules=rules, replicas=others, mode=settings.database_mode, tell=remark
        )
        return store

    return Place(location=address.shown, open=opened)


def postgres_module(address: DatabaseUrl) -> ModuleType:
    """The module of the PostgreSQL store. Its driver is an extra, and takes time to import."""
    try:
        return importlib.import_module("store.postgres.store")
    except ModuleNotFoundError as error:
        if error.name != "asyncpg":
            raise
        raise address.refused("a database of another kind, or pip install 'chandlery[postgres]'") from error


@contextlib.asynccontextmanager
async def opened_market_data(settings: Settings) -> AsyncIterator[MarketData]:
    """The read interface over a home that must exist already."""
    async with opened_store(settings, read_only=True) as store:
        yield MarketData(store, LocalMarket.empty(CLOCK), CLOCK, archive(settings))


@contextlib.asynccontextmanager
async def served_market_data(settings: Settings) -> AsyncIterator[MarketData]:
    """The read interface for a service: makes the SQLite file of a new home, leaves other databases as they are."""
    folder = settings.database_path.parent
    writable = os.access(folder if folder.exists() else _nearest(folder), os.W_OK)
    read_only = settings.postgres_url is not None or not writable
    async with (
        opened_store(settings, read_only=read_only) as store,
        opened_tiers(settings, store, archive(settings), CLOCK) as views,
        opened_live(settings, views, CLOCK) as live,
    ):
        yield MarketData(store, live, CLOCK, archive(settings), views, recorded(settings, store))


def recorded(settings: Settings, store: Store) -> TradeStore | None:
    """Where trades are recorded, if they are."""
    return store if settings.record_trades else None


def holding(settings: Settings, what: str) -> contextlib.AbstractContextManager[None]:
    """Hold the right to keep this home current; one process at a time has it.

    :raises StoreBusy: naming the process that has it.
    """
    return locked(settings.home / ".ingest.lock", what)


async def upgraded(settings: Settings) -> tuple[list[int], int]:
    """Bring the first store to this release's schema; the versions that were applied, and the one it has now."""
    address = settings.postgres_url
    if address is None:
        return await SqliteStore.upgraded(settings.database_path), sqlite_schema.LATEST
    postgres = postgres_module(address)
    rules = postgres.pool_rules(settings.pool_min, settings.pool_max, settings.database_timeout)
    applied = await postgres.PostgresStore.upgraded(
        address, settings.database_mode, rules, keeping=settings.maintenance_rules, tell=remark
    )
    return applied, postgres.LATEST


def archive(settings: Settings) -> Archive:
    """The Parquet archive of a home."""
    return Archive(settings.archive_path)


def _nearest(folder: Path) -> Path:
    return next(parent for parent in folder.absolute().parents if parent.exists())
