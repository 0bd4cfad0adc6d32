"""Stream faults of the simulated exchange, as a client meets them on a real socket."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from exchange.binance.wire import parse_depth
from exchange.simulator.server import SimulatorConfig, running_simulator
from exchange.simulator.synthetic import LISTED_MS
from market.timeframe import DAY_MS
from tests.support.notes import eventually

NOW = LISTED_MS + 1000 * DAY_MS + 30_000
Faulty = Callable[..., Any]


@pytest.fixture
def faulty(tmp_path: Path) -> Faulty:
    """A function from fault rules to a running simulated exchange, as a client of it."""

    @asynccontextmanager
    async def running(*rules: dict[str, Any], speed: float = 60.0) -> AsyncIterator[httpx.AsyncClient]:
        path = tmp_path / "faults.json"
        path.write_text(json.dumps(rules))
        config = SimulatorConfig(seed=4, now_ms=NOW, port=0, speed=speed, faults=path)
        async with running_simulator(config) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
            yield client

    return running


def stream(client: httpx.AsyncClient, path: str) -> connect:
    return connect(str(client.base_url).rstrip("/").replace("http", "ws", 1) + path)


async def received(socket: ClientConnection, count: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(90):
        return [json.loads(await socket.recv()) for _ in range(count)]


async def hits(client: httpx.AsyncClient) -> dict[str, int]:
    counts: dict[str, int] = (await client.get("/simulator/faults")).json()
    return counts


async def test_connections_are_cut_without_a_closing_frame_or_closed_with_a_code(faulty: Faulty) -> None:
    rules = [
        {"stream": "btcusdt@trade", "from": 3, "do": "disconnect"},
        {"stream": "ethusdt@", "from": 2, "do": "close", "code": 1012},
    ]
    async with faulty(*rules) as client:
        async with stream(client, "/ws/btcusdt@trade") as socket:
            trades = await received(socket, 2)
            with pytest.raises(ConnectionClosed) as cut:
                await received(socket, 1)
            assert cut.value.rcvd is None
        async with stream(client, "/stream?streams=ethusdt@trade") as socket:
            await received(socket, 1)
            with pytest.raises(ConnectionClosed) as closed:
                await received(socket, 1)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012
        # The next connection works, and what was missed can be asked for.
        async with stream(client, "/ws/btcusdt@trade") as socket:
            (later,) = await received(socket, 1)
        params = {"symbol": "BTCUSDT", "fromId": trades[-1]["t"] + 1, "limit": later["t"] - trades[-1]["t"]}
        missed = (await client.get("/api/v3/historicalTrades", params=params)).json()
        assert [one["id"] for one in missed] == list(range(trades[-1]["t"] + 1, later["t"] + 1))
        assert await hits(client) == {"0": 1, "1": 1}


async def test_a_silent_socket_answers_pings_and_forgets_what_happened(faulty: Faulty) -> None:
    async with faulty({"stream": "*", "from": 4, "do": "silence", "seconds": 1.5}) as client:
        async with stream(client, "/ws/btcusdt@trade") as socket:
            before = await received(socket, 3)
            await asyncio.wait_for(await socket.ping(), 60)
            (after,) = await received(socket, 1)
        # How long it was silent is told by what it left out.
        assert after["t"] > before[-1]["t"] + 20
        assert await hits(client) == {"0": 1}


async def test_messages_are_lost_doubled_swapped_and_spoilt(faulty: Faulty) -> None:
    rules = [
        {"stream": "*@trade", "from": 3, "count": 5, "do": "lose"},
        {"stream": "*@trade", "from": 10, "do": "duplicate", "n": 2},
        {"stream": "*@trade", "from": 15, "do": "reorder"},
        {"stream": "*@trade", "from": 20, "do": "garbage", "kind": "truncated", "instead": True},
    ]
    async with faulty(*rules) as client, stream(client, "/ws/btcusdt@trade") as socket:
        ids: list[int | None] = []
        async with asyncio.timeout(90):
            while len(ids) < 22:
                try:
                    ids.append(json.loads(await socket.recv())["t"])
                except json.JSONDecodeError:
                    ids.append(None)
        first = ids[0] or 0
        numbers = [None if one is None else one - first + 1 for one in ids]
        assert numbers == [*(1, 2, 8, 9, 10, 11, 12, 10, 13, 14, 16, 15, 17, 18, 19, None, 21, 22, 23, 24, 25, 26)]
        assert await hits(client) == {"0": 5, "1": 1, "2": 1, "3": 1}


async def test_a_lost_change_of_the_book_shows_as_a_gap(faulty: Faulty) -> None:
    async with (
        faulty({"stream": "*@depth*", "from": 3, "do": "lose"}) as client,
        stream(client, "/ws/solusdt@depth@100ms") as socket,
    ):
        changes = await received(socket, 4)
    gaps = [later["U"] - earlier["u"] for earlier, later in pairwise(changes)]
    assert gaps[0] == gaps[2] == 1 < gaps[1]


async def test_a_stale_book_is_the_book_of_earlier(faulty: Faulty) -> None:
    async with faulty({"do": "stale", "seconds": 600, "from": 2}, speed=0.001) as client:
        books = [parse_depth((await client.get("/api/v3/depth?symbol=BTCUSDT&limit=10")).json()) for _ in range(3)]
        assert books[0] == books[2] != books[1]
        assert 16 * 5990 < books[0].last_update_id - books[1].last_update_id < 16 * 6010
        assert await hits(client) == {"0": 1}


async def test_a_clock_gone_wrong_comes_back(faulty: Faulty) -> None:
    rule = {"do": "skew", "milliseconds": 60_000, "seconds": 0.6, "from": 2}
    async with faulty(rule, speed=1) as client, stream(client, "/ws/btcusdt@depth@100ms") as socket:

        async def ahead() -> int:
            times = [(await client.get(path)).json() for path in ("/api/v3/time", "/simulator/clock")]
            return int(times[0]["serverTime"] - times[1]["now_ms"])

        assert abs(await ahead()) < 2000
        assert abs(await ahead() - 60_000) < 2000
        (change,) = await received(socket, 1)
        while abs(change["E"] - (await client.get("/simulator/clock")).json()["now_ms"] - 60_000) > 5000:
            (change,) = await received(socket, 1)

        async def right_again() -> bool:
            ahead_ms: int = await ahead()
            return abs(ahead_ms) < 2000

        await eventually(right_again, "the clock is right again")


async def test_in_an_outage_nothing_answers_and_everything_comes_back(faulty: Faulty) -> None:
    async with faulty({"path": "/api/v3/ping", "from": 2, "do": "outage", "seconds": 4}) as client:
        async with stream(client, "/ws/btcusdt@trade") as socket, stream(client, "/ws") as idle:
            assert (await client.get("/api/v3/ping")).status_code == 200
            began = time.monotonic()
            assert (await client.get("/api/v3/ping")).status_code == 503
            for one in (socket, idle):
                with pytest.raises(ConnectionClosed) as cut:
                    await received(one, 1000)
                assert cut.value.rcvd is None
        assert (await client.get("/api/v3/klines?symbol=BTCUSDT&interval=1m")).status_code == 503
        with pytest.raises(InvalidStatus, match="503"):
            await stream(client, "/ws/btcusdt@trade").__aenter__()

        async def answers() -> bool:
            return bool((await client.get("/api/v3/ping")).status_code == 200)

        await eventually(answers, "the end of the outage")
        assert time.monotonic() - began >= 4
        async with stream(client, "/ws/btcusdt@trade") as socket:
            await received(socket, 1)
        assert await hits(client) == {"0": 1}


async def test_the_clock_can_be_read(faulty: Faulty) -> None:
    async with faulty(speed=60) as client:
        first = (await client.get("/simulator/clock")).json()
        assert first["speed"] == 60
        assert first["now_ms"] >= NOW
        assert await hits(client) == {}

        async def later() -> bool:
            now_ms: int = (await client.get("/simulator/clock")).json()["now_ms"]
            return now_ms > int(first["now_ms"]) + 1000

        await eventually(later, "exchange time passes")
