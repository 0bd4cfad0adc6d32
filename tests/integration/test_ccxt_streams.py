"""Live streams through ccxt.pro: unmodified ccxt with the simulated exchange, and with one that misbehaves."""

from __future__ import annotations

import asyncio
import gc
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import httpx
import pytest
from websockets.asyncio.server import ServerConnection, serve

from exchange.ccxt_streams import CcxtStreams, has_streams, parsed_candle
from exchange.live import open_streams
from exchange.stream import BookChain, BookStart, RefusedMessage
from market.candle_update import CandleUpdate
from market.channel import Channel, Topic
from market.errors import BadInput, ExchangeUnavailable, NotFound
from market.order_book import BookState, OrderBook
from market.timeframe import TIMEFRAMES
from tests.support.simulated import simulated_exchange

SETTINGS = {"options": {"fetchMarkets": {"types": ["spot"]}}}
DEADLINE = 60.0
SYMBOLS = ("BTC/USDT", "ETH/USDT")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A simulated exchange where a second is ten."""
    with simulated_exchange(seed=3, speed=10.0) as address:
        yield address


class Heard:
    """What came of each topic, until there is enough of every one."""

    def __init__(self, topics: Iterable[Topic], enough: int) -> None:
        self.messages: dict[Topic, list[Any]] = defaultdict(list)
        self.refused: list[RefusedMessage] = []
        self._enough = enough
        self._missing = set(topics)
        self.done = asyncio.Event()
        self.listeners = {topic: self._listener(topic) for topic in self._missing}

    def _listener(self, topic: Topic) -> Any:
        def listen(message: Any) -> None:
            self.messages[topic].append(message)
            if len(self.messages[topic]) >= self._enough:
                self._missing.discard(topic)
            if not self._missing:
                self.done.set()

        return listen

    async def enough(self, connection: Any) -> None:
        """Wait for it; an end of the connection is a failure that says why."""
        ended = asyncio.create_task(connection.ended())
        done = asyncio.create_task(self.done.wait())
        try:
            async with asyncio.timeout(DEADLINE):
                await asyncio.wait({ended, done}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                ended.result()
        except TimeoutError:
            pytest.fail(f"nothing, or not enough, of {[str(one) for one in self._missing]}")
        finally:
            ended.cancel()
            done.cancel()
            await asyncio.gather(ended, done, return_exceptions=True)


@pytest.fixture(autouse=True)
async def nothing_left_open() -> Any:
    """ccxt and aiohttp complain of what was left open when it is collected, and complaints are errors here."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    yield
    gc.collect()
    assert complaints == []
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert [task for task in others if "ccxt" in repr(task)] == []


async def test_every_channel_of_two_symbols(url: str) -> None:
    minute = TIMEFRAMES["1m"]
    topics = [Topic(channel, symbol) for symbol in SYMBOLS for channel in Channel if channel != Channel.CANDLES]
    topics += [Topic(Channel.CANDLES, symbol, minute) for symbol in SYMBOLS]
    client = CcxtStreams("binance", url, settings=SETTINGS)
    heard = Heard(topics, 5)
    async with client.connect(heard.listeners, heard.refused.append) as connection:
        await heard.enough(connection)
        assert connection.frames > 0
    assert heard.refused == []
    for topic in topics:
        check(topic, heard.messages[topic])
    async with httpx.AsyncClient(base_url=url) as rest:
        for symbol in SYMBOLS:
            await compare_trades(rest, symbol, heard.messages[Topic(Channel.TRADES, symbol)])


