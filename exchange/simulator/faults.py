"""Faults on request: what a client of an exchange has to live with.

A faults file is a JSON list of rules, for example::

    [{"path": "/api/v3/klines", "from": 3, "count": 2, "do": "status", "status": 429, "retry_after": 1},
     {"path": "/api/v3/", "probability": 0.05, "seed": 7, "do": "empty"}]

``path``         the requests it is about: those whose path begins so (default ``/api/v3/``)
``from``         the first of those requests it may hit, counted from 1 (default 1)
``count``        how many it hits at most (default 1, or without end where there is a probability)
``probability``  the chance of each to be hit, drawn from ``seed`` (default: every one; seed 0)
``do``           what happens:

=============  =====================================================================================================
``status``     an error answer with ``status`` (400 to 599), and ``retry_after`` in its header where given
``html``       200 with a page of HTML
``half_body``  the answer, but the connection is cut in the middle of its body
``empty``      the connection is closed without an answer
``hang``       no answer for ``seconds`` (default 30), then the connection is closed
``partial``    a list is answered with only its first ``keep`` share (default 0.5) of rows
=============  =====================================================================================================

The first rule that hits a request decides. Streams are not touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from exchange.binance.wire import encode_error
from market.errors import BadInput

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
#: Cuts the connection a request came on (by its scope) at once.
Cut = Callable[[MutableMapping[str, Any]], None]

_HTML = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
_CODES = {429: -1003, 418: -1003, 503: -1008, 504: -1007}


class FaultRule(BaseModel):
    """One rule of a faults file (see the module's docstring)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = "/api/v3/"
    first: Annotated[int, Field(alias="from", ge=1)] = 1
    count: Annotated[int | None, Field(ge=1)] = None
    probability: Annotated[float | None, Field(gt=0, le=1)] = None
    seed: int = 0
    do: Literal["status", "html", "half_body", "empty", "hang", "partial"]
    status: Annotated[int, Field(ge=400, le=599)] = 500
    retry_after: Annotated[int | None, Field(ge=0)] = None
    seconds: Annotated[float, Field(ge=0)] = 30.0
    keep: Annotated[float, Field(ge=0, lt=1)] = 0.5


def read_faults(path: Path) -> list[FaultRule]:
    """The rules of a faults file.

    :raises BadInput: naming the file, the rule and the field that is wrong.
    """
    try:
        rules = json.loads(path.read_bytes())
    except OSError as exc:
        raise BadInput("--faults", str(path), f"a readable file ({exc.strerror})") from exc
    except ValueError as exc:
        raise BadInput("--faults", str(path), f"a JSON list of rules ({exc})") from exc
    return parse_faults(rules)


def parse_faults(rules: object) -> list[FaultRule]:
    """Rules from decoded JSON.

    :raises BadInput: naming the rule and the field that is wrong.
    """
    try:
        return TypeAdapter(list[FaultRule]).validate_python(rules)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BadInput(f"--faults rule {where}", first["input"], first["msg"]) from exc


class _Counted:
    """A rule and how often it was asked and hit."""

    def __init__(self, rule: FaultRule) -> None:
        self.rule = rule
        self._asked = 0
        self._hits = 0
        self._rng = random.Random(rule.seed)
        self._most = rule.count or (1 if rule.probability is None else None)

    def hits(self, path: str) -> bool:
        """Count a request and say whether the rule hits it."""
        if not path.startswith(self.rule.path):
            return False
        self._asked += 1
        if self._asked < self.rule.first or (self._most is not None and self._hits >= self._most):
            return False
        if self.rule.probability is not None and self._rng.random() >= self.rule.probability:
            return False
        self._hits += 1
        return True


class FaultInjector:
    """An ASGI application around another, which breaks some of its answers."""

    def __init__(self, app: App, rules: list[FaultRule], cut: Cut) -> None:
        self._app = app
        self._rules = [_Counted(rule) for rule in rules]
        self._cut = cut

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        rule = None
        if scope["type"] == "http":
            # Every rule counts every request, whichever of them decides.
            hit = [one.rule for one in self._rules if one.hits(scope["path"])]
            rule = hit[0] if hit else None
        if rule is None:
            await self._app(scope, receive, send)
        elif rule.do == "status":
            await _answer(send, *_error(rule))
        elif rule.do == "html":
            await _answer(send, 200, _HTML, [(b"content-type", b"text/html")])
        elif rule.do in ("empty", "hang"):
            await self._silent(rule.seconds if rule.do == "hang" else 0.0, scope, receive)
        else:
            await self._mangled(rule, scope, receive, send)

    async def _silent(self, seconds: float, scope: MutableMapping[str, Any], receive: Receive) -> None:
        """Wait so long, or until the client goes away; then cut."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await _gone(receive)
                return
        self._cut(scope)
        await _gone(receive)

    async def _mangled(
        self, rule: FaultRule, scope: MutableMapping[str, Any], receive: Receive, send: Send
    ) -> None:
        """The real answer with half its body, or half its rows."""
        parts: list[Message] = []

        async def keep(message: Message) -> None:
            parts.append(message)

        await self._app(scope, receive, keep)
        start, body = parts[0], b"".join(part.get("body", b"") for part in parts[1:])
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
    headers = [(b"content-type", b"application/json;charset=UTF-8")]
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
