"""Recorded sessions of Coinbase, OKX and Bybit: every message is read, every book can be rebuilt, and the stream
clients hand on over a real socket what was recorded."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from exchange.bybit import wire as bybit
from exchange.bybit import wire_v2 as bybit_v2
from exchange.coinbase import wire as coinbase
from exchange.coinbase.streams import CoinbaseStreams
from exchange.joined_sockets import SocketPlan, joined_sockets
from exchange.live import NATIVE, open_streams
from exchange.okx import wire as okx
from exchange.okx.streams import OkxStreams
from exchange.reading import Answer, Reading
from exchange.socket import SocketRules
from exchange.stream import RefusedMessage, StreamClient
from market.book_checksum import okx_checksum
from market.book_message import BookChain, BookChange, BookSnapshot, BookStart
from market.channel import Channel, Topic
from market.clock import SystemClock
from market.errors import BadInput, ExchangeRefused, ExchangeUnavailable, NotFound
from market.order_book import BookState, OrderBook
from market.ticker import Ticker
from market.timeframe import TIMEFRAMES
from market.trade import Trade
from tests.support.simulated import simulated_exchange

OKX_SYMBOLS = {"BTC/USDT": "BTC-USDT", "UNI/USD:UNI": "UNI-USD-SWAP", "BTC/USD:BTC-220527": "BTC-USD-220527"}
DEADLINE = 90.0


class Session:
    """The messages of one recorded file, byte for byte, in the order of arrival."""

    def __init__(self, path: Path, *, enveloped: bool = True) -> None:
        self.received: list[bytes] = []
        with gzip.open(path, "rb") as lines:
            for line in lines:
                if not enveloped:
                    self.received.append(line.strip())
                elif json.loads(line)["src"] == "ws":
                    self.received.append(line.rstrip()[line.index(b'"msg":') + 6 : -1])

    def parsed(self) -> list[dict[str, Any]]:
        return [json.loads(one) for one in self.received]


@pytest.fixture(scope="module")
def session(recorded: Path) -> Callable[..., Session]:
    @cache
    def load(name: str, *, enveloped: bool = True) -> Session:
        (path,) = (recorded / "ws").glob(f"{name}*")
        return Session(path, enveloped=enveloped)

    return load


def kinds(readings: Iterable[Reading]) -> Counter[str]:
    """How many there are of each kind of message and answer."""
    return Counter(
        found.kind if isinstance(found, Answer) else type(found).__name__
        for found in ([*reading][1] if type(reading) is tuple else reading for reading in readings)
    )


def by_topic(readings: Iterable[Reading], kind: type) -> dict[str, list[Any]]:
    """Messages of one kind, by symbol."""
    found: dict[str, list[Any]] = defaultdict(list)
    for reading in readings:
        if type(reading) is tuple and isinstance(reading[1], kind):
            found[reading[0].symbol].append(reading[1])
    return found


def dense(trades: Sequence[Trade]) -> bool:
    ids = [one.id for one in trades]
    return ids == list(range(ids[0], ids[0] + len(ids)))


def rebuilt(messages: Iterable[BookSnapshot | BookChange], book: OrderBook) -> int:
    """Play messages on a book, which has to be LIVE after each; how many there were."""
    count = 0
    for message in messages:
        taken = book.snapshot(message) if isinstance(message, BookSnapshot) else book.apply(message)
        assert taken, (count, book.reason)
        assert book.state is BookState.LIVE
        count += 1
    return count


def read_all(
    session: Session, read: Callable[[bytes, Any, int], list[Reading]], topics: Mapping[Any, Topic]
) -> list[Reading]:
    found: list[Reading] = []
    for raw in session.received:
        readings = read(raw, topics, 99)
        assert readings, raw
        found += readings
    return found


def coinbase_topics(session: Session) -> dict[coinbase.WireName, Topic]:
    products = {one["product_id"] for one in session.parsed() if "product_id" in one}
    return {
        coinbase.wire_name(topic, product): topic
        for product in products
        for channel in (Channel.TRADES, Channel.TICKERS, Channel.ORDER_BOOKS)
        for topic in [Topic(channel, product.replace("-", "/"))]
    }


def okx_topics() -> dict[okx.WireName, Topic]:
    return {
        okx.wire_name(topic, name, trades=okx.ADDED_TRADES): topic
        for symbol, name in OKX_SYMBOLS.items()
        for channel in (Channel.TRADES, Channel.TICKERS, Channel.ORDER_BOOKS)
        for topic in [Topic(channel, symbol)]
    }


def test_the_coinbase_session_is_read_without_a_loss(session: Callable[..., Session]) -> None:
    recorded = session("coinbase_10products")
    assert Counter(one["type"] for one in recorded.parsed()) == {
        "l2update": 9719, "ticker": 107, "match": 97, "snapshot": 10, "last_match": 10, "subscriptions": 3,
    }  # fmt: skip
    readings = read_all(recorded, coinbase.read, coinbase_topics(recorded))
    assert kinds(readings) == {
        "BookChange": 9719, "Ticker": 107, "Trade": 107, "BookSnapshot": 10, "subscribed": 3,
    }  # fmt: skip
    trades = by_topic(readings, Trade)
    assert len(trades) == 10
    assert all(dense(one) for one in trades.values())
    expected = [
        (one["trade_id"], float(one["price"]), float(one["size"]), one["side"] == "sell")
        for one in recorded.parsed()
        if one["type"] in ("match", "last_match")
    ]
    found = [one for reading in readings if type(reading) is tuple for one in [reading[1]]]
    assert [
        (one.id, one.price, one.quantity, one.taker_buys) for one in found if isinstance(one, Trade)
    ] == expected


def test_coinbase_trades_take_from_the_right_side_of_the_book(session: Callable[..., Session]) -> None:
    """A ticker comes with each match and has the taker's side: the opposite of the match's, the maker's."""
    recorded = session("coinbase_10products")
    readings = read_all(recorded, coinbase.read, coinbase_topics(recorded))
    taker = {
        (one["product_id"], one["trade_id"]): one["side"] for one in recorded.parsed() if one["type"] == "ticker"
    }
    found = {
        (symbol.replace("/", "-"), trade.id): "buy" if trade.taker_buys else "sell"
        for symbol, trades in by_topic(readings, Trade).items()
        for trade in trades
    }
    assert len(found.keys() & taker.keys()) > 90
    assert {key: found[key] for key in found.keys() & taker.keys()} == {
        key: taker[key] for key in found.keys() & taker.keys()
    }