def check(topic: Topic, messages: list[Any]) -> None:
    """Messages of a topic are what its channel has."""
    if topic.channel is Channel.TRADES:
        ids = [one.id for one in messages]
        assert ids == list(range(ids[0], ids[0] + len(ids)))
    elif topic.channel is Channel.CANDLES:
        assert not any(one.closed for one in messages)
        opens = [one.open_time for one in messages]
        assert opens == sorted(opens)
        assert {one % 60_000 for one in opens} == {0}
        assert all(one.low <= one.open <= one.high and one.low <= one.close <= one.high for one in messages)
    elif topic.channel is Channel.TICKERS:
        # Two streams: the best prices, and the day without them.
        assert {(one.bid is None, one.last is None) for one in messages} <= {(True, False), (False, True)}
        best = [one for one in messages if one.bid is not None]
        assert best
        assert all(one.bid < one.ask for one in best)
    else:
        book = OrderBook(BookChain.CONNECTION, BookStart.STREAM)
        for one in messages:
            assert book.snapshot(one), book.reason
            assert book.state is BookState.LIVE
            assert one.bids
            assert one.asks


async def compare_trades(rest: httpx.AsyncClient, symbol: str, trades: list[Any]) -> None:
    """Each trade as the exchange's REST has it."""
    query = {"symbol": symbol.replace("/", ""), "fromId": trades[0].id, "limit": len(trades)}
    rows = (await rest.get("/api/v3/historicalTrades", params=query)).raise_for_status().json()
    assert [(one.id, one.price, one.quantity, one.event_time, one.taker_buys) for one in trades] == [
        (row["id"], float(row["price"]), float(row["qty"]), row["time"], not row["isBuyerMaker"]) for row in rows
    ]


async def test_a_second_connection_does_not_ask_for_the_markets_again(url: str) -> None:
    topic = Topic(Channel.TRADES, "BTC/USDT")
    client = CcxtStreams("binance", url, settings=SETTINGS)
    for _ in range(2):
        heard = Heard([topic], 1)
        async with client.connect(heard.listeners, heard.refused.append) as connection:
            await heard.enough(connection)
            asked = connection._client.last_request_url
    assert asked is None


async def test_a_paused_connection_hands_on_nothing_and_loses_nothing(url: str) -> None:
    topic = Topic(Channel.TRADES, "BTC/USDT")
    client = CcxtStreams("binance", url, settings=SETTINGS)
    paused, reading = Heard([topic], 40), Heard([topic], 20)
    async with (
        client.connect(paused.listeners, paused.refused.append) as first,
        client.connect(reading.listeners, reading.refused.append) as second,
    ):
        first.pause()
        before = len(paused.messages[topic])
        await reading.enough(second)
        assert len(paused.messages[topic]) == before
        first.resume()
        await paused.enough(first)
    ids = [one.id for one in paused.messages[topic]]
    assert ids == list(range(ids[0], ids[0] + len(ids)))


async def test_wrong_topics_are_named(url: str) -> None:
    client = CcxtStreams("binance", url, settings=SETTINGS)
    with pytest.raises(NotFound, match="symbol: 'ABC/DEF'"):
        async with client.connect({Topic(Channel.TRADES, "ABC/DEF"): print}, print):
            pytest.fail("there is no such symbol")
    assert not has_streams("zaif")
    with pytest.raises(NotFound, match="exchange: 'zaif'"):
        open_streams("zaif", None, {})
    with pytest.raises(BadInput, match="exchange-url"):
        CcxtStreams("kraken", "ftp://nowhere")


async def misbehaving(url: str, frames: list[str], enough: int) -> tuple[Heard, list[Exception]]:
    """What is heard of trades from a socket that sends `frames` and, once there are enough of them, closes itself.

    With 0 it closes at once, and the connection is paused all the time. The markets come from the exchange at
    `url`.
    """
    topic = Topic(Channel.TRADES, "BTC/USDT")
    loaded = CcxtStreams("binance", url, settings=SETTINGS)
    async with loaded.connect({topic: lambda message: None}, print):
        pass

    async def serve_frames(connection: ServerConnection) -> None:
        request = json.loads(await connection.recv())
        await connection.send(json.dumps({"result": None, "id": request["id"]}))
        sockets.append(connection)
        async with asyncio.timeout(DEADLINE):
            await entered.wait()
            for frame in frames:
                await connection.send(frame)
            if enough:
                await heard.done.wait()
        await connection.close(1012, "service restart")

    heard, ends, sockets, entered = Heard([topic], enough), [], [], asyncio.Event()
    async with serve(serve_frames, "127.0.0.1", 0) as server:
        (socket,) = server.sockets
        client = CcxtStreams("binance", f"http://127.0.0.1:{socket.getsockname()[1]}", settings=SETTINGS)
        client._markets, client._currencies = loaded._markets, loaded._currencies
        async with client.connect(heard.listeners, heard.refused.append) as connection:
            if not enough:
                connection.pause()
            entered.set()
            async with asyncio.timeout(DEADLINE):
                try:
                    await connection.ended()
                except ExchangeUnavailable as error:
                    ends.append(error)
    # ccxt would have connected again.
    assert len(sockets) == 1
    return heard, ends


