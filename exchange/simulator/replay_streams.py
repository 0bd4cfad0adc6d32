"""The sockets of a replay: a recorded session, message for message, over real connections.

Any path is served, whatever exchange it belongs to. Each connection gets everything that was recorded, from the
beginning; with `resume` there is one position, and a connection goes on where the one before it ended (which is
closed if it is still there). Messages start to flow when the client has said what it wants: with stream names in
the address, or with a message of its own, as the recorder did.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import orjson
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from exchange.simulator.faults import Faults
from exchange.simulator.playback import Playback
from exchange.simulator.session import Session, Source, stream_of
from exchange.simulator.stream_faults import Closed, ConnectionFaults, Cut

#: Messages that are sent before others get their turn.
_BURST = 16
_GOING_AWAY = 1001


class Replay:
    """A session that is played to whoever connects."""

    def __init__(self, session: Session, speed: float, faults: Faults, *, resume: bool) -> None:
        self.session = session
        self.faults = faults
        self._speed = speed
        self._resume = resume
        self._connection: ReplayConnection | None = None
        #: What was begun last; requests are answered as of its position.
        self.playback = Playback(session, speed)

    def routes(self) -> list[WebSocketRoute]:
        """Every path."""
        return [WebSocketRoute("/{path:path}", self._serve)]

    def clock(self) -> dict[str, Any]:
        """How far it is: recorded time, lines played and all lines."""
        return {
            "now_ms": self.playback.now_ms,
            "speed": None if self.playback.stands_still else self._speed,
            "position": min(self.playback.position, len(self.session.lines)),
            "lines": len(self.session.lines),
        }

    async def _serve(self, websocket: WebSocket) -> None:
        if not self._resume:
            if self._connection is not None:
                self.playback = Playback(self.session, self._speed)
        elif self._connection is not None:
            await self._connection.end()
        self._connection = ReplayConnection(self.playback, self.faults, websocket)
        await self._connection.run()


class ReplayConnection:
    """One connection to which a session is played."""

    def __init__(self, playback: Playback, faults: Faults, websocket: WebSocket) -> None:
        self._playback = playback
        self._websocket = websocket
        self._faults = ConnectionFaults(faults) if faults.has_stream_rules else None
        self._subscribed = asyncio.Event()
        self._ended = asyncio.Event()
        self._over = asyncio.Event()

    async def end(self) -> None:
        """Close it, because another takes over."""
        self._over.set()
        await self._ended.wait()

    async def run(self) -> None:
        """Serve the connection until either side ends it."""
        await self._websocket.accept()
        if "@" in self._websocket.url.path + self._websocket.url.query:
            self._subscribed.set()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listen())
                group.create_task(self._play())
                group.create_task(self._replaced())
        except* WebSocketDisconnect:
            pass
        except* Cut as cut:
            # To return without having closed cuts the connection.
            self._playback.position += next(one.lost for one in cut.exceptions if isinstance(one, Cut))
        except* Closed as closed:
            code = next(one.code for one in closed.exceptions if isinstance(one, Closed))
            with contextlib.suppress(WebSocketDisconnect):
                await self._websocket.close(code)
        finally:
            self._ended.set()

    async def _replaced(self) -> None:
        await self._over.wait()
        raise Closed(_GOING_AWAY)

    async def _listen(self) -> None:
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            reply = self._answer(message.get("text") or (message.get("bytes") or b"").decode())
            if reply is not None:
                sent = [reply.encode()] if self._faults is None else self._faults.reply(reply.encode())
                for data in sent:
                    await self._websocket.send_text(data.decode())

    def _answer(self, text: str) -> str | None:
        """The reply to a client's message. What an exchange confirms by messages of its own was recorded."""
        if text == "ping":
            return "pong"
        try:
            request = orjson.loads(text)
        except orjson.JSONDecodeError:
            return None
        if not isinstance(request, dict):
            return None
        if request.get("op") == "ping":
            return orjson.dumps({"success": True, "ret_msg": "pong", "op": "ping"}).decode()
        if "subscribe" in str(request.get("method") or request.get("op") or request.get("type")).lower():
            self._subscribed.set()
        if "method" in request:
            result: list[str] | None = [] if request["method"] == "LIST_SUBSCRIPTIONS" else None
            return orjson.dumps({"result": result, "id": request.get("id")}).decode()
        if request.get("op") == "subscribe" and not self._playback.session.has_sent:
            return orjson.dumps({"success": True, "op": "subscribe", "req_id": request.get("req_id")}).decode()
        return None

    async def _play(self) -> None:
        """Send what was recorded, each message when it is due."""
        playback = self._playback
        if not playback.session.has_sent:
            await self._subscribed.wait()
        playback.begin()
        count = 0
        while (line := playback.line) is not None:
            count += 1
            delay = 0.0 if playback.stands_still else playback.delay(line)
            if delay > 0:
                await asyncio.sleep(delay)
            elif count % _BURST == 0:
                await asyncio.sleep(0)
            if line.source is Source.SENT:
                await self._subscribed.wait()
            elif line.source is Source.REST and line.symbol in playback.session.answers:
                await playback.meet_request(line)
            playback.position += 1
            if line.source is Source.MESSAGE:
                await self._send(line.text)

    async def _send(self, text: str) -> None:
        if self._faults is None:
            await self._websocket.send_text(text)
            return
        for data in self._faults.passed(stream_of(text), text.encode()):
            await self._websocket.send_text(data.decode(errors="replace"))
        if self._playback.stands_still and self._faults.silent_seconds:
            await asyncio.sleep(self._faults.silent_seconds)
            self._playback.position += self._faults.silent_messages
