"""The WebSocket client against real servers on this machine: what it hands on, how it ends, what it survives."""

from __future__ import annotations

import asyncio
import contextlib
import socket as sockets
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import uvloop
import websockets
from structlog.testing import capture_logs
from websockets.asyncio.server import ServerConnection, serve

from exchange.socket import Socket, SocketRules, opened_socket
from market.errors import BadInput, ExchangeRefused, ExchangeUnavailable, RateLimited
from tests.support.certificates import Authority
from tests.support.notes import eventually

IMPATIENT = SocketRules(connect_timeout=2.0, ping_after=0.05, pong_within=0.1, close_timeout=0.5)
Handler = Callable[[ServerConnection], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(handler: Handler, **options: object) -> AsyncIterator[str]:
    """A server that gives each connection to `handler`; its address."""
    options.setdefault("compression", None)
    async with serve(handler, "127.0.0.1", 0, **options) as server:  # type: ignore[arg-type]
        port = next(iter(server.sockets)).getsockname()[1]
        yield f"{'wss' if 'ssl' in options else 'ws'}://127.0.0.1:{port}"


async def stay(connection: ServerConnection) -> None:
    await connection.wait_closed()


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def numbers(connection: ServerConnection) -> None:
    """Texts 0, 1, 2, ... as fast as they are taken."""
    with contextlib.suppress(websockets.ConnectionClosed):
        for number in range(1_000_000):
            await connection.send(f"{number:0100}")


async def until(condition: Callable[[], bool], what: str) -> None:
    async def holds() -> bool:
        return condition()

    await eventually(holds, what)


async def ending(socket: Socket) -> str:
    async with asyncio.timeout(60):
        with pytest.raises(ExchangeUnavailable) as caught:
            await socket.ended()
    return str(caught.value)


async def test_messages_go_both_ways_whole() -> None:
    heard: list[bytes] = []

    async def in_pieces(connection: ServerConnection) -> None:
        async for message in connection:
            assert isinstance(message, str)
            await connection.send([message[:5], message[5:6], message[6:]])
            await connection.send(message.encode())
            await connection.ping()

    async with serving(in_pieces) as url, opened_socket(url + "/ws", heard.append) as socket:
        socket.send(b"seven words or so")
        await until(lambda: len(heard) == 2, "two messages")
        assert heard == [b"seven words or so"] * 2
        assert socket.frames == 2


async def test_a_long_message_comes_and_a_longer_one_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[bytes] = []

    async def long(connection: ServerConnection) -> None:
        await connection.send("x" * 3_000_000)
        await connection.recv()
        await connection.send(["y" * 1_500_000, "y" * 1_500_000])
        await stay(connection)

    async with serving(long) as url, opened_socket(url, heard.append) as socket:
        await until(lambda: len(heard) == 1, "the long message")
        assert heard == [b"x" * 3_000_000]
        monkeypatch.setattr("exchange.socket.LONGEST_MESSAGE", 2_000_000)
        socket.send(b"more")
        assert "more than 2000000 bytes" in await ending(socket)
    assert len(heard) == 1


async def test_the_ending_says_who_and_why() -> None:
    async def leave(connection: ServerConnection) -> None:
        await connection.close(1008, "too many requests")

    async def vanish(connection: ServerConnection) -> None:
        connection.transport.abort()

    async with serving(leave) as url, opened_socket(url + "/ws?key=secret", print) as socket:
        said = await ending(socket)
        assert "code 1008 (too many requests)" in said
        assert "secret" not in said
        # Whoever asks later hears the same.
        assert await ending(socket) == said
    async with serving(vanish) as url, opened_socket(url, print) as socket:
        assert "without a closing frame" in await ending(socket)
    async with serving(stay) as url:
        async with opened_socket(url, print) as socket:
            waiting = asyncio.create_task(ending(socket))
            await asyncio.sleep(0)
        assert "closed on our side" in await waiting


async def test_leaving_closes_in_order_and_in_time() -> None:
    codes: list[int | None] = []

    async def note_code(connection: ServerConnection) -> None:
        await connection.wait_closed()
        codes.append(connection.close_code)

    async with serving(note_code) as url:
        async with opened_socket(url, print):
            pass
        await until(lambda: codes == [1000], "the closing frame")

    async with mute_peer() as url, asyncio.timeout(5), opened_socket(url, print, rules=IMPATIENT):
        pass


@contextlib.asynccontextmanager
async def mute_peer() -> AsyncIterator[str]:
    """A server that shakes hands and then neither reads nor sends nor closes."""
    release = asyncio.Event()

    async def deaf(connection: ServerConnection) -> None:
        connection.transport.pause_reading()
        await release.wait()
        connection.transport.abort()

    async with serving(deaf) as url:
        try:
            yield url
        finally:
            release.set()


async def test_a_dead_peer_is_noticed() -> None:
    async with mute_peer() as url, opened_socket(url, print, rules=IMPATIENT) as socket:
        assert "nothing came within 0.1 s of a ping" in await ending(socket)


async def test_a_silent_peer_that_answers_pings_is_kept() -> None:
    pings = 0

    class Counting(ServerConnection):
        def process_event(self, event: object) -> None:
            nonlocal pings
            pings += getattr(event, "opcode", None) == 9
            super().process_event(event)  # type: ignore[arg-type]

    async with serving(stay, create_connection=Counting) as url:
        async with opened_socket(url, print, rules=IMPATIENT) as socket:
            ended = asyncio.create_task(socket.ended())
            # Longer than a dead one lives.
            await until(lambda: pings > 6, "pings")
            assert not ended.done()
        with pytest.raises(ExchangeUnavailable):
            await ended


async def test_a_ping_of_the_exchange_s_own_is_sent_also_when_busy_and_when_paused() -> None:
    asked: list[object] = []

    async def pong(connection: ServerConnection) -> None:
        async for message in connection:
            asked.append(message)
            await connection.send("pong")

    rules = SocketRules(ping_after=0.02, pong_within=5.0, ping_text=b"ping")
    heard: list[bytes] = []
    async with serving(pong) as url, opened_socket(url, heard.append, rules=rules) as socket:
        await until(lambda: len(heard) > 3, "answers")
        socket.pause()
        count = len(asked)
        await until(lambda: len(asked) > count + 3, "pings while paused")
    assert set(asked) == {"ping"}
    assert set(heard) == {b"pong"}


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("secure", [False, True])
def test_a_paused_socket_hands_on_nothing_and_then_everything(loop: str, secure: bool, tmp_path: Path) -> None:
    async def run() -> None:
        options, trust = tls(tmp_path) if secure else ({}, None)
        heard: list[int] = []

        def hear(message: bytes) -> None:
            heard.append(int(message))
            if len(heard) % 1500 == 0:
                socket.pause()

        # A silent peer would be declared dead in no time.
        rules = SocketRules(ping_after=0.02, pong_within=0.02)
        async with serving(numbers, **options) as url, opened_socket(url, hear, rules=rules, tls=trust) as socket:
            ended = asyncio.create_task(socket.ended())
            for stop_at in (1500, 3000, 4500):
                await until(partial(reached, heard, stop_at), "messages")
                await pongs_missed(rules)
                assert len(heard) == stop_at
                assert not ended.done()
                socket.resume()
            await until(partial(reached, heard, 4501), "messages")
            assert heard == list(range(len(heard)))
            ended.cancel()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None) as runner:
        runner.run(run())


