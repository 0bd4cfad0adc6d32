"""One WebSocket connection as a client: opened, listened to, paused, ended, closed.

Messages are handed on in the callback of the socket, without a queue or a task between. Compression is never
offered. A peer that has vanished without closing anything is found out by pings.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import structlog
from picows import (
    WSCloseCode,
    WSError,
    WSFrame,
    WSHandshakeError,
    WSInvalidURL,
    WSListener,
    WSMsgType,
    WSProtocolError,
    WSTransport,
    ws_connect,
)

from exchange.errors import BAN_UNSAID, WAIT_UNSAID, one_line, retry_after
from market.errors import BadInput, ExchangeRefused, ExchangeUnavailable, RateLimited

log = structlog.get_logger(__name__)

#: Longest message, in bytes, in one frame or in several. The largest book of any exchange is a tenth of it.
LONGEST_MESSAGE = 64 * 1024 * 1024
#: Answers to the handshake that will not change by asking again: no access, not in this country, gone for good.
_REFUSING = frozenset({401, 410, 451})
#: For picows, which logs each connection and each error; all it has to say is raised, or logged by us.
_SILENT = logging.Logger("picows", logging.CRITICAL + 1)
_TEXT, _BINARY, _CONTINUATION = WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.CONTINUATION


@dataclass(frozen=True, kw_only=True)
class SocketRules:
    """Time limits of one connection, in seconds."""

    #: From the first packet to the end of the handshake.
    connect_timeout: float = 10.0
    #: Silence after which a ping is sent.
    ping_after: float = 10.0
    #: Silence after a ping that means that nobody is there. A dead peer is noticed within
    #: 2 * `ping_after` + `pong_within`.
    pong_within: float = 10.0
    #: Sent every `ping_after` seconds, busy or not, instead of a ping frame: for exchanges with a ping of their
    #: own. Whatever the exchange sends counts as an answer; its own pong reaches `on_text` like any message.
    ping_text: bytes | None = None
    #: For the other side to answer our closing frame.
    close_timeout: float = 2.0


class Socket(WSListener):
    """One open connection; get it from :func:`opened_socket`."""

    def __init__(self, name: str, on_text: Callable[[bytes], None], rules: SocketRules) -> None:
        self._name = name
        self._on_text = on_text
        self._rules = rules
        self._transport: WSTransport | None = None
        self._frames = 0
        #: Counts whatever shows that the other side lives.
        self._signs = 0
        #: Until someone has the socket in hand and can pause it.
        self._paused = True
        #: Nobody listens any more: the connection is being closed, or a listener has raised.
        self._deaf = False
        #: Messages that had already been read when the socket was paused. Bounded: reading stops with the pause,
        #: so it is what one read can bring, the kernel's receive buffer at most.
        self._held: deque[bytes] = deque()
        #: Pieces of a message in several frames, LONGEST_MESSAGE at most.
        self._pieces = bytearray()
        self._in_pieces = False
        self._reason: str | None = None
        self._raised: BaseException | None = None
        self._seen = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def frames(self) -> int:
        """Messages received so far; pings and pongs are none."""
        return self._frames

    def send(self, message: bytes) -> None:
        """Send a text message. What is sent after the end of the connection is dropped: `ended` tells."""
        self._opened.send(_TEXT, message)

    async def ended(self) -> None:
        """Return never; wait until the connection has ended, from either side.

        :raises ExchangeUnavailable: with the reason, and the code of the closing frame if there was one.
        :raises BaseException: what `on_text` raised, where that ended the connection: a bug is no network fault.
        """
        try:
            await self._opened.wait_disconnected()
        except WSError as error:
            raise ExchangeUnavailable(f"{self._name} broke the WebSocket protocol: {_said(error)}") from error
        if self._raised is not None:
            raise self._raised
        raise ExchangeUnavailable(
            f"{self._name}: {self._reason or 'the connection was lost without a closing frame'}"
        )

    def pause(self) -> None:
        """Hand on nothing more and stop reading, until :meth:`resume`. Calling it again changes nothing.

        While paused nothing is answered, pings of the exchange neither: it may end a connection that is paused
        for long (Binance after a minute). Nor is it noticed that the connection has ended.
        """
        self._paused = True
        self._opened.underlying_transport.pause_reading()

    def resume(self) -> None:
        """Read on. What had been read before the pause comes first, in the next turn of the loop."""
        if self._paused:
            self._paused = False
            # Silence that we made ourselves is no silence of the other side.
            self._signs += 1
            asyncio.get_running_loop().call_soon(self._catch_up)

    async def _open(self, url: str, tls: ssl.SSLContext | None) -> None:
        limit = self._rules.connect_timeout
        if tls is None and url.startswith("wss:"):
            tls = ssl.create_default_context()
        try:
            async with asyncio.timeout(limit):
                await ws_connect(
                    lambda: self,
                    url,
                    ssl_context=tls,
                    # Left alone in the middle of a handshake, picows ends the connection after this long.
                    websocket_handshake_timeout=limit,
                    # Pings and pongs are ours: picows would ping, and judge, while reading is paused.
                    enable_auto_ping=False,
                    enable_auto_pong=False,
                    max_frame_size=LONGEST_MESSAGE,
                    logger_name=_SILENT,
                )
        except WSInvalidURL as error:
            raise BadInput("exchange-url", url, "an address such as wss://stream.example.com/ws") from error
        except WSHandshakeError as error:
            raise _refusal(self._name, error) from error
        except TimeoutError as error:
            raise ExchangeUnavailable(f"{self._name} did not open a WebSocket within {limit:g} s") from error
        except (OSError, WSError) as error:
            raise ExchangeUnavailable(f"{self._name} cannot be reached: {_said(error)}") from error
        if self._transport is None:
            raise ExchangeUnavailable(f"{self._name} ended the connection during the handshake")
        self._timer = asyncio.get_running_loop().call_later(self._rules.ping_after, self._look)

    def _abandon(self) -> None:
        """Nobody waits for the connection any more, however far it has come."""
        self._deaf = True
        if self._transport is not None:
            self._transport.disconnect(graceful=False)

    @property
    def _opened(self) -> WSTransport:
        if self._transport is None:
            raise RuntimeError("the socket is not open yet")
        return self._transport

    def _catch_up(self) -> None:
        while self._held and not self._paused:
            try:
                self._hand_on(self._held.popleft())
            finally:
                if self._raised is not None:
                    self._opened.disconnect(graceful=False)
        if not self._paused:
            self._opened.underlying_transport.resume_reading()

    def _hand_on(self, message: bytes) -> None:
        try:
            self._on_text(message)
        except BaseException as error:
            self._failed(message, error)
            raise

    def _failed(self, message: bytes, error: BaseException) -> None:
        """`on_text` has raised: nothing more is handed on."""
        self._deaf = True
        self._raised = error
        self._held.clear()
        log.error(
            "listener_failed",
            socket=self._name,
            error=repr(error),
            message_head=message[:200].decode("utf-8", "replace"),
        )

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        if self._deaf:
            self._abandon()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        self._signs += 1
        kind = frame.msg_type
        if transport.is_close_frame_sent and kind is not WSMsgType.CLOSE:
            # After an error picows reads on for a moment, perhaps from the middle of a message.
            return
        if kind is not _TEXT or not frame.fin:
            self._uncommon(transport, frame, kind)
        elif self._in_pieces:
            raise WSProtocolError(WSCloseCode.PROTOCOL_ERROR, "a message began inside another")
        elif self._paused or self._held or self._deaf:
            self._received(frame.get_payload_as_bytes())
        else:
            # Nearly always. No call but the one that matters.
            self._frames += 1
            message = frame.get_payload_as_bytes()
            try:
                self._on_text(message)
            except BaseException as error:
                self._failed(message, error)
                # picows ends the connection.
                raise

    def _received(self, message: bytes) -> None:
        self._frames += 1
        if self._deaf:
            return
        # What is held goes first, so that the order is kept.
        if self._paused or self._held:
            self._held.append(message)
        else:
            self._hand_on(message)

    def _uncommon(self, transport: WSTransport, frame: WSFrame, kind: WSMsgType) -> None:
        """Control frames, binary messages, and messages in several frames."""
        payload = frame.get_payload_as_bytes()
        if kind is WSMsgType.CLOSE:
            self._closing_frame(transport, payload)
        elif kind is WSMsgType.PING:
            transport.send_pong(payload)
        elif kind in (_TEXT, _BINARY, _CONTINUATION):
            if (kind is _CONTINUATION) != self._in_pieces:
                raise WSProtocolError(WSCloseCode.PROTOCOL_ERROR, "a piece of a message in the wrong place")
            if len(self._pieces) + len(payload) > LONGEST_MESSAGE:
                raise WSProtocolError(
                    WSCloseCode.MESSAGE_TOO_BIG, f"a message of more than {LONGEST_MESSAGE} bytes"
                )
            self._pieces += payload
            self._in_pieces = not frame.fin
            if frame.fin:
                whole, self._pieces = bytes(self._pieces), bytearray()
                self._received(whole)

    def _closing_frame(self, transport: WSTransport, payload: bytes) -> None:
        code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else 1005
        text = one_line(payload[2:].decode("utf-8", "replace"))
        if self._reason is None:
            self._reason = f"closed by the other side with code {code}" + (f" ({text})" if text else "")
        transport.send_close(WSCloseCode.OK)
        transport.disconnect()

    def _look(self) -> None:
        """Every `ping_after` seconds: ping if there was silence since the last time."""
        if self._opened.is_disconnected:
            return
        seen, self._seen = self._seen, self._signs
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._rules.ping_after, self._look)
        if self._rules.ping_text is not None:
            self.send(self._rules.ping_text)
        elif seen == self._signs and not self._paused:
            self._opened.send_ping()
        else:
            return
        loop.call_later(self._rules.pong_within, self._judge, self._signs)

    def _judge(self, signs: int) -> None:
        """`pong_within` seconds after a ping at which there had been `signs`."""
        if self._paused or self._signs != signs or self._opened.is_disconnected:
            return
        self._reason = f"nothing came within {self._rules.pong_within:g} s of a ping"
        # Waiting for a closing frame, or for what is unsent to be taken, would be waiting for the dead.
        self._opened.disconnect(graceful=False)

    async def _close(self) -> None:
        """End the connection, politely if the other side goes along within `close_timeout`."""
        transport = self._opened
        self._deaf = True
        self._held.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._reason is None and not transport.is_disconnected:
            self._reason = "closed on our side"
        ending = asyncio.ensure_future(transport.wait_disconnected())
        try:
            transport.send_close(WSCloseCode.OK)
            # The answer has to be read.
            transport.underlying_transport.resume_reading()
            await asyncio.wait({ending}, timeout=self._rules.close_timeout)
        finally:
            transport.disconnect(graceful=False)
        # Why it ended has been logged or told by `ended`; here it has only to be over.
        await asyncio.wait({ending}, timeout=self._rules.close_timeout)
        if ending.done():
            ending.exception()


@contextlib.asynccontextmanager
async def opened_socket(
    url: str,
    on_text: Callable[[bytes], None],
    *,
    rules: SocketRules | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Socket]:
    """A WebSocket connection to `url` (ws or wss); closed on leaving.

    :param on_text: called with each message, text or binary, in the order of arrival, once the context is
        entered. Returns at once. If it raises, that is logged, nothing more is handed on, the
        connection ends and :meth:`Socket.ended` raises the same.
    :param tls: what to trust for wss; the system's certificates if None.
    :raises ExchangeUnavailable: where no connection comes about within `rules.connect_timeout`.
    :raises RateLimited: where the answer is 429 or 418.
    :raises ExchangeRefused: where the answer is one that will not change.
    :raises BadInput: for an URL that is none.
    """
    rules = rules or SocketRules()
    parts = urlsplit(url)
    # Without path and query: they can hold keys.
    socket = Socket(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", on_text, rules)
    try:
        await socket._open(url, tls)
    except BaseException:
        socket._abandon()
        raise
    socket.resume()
    try:
        yield socket
    finally:
        await socket._close()


def _refusal(name: str, error: WSHandshakeError) -> Exception:
    """What an answer that is no handshake means."""
    status = 0 if error.response is None else int(error.response.status)
    if status in (418, 429):
        banned = status == 418
        headers = {} if error.response is None else dict(error.response.headers)
        wait = retry_after(headers, BAN_UNSAID if banned else WAIT_UNSAID)
        verb = "has banned this address" if banned else "asks to slow down"
        return RateLimited(f"{name} {verb} for {wait:g} s", wait, banned=banned)
    why = f"status {status}" if status else _said(error)
    if status in _REFUSING:
        return ExchangeRefused(f"{name} refused the connection: {why}")
    return ExchangeUnavailable(f"{name} did not open a WebSocket: {why}")


def _said(error: BaseException) -> str:
    return one_line(str(error)) or type(error).__name__
