"""The simulated exchange over real sockets: REST, unmodified ccxt, streams, faults, start and stop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import ccxt.async_support as ccxt
import ccxt.pro as ccxt_streams
import httpx
import pyarrow as pa
import pytest
from websockets.asyncio.client import ClientConnection, connect

from exchange.address import at_address
from exchange.binance.wire import parse_agg_trades, parse_instrument, parse_klines
from exchange.simulator.server import SimulatorConfig, running_simulator, serve_simulator
from exchange.simulator.synthetic import LISTED_MS
from market.candle import open_times_ms
from market.clock import to_ms
from market.errors import Terminal
from market.timeframe import DAY_MS, MINUTE_MS, ONE_MINUTE

NOW = LISTED_MS + 1000 * DAY_MS + 30_000


@asynccontextmanager
async def simulated(**options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A running simulated exchange and a client of it."""
    defaults: dict[str, Any] = {"port": 0}
    if "data" not in options:
        defaults |= {"seed": 4, "now_ms": NOW}
    async with (
        running_simulator(SimulatorConfig(**(defaults | options))) as url,
        httpx.AsyncClient(base_url=url, timeout=60) as client,
    ):
        yield client


@asynccontextmanager
async def stream(client: httpx.AsyncClient, path: str) -> AsyncIterator[ClientConnection]:
    async with connect(str(client.base_url).replace("http", "ws", 1) + path) as websocket:
        yield websocket


async def klines(client: httpx.AsyncClient, **params: Any) -> list[list[Any]]:
    response = await client.get("/api/v3/klines", params={"symbol": "BTCUSDT", "interval": "1m", **params})
    response.raise_for_status()
    rows: list[list[Any]] = response.json()
    return rows


async def test_klines_page_by_binances_rules() -> None:
    start = LISTED_MS + 900 * DAY_MS
    async with simulated() as client:
        everything = await klines(client, startTime=start, limit=1000)
        assert len(everything) == 1000
        assert await klines(client, startTime=start) == everything[:500]
        assert await klines(client, startTime=start + 1, limit=3) == everything[1:4]
        assert await klines(client, startTime=start, endTime=everything[9][0]) == everything[:10]
        assert await klines(client, startTime=start, endTime=everything[9][0] - 1) == everything[:9]
        assert await klines(client, endTime=everything[99][0], limit=5) == everything[95:100]
        assert await klines(client, startTime=start, endTime=start - 1) == []
        assert len(await klines(client, startTime=start, limit=5000)) == 1000
        newest = await klines(client, limit=2)
        assert [row[0] for row in newest] == [NOW - 30_000 - MINUTE_MS, NOW - 30_000]
        assert await klines(client, startTime=NOW + DAY_MS) == []
        assert (await klines(client, endTime=LISTED_MS - 1)) == []
        same = await client.get(
            "/api/v3/uiKlines", params={"symbol": "BTCUSDT", "interval": "1m", "startTime": start}
        )
        assert same.json() == everything[:500]


async def test_the_forming_kline_changes_and_the_closed_ones_do_not() -> None:
    async with simulated(speed=3000) as client:
        first = await klines(client, limit=2)
        async with asyncio.timeout(90):
            while (later := await klines(client, startTime=first[0][0], limit=3))[-1][0] <= first[1][0]:
                pass
    assert later[0] == first[0]
    assert later[1][8] >= first[1][8]


async def test_far_away_times_and_ids_are_answered() -> None:
    far = 2**63 - 1
    # The newest candle must not change between two questions.
    async with simulated(speed=1e-6) as client:
        for interval in ("1m", "3d", "1M"):
            assert await klines(client, interval=interval, startTime=far) == []
            assert await klines(client, interval=interval, endTime=0) == []
            newest = await klines(client, interval=interval, endTime=far, limit=1)
            assert newest == await klines(client, interval=interval, startTime=newest[0][0], endTime=far)
            oldest = await klines(client, interval=interval, startTime=0, limit=2)
            assert LISTED_MS - 3 * DAY_MS < oldest[0][0] <= LISTED_MS < oldest[1][0]
        for path in ("aggTrades", "historicalTrades"):
            response = await client.get(f"/api/v3/{path}", params={"symbol": "BTCUSDT", "fromId": far})
            assert response.json() == []
            response = await client.get(f"/api/v3/{path}", params={"symbol": "BTCUSDT", "fromId": 0, "limit": 1})
            assert 0 in response.json()[0].values()
        params = {"symbol": "BTCUSDT", "startTime": far, "endTime": far}
        assert (await client.get("/api/v3/aggTrades", params=params)).json() == []


