"""The HTTP service as one ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI

from market.clock import Clock, SystemClock
from serve import archive as archive_routes
from serve import candles, coverage, health, instruments, openapi, pages, series
from serve.errors import add_error_handlers
from store.archive.archive import Archive
from store.market_data import MarketData

_ROUTERS = (
    candles.router,
    series.router,
    coverage.router,
    instruments.router,
    archive_routes.router,
    health.router,
)


class _Service(FastAPI):
    def openapi(self) -> dict[str, Any]:
        return openapi.document(self)


def create_app(
    open_market_data: Callable[[], AbstractAsyncContextManager[MarketData]],
    archive: Archive | None = None,
    clock: Clock | None = None,
) -> FastAPI:
    """The application; the store is opened when its lifespan starts and closed when it ends.

    :param open_market_data: gives the read interface for as long as its context lasts.
    :param archive: the Parquet archive that ``/v1/archive`` lists; None lists nothing.
    :param clock: what "now" is for default ends and future times; the machine's clock by default.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_market_data() as market_data:
            app.state.market_data = market_data
            yield

    app = _Service(
        title="Chandlery",
        version=_version(),
        description=openapi.DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.archive = archive
    app.state.clock = clock or SystemClock()
    for router in _ROUTERS:
        app.include_router(router)
    app.include_router(pages.router)
    app.state.documented = [route for router in _ROUTERS for route in router.routes]
    add_error_handlers(app)
    return app


def _version() -> str:
    try:
        return version("chandlery")
    except PackageNotFoundError:  # a source tree that is not installed
        return "0"
