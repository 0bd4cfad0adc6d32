"""Recorded sessions played again over real sockets: message for message, with the requests made in between."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import ccxt.async_support as ccxt
import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from exchange.address import at_address
from exchange.simulator.server import SimulatorConfig, running_simulator
from exchange.simulator.session import Session, Source
from market.errors import BadInput
from tests.support.notes import eventually

SPOT = "binance_spot_BTCUSDT_2024-08-08"
KLINES = "binance_spot_4symbols"
SUBSCRIBE = json.dumps({"method": "SUBSCRIBE", "params": ["btcusdt@trade"], "id": 1})


@asynccontextmanager
async def replaying(path: Path, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    config = SimulatorConfig(replay=path, port=0, **({"speed": math.inf} | options))
    async with running_simulator(config) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        yield client


def stream(client: httpx.AsyncClient, path: str) -> connect:
    return connect(str(client.base_url).rstrip("/").replace("http", "ws", 1) + path, max_size=None)


async def received(socket: ClientConnection, count: int) -> list[str]:
    async with asyncio.timeout(90):
        return [str(await socket.recv()) for _ in range(count)]


def made(folder: Path, count: int = 40, *, every_ms: int = 1000) -> Path:
    """A session of `count` trades, one each second, with an order book asked for after ten of them."""
    lines = []
    for number in range(count):
        at = 1_700_000_000_000 + number * every_ms
        trade = {
            **{"e": "trade", "E": at, "s": "BTCUSDT", "t": 500 + number, "p": f"{100 + number}.50000000"},
            **{"q": "0.25000000", "T": at, "m": number % 2 == 0, "M": True},
        }
        change = {
            **{"e": "depthUpdate", "E": at, "s": "BTCUSDT", "U": 10 * number + 1, "u": 10 * number + 10},
            **{
                "b": [[f"{50 + number}.0", "1.0"], ["9.0", "0.0" if number % 2 else "2.0"]],
                "a": [["200.0", "3.0"]],
            },
        }
        for stream_, data in (("trade", trade), ("depth@100ms", change)):
            message = {"stream": f"btcusdt@{stream_}", "data": data}
            lines.append({"recv_ns": at * 1_000_000, "src": "ws", "msg": message})
        if number == 10:
            book = {"lastUpdateId": 95, "bids": [["8.0", "1.0"], ["7.0", "1.0"]], "asks": [["201.0", "1.0"]]}
            url = "/api/v3/depth?symbol=BTCUSDT&limit=1000"
            lines.append({"recv_ns": at * 1_000_000 + 5, "src": "rest", "url": url, "msg": book})
    path = folder / "session.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(json.dumps(one, separators=(",", ":")) for one in lines).encode()))
    return path


def texts(path: Path) -> list[str]:
    return [line.text for line in Session.read(path).lines if line.source is Source.MESSAGE]


def trades_in(messages: list[str]) -> list[int]:
    return [json.loads(one)["data"]["t"] for one in messages if '@trade"' in one]


async def position(client: httpx.AsyncClient) -> int:
    return int((await client.get("/simulator/clock")).json()["position"])


@pytest.mark.recorded
@pytest.mark.parametrize(
    "name, path, subscription",
    [
        (KLINES, "/stream?streams=ftmusdt@kline_1m", None),
        ("binance_spot_10symbols", "/stream?streams=btcaud@aggTrade", None),
        ("okx_3", "/ws/v5/public", {"op": "subscribe", "args": [{"channel": "books", "instId": "BTC-USDT"}]}),
        ("coinbase", "/", {"type": "subscribe", "channels": ["matches"]}),
        ("bybit_v2", "/realtime_public", {"op": "subscribe", "args": ["trade.BCHUSDT"]}),
    ],
)
async def test_recorded_sessions_arrive_byte_for_byte(
    recorded: Path, name: str, path: str, subscription: dict[str, Any] | None
) -> None:
    (file,) = (recorded / "ws").glob(f"{name}*")
    expected = texts(file)
    session = Session.read(file)
    async with replaying(file) as client, stream(client, path) as socket:
        if subscription is not None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(socket.recv(), 0.2)
            await socket.send(json.dumps(subscription))
        asked = [
            asyncio.create_task(client.get(f"/api/v3/depth?symbol={symbol}&limit=5000"))
            for symbol in session.answers
        ]
        got = await received(socket, len(expected))
        assert got == expected
        for symbol, task in zip(session.answers, asked, strict=True):
            answer = (await task).json()
            assert answer == json.loads(session.lines[session.answers[symbol][0]].text)
        if subscription is None:
            assert (await client.get("/simulator/clock")).json()["position"] == len(session.lines)


@pytest.mark.recorded
async def test_the_spot_session_has_its_book_at_the_right_place(recorded: Path) -> None:
    (file,) = (recorded / "ws").glob(f"{SPOT}*")
    session = Session.read(file)
    (place,) = session.answers["BTCUSDT"]
    async with replaying(file) as client, stream(client, "/stream?streams=btcusdt@trade") as socket:
        before = await received(socket, place)
        # The playback waits for the request at the recorded place, and goes on after it.
        assert await position(client) == place
        answer = (await client.get("/api/v3/depth?symbol=BTCUSDT&limit=1000")).json()
        assert answer == json.loads(session.lines[place].text)
        after = await received(socket, 99_573 - place)
        assert before + after == [line.text for line in session.lines if line.source is Source.MESSAGE]
        # Who asks again gets the book with all changes since.
        later = (await client.get("/api/v3/depth?symbol=BTCUSDT&limit=5")).json()
        last = max(event["u"] for _, event in session.events("depthUpdate"))
        assert (later["lastUpdateId"], len(later["bids"]), len(later["asks"])) == (last, 5, 5)
        best = [json.loads(one)["data"] for one in after[-200:] if "bookTicker" in one and last]
        near = [one for one in best if one["u"] <= last][-1]
        assert (later["bids"][0][0], later["asks"][0][0]) == (near["b"], near["a"])


@pytest.mark.recorded
async def test_unmodified_ccxt_reads_a_session(recorded: Path) -> None:
    (file,) = (recorded / "ws").glob(f"{KLINES}*")
    async with replaying(file) as client, stream(client, "/stream?streams=ftmusdt@kline_1m") as socket:
        asked = [
            asyncio.create_task(client.get(f"/api/v3/depth?symbol={symbol}"))
            for symbol in Session.read(file).answers
        ]
        await received(socket, 1003)
        await asyncio.gather(*asked)
        exchange = ccxt.binance()
        exchange.urls["api"] = at_address(exchange.urls["api"], str(client.base_url).rstrip("/"))
        try:
            markets = await exchange.load_markets()
            assert list(markets) == ["BADGER/BTC", "FTM/USDT", "SXP/BTC", "XMR/BTC"]
            candles = await exchange.fetch_ohlcv("FTM/USDT", "1m")
            assert candles[0] == [1628952360000, 0.34064, 0.3407, 0.33934, *candles[0][4:]]
            book = await exchange.fetch_order_book("FTM/USDT", 20)
            assert book["bids"][0][0] < book["asks"][0][0]
            assert await exchange.fetch_time() == Session.read(file).lines[-1].time_ns // 1_000_000
            trades = (await client.get("/api/v3/aggTrades?symbol=FTMUSDT")).json()
            follow = (await client.get(f"/api/v3/aggTrades?symbol=FTMUSDT&fromId={trades[1]['a']}")).json()
            assert follow == trades[1:]
        finally:
            await exchange.close()


@pytest.mark.recorded
async def test_a_futures_session_is_served_as_futures(recorded: Path, tmp_path: Path) -> None:
    (whole,) = (recorded / "ws").glob("binance_usdm*")
    file = tmp_path / "futures.jsonl"
    with gzip.open(whole) as lines:
        file.write_bytes(b"".join(next(lines) for _ in range(3001)))
    async with replaying(file) as client, stream(client, "/ws/btcusdt@depth@0ms") as socket:
        answer = asyncio.create_task(client.get("/fapi/v1/depth?symbol=BTCUSDT&limit=1000"))
        await received(socket, 3000)
        assert (await answer).json()["lastUpdateId"] == 5123107852948
        exchange = ccxt.binance()
        exchange.urls["api"] = at_address(exchange.urls["api"], str(client.base_url).rstrip("/"))
        try:
            assert list(await exchange.load_markets()) == ["BTC/USDT:USDT"]
        finally:
            await exchange.close()


async def test_time_passes_as_recorded_and_faster(tmp_path: Path) -> None:
    path = made(tmp_path, 8, every_ms=1000)
    async with replaying(path, speed=2) as client, stream(client, "/stream?streams=btcusdt@trade") as socket:
        began = time.monotonic()
        times = []
        for _ in range(16):
            await received(socket, 1)
            times.append(time.monotonic() - began)
    # Nominally 3.5 s; a busy machine begins to listen late, and then hears several at once.
    assert 1 < times[-1] < 60
    assert times[2] < times[-1] - 0.5


async def test_requests_are_answered_as_of_what_was_played(tmp_path: Path) -> None:
    path = made(tmp_path)
    async with replaying(path) as client:
        early = asyncio.create_task(client.get("/api/v3/depth?symbol=BTCUSDT&limit=1"))
        async with stream(client, "/ws") as socket:
            await socket.send(SUBSCRIBE)
            assert json.loads((await received(socket, 1))[0]) == {"result": None, "id": 1}
            messages = await received(socket, 80)
            assert (await early).json() == {
                **{"lastUpdateId": 95, "bids": [["8.0", "1.0"]], "asks": [["201.0", "1.0"]]},
            }
            assert trades_in(messages) == list(range(500, 540))
            later = (await client.get("/api/v3/depth?symbol=BTCUSDT&limit=100")).json()
            assert later["lastUpdateId"] == 400
            assert [price for price, _ in later["bids"]] == [*(f"{at}.0" for at in range(89, 58, -1)), "8.0", "7.0"]
            rows = (await client.get("/api/v3/historicalTrades?symbol=BTCUSDT&fromId=537")).json()
            assert [(row["id"], row["price"], row["quoteQty"]) for row in rows] == [
                (number, f"{number - 400}.50000000", f"{(number - 399.5) * 0.25:.8f}") for number in (537, 538, 539)
            ]
            assert len((await client.get("/api/v3/trades?symbol=BTCUSDT&limit=7")).json()) == 7
            assert (await client.get("/api/v3/time")).json()["serverTime"] == 1_700_000_039_000
            assert (await client.get("/api/v3/depth?symbol=ETHUSDT")).json()["code"] == -1121
            assert (await client.get("/api/v3/klines?symbol=BTCUSDT&interval=1m")).json() == []
        async with stream(client, "/stream?streams=btcusdt@trade") as socket:
            again = await received(socket, 22)
            assert again == messages[:22]
            before = (await client.get("/api/v3/historicalTrades?symbol=BTCUSDT&fromId=0")).json()
            assert [row["id"] for row in before] == list(range(500, 511))


async def until_the_end(socket: ClientConnection, messages: list[str]) -> None:
    while True:
        messages.append(str(await socket.recv()))


def with_faults(folder: Path, *rules: dict[str, Any]) -> Path:
    (folder / "faults.json").write_text(json.dumps(rules))
    return folder / "faults.json"


async def test_losses_can_be_planned(tmp_path: Path) -> None:
    faults = with_faults(tmp_path, {"stream": "*@trade", "from": 6, "count": 5, "do": "lose"})
    async with replaying(made(tmp_path), faults=faults) as client:
        async with stream(client, "/stream?streams=btcusdt@trade") as socket:
            asked = asyncio.create_task(client.get("/api/v3/depth?symbol=BTCUSDT"))
            assert trades_in(await received(socket, 75)) == [*range(500, 505), *range(510, 540)]
            await asked
        lost = (await client.get("/api/v3/historicalTrades?symbol=BTCUSDT&fromId=505&limit=5")).json()
        assert [one["id"] for one in lost] == list(range(505, 510))
        assert (await client.get("/simulator/faults")).json() == {"0": 5}


@pytest.mark.parametrize("lost", [0, 9])
async def test_a_new_connection_goes_on_where_the_last_one_was_cut(tmp_path: Path, lost: int) -> None:
    faults = with_faults(tmp_path, {"stream": "*@trade", "from": 21, "do": "disconnect", "n": lost})
    async with replaying(made(tmp_path), faults=faults, resume=True) as client:
        asked = asyncio.create_task(client.get("/api/v3/depth?symbol=BTCUSDT"))
        messages: list[str] = []
        async with stream(client, "/stream?streams=btcusdt@trade") as socket:
            async with asyncio.timeout(90):
                with pytest.raises(ConnectionClosed) as cut:
                    await until_the_end(socket, messages)
            assert cut.value.rcvd is None
        await asked
        assert trades_in(messages) == list(range(500, 520))
        stale = (await client.get("/api/v3/depth?symbol=BTCUSDT")).json()
        assert stale["lastUpdateId"] == (200 if not lost else 250)
        async with stream(client, "/stream?streams=btcusdt@trade") as socket:
            rest = await received(socket, 80 - len(messages) - 1 - lost)
        assert rest == texts(made(tmp_path))[len(messages) + 1 + lost :]


async def test_while_nobody_is_connected_time_goes_on(tmp_path: Path) -> None:
    path = made(tmp_path, 400, every_ms=100)
    async with replaying(path, speed=20, resume=True) as client:
        asked = asyncio.create_task(client.get("/api/v3/depth?symbol=BTCUSDT"))
        async with stream(client, "/stream?streams=btcusdt@trade") as socket:
            before = trades_in(await received(socket, 40))
        await asked
        reached = (await client.get("/simulator/clock")).json()["now_ms"]
        began = time.monotonic()

        async def a_while() -> bool:
            return time.monotonic() > began + 0.3

        await eventually(a_while, "a third of a second")
        async with stream(client, "/stream?streams=btcusdt@trade") as socket:
            after = trades_in(await received(socket, 20))
        assert after == list(range(after[0], after[0] + 10))
        # A third of a second at that speed is six seconds, which have 60 trades.
        assert after[0] - before[-1] > 50
        assert (await client.get("/simulator/clock")).json()["now_ms"] > reached + 5000


async def test_who_connects_takes_over(tmp_path: Path) -> None:
    async with replaying(made(tmp_path), resume=True) as client, stream(client, "/stream?streams=x@y") as first:
        asked = asyncio.create_task(client.get("/api/v3/depth?symbol=BTCUSDT"))
        await received(first, 80)
        await asked
        async with stream(client, "/stream?streams=x@y"):
            with pytest.raises(ConnectionClosed) as closed:
                await received(first, 1)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001


async def test_a_silence_pauses_a_replay_without_time_of_its_own(tmp_path: Path) -> None:
    faults = with_faults(tmp_path, {"stream": "*@trade", "from": 6, "do": "silence", "seconds": 3.0, "n": 4})
    async with (
        replaying(made(tmp_path), faults=faults) as client,
        stream(client, "/stream?streams=btcusdt@trade") as socket,
    ):
        await received(socket, 10)
        began = time.monotonic()
        messages = await received(socket, 2)
        assert time.monotonic() - began > 0.3
        # Trade 505 set it off; it and the four lines after it are never sent.
        assert trades_in(messages) == [508]


@pytest.mark.parametrize(
    "content",
    [b"", b'{"recv_ns":1,"src":"ws"}\n', b"no session", b'{"recv_ns":1,"src":"x","msg":1}'],
)
def test_files_that_are_no_session_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="--replay"):
        Session.read(path)
    with pytest.raises(BadInput, match="--replay"):
        Session.read(tmp_path / "none.jsonl.gz")


async def test_everything_comes_from_one_place(tmp_path: Path) -> None:
    for options in ({"seed": 3}, {"speed": 0.0}, {"speed": math.nan}):
        with pytest.raises(BadInput):
            async with replaying(made(tmp_path), **options):
                pass
