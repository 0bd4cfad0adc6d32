"""The server on a real port: it says when it answers, stops cleanly, and explains a port in use."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from market.errors import BadInput, StoreUnusable, Terminal
from serve.app import create_app
from serve.server import serve_app
from store.market_data import MarketData
from tests.support.http_service import END, QUERY, service


async def started(app: FastAPI) -> tuple[asyncio.Task[None], str]:
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve_app(app, "127.0.0.1", 0, ready.set_result))
    done, _ = await asyncio.wait({task, ready}, timeout=90, return_when=asyncio.FIRST_COMPLETED)
    if task in done:
        task.result()
    return task, await ready


async def test_it_answers_on_a_free_port_and_stops_when_cancelled(tmp_path: Path, clock) -> None:
    clock.time_ms = END
    async with service(tmp_path, clock) as one:
        closed: list[bool] = []

        @asynccontextmanager
        async def open_market_data() -> AsyncIterator[MarketData]:
            try:
                yield one.app.state.market_data
            finally:
                closed.append(True)

        task, url = await started(create_app(open_market_data, clock=clock))
        async with httpx.AsyncClient(base_url=url) as http:
            answer = await http.get("/v1/candles", params=QUERY)
            assert answer.status_code == 200
            assert answer.content == (await one.candles()).content
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, 90)
            assert closed == [True]
            with pytest.raises(httpx.TransportError):
                await http.get("/v1/health")


async def test_a_port_in_use_is_one_clear_line() -> None:
    @asynccontextmanager
    async def never() -> AsyncIterator[MarketData]:
        raise AssertionError("the store must not be opened")
        yield

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Terminal, match=f"127.0.0.1:{port}.*in use") as caught:
            await serve_app(create_app(never), "127.0.0.1", port, lambda _: None)
        assert "\n" not in str(caught.value)


async def test_a_port_out_of_range_is_refused() -> None:
    with pytest.raises(BadInput, match="99999"):
        await serve_app(FastAPI(), "127.0.0.1", 99_999, lambda _: None)


async def test_a_store_that_does_not_open_is_told_as_itself() -> None:
    @asynccontextmanager
    async def broken() -> AsyncIterator[MarketData]:
        raise StoreUnusable("read-only home")
        yield

    with pytest.raises(StoreUnusable, match="read-only home"):
        await serve_app(create_app(broken), "127.0.0.1", 0, lambda _: None)
