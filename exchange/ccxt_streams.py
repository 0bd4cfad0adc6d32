"""Live streams of any exchange through ccxt.pro, for those without a client of their own here.

ccxt keeps the state of each stream itself (the newest trades, the book) and wakes who waits when it changes. So
that nothing is handed on late, each topic has a task that waits for it alone: ccxt's calls for many symbols wake
for one of them and leave what came for another until the next message of that one.

What ccxt does not tell: whether a candle has closed (every one is reported as forming), whether a subscription was
granted (the connection counts as open once its sockets are), and what its order books were put together from (each
change is reported as a whole book). It reads on while a connection is paused and keeps the newest `KEPT_TRADES` of
a symbol; where more came than that, the connection ends, so that they are asked for over REST.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, TypeAlias

import aiohttp
import ccxt.pro
import msgspec

from exchange.address import at_address, check_address
from exchange.ccxt_messages import parsed_book, parsed_ticker, parsed_trades
from exchange.errors import one_line, translate, translated
from exchange.reading import LONGEST_RAW, Milliseconds, Price, Quantity
from exchange.stream import BookChain, BookStart, Connection, Listener, RefusedMessage, StreamRules
from exchange.symbol import unknown_symbol
from market.candle_update import CandleUpdate
from market.channel import Channel, Topic
from market.clock import Clock, SystemClock
from market.errors import BadInput, ExchangeRefused, ExchangeUnavailable, NotFound

#: Trades of a symbol that ccxt keeps; the oldest are dropped.
KEPT_TRADES = 10_000
#: Levels of each side of a book that are handed on.
BOOK_LEVELS = 200
#: Seconds to load the markets and open every socket.
CONNECT_TIMEOUT = 60.0
#: Most exchanges cut connections after a day at the latest.
LONGEST_LIFE = 23 * 3600.0
_LOOK_SECONDS = 0.02
#: What ccxt's parsers raise on messages that are not as documented.
_UNREAD = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
_Candle: TypeAlias = tuple[Milliseconds, Price, Price, Price, Price, Quantity]
_CALLS = {
    Channel.TRADES: "watchTrades",
    Channel.CANDLES: "watchOHLCV",
    Channel.TICKERS: "watchTicker",
    Channel.ORDER_BOOKS: "watchOrderBook",
}


def has_streams(exchange: str) -> bool:
    """Whether ccxt has live streams of the exchange with this id."""
    return exchange in ccxt.pro.exchanges


class CcxtStreams:
    """The live streams of the exchange with ccxt id `exchange`.

    :param url: another address for every request and stream, such as ``http://127.0.0.1:9900``.
    :param settings: ccxt's settings for this exchange.
    :raises NotFound: for an exchange without live streams in ccxt.
    :raises BadInput: for an address that is not one.
    """

    def __init__(
        self,
        exchange: str,
        url: str | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
        clock: Clock | None = None,
    ) -> None:
        if not has_streams(exchange):
            raise NotFound("exchange", exchange, hint="an exchange with live streams in ccxt")
        self._exchange = exchange
        self._address = None if url is None else check_address(url)
        self._settings = dict(settings or {})
        self._clock = clock or SystemClock()
        # Kept from one connection to the next: they are long, and asked for with the weight of many requests.
        self._markets: Any = None
        self._currencies: Any = None
        has = self._new_client().has
        self._rules = StreamRules(
            channels=frozenset(channel for channel, call in _CALLS.items() if has.get(call)),
            topics_per_connection=50,
            longest_life=LONGEST_LIFE,
            book_start=BookStart.STREAM,
            book_chain=BookChain.CONNECTION,
        )

    @property
    def exchange(self) -> str:
        """ccxt's id."""
        return self._exchange

    @property
    def rules(self) -> StreamRules:
        return self._rules

    def connect(
        self, listeners: Mapping[Topic, Listener], refused: Callable[[RefusedMessage], None]
    ) -> AbstractAsyncContextManager[Connection]:
        """Open what ccxt needs for these topics, one socket or several; see ``StreamClient``.

        :raises NotFound: on entering, for a symbol that the exchange does not trade.
        :raises BadInput: for a channel or, on entering, a candle length that is not streamed.
        """
        for topic in listeners:
            if topic.channel not in self._rules.channels:
                accepted = ", ".join(sorted(self._rules.channels)) or "none: it has no live streams"
                raise BadInput("channels", str(topic.channel), f"one that {self._exchange} streams: {accepted}")
        return self._connected(listeners, refused)

    @asynccontextmanager
    async def _connected(
        self, listeners: Mapping[Topic, Listener], refused: Callable[[RefusedMessage], None]
    ) -> AsyncIterator[CcxtConnection]:
        client = self._new_client()
        connection = CcxtConnection(client, refused, self._clock)
        try:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    await self._load_markets(client)
                    self._check(client, listeners)
                    await connection.open(listeners)
            except TimeoutError as error:
                raise ExchangeUnavailable(
                    f"{self._exchange} did not open its streams within {CONNECT_TIMEOUT:g} s"
                ) from error
            yield connection
        finally:
            await connection.close()

    def _new_client(self) -> Any:
        options = {"tradesLimit": KEPT_TRADES, **self._settings.get("options", {})}
        client = getattr(ccxt.pro, self._exchange)(
            {"newUpdates": True, "enableLastResponseHeaders": True, **self._settings, "options": options}
        )
        if self._address is not None:
            client.urls["api"] = at_address(client.urls["api"], self._address)
        return client

    async def _load_markets(self, client: Any) -> None:
        if self._markets:
            client.set_markets(self._markets, self._currencies)
            return
        with translated(client):
            await client.load_markets()
        if not client.markets:
            raise ExchangeUnavailable(f"{self._exchange} gave no usable answer when asked for its markets")
        self._markets, self._currencies = client.markets, client.currencies

    def _check(self, client: Any, listeners: Mapping[Topic, Listener]) -> None:
        for topic in listeners:
            if topic.symbol not in client.markets:
                # Perhaps it is new: look again the next time.
                self._markets = None
                raise unknown_symbol(self._exchange, topic.symbol, client.markets)
            offered = client.timeframes or {}
            if topic.timeframe is not None and topic.timeframe.name not in offered:
                accepted = f"one that {self._exchange} streams: " + " ".join(offered)
                raise BadInput("timeframe", topic.timeframe.name, accepted)