@pytest.mark.parametrize(
    "path, status, code",
    [
        ("/api/v3/klines?interval=1m", 400, -1102),
        ("/api/v3/klines?symbol=BTCUSDT", 400, -1102),
        ("/api/v3/klines?symbol=NOPE&interval=1m", 400, -1121),
        ("/api/v3/klines?symbol=BTCUSDT&interval=1s", 400, -1120),
        ("/api/v3/klines?symbol=BTCUSDT&interval=1m&startTime=yesterday", 400, -1100),
        ("/api/v3/klines?symbol=BTCUSDT&interval=1m&limit=0", 400, -1130),
        ("/api/v3/klines?symbol=BTCUSDT&interval=1m&colour=red", 400, -1104),
        ("/api/v3/time?x=1", 400, -1101),
        ("/api/v3/aggTrades?symbol=BTCUSDT&fromId=1&startTime=5", 400, -1128),
        ("/api/v3/depth?symbol=", 400, -1102),
        ("/api/v3/ticker/24hr?symbol=BTCUSDT&type=SMALL", 400, -1139),
        ('/api/v3/exchangeInfo?symbols=["BTCUSDT","NOPE"]', 400, -1121),
    ],
)
async def test_refusals_have_binances_codes(path: str, status: int, code: int) -> None:
    async with simulated() as client:
        response = await client.get(path)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.json()["msg"]
    assert response.headers["content-type"] == "application/json;charset=UTF-8"


async def test_weights_are_counted_and_limited() -> None:
    async with simulated() as client:
        used = []
        for path in (
            *("ping", "time", "exchangeInfo", "klines?symbol=BTCUSDT&interval=1m", "aggTrades?symbol=BTCUSDT"),
            *(
                "depth?symbol=BTCUSDT&limit=5000",
                "ticker/24hr?symbol=BTCUSDT",
                "ticker/24hr",
                "avgPrice?symbol=BTCUSDT",
            ),
        ):
            response = await client.get(f"/api/v3/{path}")
            assert response.status_code == 200, path
            used.append(int(response.headers["x-mbx-used-weight-1m"]))
        steps = [after - before for before, after in zip([0, *used], used, strict=False)]
        # A minute of the machine's clock may end in between, and the count begins again.
        if min(steps) > 0:
            assert steps == [1, 1, 20, 2, 4, 250, 2, 80, 2]
        while response.status_code == 200:
            response = await client.get("/api/v3/depth?symbol=BTCUSDT&limit=5000")
        assert response.status_code == 429
        assert response.json()["code"] == -1003
        assert 1 <= int(response.headers["retry-after"]) <= 60


async def test_trades_and_tickers_answer_alike() -> None:
    async with simulated(now_ms=NOW, speed=0.000001) as client:

        async def get(path: str) -> Any:
            return (await client.get(f"/api/v3/{path}")).raise_for_status().json()

        newest = await get("aggTrades?symbol=ETHUSDT&limit=10")
        assert await get(f"aggTrades?symbol=ETHUSDT&fromId={newest[0]['a']}") == newest
        since = newest[0]["T"]
        by_time = await get(f"aggTrades?symbol=ETHUSDT&startTime={since}&endTime={newest[-1]['T']}")
        assert by_time[-1] == newest[-1]
        assert await get(f"aggTrades?symbol=ETHUSDT&endTime={newest[-1]['T']}&limit=10") == newest
        assert parse_agg_trades(newest, "ETHUSDT")[0].time <= NOW
        trades = await get("trades?symbol=ETHUSDT&limit=5")
        assert trades[-1]["id"] == newest[-1]["l"]
        assert await get(f"historicalTrades?symbol=ETHUSDT&fromId={trades[0]['id']}&limit=5") == trades
        price = (await get("ticker/price?symbol=ETHUSDT"))["price"]
        assert price == newest[-1]["p"] == (await get("ticker/24hr?symbol=ETHUSDT"))["lastPrice"]
        book = await get("depth?symbol=ETHUSDT&limit=5")
        best = await get('ticker/bookTicker?symbols=["ETHUSDT"]')
        assert (best[0]["bidPrice"], best[0]["askPrice"]) == (book["bids"][0][0], book["asks"][0][0])
        assert len(book["asks"]) == 5
        assert [one["symbol"] for one in await get("ticker/price")] == ["BTCUSDT", "ETHUSDT", "SOLUSDT"]
        (entry,) = (await get("exchangeInfo?symbol=SOLUSDT"))["symbols"]
        assert parse_instrument(entry).symbol == "SOL/USDT"
        unknown = await client.get("/api/v3/nothing")
        assert unknown.status_code == 404


