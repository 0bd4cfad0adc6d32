"""WebSocket streams of Binance spot: ``/ws/<stream>``, ``/stream?streams=a/b``, and control messages.

Each connection has a queue of :data:`QUEUE_SIZE` messages between what happens and what its client has taken. A
client that lets it fill up is disconnected with code 1008, as Binance does, and the others do not notice. Faults
are injected before the queue: what happens during a silence is never in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import Any

import orjson
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from exchange.simulator.exchange import Exchange
from exchange.simulator.faults import Faults
from exchange.simulator.stream_faults import Closed, ConnectionFaults, Cut
from exchange.simulator.subscription import Subscription, subscription

#: Messages that wait for a client at most.
QUEUE_SIZE = 20_000
#: Real seconds between looks at the exchange clock.
_TICK = 0.05
#: Messages queued before the sender gets its turn.
_BURST = 500
#: Messages sent before others get their turn.
_SENT_AT_ONCE = 4
_CLOSE_SECONDS = 1.0
_MOST_STREAMS = 1024
_METHODS = ("SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS", "SET_PROPERTY", "GET_PROPERTY")


def stream_routes(exchange: Exchange, faults: Faults, queue_size: int = QUEUE_SIZE) -> list[WebSocketRoute]:
    """The WebSocket endpoints."""

    def session(websocket: WebSocket, *, combined: bool) -> StreamSession:
        return StreamSession(exchange, faults, websocket, combined=combined, queue_size=queue_size)

    async def raw(websocket: WebSocket) -> None:
        names = [name for name in websocket.path_params.get("streams", "").split("/") if name]
        await session(websocket, combined=False).run(names)

    async def combined(websocket: WebSocket) -> None:
        names = [name for name in websocket.query_params.get("streams", "").split("/") if name]
        await session(websocket, combined=True).run(names)

    return [
        WebSocketRoute("/ws", raw),
        WebSocketRoute("/ws/{streams:path}", raw),
        WebSocketRoute("/stream", combined),
    ]


class _Invalid(Exception):
    """A control message that cannot be followed: Binance's code and message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class _TooSlow(Exception):
    """The client does not take what it subscribed to."""