def reached(heard: list[int], count: int) -> bool:
    return len(heard) >= count


async def pongs_missed(rules: SocketRules) -> None:
    """Let so much time pass that ten pings would have been sent and missed: passing time is what is tested."""
    await asyncio.sleep(10 * (rules.ping_after + rules.pong_within))


def tls(folder: Path) -> tuple[dict[str, ssl.SSLContext], ssl.SSLContext]:
    authority = Authority()
    pair = authority.server("127.0.0.1")
    (folder / "server.pem").write_text(pair.certificate + pair.key)
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ours.load_cert_chain(folder / "server.pem")
    return {"ssl": ours}, ssl.create_default_context(cadata=authority.certificate)


async def test_a_listener_that_raises_ends_the_connection_with_its_error() -> None:
    heard: list[bytes] = []

    def broken(message: bytes) -> None:
        heard.append(message)
        if len(heard) == 3:
            raise ZeroDivisionError("a bug")

    async with serving(numbers) as url:
        with capture_logs() as logs:
            async with asyncio.timeout(60), opened_socket(url, broken) as socket:
                with pytest.raises(ZeroDivisionError, match="a bug"):
                    await socket.ended()
        assert [entry["event"] for entry in logs] == ["listener_failed"]
    assert len(heard) == 3


async def test_a_listener_that_raises_on_what_was_held_ends_it_too() -> None:
    said: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context["exception"]))

    paused: list[bytes] = []

    def broken(message: bytes) -> None:
        if int(message) == 5:
            socket.pause()
            paused.append(message)
        if int(message) > 5:
            raise ZeroDivisionError("a bug")

    async with serving(numbers) as url, asyncio.timeout(60), opened_socket(url, broken) as socket:
        await until(lambda: bool(paused), "the pause")
        socket.resume()
        with pytest.raises(ZeroDivisionError, match="a bug"):
            await socket.ended()
    assert [type(error) for error in said] == [ZeroDivisionError]


async def test_no_connection_says_why_and_in_time() -> None:
    with sockets.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ExchangeUnavailable, match="cannot be reached"):
        await open_and_leave(f"ws://127.0.0.1:{port}")
    with pytest.raises(BadInput, match="exchange-url"):
        await open_and_leave("http://127.0.0.1:1")
    # Listens, but never answers.
    with sockets.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        rules = SocketRules(connect_timeout=0.2)
        async with asyncio.timeout(5):
            with pytest.raises(ExchangeUnavailable, match=r"within 0\.2 s"):
                await open_and_leave(f"ws://127.0.0.1:{silent.getsockname()[1]}", rules)


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        ("429 Too Many Requests\r\nRetry-After: 7", RateLimited, "slow down for 7 s"),
        ("418 I'm a teapot", RateLimited, "banned this address for 120 s"),
        ("451 Unavailable For Legal Reasons", ExchangeRefused, "451"),
        ("503 Service Unavailable", ExchangeUnavailable, "503"),
        ("200 OK", ExchangeUnavailable, "did not open a WebSocket"),
    ],
)
async def test_answers_that_are_no_handshake(answer: str, error: type[Exception], said: str) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(error, match=said):
            await open_and_leave(f"ws://127.0.0.1:{port}/ws")


async def test_an_untrusted_certificate_is_refused(tmp_path: Path) -> None:
    options, _ = tls(tmp_path)
    async with serving(stay, **options) as url:
        with pytest.raises(ExchangeUnavailable, match="certificate"):
            await open_and_leave(url)


async def open_and_leave(url: str, rules: SocketRules | None = None) -> None:
    async with opened_socket(url, print, rules=rules):
        pass