def test_coinbase_books_are_rebuilt(session: Callable[..., Session]) -> None:
    recorded = session("coinbase_10products")
    messages = by_topic(
        read_all(recorded, coinbase.read, coinbase_topics(recorded)),
        BookSnapshot | BookChange,  # type: ignore[arg-type]
    )
    counts = [rebuilt(one, OrderBook(BookChain.CONNECTION, BookStart.STREAM)) for one in messages.values()]
    assert (len(counts), sum(counts)) == (10, 9729)


def test_the_okx_session_is_read_without_a_loss(session: Callable[..., Session]) -> None:
    recorded = session("okx_3instruments")
    news = Counter(one["arg"]["channel"] for one in recorded.parsed() if "data" in one)
    assert news == {"books": 290, "trades": 74, "tickers": 28}
    readings = read_all(recorded, okx.read, okx_topics())
    assert kinds(readings) == {
        "BookSnapshot": 3, "BookChange": 287, "Trade": 74, "Ticker": 28, "subscribed": 18,
    }  # fmt: skip
    trades = by_topic(readings, Trade)
    assert {symbol: len(one) for symbol, one in trades.items()} == {
        "BTC/USDT": 69, "BTC/USD:BTC-220527": 4, "UNI/USD:UNI": 1,
    }  # fmt: skip
    assert all(dense(one) for one in trades.values())
    expected = [
        (int(row["tradeId"]), float(row["px"]), float(row["sz"]), int(row["ts"]), row["side"] == "buy", 99, 1)
        for one in recorded.parsed()
        if "data" in one and one["arg"]["channel"] == "trades"
        for row in one["data"]
    ]
    assert sorted(one for trade in trades.values() for one in trade) == sorted(expected)


def test_every_checksum_of_okx_is_right(session: Callable[..., Session]) -> None:
    """With the checksum put out by one in any message, the book says so."""
    readings = read_all(session("okx_3instruments"), okx.read, okx_topics())
    messages = by_topic(readings, BookSnapshot | BookChange)  # type: ignore[arg-type]
    verified = 0
    for one in messages.values():
        assert all(message.checksum is not None for message in one)
        checked: list[int] = []

        def checksum(bids: Any, asks: Any, checked: list[int] = checked) -> int:
            checked.append(okx_checksum(bids, asks))
            return checked[-1]

        book = OrderBook(BookChain.CONNECTION, BookStart.STREAM, checksum=checksum)
        assert rebuilt(one, book) == len(one)
        assert checked == [message.checksum for message in one]
        verified += len(checked)
        wrong = one[-1]._replace(checksum=one[-1].checksum + 1)
        assert not book.apply(wrong)
        assert book.state is BookState.STALE
    assert verified == 290


