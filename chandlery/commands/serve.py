"""``serve``: the HTTP service over a home."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from fastapi import FastAPI

from chandlery.options import Home, load, run
from chandlery.output import remark
from chandlery.settings import Settings
from chandlery.wiring import archive, served_market_data
from serve.app import create_app
from serve.server import serve_app, serve_workers

Host = Annotated[str | None, typer.Option("--host", help="Address to listen on (127.0.0.1).", show_default=False)]
Port = Annotated[int | None, typer.Option("--port", help="Port (8000); 0 takes a free one.", show_default=False)]


def serve(
    host: Host = None,
    port: Port = None,
    workers: Annotated[int, typer.Option("--workers", min=1, max=64, help="Processes that answer.")] = 1,
    home: Home = None,
) -> None:
    """Answer HTTP requests over what a home holds, until Ctrl-C."""
    settings = load(home, host=host, port=port)
    if settings.postgres_url is None and not settings.database_path.exists():
        remark(f"{settings.home} holds nothing yet; `chandlery backfill` or `chandlery import` fills it")
    if workers > 1:
        _serve_many(settings, workers)
        return
    try:
        run(serve_app(application(settings), settings.host, settings.port, announce))
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def announce(url: str) -> None:
    """Say where the service answers."""
    remark(f"serving on {url} (reference at {url}/docs); Ctrl-C stops")


def application(settings: Settings) -> FastAPI:
    """The service over a home."""
    return create_app(lambda: served_market_data(settings), archive(settings))


def application_of_environment() -> FastAPI:
    """What each worker process runs; its settings come through the environment."""
    return application(load(None))


def _serve_many(settings: Settings, workers: int) -> None:
    # A store that cannot be opened is said once, here, and not by each process again and again.
    run(_opened_once(settings))
    # Worker processes import this module afresh; the environment is how they learn what was asked.
    os.environ["CHANDLERY_HOME"] = str(Path(settings.home).absolute())
    factory = "chandlery.commands.serve:application_of_environment"
    serve_workers(factory, settings.host, settings.port, workers, announce)


async def _opened_once(settings: Settings) -> None:
    async with served_market_data(settings) as market_data:
        await market_data.health()