class StreamSession:
    """One connection: its subscriptions and what waits to be sent."""

    def __init__(
        self, exchange: Exchange, faults: Faults, websocket: WebSocket, *, combined: bool, queue_size: int
    ) -> None:
        self._exchange = exchange
        self._faults = ConnectionFaults(faults) if faults.has_stream_rules else None
        self._websocket = websocket
        self._combined = combined
        self._subscriptions: dict[str, Subscription] = {}
        # Bounded: when it is full the connection ends (see the module's docstring).
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(queue_size)

    async def run(self, names: list[str]) -> None:
        """Serve the connection until either side ends it."""
        await self._websocket.accept()
        try:
            async with asyncio.TaskGroup() as group:
                for name in names:
                    # Binance takes any name in the address (clients number their connections that way) and stays
                    # silent about those it does not know.
                    with contextlib.suppress(_Invalid):
                        self._subscribe(name)
                group.create_task(self._listen())
                group.create_task(self._watch())
                group.create_task(self._send())
        except* (WebSocketDisconnect, Cut):
            # To return without having closed cuts the connection.
            pass
        except* Closed as closed:
            code = next(one.code for one in closed.exceptions if isinstance(one, Closed))
            with contextlib.suppress(WebSocketDisconnect):
                await self._websocket.close(code)
        except* _TooSlow:
            # Its buffers are full, so it may never take the closing frame either.
            with contextlib.suppress(TimeoutError, WebSocketDisconnect):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._websocket.close(1008, "the client is too slow")

    async def _listen(self) -> None:
        """Follow the client's control messages."""
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            self._reply(self._answer(message.get("text") or message.get("bytes") or b""))

    async def _watch(self) -> None:
        """Queue whatever happens on the exchange."""
        while True:
            now_ms = self._exchange.now_ms()
            for name, one in list(self._subscriptions.items()):
                if self._exchange.market(name.split("@")[0].upper()) is None:
                    # No longer traded: the stream stays subscribed, and silent.
                    continue
                for count, message in enumerate(one.messages(now_ms), 1):
                    if count % _BURST == 0:
                        await asyncio.sleep(0)
                    self._put(name, {"stream": name, "data": message} if self._combined else message)
            await asyncio.sleep(_TICK)

    async def _send(self) -> None:
        for count in itertools.count(1):
            data = await self._queue.get()
            await self._websocket.send_text(data.decode())
            if count % _SENT_AT_ONCE == 0:
                # Sending does not wait as long as there is room, and so never sees that the client is gone.
                await asyncio.sleep(0)

    def _put(self, name: str, message: dict[str, Any]) -> None:
        data = orjson.dumps(message)
        self._queue_all([data] if self._faults is None else self._faults.passed(name, data))

    def _reply(self, message: dict[str, Any]) -> None:
        data = orjson.dumps(message)
        self._queue_all([data] if self._faults is None else self._faults.reply(data))

    def _queue_all(self, messages: list[bytes]) -> None:
        try:
            for data in messages:
                self._queue.put_nowait(data)
        except asyncio.QueueFull:
            raise _TooSlow from None

    def _answer(self, data: str | bytes) -> dict[str, Any]:
        """The reply to a control message."""
        id_ = None
        try:
            request = _request(data)
            id_ = request.get("id")
            if isinstance(id_, bool) or not isinstance(id_, int | str | None):
                id_ = None
                raise _Invalid(2, "Invalid request: request ID must be an unsigned integer")
            return {"result": self._follow(request), "id": id_}
        except _Invalid as invalid:
            return {"error": {"code": invalid.code, "msg": invalid.message}, "id": id_}

    def _follow(self, request: dict[str, Any]) -> Any:
        method, params = request["method"], request.get("params", [])
        if method in ("SUBSCRIBE", "UNSUBSCRIBE"):
            for name in _names(params):
                if method == "SUBSCRIBE":
                    self._subscribe(name)
                else:
                    self._subscriptions.pop(name, None)
            return None
        if method == "LIST_SUBSCRIPTIONS":
            return list(self._subscriptions)
        if not isinstance(params, list) or not params or not isinstance(params[0], str):
            raise _Invalid(2, "Invalid request: property name must be a string")
        if params[0] != "combined":
            raise _Invalid(0, "Unknown property")
        if method == "GET_PROPERTY":
            return self._combined
        if len(params) < 2 or not isinstance(params[1], bool):
            raise _Invalid(1, "Invalid value type: expected Boolean")
        self._combined = params[1]
        return None

    def _subscribe(self, name: str) -> None:
        if name in self._subscriptions:
            return
        if len(self._subscriptions) >= _MOST_STREAMS:
            raise _Invalid(2, f"Invalid request: a connection may have {_MOST_STREAMS} streams")
        found = subscription(self._exchange, name)
        if found is None:
            raise _Invalid(2, f"Invalid request: unknown stream {name[:100]}")
        self._subscriptions[name] = found


def _request(data: str | bytes) -> dict[str, Any]:
    try:
        request = orjson.loads(data)
    except orjson.JSONDecodeError as exc:
        raise _Invalid(3, f"Invalid JSON: expected value at line {exc.lineno} column {exc.colno}") from exc
    if not isinstance(request, dict) or "method" not in request:
        raise _Invalid(2, f"Invalid request: missing field `method` at line 1 column {len(data)}")
    if request["method"] not in _METHODS:
        expected = ", ".join(f"`{one}`" for one in _METHODS)
        raise _Invalid(2, f"Invalid request: unknown variant {request['method']}, expected one of {expected}")
    return request


def _names(params: Any) -> list[str]:
    if not isinstance(params, list) or not params or not all(isinstance(one, str) for one in params):
        raise _Invalid(2, "Invalid request: params must be a list of stream names")
    return params
