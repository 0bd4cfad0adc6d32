"""Faults of REST: what a client meets instead of an answer, or in it. Also how an outage looks from outside."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from exchange.binance.wire import encode_error
from exchange.simulator.faults import FaultRule, Faults

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Scope = MutableMapping[str, Any]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
#: Cuts the connection a request came on (by its scope) at once.
Cut = Callable[[Scope], None]

#: Where a request finds how many seconds of the exchange its answer is to be behind.
STALE = "chandlery.stale_seconds"
_HTML = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
_CODES = {429: -1003, 418: -1003, 503: -1008, 504: -1007}
_JSON = [(b"content-type", b"application/json;charset=UTF-8")]
_OUTAGE = FaultRule.model_validate({"do": "status", "status": 503})


class FaultInjector:
    """An ASGI application around another, which breaks some of its answers.

    What the simulator says of itself (``/simulator/``) is left alone.
    """

    def __init__(self, app: App, faults: Faults, cut: Cut) -> None:
        self._app = app
        self._faults = faults
        self._cut = cut
        self._sockets: list[Scope] = []
        faults.on_outage = self._cut_sockets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send)
        elif scope["type"] != "http" or scope["path"].startswith("/simulator/"):
            await self._app(scope, receive, send)
        else:
            hit = self._faults.hit_of_path(scope["path"])
            rule = _OUTAGE if self._faults.is_out else hit.rule if hit else None
            await self._answer(rule, scope, receive, send)

    async def _answer(self, rule: FaultRule | None, scope: Scope, receive: Receive, send: Send) -> None:
        if rule is not None and rule.do == "status":
            await _answer(send, *_error(rule))
        elif rule is not None and rule.do == "html":
            await _answer(send, 200, _HTML, [(b"content-type", b"text/html")])
        elif rule is not None and rule.do in ("empty", "hang"):
            await self._silent(rule.seconds if rule.do == "hang" else 0.0, scope, receive)
        elif rule is not None and rule.do in ("half_body", "partial"):
            await self._mangled(rule, scope, receive, send)
        elif self._faults.skew_ms and scope["path"].endswith("/time"):
            start, body = await self._kept(scope, receive)
            answer = orjson.loads(body)
            answer["serverTime"] += self._faults.skew_ms
            await _answer(send, start["status"], orjson.dumps(answer), start["headers"])
        else:
            if rule is not None and rule.do == "stale":
                scope[STALE] = rule.seconds
            await self._app(scope, receive, send)

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._faults.is_out:
            await receive()
            await send({"type": "websocket.http.response.start", "status": 503, "headers": []})
            await send({"type": "websocket.http.response.body", "body": b""})
            return
        self._sockets.append(scope)
        try:
            await self._app(scope, receive, send)
        finally:
            self._sockets = [one for one in self._sockets if one is not scope]

    def _cut_sockets(self) -> None:
        for scope in self._sockets:
            self._cut(scope)

    async def _silent(self, seconds: float, scope: Scope, receive: Receive) -> None:
        """Wait so long, or until the client goes away; then cut."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await _gone(receive)
                return
        self._cut(scope)
        await _gone(receive)

    async def _kept(self, scope: Scope, receive: Receive) -> tuple[Message, bytes]:
        """The real answer: its start and its body."""
        parts: list[Message] = []

        async def keep(message: Message) -> None:
            parts.append(message)

        await self._app(scope, receive, keep)
        return parts[0], b"".join(part.get("body", b"") for part in parts[1:])

    async def _mangled(self, rule: FaultRule, scope: Scope, receive: Receive, send: Send) -> None:
        """The real answer with half its body, or half its rows."""
        start, body = await self._kept(scope, receive)
        if rule.do == "partial":
            await _answer(send, start["status"], _shortened(body, rule.keep), start["headers"])
            return
        await send(start)
        await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
        self._cut(scope)
        await _gone(receive)


async def _gone(receive: Receive) -> None:
    """Wait until the connection is closed. (Ending without an answer before would make the server send its own.)"""
    while (await receive())["type"] != "http.disconnect":
        pass


def _error(rule: FaultRule) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
    headers = list(_JSON)
    if rule.retry_after is not None:
        headers.append((b"retry-after", str(rule.retry_after).encode()))
    code = _CODES.get(rule.status, -1000)
    return rule.status, orjson.dumps(encode_error(code, "Injected fault.")), headers


def _shortened(body: bytes, keep: float) -> bytes:
    rows = orjson.loads(body)
    return orjson.dumps(rows[: int(len(rows) * keep)]) if isinstance(rows, list) else body


async def _answer(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    kept = [(name, value) for name, value in headers if name.lower() != b"content-length"]
    kept.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": kept})
    await send({"type": "http.response.body", "body": body})
