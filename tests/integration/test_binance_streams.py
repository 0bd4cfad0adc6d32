"""The stream client of the Binance family against a server on this machine, and against the simulated exchange."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from websockets.asyncio.server import ServerConnection, serve

from exchange.binance.streams import BinanceStreams
from exchange.live import open_streams
from exchange.socket import SocketRules
from exchange.stream import RefusedMessage
from market.channel import Channel, Topic
from market.errors import ExchangeRefused, ExchangeUnavailable, NotFound
from market.timeframe import ONE_MINUTE
from tests.support.notes import eventually
from tests.support.simulated import simulated_exchange

NOW = 1723161255000
TRADES = Topic(Channel.TRADES, "BTC/USDT")
CANDLES = Topic(Channel.CANDLES, "BTC/USDT", ONE_MINUTE)
TICKERS = Topic(Channel.TICKERS, "BTC/USDT")
BOOKS = Topic(Channel.ORDER_BOOKS, "BTC/USDT")
SYMBOLS = {"BTC/USDT": "BTCUSDT"}


def trade(number: int, **other: object) -> dict[str, Any]:
    data = {"e": "trade", "E": NOW, "s": "BTCUSDT", "t": number, "p": "61837.63", "q": "0.02", "T": NOW, "m": True}
    return {"stream": "btcusdt@trade", "data": {**data, **other}}


class FakeBinance:
    """Acknowledges what is asked for and then follows a script."""

    def __init__(self, *, before: Sequence[str] = (), after: Sequence[str] = ()) -> None:
        #: Sent before and after each acknowledgement.
        self.before = before
        self.after = after
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.times: list[float] = []
        self.connections: list[ServerConnection] = []
        self.url = ""

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[FakeBinance]:
        async with serve(self._handle, "127.0.0.1", 0, compression=None) as server:
            self.url = f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
            yield self

    async def _handle(self, connection: ServerConnection) -> None:
        self.connections.append(connection)
        async for message in connection:
            request = json.loads(message)
            self.times.append(asyncio.get_running_loop().time())
            assert connection.request is not None
            self.requests.append((connection.request.path, request))
            for text in (*self.before, *self.answers(request), *self.after):
                await connection.send(text)

    def answers(self, request: dict[str, Any]) -> list[str]:
        return [json.dumps({"result": None, "id": request["id"]})]


class Heard:
    """What the listeners of one connection were told."""

    def __init__(self, *topics: Topic) -> None:
        self.messages: list[tuple[Topic, Any]] = []
        self.refused: list[RefusedMessage] = []
        self.listeners: dict[Topic, Callable[[Any], None]] = {topic: self._listener(topic) for topic in topics}

    def _listener(self, topic: Topic) -> Callable[[Any], None]:
        return lambda message: self.messages.append((topic, message))

    def ids(self) -> list[int]:
        return [message.id for _, message in self.messages]

    async def count(self, number: int) -> None:
        async def enough() -> bool:
            return len(self.messages) >= number

        await eventually(enough, f"{number} messages")


def client(server: FakeBinance, exchange: str = "binance", **options: Any) -> BinanceStreams:
    return BinanceStreams(exchange, SYMBOLS, server.url, **options)


async def test_all_topics_of_spot_come_over_one_socket() -> None:
    heard = Heard(TRADES, CANDLES, TICKERS, BOOKS)
    server = FakeBinance(before=[json.dumps(trade(1))], after=[json.dumps(trade(2))])
    async with server.serving(), client(server).connect(heard.listeners, heard.refused.append) as connection:
        # What comes before the answer counts too.
        assert heard.ids()[0] == 1
        await heard.count(2)
        assert connection.frames == 3
    ((path, request),) = server.requests
    assert path == "/stream"
    assert request["method"] == "SUBSCRIBE"
    assert request["params"] == [
        *("btcusdt@trade", "btcusdt@kline_1m", "btcusdt@bookTicker", "btcusdt@ticker", "btcusdt@depth@100ms"),
    ]
    assert heard.refused == []


async def test_futures_need_two_sockets_which_are_one_connection() -> None:
    heard = Heard(TRADES, CANDLES, TICKERS, BOOKS)
    async with FakeBinance().serving() as server:
        futures = client(server, "binanceusdm")
        async with futures.connect(heard.listeners, heard.refused.append) as connection:
            assert {path: request["params"] for path, request in server.requests} == {
                "/market/stream": ["btcusdt@aggTrade", "btcusdt@kline_1m", "btcusdt@ticker"],
                "/public/stream": ["btcusdt@bookTicker", "btcusdt@depth@100ms"],
            }
            assert connection.frames == 2
            await server.connections[1].close(1001, "going away")
            async with asyncio.timeout(60):
                with pytest.raises(ExchangeUnavailable, match=r"1001 \(going away\)"):
                    await connection.ended()


async def test_futures_books_alone_need_one_socket() -> None:
    heard, server = Heard(BOOKS), FakeBinance()
    async with server.serving(), client(server, "binanceusdm").connect(heard.listeners, heard.refused.append):
        assert [path for path, _ in server.requests] == ["/public/stream"]


async def test_many_topics_are_asked_for_in_pieces_and_not_too_fast() -> None:
    symbols = {f"C{number}/USDT": f"C{number}USDT" for number in range(250)}
    heard = Heard(*(Topic(Channel.TRADES, symbol) for symbol in symbols))
    async with FakeBinance().serving() as server:
        streams = BinanceStreams("binance", symbols, server.url)
        async with streams.connect(heard.listeners, heard.refused.append):
            asked = [request["params"] for _, request in server.requests]
    assert [len(one) for one in asked] == [100, 100, 50]
    assert sorted(name for one in asked for name in one) == sorted(f"c{number}usdt@trade" for number in range(250))
    assert len({request["id"] for _, request in server.requests}) == 3
    # At most five a second.
    assert server.times[2] - server.times[0] > 0.4


class Refusing(FakeBinance):
    def __init__(self, answer: dict[str, Any] | None) -> None:
        super().__init__()
        self.answer = answer

    def answers(self, request: dict[str, Any]) -> list[str]:
        return [] if self.answer is None else [json.dumps({"id": request["id"]} | self.answer)]


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        ({"error": {"code": 2, "msg": "unknown stream"}}, ExchangeRefused, "unknown stream"),
        ({"code": 2, "msg": "Invalid request"}, ExchangeRefused, "Invalid request"),
        ({"error": {"code": 3, "msg": "Invalid JSON"}, "id": None}, ExchangeRefused, "Invalid JSON"),
        ({"error": {"code": -1003, "msg": "Too many requests"}}, ExchangeUnavailable, "Too many requests"),
        (None, ExchangeUnavailable, "no answer to a SUBSCRIBE"),
    ],
)
async def test_a_subscription_that_does_not_come_about(
    answer: dict[str, Any] | None, error: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if answer is None:
        monkeypatch.setattr("exchange.binance.streams.ANSWER_TIMEOUT", 0.1)
    heard = Heard(TRADES)
    async with Refusing(answer).serving() as server:
        with pytest.raises(error, match=said):
            async with client(server).connect(heard.listeners, heard.refused.append):
                pass
        await server.connections[0].wait_closed()


async def test_a_connection_that_ends_before_the_answer() -> None:
    class Leaving(FakeBinance):
        async def _handle(self, connection: ServerConnection) -> None:
            await connection.recv()
            await connection.close(1008, "too many")

    heard = Heard(TRADES)
    async with Leaving().serving() as server:
        with pytest.raises(ExchangeUnavailable, match="1008"):
            async with client(server).connect(heard.listeners, heard.refused.append):
                pass


async def test_an_unknown_symbol_is_told_before_anything_is_sent() -> None:
    heard = Heard(Topic(Channel.TRADES, "BTC/USD"))
    async with FakeBinance().serving() as server:
        with pytest.raises(NotFound, match="BTC/USDT"):
            async with client(server).connect(heard.listeners, heard.refused.append):
                pass
        assert server.connections == []


async def test_garbage_is_counted_and_the_stream_goes_on() -> None:
    bad = [
        "garbage", "{}", "[1]", '{"stream":"ethusdt@trade","data":{"p":"1"}}', json.dumps(trade(9, p="-1")),
        json.dumps(trade(9, T=NOW + 400 * 86_400_000)), json.dumps({"stream": "btcusdt@trade", "data": None}),
    ]  # fmt: skip
    heard = Heard(TRADES)
    texts = [json.dumps(trade(1)), *bad, json.dumps(trade(2, new={"field": 1}))]
    async with FakeBinance(after=texts).serving() as server:
        streams = client(server, clock=Frozen())
        async with streams.connect(heard.listeners, heard.refused.append) as connection:
            await heard.count(2)
            assert connection.frames == 1 + len(texts)
    assert heard.ids() == [1, 2]
    assert [one.raw for one in heard.refused] == bad
    assert all(one.reason and one.exchange == "binance" and one.received_at == NOW for one in heard.refused)


class Frozen:
    def now_ms(self) -> int:
        return NOW


async def test_an_answer_nobody_waits_for_is_logged() -> None:
    heard = Heard(TRADES)
    server = FakeBinance(after=['{"result":null,"id":77}', json.dumps(trade(1))])
    with capture_logs() as logs:
        async with server.serving(), client(server).connect(heard.listeners, heard.refused.append):
            await heard.count(1)
    assert [(one["event"], one["id"]) for one in logs] == [("stream_answer_unasked", 77)]
    assert heard.refused == []


async def test_a_dead_peer_ends_the_connection() -> None:
    heard = Heard(TRADES)
    rules = SocketRules(ping_after=0.05, pong_within=0.1, close_timeout=0.2)
    async with FakeBinance().serving() as server:
        streams = client(server, socket_rules=rules)
        async with streams.connect(heard.listeners, heard.refused.append) as connection:
            server.connections[0].transport.pause_reading()
            async with asyncio.timeout(60):
                with pytest.raises(ExchangeUnavailable, match="nothing came"):
                    await connection.ended()
            server.connections[0].transport.abort()


@pytest.mark.recorded
async def test_a_recorded_session_over_a_socket_paused_in_between(recorded: Path) -> None:
    """Twenty thousand messages as they came in 2024, and the listener stops reading again and again."""
    texts = list(
        islice(raw_messages(recorded / "ws" / "binance_spot_BTCUSDT_2024-08-08_2024-08-09.jsonl.gz"), 20_000)
    )
    heard, server = Heard(TRADES, TICKERS, BOOKS), FakeBinance(after=texts)
    async with server.serving(), client(server).connect(heard.listeners, heard.refused.append) as connection:
        for stop_at in range(4000, 20_001, 4000):
            await heard.count(stop_at)
            connection.pause()
            count = len(heard.messages)
            await turns(50)
            assert len(heard.messages) == count
            connection.resume()
        assert connection.frames == 1 + len(texts)
    assert heard.refused == []
    kinds = Counter(json.loads(text)["stream"] for text in texts)
    told = Counter(topic for topic, _ in heard.messages)
    assert told == {
        TRADES: kinds["btcusdt@trade"],
        TICKERS: kinds["btcusdt@bookTicker"],
        BOOKS: kinds["btcusdt@depth@100ms"],
    }
    ids = [message.id for topic, message in heard.messages if topic == TRADES]
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    last_ids = [(one.first_id, one.last_id) for topic, one in heard.messages if topic == BOOKS]
    assert all(later[0] == one[1] + 1 for one, later in pairwise(last_ids))


def raw_messages(path: Path) -> list[str]:
    with gzip.open(path, "rt") as lines:
        entries = (line for line in lines if '"src":"ws"' in line)
        return [line.rstrip()[line.index('"msg":') + 6 : -1] for line in entries]


async def turns(count: int) -> None:
    """Let everything that is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_the_simulated_exchange_is_read_without_a_refusal() -> None:
    heard = Heard(TRADES, CANDLES, TICKERS, BOOKS)
    with simulated_exchange(seed=5, symbols=["BTC/USDT"], now_ms=1_700_000_000_000, speed=120.0) as url:
        streams = open_streams("binance", url, SYMBOLS)
        async with streams.connect(heard.listeners, heard.refused.append) as connection:
            await closed_candles(heard, 2)
            assert connection.frames > len(heard.messages)
    assert heard.refused == []
    ids = [message.id for topic, message in heard.messages if topic == TRADES]
    assert len(ids) > 10
    assert {topic for topic, _ in heard.messages} == {TRADES, CANDLES, TICKERS, BOOKS}
    changes = [message for topic, message in heard.messages if topic == BOOKS]
    assert all(later.first_id == one.last_id + 1 for one, later in pairwise(changes))
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    closed = [message for topic, message in heard.messages if topic == CANDLES and message.closed]
    assert closed[1].open_time == closed[0].open_time + 60_000
    prices = [message.price for topic, message in heard.messages if topic == TRADES and inside(message, closed[1])]
    assert (max(prices), min(prices)) == (closed[1].high, closed[1].low)


def inside(trade: Any, candle: Any) -> bool:
    return bool(candle.open_time <= trade.event_time < candle.open_time + 60_000)


async def closed_candles(heard: Heard, count: int) -> None:
    async def enough() -> bool:
        return sum(topic == CANDLES and message.closed for topic, message in heard.messages) >= count

    await eventually(enough, f"{count} closed candles")
