"""A process that sends made-up messages of Binance's streams over a WebSocket, as fast as they are read, or slower.

Started and told what to do by :class:`Sender`. It serves one connection at a time; each begins with the same first
message.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from types import TracebackType
from typing import Self

import msgspec

from bench.messages import MIX, TRADES_ONLY, MadeMessages

#: What can be sent.
MIXES = {"mix": MIX, "trades": TRADES_ONLY, "candles": {"bookTicker": 0.99, "kline": 0.01}}
#: Bytes handed to the socket at once.
_CHUNK = 256 * 1024
#: Up to so many messages are made before the first is sent: making them must not slow down sending.
_MADE_BEFORE = 500_000
_TICK = 0.005
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CLOSE, _PING = 8, 9


class Sender:
    """The process, while the context lasts.

    :param mix: one of :data:`MIXES`.
    :param start_ms: exchange time of the first message of each connection; the start of a minute.
    """

    def __init__(self, mix: str, start_ms: int) -> None:
        self._arguments = [mix, str(start_ms)]
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.sender", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.url = f"http://127.0.0.1:{self._line()}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    async def make(self, messages: int, per_second: int = 0) -> None:
        """Get the next so many messages ready; return when they are.

        :param per_second: how many to send in a second; 0 for as many as are read.
        """
        self._tell(f"make {messages} {per_second}")
        await self._said()

    def go(self) -> None:
        """Send them."""
        self._tell("go")

    async def close_candles(self) -> int:
        """Send the closed candle of every symbol at once; the time just before, as of ``time.monotonic_ns``."""
        self._tell("close")
        return int(await self._said())

    def _tell(self, command: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")
        self._process.stdin.flush()

    async def _said(self) -> str:
        return await asyncio.to_thread(self._line)

    def _line(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the sender has ended")
        return line.decode().strip()


def frame(payload: bytes) -> bytes:
    """A text message as a server sends it."""
    size = len(payload)
    if size < 126:
        return b"\x81%c%b" % (size, payload)
    if size < 1 << 16:
        return b"\x81\x7e%b%b" % (size.to_bytes(2, "big"), payload)
    return b"\x81\x7f%b%b" % (size.to_bytes(8, "big"), payload)


def _chunks(messages: Iterator[bytes]) -> Iterator[bytes]:
    waiting, size = [], 0
    for message in messages:
        waiting.append(frame(message))
        size += len(message)
        if size >= _CHUNK:
            yield b"".join(waiting)
            waiting, size = [], 0
    yield b"".join(waiting)


class _Connection:
    """One connection, from its handshake on."""

    def __init__(self, peer: socket.socket, made: MadeMessages) -> None:
        self._peer = peer
        self._made = made
        self._messages = iter(made)
        self._received = b""
        self._chunks: Iterator[bytes] = iter(())
        self._rate = self._count = 0

    def shake_hands(self) -> None:
        asked = b""
        while b"\r\n\r\n" not in asked:
            asked += self._peer.recv(65536)
        lines = asked.split(b"\r\n")
        key = next(line.split(b":")[1].strip() for line in lines if line.lower().startswith(b"sec-websocket-key"))
        accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
        self._peer.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept
        )

    def hear(self) -> bool:
        """Answer what the client has sent; false where it is gone."""
        data = self._peer.recv(65536)
        self._received += data
        while (one := self._next_frame()) is not None:
            kind, payload = one
            if kind == _CLOSE:
                self._peer.sendall(b"\x88\x02\x03\xe8")
                return False
            if kind == _PING:
                self._peer.sendall(b"\x8a%c%b" % (len(payload), payload))
            elif payload:
                self._peer.sendall(frame(b'{"result":null,"id":%d}' % msgspec.json.decode(payload)["id"]))
        return bool(data)

    def _next_frame(self) -> tuple[int, bytes] | None:
        data = self._received
        if len(data) < 6:
            return None
        size, at = data[1] & 127, 2
        if size >= 126:
            width = 2 if size == 126 else 8
            size, at = int.from_bytes(data[2 : 2 + width], "big"), 2 + width
        if len(data) < at + 4 + size:
            return None
        mask = data[at : at + 4] * (size // 4 + 1)
        payload = bytes(a ^ b for a, b in zip(data[at + 4 : at + 4 + size], mask, strict=False))
        self._received = data[at + 4 + size :]
        return data[0] & 15, payload

    def follow(self, command: list[str]) -> None:
        if command[0] == "make":
            self._count, self._rate = int(command[1]), int(command[2])
            chunks = _chunks(islice(self._messages, self._count))
            self._chunks = iter(list(chunks)) if not self._rate and self._count <= _MADE_BEFORE else chunks
            _say("made")
        elif command[0] == "go" and self._rate:
            self._pace()
        elif command[0] == "go":
            for chunk in self._chunks:
                self._peer.sendall(chunk)
        else:
            frames = b"".join(frame(one) for one in self._made.closed())
            began = time.monotonic_ns()
            self._peer.sendall(frames)
            _say(str(began))

    def _pace(self) -> None:
        began, sent = time.monotonic(), 0
        while sent < self._count:
            due = min(self._count, int((time.monotonic() - began) * self._rate))
            self._peer.sendall(b"".join(frame(one) for one in islice(self._messages, due - sent)))
            sent = due
            time.sleep(_TICK)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _serve(mix: str, start_ms: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        _say(str(listening.getsockname()[1]))
        while True:
            peer, _ = listening.accept()
            with peer:
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                _attend(_Connection(peer, MadeMessages(MIXES[mix], start_ms)), peer)


def _attend(connection: _Connection, peer: socket.socket) -> None:
    commands = b""
    try:
        connection.shake_hands()
        while True:
            ready, _, _ = select.select([peer, 0], [], [])
            if peer in ready and not connection.hear():
                return
            if 0 in ready:
                # Not through sys.stdin: what it has read ahead, select does not see.
                data = sys.stdin.buffer.raw.read(4096)
                if not data:
                    raise SystemExit
                *lines, commands = (commands + data).split(b"\n")
                for line in lines:
                    connection.follow(line.decode().split())
    except ConnectionError:
        # The client has had enough.
        return


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
