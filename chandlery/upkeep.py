"""Keeping a PostgreSQL database in order: what ``db maintain`` does and ``db status`` shows, as plain records."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import fields
from typing import Any

from chandlery.settings import Settings
from chandlery.wiring import CLOCK, archive, postgres_module
from market.clock import iso
from market.errors import BadInput
from market.interval import Interval

#: Fields of a status that are epoch milliseconds.
_INSTANTS = ("last_run", "next_start", "before", "dropped_at")
_FILE = "a PostgreSQL database in database_url; an SQLite file drops nothing"


async def maintained(settings: Settings, drop_before_ms: int | None) -> dict[str, Any] | None:
    """Do what is due in the first store, and drop what is older than an instant; None for an SQLite file.

    :raises BadInput: something is to be dropped from an SQLite file.
    """
    if settings.postgres_url is None:
        if drop_before_ms is not None:
            raise BadInput("--drop-before", iso(drop_before_ms), _FILE)
        return None
    async with _opened(settings, read_only=False) as store:
        rules = settings.maintenance_rules
        done = await store.maintenance(rules).run()
        report: dict[str, Any] = {
            "database": store.location,
            "mode": store.schema.mode.value,
            "settings": done.settings,
            "partitions": done.partitions,
            "dropped_partitions": done.dropped_partitions,
            "refreshed": [_range(one) for one in done.refreshed],
            "compressed": done.compressed,
            "busy": done.busy,
        }
        if drop_before_ms is not None:
            dropped = await store.retention(archive(settings), rules).drop(drop_before_ms)
            report["dropped"] = {
                "before": iso(dropped.before),
                "candles": dropped.candles,
                "series": dropped.series,
                "chunks": dropped.chunks,
                "obstacles": [
                    {**_record(one), "series": None if one.series is None else str(one.series)}
                    for one in dropped.obstacles
                ],
            }
        return report


async def postgres_status(settings: Settings) -> dict[str, Any] | None:
    """What only a PostgreSQL database has to say; None for an SQLite file."""
    if settings.postgres_url is None:
        return None
    async with _opened(settings, read_only=True) as store:
        status = await store.status()
    return {
        "mode": status.mode.value,
        "why": status.why,
        "extension": status.extension,
        "late_corrections": status.late_corrections,
        "archived_candles": status.archived_candles,
        "hypertables": [
            {**_record(one), "ratio": None if one.ratio is None else round(one.ratio, 2)}
            for one in status.hypertables
        ],
        "jobs": [_record(one) for one in status.jobs],
        "due": [_record(one) for one in status.due],
        "partitions": [_record(one) for one in status.partitions],
        "drops": [_record(one) for one in status.drops],
    }


@contextlib.asynccontextmanager
async def _opened(settings: Settings, *, read_only: bool) -> AsyncIterator[Any]:
    """The first store; it refreshes nothing in the background, which maintenance does itself, and waits for."""
    address = settings.postgres_url
    assert address is not None
    postgres = postgres_module(address)
    rules = postgres.pool_rules(settings.pool_min, settings.pool_max, settings.database_timeout)
    async with postgres.PostgresStore.opened(
        address, CLOCK, read_only, rules=rules, mode=settings.database_mode, refresh=False
    ) as store:
        yield store


def _record(part: Any) -> dict[str, Any]:
    """A part of a status, with instants as text; None for an interval that is not there is two of them."""
    found: dict[str, Any] = {}
    for field in fields(part):
        value = getattr(part, field.name)
        if field.name == "interval":
            found |= {"start": None, "end": None} if value is None else _range(value)
        else:
            found[field.name] = iso(value) if field.name in _INSTANTS and value is not None else value
    return found


def _range(interval: Interval) -> dict[str, str]:
    return {"start": iso(interval.start), "end": iso(interval.end)}