@pytest.mark.recorded
async def test_the_recorded_year_is_served_as_it_is(
    recorded: Path, recorded_candles: Callable[[str, str], pa.Table]
) -> None:
    table = recorded_candles("binance_spot_BTCUSDT_1m_2023", "1m").combine_chunks()
    times = open_times_ms(table)
    config: dict[str, Any] = {"data": recorded / "candles", "symbols": ("BTC/USDT",), "now_ms": to_ms("2024-01-01")}
    async with simulated(**config) as client:
        for start in (*range(int(times[0]), int(times[-1]), 40 * DAY_MS), to_ms("2023-03-24T05:00Z")):
            rows = await klines(client, startTime=start, limit=1000)
            served = parse_klines(rows, ONE_MINUTE)
            row = int(times.searchsorted(start))
            assert served == table.slice(row, 1000)
        outage = await klines(client, startTime=to_ms("2023-03-24T12:39Z"), limit=2)
        assert [row[0] for row in outage] == [to_ms("2023-03-24T12:39Z"), to_ms("2023-03-24T14:00Z")]
        assert outage[0][6] == 1679661581646
        empty = {"startTime": to_ms("2023-03-24T12:40Z"), "endTime": to_ms("2023-03-24T13:59Z")}
        assert await klines(client, **empty) == []
        hours = parse_klines(await klines(client, interval="1h", limit=1000), ONE_MINUTE)
        expected = recorded_candles("binance_spot_BTCUSDT_1h_2023", "1h")
        assert hours.drop(["early_close_time"]) == expected.slice(expected.num_rows - 1000).drop(
            ["early_close_time"]
        )


async def test_unmodified_ccxt_works() -> None:
    async with simulated() as client:
        exchange = ccxt.binance()
        host = str(client.base_url).rstrip("/")
        exchange.urls["api"] = {
            name: host + "/" + url.split("/", 3)[3] if url.startswith("https://") else url
            for name, url in exchange.urls["api"].items()
        }
        try:
            markets = await exchange.load_markets()
            assert list(markets) == ["BTC/USDT", "ETH/USDT", "SOL/USDT"]
            assert markets["BTC/USDT"]["spot"]
            assert markets["BTC/USDT"]["active"]
            rows = await klines(client, startTime=LISTED_MS, limit=3)
            candles = await exchange.fetch_ohlcv("BTC/USDT", "1m", since=LISTED_MS, limit=3)
            assert candles == [[row[0], *(float(text) for text in row[1:6])] for row in rows]
            trades = await exchange.fetch_trades("BTC/USDT", limit=5)
            assert len(trades) == 5
            ticker = await exchange.fetch_ticker("BTC/USDT")
            assert ticker["bid"] < ticker["ask"]
            tickers = await exchange.fetch_tickers()
            assert set(tickers) == set(markets)
            book = await exchange.fetch_order_book("BTC/USDT", 5)
            assert len(book["bids"]) == 5
            assert await exchange.fetch_time() >= NOW
            with pytest.raises(ccxt.BadSymbol):
                await exchange.fetch_ohlcv("NOPE/USDT")
            with pytest.raises(ccxt.BadRequest):
                await exchange.fetch_ohlcv("BTC/USDT", "1s")
        finally:
            await exchange.close()