def test_the_retired_bybit_session_is_read_without_a_loss(session: Callable[..., Session]) -> None:
    recorded = session("bybit_v2_10symbols")
    names = {one["topic"].partition(".")[2] for one in recorded.parsed() if "topic" in one}
    topics = {
        bybit_v2.wire_name(topic, name): topic
        for name in names
        for topic in (Topic(Channel.TRADES, name), Topic(Channel.ORDER_BOOKS, name))
    }
    readings = read_all(recorded, bybit_v2.read, topics)
    rows = [row for one in recorded.parsed() if one.get("topic", "").startswith("trade.") for row in one["data"]]
    found = kinds(readings)
    assert found == {"BookSnapshot": 10, "BookChange": 4268, "Trade": len(rows), "subscribed": 20}
    assert sum(one.get("topic", "").startswith("trade.") for one in recorded.parsed()) == 142
    trades = [one for topic in by_topic(readings, Trade).values() for one in topic]
    assert sorted((str(one.id), one.price, one.quantity) for one in trades) == sorted(
        (row["trade_id"], float(row["price"]), float(row["size"])) for row in rows
    )


def test_retired_bybit_books_hold_their_levels(session: Callable[..., Session]) -> None:
    """Books of 25 levels: what is updated or deleted is there, what is inserted is not, and never more than 25."""
    recorded = session("bybit_v2_10symbols")
    books: dict[str, dict[str, dict[str, float]]] = {}
    topics = {
        one["topic"]: Topic(Channel.ORDER_BOOKS, one["topic"])
        for one in recorded.parsed()
        if one.get("topic", "").startswith("orderBook")
    }
    ours = {name: OrderBook(BookChain.CONNECTION, BookStart.STREAM) for name in topics}
    for raw, one in zip(recorded.received, recorded.parsed(), strict=True):
        name = one.get("topic", "")
        if name not in topics:
            continue
        ((_, message),) = bybit_v2.read(raw, topics, 99)
        if one["type"] == "snapshot":
            books[name] = {"Buy": {}, "Sell": {}}
            # Inverse contracts have the list itself.
            for row in one["data"] if isinstance(one["data"], list) else one["data"]["order_book"]:
                books[name][row["side"]][row["price"]] = row["size"]
            assert ours[name].snapshot(message)
            continue
        for row in one["data"]["delete"]:
            del books[name][row["side"]][row["price"]]
        for row in one["data"]["update"]:
            assert row["price"] in books[name][row["side"]]
            books[name][row["side"]][row["price"]] = row["size"]
        for row in one["data"]["insert"]:
            assert row["price"] not in books[name][row["side"]]
            books[name][row["side"]][row["price"]] = row["size"]
        assert ours[name].apply(message), ours[name].reason
        top = ours[name].top(50)
        for side, levels in (("Buy", top.bids), ("Sell", top.asks)):
            assert sorted(levels) == sorted((float(at), size) for at, size in books[name][side].items())
            assert len(levels) <= 25


def test_the_bybit_session_is_one_chain(session: Callable[..., Session]) -> None:
    recorded = session("bybit_v5_XRPUSDT", enveloped=False)
    topic = Topic(Channel.ORDER_BOOKS, "XRP/USDT:USDT")
    readings = read_all(recorded, bybit.read, {"orderbook.500.XRPUSDT": topic})
    assert kinds(readings) == {"BookSnapshot": 1, "BookChange": 49}
    messages = by_topic(readings, BookSnapshot | BookChange)["XRP/USDT:USDT"]  # type: ignore[arg-type]
    assert [one.last_id for one in messages] == list(range(20254869, 20254919))
    assert [one.event_time for one in messages] == [one["ts"] for one in recorded.parsed()]
    assert rebuilt(messages, OrderBook(BookChain.COUNTED, BookStart.STREAM)) == 50
    broken = OrderBook(BookChain.COUNTED, BookStart.STREAM)
    broken.snapshot(messages[0])
    assert not broken.apply(messages[2])
    assert broken.state is BookState.STALE


