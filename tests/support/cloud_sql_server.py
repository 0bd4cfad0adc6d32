"""A stand-in for Google Cloud SQL: its Admin API, and the proxy of an instance in front of a real PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from tests.support.certificates import Authority

#: An address of this machine that nobody else listens on; the port of every instance's proxy is fixed.
ADDRESS, PORT = "127.0.33.7", 3307
PROJECT, REGION, INSTANCE = "project", "europe-west1", "instance"


class CloudSqlServer:
    """The instance ``project:europe-west1:instance`` before the PostgreSQL at `target`. Open with :meth:`opened`.

    The API gives a certificate to whoever shows `token`, and the proxy lets nobody in without one. With IAM login
    the certificate says so, as Google's says who has logged in.
    """

    token = "token-of-the-account"

    def __init__(self, target: int, folder: Path) -> None:
        #: Base of the Admin API.
        self.endpoint = ""
        #: When set, what the API answers to everything: a status and a message.
        self.fault: tuple[int, str] | None = None
        #: Names in the certificates of those who connected.
        self.connected: list[str] = []
        #: Requests that the API answered, by the last part of their path.
        self.asked: list[str] = []
        self._target = target
        self._folder = folder
        self._authority = Authority("Cloud SQL")
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, target: int, folder: Path) -> AsyncIterator[Self]:
        """A stand-in that listens."""
        one = cls(target, folder)
        app = web.Application()
        base = f"/sql/v1beta4/projects/{PROJECT}/instances/{INSTANCE}"
        app.router.add_get(f"{base}/connectSettings", one._settings)
        app.router.add_post(f"{base}:generateEphemeralCert", one._certificate)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        one.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
        proxy = await asyncio.start_server(one._proxy, ADDRESS, PORT, ssl=one._tls())
        try:
            yield one
        finally:
            proxy.close()
            for task in one._tasks:
                task.cancel()
            await asyncio.gather(*one._tasks, return_exceptions=True)
            await runner.cleanup()

    def _tls(self) -> ssl.SSLContext:
        pair = self._authority.server(ADDRESS)
        for name, text in (("cert", pair.certificate), ("key", pair.key), ("ca", self._authority.certificate)):
            (self._folder / name).write_text(text)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self._folder / "cert", self._folder / "key")
        context.load_verify_locations(self._folder / "ca")
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _refused(self, request: web.Request) -> web.Response | None:
        fault = self.fault
        if fault is None and request.headers.get("Authorization") != f"Bearer {self.token}":
            fault = 401, "Request had invalid authentication credentials."
        self.asked.append(request.path.rpartition("/")[2])
        if fault is None:
            return None
        return web.json_response({"error": {"code": fault[0], "message": fault[1]}}, status=fault[0])

    async def _settings(self, request: web.Request) -> web.Response:
        """What the API says of the instance, in the form of its documentation."""
        return self._refused(request) or web.json_response(
            {
                "kind": "sql#connectSettings",
                "serverCaCert": {"kind": "sql#sslCert", "cert": self._authority.certificate},
                "ipAddresses": [{"type": "PRIMARY", "ipAddress": ADDRESS}],
                "region": REGION,
                "databaseVersion": "POSTGRES_15",
                "backendType": "SECOND_GEN",
            }
        )

    async def _certificate(self, request: web.Request) -> web.Response:
        if refused := self._refused(request):
            return refused
        asked: dict[str, Any] = await request.json()
        name = "with IAM login" if asked.get("access_token") == self.token else "without login"
        cert = self._authority.client(asked["public_key"], name)
        return web.json_response({"ephemeralCert": {"kind": "sql#sslCert", "cert": cert}})

    async def _proxy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        (((_, name),),) = writer.get_extra_info("peercert")["subject"]
        self.connected.append(name)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            await asyncio.gather(_pass_on(reader, far_writer), _pass_on(far_reader, writer))
        except (OSError, asyncio.CancelledError):
            # A client that is gone is nothing to speak of.
            return
        finally:
            self._tasks.discard(task)
            writer.transport.abort()
            far_writer.transport.abort()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.transport.abort()