async def test_kline_streams_close_every_candle_at_high_speed() -> None:
    async with (
        simulated(speed=600) as client,
        stream(client, "/stream?streams=btcusdt@kline_1m/ethusdt@kline_3m") as ws,
    ):
        closed: dict[str, list[Any]] = {"btcusdt@kline_1m": [], "ethusdt@kline_3m": []}
        async with asyncio.timeout(90):
            while len(closed["btcusdt@kline_1m"]) < 25:
                message = json.loads(await ws.recv())
                if message["data"]["k"]["x"]:
                    closed[message["stream"]].append(message["data"]["k"])
        minutes = closed["btcusdt@kline_1m"]
        rows = await klines(client, startTime=minutes[0]["t"], endTime=minutes[-1]["t"])
        assert [one["t"] for one in minutes] == [row[0] for row in rows]
        assert [(one["o"], one["c"], one["v"], one["n"], one["q"]) for one in minutes] == [
            (row[1], row[4], row[5], row[8], row[7]) for row in rows
        ]
        assert len(closed["ethusdt@kline_3m"]) >= 7


async def test_unmodified_ccxt_streams_work() -> None:
    async with simulated(speed=60) as client:
        exchange = ccxt_streams.binance()
        exchange.urls["api"] = at_address(exchange.urls["api"], str(client.base_url).rstrip("/"))
        try:
            async with asyncio.timeout(90):
                trades = await exchange.watch_trades("BTC/USDT")
                assert trades[-1]["symbol"] == "BTC/USDT"
                candles = await exchange.watch_ohlcv("ETH/USDT", "1m")
                assert candles[-1][0] >= NOW - 30_000
                mini = await exchange.watch_ticker("SOL/USDT")
                assert mini["low"] <= mini["last"] <= mini["high"]
                ticker = await exchange.watch_ticker("ETH/USDT", {"name": "ticker"})
                assert ticker["bid"] < ticker["ask"]
                best = await exchange.watch_bids_asks(["SOL/USDT"])
                assert best["SOL/USDT"]["bid"] < best["SOL/USDT"]["ask"]
                nonces = set()
                for _ in range(10):
                    # Raises where a change does not follow on from the one before it.
                    book = await exchange.watch_order_book("BTC/USDT")
                    assert book["bids"][0][0] < book["asks"][0][0]
                    nonces.add(book["nonce"])
                assert len(nonces) > 5
        finally:
            await exchange.close()


async def test_control_messages_as_binance_has_them() -> None:
    async with simulated(speed=60) as client, stream(client, "/ws/btcusdt@aggTrade") as ws:

        async def ask(request: Any) -> Any:
            await ws.send(request if isinstance(request, str) else json.dumps(request))
            async with asyncio.timeout(90):
                while "e" in (answer := json.loads(await ws.recv())):
                    pass
            return answer

        assert await ask({"method": "LIST_SUBSCRIPTIONS", "id": 3}) == {"result": ["btcusdt@aggTrade"], "id": 3}
        subscribe = {"method": "SUBSCRIBE", "params": ["ethusdt@trade", "solusdt@kline_1m"], "id": 1}
        assert await ask(subscribe) == {"result": None, "id": 1}
        unsubscribe = {"method": "UNSUBSCRIBE", "params": ["btcusdt@aggTrade", "solusdt@kline_1m"], "id": "u"}
        assert await ask(unsubscribe) == {"result": None, "id": "u"}
        assert (await ask({"method": "LIST_SUBSCRIPTIONS", "id": 4}))["result"] == ["ethusdt@trade"]
        assert await ask({"method": "GET_PROPERTY", "params": ["combined"], "id": 2}) == {"result": False, "id": 2}
        for request, code in (
            ({"method": "SUBSCRIBE", "params": ["nope@trade"], "id": 5}, 2),
            ({"method": "SUBSCRIBE", "params": [], "id": 5}, 2),
            ({"method": "DANCE", "id": 5}, 2),
            ({"id": 5}, 2),
            ({"method": "LIST_SUBSCRIPTIONS", "id": 1.5}, 2),
            ({"method": "SET_PROPERTY", "params": ["combined", "yes"], "id": 5}, 1),
            ({"method": "GET_PROPERTY", "params": ["colour"], "id": 5}, 0),
            ("{not json", 3),
        ):
            assert (await ask(request))["error"]["code"] == code, request
        assert (await ask({"method": "SET_PROPERTY", "params": ["combined", True], "id": 6}))["result"] is None
        async with asyncio.timeout(90):
            while "data" not in (message := json.loads(await ws.recv())):
                pass
        assert message["stream"] == "ethusdt@trade"