# Over real sockets.


class Server:
    """Answers the requests of each connection and then plays frames, at whatever path."""

    def __init__(self, answer: Callable[[str, str], list[str | bytes]]) -> None:
        self._answer = answer
        self.url = ""
        self.requests: list[tuple[str, str]] = []
        self.open = 0
        self._connections: set[ServerConnection] = set()

    async def tell_all(self, frame: str) -> None:
        for connection in self._connections:
            await connection.send(frame)

    async def __call__(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        path = connection.request.path
        self.open += 1
        self._connections.add(connection)
        try:
            async for message in connection:
                assert isinstance(message, str)
                self.requests.append((path, message))
                for frame in self._answer(path, message):
                    if frame == b"CLOSE":
                        await connection.close(1012, "service restart")
                        return
                    await connection.send(frame, text=True)
        except ConnectionClosed:
            pass
        finally:
            self.open -= 1
            self._connections.discard(connection)


@asynccontextmanager
async def serving(answer: Callable[[str, str], list[str | bytes]]) -> AsyncIterator[Server]:
    server = Server(answer)
    async with serve(server, "127.0.0.1", 0, compression=None, max_size=None) as listening:
        (socket,) = listening.sockets
        server.url = f"http://127.0.0.1:{socket.getsockname()[1]}"
        yield server


class Heard:
    """What a client handed on, in order."""

    def __init__(self, topics: Iterable[Topic], enough: int) -> None:
        self.messages: list[tuple[Topic, Any]] = []
        self.refused: list[RefusedMessage] = []
        self._enough = enough
        self._begun, self._done = asyncio.Event(), asyncio.Event()
        self.listeners = {topic: self._listener(topic) for topic in topics}

    def _listener(self, topic: Topic) -> Callable[[Any], None]:
        def listen(message: Any) -> None:
            self.messages.append((topic, message))
            self._look()

        return listen

    def refuse(self, message: RefusedMessage) -> None:
        self.refused.append(message)
        self._look()

    def _look(self) -> None:
        self._begun.set()
        if len(self.messages) + len(self.refused) >= self._enough:
            self._done.set()

    async def first(self) -> None:
        async with asyncio.timeout(DEADLINE):
            await self._begun.wait()

    async def enough(self) -> None:
        async with asyncio.timeout(DEADLINE):
            await self._done.wait()


def without_receipt(messages: Iterable[Any]) -> list[Any]:
    return [(topic, message._replace(received_at=0)) for topic, message in messages]


def expected(readings: Iterable[Reading]) -> list[Any]:
    return without_receipt(one for one in readings if type(one) is tuple)


@pytest.mark.parametrize("exchange", ["coinbaseexchange", "okx"])
async def test_a_session_that_the_simulated_exchange_plays_is_heard_whole(
    exchange: str, recorded: Path, session: Callable[..., Session]
) -> None:
    okx_played = exchange == "okx"
    name = "okx_3instruments" if okx_played else "coinbase_10products"
    topics = okx_topics() if okx_played else coinbase_topics(session(name))
    wanted = expected(read_all(session(name), okx.read if okx_played else coinbase.read, topics))
    symbols = {topic.symbol: wire[1] for wire, topic in topics.items()}
    (path,) = (recorded / "ws").glob(f"{name}*")
    with simulated_exchange(replay=path, speed=math.inf) as url:
        client: StreamClient = CoinbaseStreams(exchange, symbols, url)
        if okx_played:
            client = OkxStreams(exchange, symbols, url, trades=okx.ADDED_TRADES, numbered_books=False)
        heard = Heard(topics.values(), len(wanted))
        async with client.connect(heard.listeners, heard.refuse):
            await heard.enough()
    assert without_receipt(heard.messages) == wanted
    assert heard.refused == []


async def test_the_coinbase_client_hands_on_the_whole_session(session: Callable[..., Session]) -> None:
    recorded = session("coinbase_10products")
    topics = coinbase_topics(recorded)
    wanted = expected(read_all(recorded, coinbase.read, topics))
    symbols = {topic.symbol: product for (_, product), topic in topics.items()}
    async with serving(lambda path, message: list(recorded.received)) as server:
        client = open_streams("coinbaseexchange", server.url, symbols)
        heard = Heard(topics.values(), len(wanted))
        async with client.connect(heard.listeners, heard.refuse) as connection:
            await heard.enough()
            assert connection.frames == 9946
        assert server.open == 0
    assert without_receipt(heard.messages) == wanted
    assert heard.refused == []
    ((_, request),) = server.requests
    asked = {one["name"]: len(one["product_ids"]) for one in json.loads(request)["channels"]}
    assert asked == {"matches": 10, "ticker": 10, "level2_batch": 10}


async def test_the_okx_client_hands_on_the_whole_session(session: Callable[..., Session]) -> None:
    recorded = session("okx_3instruments")
    topics = okx_topics()
    wanted = expected(read_all(recorded, okx.read, topics))
    async with serving(lambda path, message: list(recorded.received)) as server:
        client = OkxStreams("okx", OKX_SYMBOLS, server.url, trades=okx.ADDED_TRADES, numbered_books=False)
        assert not client.rules.dense_trade_ids
        assert client.rules.book_chain is BookChain.CONNECTION
        heard = Heard(topics.values(), len(wanted))
        async with client.connect(heard.listeners, heard.refuse) as connection:
            await heard.enough()
            assert connection.frames == 410
    assert without_receipt(heard.messages) == wanted
    assert heard.refused == []
    ((path, _),) = server.requests
    assert path == "/ws/v5/public"


def okx_answers(path: str, message: str) -> list[str | bytes]:
    if message == "ping":
        return ["pong"]
    frames: list[str | bytes] = []
    for arg in json.loads(message)["args"]:
        frames.append(json.dumps({"event": "subscribe", "arg": arg, "connId": "a4"}))
        row: Any = {"tradeId": "7", "px": "3", "sz": "1", "side": "buy", "ts": "1652459225151"}
        if arg["channel"].startswith("candle"):
            row = ["1652459220000", "3", "3", "3", "3", "1", "3", "3", "1"]
        elif arg["channel"] == "tickers":
            row = {"ts": "1652459225151", "last": "3"}
        frames.append(json.dumps({"arg": arg, "data": [row]}))
    return frames


async def test_okx_needs_two_sockets_for_single_trades_and_candles() -> None:
    topics = [
        Topic(Channel.TRADES, "BTC/USDT"),
        Topic(Channel.CANDLES, "BTC/USDT", TIMEFRAMES["1m"]),
        Topic(Channel.TICKERS, "BTC/USDT"),
    ]
    async with serving(okx_answers) as server:
        client = open_streams("okx", server.url, OKX_SYMBOLS)
        assert client.rules.dense_trade_ids
        heard = Heard(topics, 3)
        async with client.connect(heard.listeners, heard.refuse):
            await heard.enough()
            assert server.open == 2
        assert server.open == 0
    assert {path for path, _ in server.requests} == {"/ws/v5/public", "/ws/v5/business"}
    found = {topic: message for topic, message in heard.messages}
    assert found[topics[0]].id == 7
    assert found[topics[1]].closed
    assert found[topics[2]].last == 3.0


async def test_the_ping_of_okx_is_text_and_its_pong_no_news() -> None:
    """A quick rhythm in place of OKX's 25 seconds."""
    topic = Topic(Channel.TICKERS, "BTC/USDT")
    pongs = asyncio.Event()

    def read(raw: bytes, received_at: int) -> list[Reading]:
        if raw == b"pong":
            pongs.set()
        return okx.read(raw, {("tickers", "BTC-USDT"): topic}, received_at)

    async with serving(okx_answers) as server:
        plan = SocketPlan(
            url=server.url.replace("http", "ws") + "/ws/v5/public",
            requests=[okx.request("subscribe", [("tickers", "BTC-USDT")])],
            awaited=frozenset({("tickers", "BTC-USDT")}),
            read=read,
            rules=SocketRules(ping_after=0.05, ping_text=b"ping"),
        )
        heard = Heard([topic], 1)
        async with joined_sockets("okx", [plan], heard.listeners, heard.refuse, SystemClock()):
            await heard.enough()
            async with asyncio.timeout(DEADLINE):
                await pongs.wait()
    assert heard.refused == []
    assert len(heard.messages) == 1


def bybit_server(frames: Sequence[bytes]) -> Callable[[str, str], list[str | bytes]]:
    def answer(path: str, message: str) -> list[str | bytes]:
        request = json.loads(message)
        granted = {"success": True, "ret_msg": "", "conn_id": "0b", "req_id": request["req_id"], "op": "subscribe"}
        return [json.dumps(granted), *(frames if path.endswith("/linear") else [])]

    return answer


async def test_the_bybit_client_hands_on_the_whole_session(session: Callable[..., Session]) -> None:
    recorded = session("bybit_v5_XRPUSDT", enveloped=False)
    frames = [one.replace(b"orderbook.500.", b"orderbook.200.") for one in recorded.received]
    topic = Topic(Channel.ORDER_BOOKS, "XRP/USDT:USDT")
    spot = [Topic(Channel.TRADES, f"C{at}/USDT") for at in range(12)]
    symbols = {"XRP/USDT:USDT": "XRPUSDT", **{one.symbol: one.symbol.replace("/", "") for one in spot}}
    async with serving(bybit_server(frames)) as server:
        client = open_streams("bybit", server.url, symbols)
        heard = Heard([topic, *spot], 50)
        async with client.connect(heard.listeners, heard.refuse):
            await heard.enough()
    messages = [message for _, message in heard.messages]
    assert rebuilt(messages, OrderBook(client.rules.book_chain, client.rules.book_start)) == 50
    asked = [(path, len(json.loads(message)["args"])) for path, message in server.requests]
    # Spot takes ten topics in a request.
    assert sorted(asked) == [("/v5/public/linear", 1), ("/v5/public/spot", 2), ("/v5/public/spot", 10)]


CASES: dict[str, tuple[dict[str, str], Topic, str]] = {
    "okx": (
        OKX_SYMBOLS,
        Topic(Channel.TICKERS, "BTC/USDT"),
        '{"event":"error","code":"60018","msg":"no such thing"}',
    ),
    "coinbaseexchange": (
        {"BTC/USD": "BTC-USD"},
        Topic(Channel.TRADES, "BTC/USD"),
        '{"type":"error","message":"Failed to subscribe","reason":"no such thing"}',
    ),
    "bybit": (
        {"BTC/USDT": "BTCUSDT"},
        Topic(Channel.TRADES, "BTC/USDT"),
        '{"success":false,"ret_msg":"no such thing","req_id":"0","op":"subscribe"}',
    ),
}


@pytest.mark.parametrize("exchange", CASES)
async def test_a_refused_subscription_is_refused_for_good(exchange: str) -> None:
    symbols, topic, refusal = CASES[exchange]
    async with serving(lambda path, message: [refusal]) as server:
        client = open_streams(exchange, server.url, symbols)
        with pytest.raises(ExchangeRefused, match="no such thing"):
            async with client.connect({topic: lambda message: None}, lambda message: None):
                pytest.fail("it was refused")


@pytest.mark.parametrize("exchange", CASES)
async def test_an_end_before_the_answer_is_no_connection(exchange: str) -> None:
    symbols, topic, _ = CASES[exchange]
    async with serving(lambda path, message: [b"CLOSE"]) as server:
        client = open_streams(exchange, server.url, symbols)
        with pytest.raises(ExchangeUnavailable, match="1012"):
            async with client.connect({topic: lambda message: None}, lambda message: None):
                pytest.fail("it was closed")


async def test_no_answer_is_no_connection() -> None:
    async with serving(lambda path, message: []) as server:
        plan = SocketPlan(
            url=server.url.replace("http", "ws"),
            requests=[b"{}"],
            awaited=frozenset({"never"}),
            read=lambda raw, received_at: [],
            rules=SocketRules(),
        )
        with pytest.raises(ExchangeUnavailable, match="did not answer every request"):
            async with joined_sockets(
                "okx", [plan], {}, lambda message: None, SystemClock(), subscribe_timeout=0.1
            ):
                pytest.fail("nobody answered")
        assert server.open == 0


async def test_a_busy_exchange_is_unavailable() -> None:
    busy = '{"event":"error","code":"60014","msg":"Requests too frequent"}'
    async with serving(lambda path, message: [busy]) as server:
        client = open_streams("okx", server.url, OKX_SYMBOLS)
        topic = Topic(Channel.TICKERS, "BTC/USDT")
        with pytest.raises(ExchangeUnavailable, match="too frequent"):
            async with client.connect({topic: lambda message: None}, lambda message: None):
                pytest.fail("it was busy")


async def test_the_end_of_one_socket_is_the_end_of_the_connection() -> None:
    """The business socket is closed by the exchange; the public one would live on."""

    def answer(path: str, message: str) -> list[str | bytes]:
        return [*okx_answers(path, message), *([b"CLOSE"] if path.endswith("business") else [])]

    topics = [Topic(Channel.TRADES, "BTC/USDT"), Topic(Channel.TICKERS, "BTC/USDT")]
    async with serving(answer) as server:
        client = open_streams("okx", server.url, OKX_SYMBOLS)
        heard = Heard(topics, 2)
        with pytest.raises(ExchangeUnavailable, match="1012"):
            async with client.connect(heard.listeners, heard.refuse) as connection, asyncio.timeout(DEADLINE):
                await connection.ended()
        assert server.open == 0


async def test_garbage_is_refused_and_the_stream_goes_on() -> None:
    def match(id_: int, price: str, time: str = "2021-04-17T16:43:37.089723Z") -> str:
        fields = {
            "trade_id": id_,
            "side": "sell",
            "size": "1",
            "price": price,
            "product_id": "BTC-USD",
            "time": time,
        }
        return json.dumps({"type": "match", **fields})

    def answer(path: str, message: str) -> list[str | bytes]:
        subscribed = {"type": "subscriptions", "channels": json.loads(message)["channels"]}
        return [
            json.dumps(subscribed),
            match(1, "3"),
            "garbage",
            match(2, "-3"),
            '{"type":"match","product_id":"BTC-USD"}',
            match(3, "3000000"),
            match(4, "3", "2199-01-01T00:00:00Z"),
            match(5, "3.1"),
        ]

    topic = Topic(Channel.TRADES, "BTC/USD")
    async with serving(answer) as server:
        client = open_streams("coinbase", server.url, {"BTC/USD": "BTC-USD"})
        heard = Heard([topic], 7)
        async with client.connect(heard.listeners, heard.refuse):
            await heard.enough()
    assert [message.id for _, message in heard.messages] == [1, 5]
    assert [one.topic for one in heard.refused] == [None, topic, topic, topic, topic]
    assert {one.exchange for one in heard.refused} == {"coinbase"}
    assert [one.reason.partition(" ")[0] for one in heard.refused[1:]] == [
        "price:", "trade_id:", "price:", "event_time:",
    ]  # fmt: skip


async def test_pausing_keeps_what_comes_for_later() -> None:
    """The same message goes to two connections: when the one that reads has it, the paused one has not."""
    topic = Topic(Channel.TICKERS, "BTC/USDT")
    arg = {"channel": "tickers", "instId": "BTC-USDT"}
    async with serving(okx_answers) as server:
        client = open_streams("okx", server.url, OKX_SYMBOLS)
        paused, reading = Heard([topic], 2), Heard([topic], 2)
        async with (
            client.connect(paused.listeners, paused.refuse) as connection,
            client.connect(reading.listeners, reading.refuse),
        ):
            await paused.first()
            connection.pause()
            await server.tell_all(json.dumps({"arg": arg, "data": [{"ts": "1652459225152", "last": "4"}]}))
            await reading.enough()
            assert [message.last for _, message in paused.messages] == [3.0]
            connection.resume()
            await paused.enough()
    assert [message.last for _, message in paused.messages] == [3.0, 4.0]


@pytest.mark.parametrize("exchange", CASES)
def test_unknown_symbols_and_channels_are_named(exchange: str) -> None:
    symbols, topic, _ = CASES[exchange]
    client: StreamClient = NATIVE[exchange](exchange, symbols, None)
    with pytest.raises(NotFound, match="ABC/DEF"):
        client.connect({Topic(Channel.TRADES, "ABC/DEF"): print}, print)
    with pytest.raises(BadInput, match=r"timeframe|channels"):
        client.connect({Topic(Channel.CANDLES, topic.symbol, TIMEFRAMES["8h"]): print}, print)
    assert client.exchange == exchange
    assert client.rules.book_start is BookStart.STREAM
    assert (Channel.CANDLES in client.rules.channels) == (exchange != "coinbaseexchange")


def test_a_recorded_ticker_has_its_prices(session: Callable[..., Session]) -> None:
    recorded = session("coinbase_10products")
    tickers = by_topic(read_all(recorded, coinbase.read, coinbase_topics(recorded)), Ticker)
    first = next(one for one in recorded.parsed() if one["type"] == "ticker")
    found = tickers[first["product_id"].replace("-", "/")][0]
    assert (found.last, found.bid, found.ask) == (
        float(first["price"]), float(first["best_bid"]), float(first["best_ask"]),
    )  # fmt: skip