def trade(id_: int, **changes: object) -> str:
    fields = {"s": "BTCUSDT", "t": id_, "p": "3.5", "q": "1", "T": 1672515782136, "m": True, "M": True}
    return json.dumps({"e": "trade", "E": 1672515782136, **fields, **changes})


async def test_garbage_is_refused_and_the_stream_goes_on(url: str) -> None:
    """ccxt alone stops reading for good at the first of these, without a word."""
    frames = ['{"e":"trade"', trade(1), trade(2, p="-3"), trade(3, p=[3]), '{"e":"trade"}', "pardon?", trade(4)]
    heard, ends = await misbehaving(url, frames, 2)
    (messages,) = heard.messages.values()
    assert [one.id for one in messages] == [1, 4]
    # Text that is no JSON at all is passed over by ccxt itself.
    assert [one.topic for one in heard.refused] == [None, None, *heard.messages, *heard.messages]
    assert [one.raw for one in heard.refused[:2]] == ['{"e":"trade"', '{"e":"trade"}']
    assert [json.loads(one.raw)["t"] for one in heard.refused[2:]] == [2, 3]
    assert all(one.exchange == "binance" and one.reason for one in heard.refused)
    assert len(ends) == 1


async def test_the_end_of_the_socket_is_the_end_of_the_connection(url: str) -> None:
    heard, (end,) = await misbehaving(url, [trade(at) for at in range(300)], 300)
    (messages,) = heard.messages.values()
    assert [one.id for one in messages] == list(range(300))
    assert "1012" in str(end)


async def test_an_end_during_a_pause_is_one_too(url: str) -> None:
    """ccxt alone has nobody to tell, and connects again afterwards, without what came in between."""
    heard, ends = await misbehaving(url, [trade(at) for at in range(300)], 0)
    assert "1012" in str(ends)
    assert heard.messages == {}


async def test_nobody_there_is_unavailable() -> None:
    client = CcxtStreams("binance", "http://127.0.0.1:9", settings=SETTINGS)
    with pytest.raises(ExchangeUnavailable):
        async with client.connect({Topic(Channel.TRADES, "BTC/USDT"): print}, print):
            pytest.fail("nobody was there")


def test_what_ccxt_offers_decides_the_channels() -> None:
    kraken = open_streams("kraken", None, {})
    assert isinstance(kraken, CcxtStreams)
    assert kraken.rules.channels == frozenset(Channel)
    assert not kraken.rules.says_closed
    assert kraken.rules.book_chain is BookChain.CONNECTION
    coinbase = CcxtStreams("coinbaseexchange")
    assert Channel.CANDLES not in coinbase.rules.channels
    with pytest.raises(BadInput, match="channels: 'candles'"):
        coinbase.connect({Topic(Channel.CANDLES, "BTC/USD", TIMEFRAMES["1m"]): print}, print)


def test_a_row_of_a_candle() -> None:
    row = [1499040000000, 2, 4.0, 1.0, 3.0, 0]
    numbers = (1499040000000, 2.0, 4.0, 1.0, 3.0, 0.0)
    assert parsed_candle(row, 9) == CandleUpdate(*numbers, None, None, None, None, None, False, 9, 9)
    for bad in (None, 5, [], [1, 2], [1, -2, 4, 1, 3, 0], [1, 2, None, 1, 3, 0], ["1", 2, 4, 1, 3, 0]):
        with pytest.raises(BadInput, match="candle"):
            parsed_candle(bad, 9)
