"""A proxy in front of a server that can lose connections at chosen words, or swallow everything."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Self


class CuttingProxy:
    """Passes bytes on between its own `port` and another port of 127.0.0.1. Open with :meth:`opened`."""

    def __init__(self, target: int) -> None:
        self.port = 0
        #: Lose the connection when a client says this: once. Before it is passed on, or after.
        self.cut_before: bytes | None = None
        self.cut_after: bytes | None = None
        self._target = target
        self._flows = asyncio.Event()
        self._flows.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, target: int) -> AsyncIterator[Self]:
        """A proxy that listens; every connection is closed at the end."""
        proxy = cls(target)
        server = await asyncio.start_server(proxy._serve, "127.0.0.1", 0)
        proxy.port = server.sockets[0].getsockname()[1]
        try:
            yield proxy
        finally:
            server.close()
            for task in proxy._tasks:
                task.cancel()
            await asyncio.gather(*proxy._tasks, return_exceptions=True)

    def vanish(self) -> None:
        """Accept everything and pass nothing on, as a network that lost its way."""
        self._flows.clear()

    def come_back(self) -> None:
        """Lose what was swallowed, with the connections it was said on, and pass on what comes now."""
        for writer in self._writers:
            writer.transport.abort()
        self._flows.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        far_writer: asyncio.StreamWriter | None = None
        self._writers.add(writer)
        try:
            await self._flows.wait()
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(far_writer)
            deaf = asyncio.Event()
            answers = asyncio.create_task(self._answers(far_reader, writer, deaf))
            try:
                await self._questions(reader, far_writer, deaf)
            finally:
                answers.cancel()
                await asyncio.gather(answers, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            # Lost connections are what this is for.
            return
        finally:
            for one in (writer, far_writer):
                if one is not None:
                    self._writers.discard(one)
                    one.transport.abort()
            self._tasks.discard(task)

    async def _questions(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, deaf: asyncio.Event
    ) -> None:
        while data := await reader.read(65_536):
            await self._flows.wait()
            if self.cut_before is not None and self.cut_before in data:
                self.cut_before = None
                return
            if self.cut_after is not None and self.cut_after in data:
                self.cut_after = None
                deaf.set()
            writer.write(data)
            await writer.drain()

    async def _answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, deaf: asyncio.Event
    ) -> None:
        while data := await reader.read(65_536):
            await self._flows.wait()
            if deaf.is_set():
                # The server has done it, and nobody hears of it.
                break
            writer.write(data)
            await writer.drain()
        writer.transport.abort()