async def faulty(tmp_path: Path, rules: list[dict[str, Any]], count: int) -> list[Any]:
    """What `count` requests for klines meet under `rules`: status and rows, or the error's class."""
    (tmp_path / "faults.json").write_text(json.dumps(rules))
    met: list[Any] = []
    async with simulated(faults=tmp_path / "faults.json") as client:
        for _ in range(count):
            try:
                response = await client.get("/api/v3/klines?symbol=BTCUSDT&interval=1m&limit=100")
            except httpx.TransportError as error:
                met.append(type(error))
            else:
                json_ = response.headers["content-type"].startswith("application/json")
                body = response.json() if json_ else "html"
                met.append((response.status_code, len(body) if isinstance(body, list) else body))
    return met


async def test_faults_do_what_they_say(tmp_path: Path) -> None:
    kinds = [
        {"do": "status", "status": 429, "retry_after": 7},
        {"do": "status", "status": 418},
        {"do": "status", "status": 503},
        {"do": "html"},
        {"do": "half_body"},
        {"do": "empty"},
        {"do": "hang", "seconds": 0.2},
        {"do": "partial", "keep": 0.3},
    ]
    rules = [{"path": "/api/v3/klines", "from": at, **kind} for at, kind in enumerate(kinds, 2)]
    assert await faulty(tmp_path, rules, 10) == [
        (200, 100),
        (429, {"code": -1003, "msg": "Injected fault."}),
        (418, {"code": -1003, "msg": "Injected fault."}),
        (503, {"code": -1008, "msg": "Injected fault."}),
        (200, "html"),
        httpx.RemoteProtocolError,
        httpx.RemoteProtocolError,
        httpx.RemoteProtocolError,
        (200, 30),
        (200, 100),
    ]


async def test_a_request_that_hangs_does_not_hold_up_the_end(tmp_path: Path) -> None:
    rules = [{"path": "/api/v3/time", "do": "hang", "seconds": 600}]
    (tmp_path / "faults.json").write_text(json.dumps(rules))
    async with httpx.AsyncClient() as other:
        async with simulated(faults=tmp_path / "faults.json") as client:
            hanging = asyncio.create_task(other.get(client.base_url.join("/api/v3/time")))
            for _ in range(3):
                assert (await client.get("/api/v3/ping")).json() == {}
            assert not hanging.done()
            began = time.monotonic()
        with pytest.raises(httpx.TransportError):
            await hanging
    assert time.monotonic() - began < 60


async def test_it_serves_until_cancelled_and_frees_its_port() -> None:
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        serve_simulator(SimulatorConfig(seed=1, port=0), ready.set_result, stop_on_signals=False)
    )
    url = await ready
    port = int(url.rsplit(":", 1)[1])
    assert url == f"http://127.0.0.1:{port}"
    with pytest.raises(Terminal, match=f"cannot listen on 127.0.0.1:{port}: .* Choose another --port"):
        async with running_simulator(SimulatorConfig(seed=1, port=port)):
            pass
    async with httpx.AsyncClient(base_url=url) as client, stream(client, "/ws/btcusdt@trade"):
        assert (await client.get("/api/v3/ping")).json() == {}
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))


async def test_a_signal_ends_it_cleanly() -> None:
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve_simulator(SimulatorConfig(seed=1, port=0), ready.set_result))
    await ready
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(90):
        await task


@pytest.mark.recorded
async def test_a_recorded_market_runs_on_from_any_moment(recorded: Path) -> None:
    now_ms = to_ms("2023-06-01T12:00:30Z")
    async with simulated(data=recorded / "candles", symbols=("ARB/USDT",), now_ms=now_ms, speed=600) as client:
        async with stream(client, "/ws/arbusdt@kline_1m") as ws, asyncio.timeout(90):
            while not (kline := json.loads(await ws.recv())["k"])["x"]:
                assert kline["t"] >= now_ms - 30_000
        (row,) = await klines(client, symbol="ARBUSDT", startTime=kline["t"], limit=1)
        assert (row[1], row[5], row[8]) == (kline["o"], kline["v"], kline["n"])
        (entry,) = (await client.get("/api/v3/exchangeInfo")).json()["symbols"]
        assert parse_instrument(entry).symbol == "ARB/USDT"
