"""Runs an application on a port, inside the caller's event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from market.errors import BadInput, Terminal

#: Seconds that requests in flight get to end after a stop was asked for.
_GRACE = 5


class _Server(uvicorn.Server):
    """uvicorn that leaves signals to the caller and says when it answers."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_started()


async def serve_app(app: FastAPI, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Answer requests until cancelled, then let those in flight end and close the application's resources.

    The application's lifespan runs here and not in the server, so that an error while opening the store reaches
    the caller as itself.

    :param port: 0 takes a free one.
    :param on_ready: gets the address, with the real port, once requests are answered.
    :raises BadInput: not a port.
    :raises Terminal: the address cannot be used (in use, not ours, not allowed).
    """
    with _listening(host, port) as listening:
        address = _address(listening)
        config = uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE,
        )
        server = _Server(config, lambda: on_ready(address))
        async with app.router.lifespan_context(app):
            running = asyncio.create_task(server.serve(sockets=[listening]))
            try:
                await asyncio.shield(running)
            except asyncio.CancelledError:
                server.should_exit = True
                await running
                raise


def serve_workers(factory: str, host: str, port: int, workers: int, on_ready: Callable[[str], None]) -> None:
    """Answer requests with several processes until SIGINT or SIGTERM; one that dies is replaced.

    The port is taken here, before any process starts, and connections wait in its queue until one of them answers.

    :param factory: ``module:function`` that makes the application; each process calls it.
    :param on_ready: gets the address, with the real port.
    :raises BadInput: not a port.
    :raises Terminal: the address cannot be used.
    """
    with _listening(host, port) as listening:
        config = uvicorn.Config(
            factory,
            factory=True,
            workers=workers,
            http="httptools",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE,
        )
        on_ready(_address(listening))
        Multiprocess(config, sockets=[listening]).run()


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _listening(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65_535:
        raise BadInput("port", port, "a port from 1 to 65535, or 0 for a free one")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns off Nagle's delay (40 ms on a small answer) only for sockets that name their protocol.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(2048)
        return listening
    except OSError as error:
        listening.close()
        reason = error.strerror or str(error)
        raise Terminal(f"cannot listen on {host}:{port}: {reason}; choose another host or port") from error
