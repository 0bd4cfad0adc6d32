"""``doctor``: what is configured, what is reachable, and what to do about the rest."""

from __future__ import annotations

import importlib
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from chandlery.options import AsJson, ExchangeUrl, Home, load, run
from chandlery.output import print_json, print_table
from chandlery.settings import Settings
from chandlery.wiring import CLOCK, archive, opened_store
from market.errors import ChandleryError, NotFound
from store.sqlite.database import sqlite_version

_LOW_DISK_BYTES = 1 << 30
#: Beyond this the end of a candle is misjudged.
_CLOCK_OFFSET_MS = 1000
_LIBRARIES = ("ccxt", "duckdb", "fastapi", "polars", "pyarrow", "uvicorn")

_Line = tuple[str, str, str]


def doctor(
    exchange: Annotated[str | None, typer.Option("--exchange", help="Also ask this exchange.")] = None,
    exchange_url: ExchangeUrl = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Look at versions, settings, disk, database, archive and, if named, an exchange.

    Exit code 1 if something needs attention.
    """
    settings = load(home)
    lines = [*_versions(), *_settings(settings), _disk(settings), *run(_stores(settings))]
    if exchange is not None:
        lines.append(run(_exchange(exchange, exchange_url)))
    if as_json:
        print_json([{"what": what, "state": state, "detail": detail} for what, state, detail in lines])
    else:
        print_table(["what", "state", "detail"], lines)
    if any(state == "attention" for _, state, _ in lines):
        raise typer.Exit(1)


def _versions() -> list[_Line]:
    libraries = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
    return [
        ("chandlery", "ok", f"{version('chandlery')} on Python {platform.python_version()}, {platform.system()}"),
        ("libraries", "ok", f"SQLite {sqlite_version()}, {libraries}"),
    ]


def _settings(settings: Settings) -> list[_Line]:
    chosen = settings.shown()
    return [("settings", "ok", ", ".join(f"{key}={value}" for key, value in chosen.items()))]


def _disk(settings: Settings) -> _Line:
    folder = settings.home.absolute()
    nearest = next(one for one in (folder, *folder.parents) if one.exists())
    free = shutil.disk_usage(nearest).free
    state = "ok" if free >= _LOW_DISK_BYTES else "attention"
    return ("disk", state, f"{free / (1 << 30):.1f} GiB free at {Path(nearest)}")


async def _stores(settings: Settings) -> list[_Line]:
    try:
        async with opened_store(settings, read_only=True) as store:
            series = await store.series()
            damage = await store.integrity()
            missing = sum(one.missing for one in series)
            rows = sum(one.rows for one in series)
            found: list[_Line] = [
                ("database", "attention" if damage else "ok", damage[0] if damage else store.location),
                ("candles", "ok", f"{rows:,} in {len(series)} series"),
                ("gaps", "attention" if missing else "ok", f"{missing:,} candles unknown; see `chandlery gaps`"),
            ]
    except NotFound:
        return [("database", "ok", f"none yet at {settings.database_location}; a backfill or an import makes it")]
    except ChandleryError as error:
        return [("database", "attention", str(error))]
    try:
        manifests = archive(settings).manifests()
    except ChandleryError as error:
        return [*found, ("archive", "attention", str(error))]
    files = sum(len(one.files) for one in manifests)
    return [*found, ("archive", "ok", f"{files} files of {len(manifests)} series in {settings.archive_path}")]


async def _exchange(exchange: str, url: str | None) -> _Line:
    # ccxt takes a second to import, and most calls do not ask an exchange.
    exchanges = importlib.import_module("chandlery.exchanges")
    try:
        async with exchanges.opened_exchange(exchange, url) as history:
            offset = await history.server_time() - CLOCK.now_ms()
    except ChandleryError as error:
        return (exchange, "attention", str(error))
    if url is not None:
        return (exchange, "ok", f"answers at {url}")
    state = "ok" if abs(offset) <= _CLOCK_OFFSET_MS else "attention"
    return (exchange, state, f"answers; its clock is {offset / 1000:+,.3f} s from ours")