class CcxtConnection:
    """What ccxt has open for one set of topics."""

    def __init__(self, client: Any, refused: Callable[[RefusedMessage], None], clock: Clock) -> None:
        self._client = client
        self._exchange: str = client.id
        self._refused = refused
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []
        self._going = asyncio.Event()
        self._going.set()
        self._frames = 0
        #: Has the reason, where reading the messages ended the connection.
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._find_client = client.client
        client.client = self._guarded

    @property
    def frames(self) -> int:
        """Messages received so far, of whatever kind."""
        return self._frames

    async def open(self, listeners: Mapping[Topic, Listener]) -> None:
        """Start waiting for each topic; return once the sockets are open.

        :raises ChandleryError: where a topic or a socket fails.
        """
        for topic, listener in listeners.items():
            self._tasks += [asyncio.create_task(watching) for watching in self._watches(topic, listener)]
        # ccxt has nothing to wait for here: some exchanges are asked over REST where their socket is.
        while not self._is_open():
            self._raise_failure()
            await asyncio.sleep(_LOOK_SECONDS)

    async def ended(self) -> None:
        """Return never; raise ExchangeUnavailable, or what ended it, once a topic or a socket has failed."""
        await asyncio.wait([*self._tasks, self._failed], return_when=asyncio.FIRST_COMPLETED)
        self._raise_failure()

    def pause(self) -> None:
        """Hand on nothing. ccxt reads on (see the module's docstring). Calling it again changes nothing."""
        self._going.clear()

    def resume(self) -> None:
        """Hand on what came since."""
        self._going.set()

    async def close(self) -> None:
        """End the tasks, then the sockets and everything else that ccxt has open."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._failed.cancel()
        if not self._failed.cancelled():
            # Told by `ended` or `open`, or nobody asked.
            self._failed.exception()
        clients = list(self._client.clients.values())
        with suppress(aiohttp.ClientError, OSError):
            await self._client.close()
        # ccxt leaves the keep-alive of each socket to be collected.
        looping = [client.ping_looper for client in clients if client.ping_looper is not None]
        for task in looping:
            task.cancel()
        await asyncio.gather(*looping, return_exceptions=True)

    def _is_open(self) -> bool:
        sockets = self._client.clients
        return bool(sockets) and all(one.isConnected for one in sockets.values())

    def _raise_failure(self) -> None:
        for task in (self._failed, *self._tasks):
            if task.done():
                if task.cancelled():
                    raise ExchangeUnavailable(f"{self._exchange}: the connection was closed")
                task.result()

    def _guarded(self, url: str) -> Any:
        """ccxt's client of a socket, watched.

        One message that it cannot read must not stop its reading for good, without a word. And where it would open
        the socket again by itself, what came in between would be missing: the connection ends instead.
        """
        if self._failed.done():
            raise ExchangeUnavailable(f"{self._exchange}: the connection was closed")
        client = self._find_client(url)
        if "handle_text_or_binary_message" not in vars(client):
            read, closed, broke = (
                client.handle_text_or_binary_message,
                client.on_close_callback,
                client.on_error_callback,
            )
            client.handle_text_or_binary_message = lambda data: self._take(read, data)
            client.on_close_callback = lambda one, code: self._lose(closed, one, code, f"code {code}")
            client.on_error_callback = lambda one, error: self._lose(broke, one, error, one_line(str(error)))
        return client

    def _lose(self, tell_ccxt: Callable[[Any, Any], None], client: Any, what: Any, reason: str) -> None:
        tell_ccxt(client, what)
        if not self._failed.done():
            self._failed.set_exception(ExchangeUnavailable(f"{self._exchange} ended the connection: {reason}"))

    def _take(self, read: Callable[[Any], None], data: Any) -> None:
        self._frames += 1
        try:
            read(data)
        except ccxt.pro.BaseError as error:
            if not self._failed.done():
                self._failed.set_exception(translate(error, self._exchange, {}))
        except _UNREAD as error:
            self._refuse(None, f"ccxt cannot read it: {one_line(repr(error))}", data)

    def _refuse(self, topic: Topic | None, reason: str, data: Any) -> None:
        raw = data.encode("utf-8", "replace") if isinstance(data, str) else data
        if not isinstance(raw, bytes):
            raw = msgspec.json.encode(raw, enc_hook=repr)
        self._refused(
            RefusedMessage(
                exchange=self._exchange,
                topic=topic,
                reason=reason,
                raw=raw[:LONGEST_RAW].decode("utf-8", "replace"),
                received_at=self._clock.now_ms(),
            )
        )

    def _watches(self, topic: Topic, listener: Listener) -> list[Any]:
        """The coroutines that wait for the messages of a topic."""
        client, symbol = self._client, topic.symbol
        if topic.channel is Channel.TRADES:
            return [self._watch(topic, lambda: client.watch_trades(symbol), self._trades, listener)]
        if topic.timeframe is not None:
            name = topic.timeframe.name
            return [self._watch(topic, lambda: client.watch_ohlcv(symbol, name), self._candles, listener)]
        if topic.channel is Channel.ORDER_BOOKS:
            return [self._watch(topic, lambda: client.watch_order_book(symbol), self._book, listener)]
        if not client.has.get("watchBidsAsks"):
            return [self._watch(topic, lambda: client.watch_ticker(symbol), self._ticker, listener)]
        # Two streams for one topic: what each of them says best.
        return [
            self._watch(topic, lambda: client.watch_ticker(symbol), self._day, listener),
            self._watch(topic, lambda: client.watch_bids_asks([symbol]), self._best, listener),
        ]

    async def _watch(
        self,
        topic: Topic,
        call: Callable[[], Awaitable[Any]],
        parse: Callable[[Topic, Any], list[Any]],
        listener: Listener,
    ) -> None:
        """Wait for news of a topic again and again, and hand them on."""
        while True:
            try:
                with translated(self._client, topic.symbol):
                    news = await call()
            except (aiohttp.ClientError, OSError, *_UNREAD) as error:
                raise ExchangeUnavailable(f"{self._exchange}: {topic} failed: {one_line(repr(error))}") from error
            if not self._going.is_set():
                await self._going.wait()
            for message in parse(topic, news):
                listener(message)
            if topic.channel is Channel.TRADES and len(news) >= KEPT_TRADES:
                raise ExchangeUnavailable(
                    f"{self._exchange}: more trades of {topic.symbol} came at once than the {KEPT_TRADES} kept"
                )

    def _trades(self, topic: Topic, news: Any) -> list[Any]:
        received_at = self._clock.now_ms()
        try:
            return parsed_trades(list(news), self._exchange, received_at)
        except ExchangeUnavailable as error:
            if len(news) > 1:
                return [trade for one in news for trade in self._trades(topic, [one])]
            self._refuse(topic, str(error), news[0].get("info", news[0]))
            return []

    def _candles(self, topic: Topic, news: Any) -> list[Any]:
        found: list[Any] = []
        for row in news:
            try:
                found.append(parsed_candle(row, self._clock.now_ms()))
            except BadInput as error:
                self._refuse(topic, str(error), row)
        return found

    def _ticker(self, topic: Topic, news: Any) -> list[Any]:
        return self._one(topic, news, lambda: parsed_ticker(news, self._exchange, self._clock.now_ms()))

    def _day(self, topic: Topic, news: Any) -> list[Any]:
        """The statistics without the best prices, which are older than those of the other stream."""
        best = {"bid": None, "bid_quantity": None, "ask": None, "ask_quantity": None}
        return [one._replace(**best) for one in self._ticker(topic, news)]

    def _best(self, topic: Topic, news: Any) -> list[Any]:
        return [found for one in news.values() for found in self._ticker(topic, one)]

    def _book(self, topic: Topic, news: Any) -> list[Any]:
        sides = {name: [level[:2] for level in news[name][:BOOK_LEVELS]] for name in ("bids", "asks")}
        book = {**sides, "timestamp": news.get("timestamp"), "nonce": news.get("nonce")}
        return self._one(topic, book, lambda: parsed_book(book, BOOK_LEVELS, self._exchange, self._clock.now_ms()))

    def _one(self, topic: Topic, news: Any, parse: Callable[[], Any]) -> list[Any]:
        try:
            return [parse()]
        except (ExchangeUnavailable, ExchangeRefused) as error:
            self._refuse(topic, str(error), news)
            return []


def parsed_candle(row: Any, received_at: int) -> CandleUpdate:
    """One of ccxt's candles, which does not say whether it has closed, nor when it was sent.

    ::

        [1499040000000, 0.0163479, 0.8, 0.015758, 0.015771, 148976.11427815]

    :param received_at: epoch milliseconds of our clock; stands in for when it was sent.
    :raises BadInput: for what is no such row.
    """
    try:
        open_time, first, high, low, close, volume = msgspec.convert(list(row[:6]), _Candle)
    except (msgspec.ValidationError, TypeError) as error:
        raise BadInput("candle", row, "an open time, four prices above 0 and a volume from 0 on") from error
    return CandleUpdate(
        open_time, first, high, low, close, volume, None, None, None, None, None, False, received_at, received_at
    )
