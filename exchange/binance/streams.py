"""Live streams of Binance spot, binance.us and Binance USD-M futures.

One connection is one socket, or two for USD-M: since April 2026 its book streams are at ``/public`` and the others
at ``/market``, and either address stays silent about the streams of the other (Binance's documentation of the USD-M
market streams, "Important WebSocket Change Notice").

Trades are single ones on spot (``@trade``), aggregated ones on USD-M (``@aggTrade``): those are the ones whose
history can be asked for without a key.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from itertools import count

import msgspec
import structlog

from exchange.address import at_address
from exchange.binance.dispatch import Stream, SubscribeAnswer, dispatch
from exchange.errors import one_line
from exchange.joined_sockets import JoinedSockets
from exchange.plausible import EventTimes
from exchange.socket import Socket, SocketRules, opened_socket
from exchange.stream import BookChain, BookStart, Connection, Listener, RefusedMessage, StreamRules
from exchange.symbol import unknown_symbol
from market.channel import Channel, Topic
from market.clock import Clock, SystemClock
from market.errors import BadInput, ExchangeRefused, ExchangeUnavailable

log = structlog.get_logger(__name__)

#: Streams in one SUBSCRIBE: some 3 kB.
_CHUNK = 100
#: Seconds between two requests on a socket: Binance ends one that sends more than five a second, pongs included.
_PACE = 0.25
#: Seconds for the answer to a SUBSCRIBE.
ANSWER_TIMEOUT = 10.0
#: Codes of errors that pass: unknown, disconnected, too many requests, overloaded.
_PASSING = frozenset({-1000, -1001, -1003, -1008})
#: An hour before the exchange cuts a connection.
_LIFE = 23 * 3600.0


@dataclass(frozen=True, kw_only=True)
class Venue:
    """Where one exchange has its streams, and under which rules."""

    #: Address of each kind of stream; the empty kind is for all others.
    addresses: Mapping[str, str]
    #: Kind of stream that trades come on: ``trade`` or ``aggTrade``.
    trades: str
    futures: bool
    rules: StreamRules


_SPOT_RULES = StreamRules(
    channels=frozenset(Channel),
    # 1024 streams on a socket, two for a ticker.
    topics_per_connection=512,
    longest_life=_LIFE,
    connects=300,
    connect_seconds=300.0,
    dense_trade_ids=True,
    sends_flat_candles=True,
    says_closed=True,
    book_start=BookStart.REST,
    book_chain=BookChain.FIRST_ID,
)
_FUTURES_RULES = StreamRules(
    channels=frozenset(Channel),
    # 200 streams on a socket; the two of a ticker are on two.
    topics_per_connection=200,
    longest_life=_LIFE,
    # 300, and two sockets to a connection.
    connects=150,
    connect_seconds=300.0,
    dense_trade_ids=True,
    sends_flat_candles=True,
    says_closed=True,
    book_start=BookStart.REST,
    book_chain=BookChain.PREVIOUS_ID,
)
_PUBLIC = "wss://fstream.binance.com/public/stream"
#: By ccxt's id.
VENUES = {
    "binance": Venue(
        addresses={"": "wss://stream.binance.com:9443/stream"}, trades="trade", futures=False, rules=_SPOT_RULES
    ),
    "binanceus": Venue(
        addresses={"": "wss://stream.binance.us:9443/stream"}, trades="trade", futures=False, rules=_SPOT_RULES
    ),
    "binanceusdm": Venue(
        addresses={"bookTicker": _PUBLIC, "depth": _PUBLIC, "": "wss://fstream.binance.com/market/stream"},
        trades="aggTrade",
        futures=True,
        rules=_FUTURES_RULES,
    ),
}


class BinanceStreams:
    """The live streams of one exchange of the Binance family."""

    def __init__(
        self,
        exchange: str,
        symbols: Mapping[str, str],
        url: str | None = None,
        *,
        venue: Venue | None = None,
        clock: Clock | None = None,
        socket_rules: SocketRules | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """
        :param exchange: ``binance``, ``binanceus`` or ``binanceusdm``.
        :param symbols: unified symbol to the exchange's: ``{"BTC/USDT": "BTCUSDT"}``.
        :param url: another address (http or https) to find the same paths at: a simulated exchange, a proxy. What
            is there may live in a time of its own, so event times are judged less strictly.
        :param venue: where the streams are, if not where the exchange has them today: recorded sessions are older.
        :param tls: what to trust; the system's certificates if None.
        """
        self._exchange = exchange
        self._venue = venue or VENUES[exchange]
        self._symbols = symbols
        self._url = url
        self._clock = clock or SystemClock()
        self._socket_rules = socket_rules or SocketRules()
        self._tls = tls

    @property
    def exchange(self) -> str:
        """ccxt's id."""
        return self._exchange

    @property
    def rules(self) -> StreamRules:
        return self._venue.rules

    def stream_names(self, topic: Topic) -> tuple[str, ...]:
        """The streams that bring a topic: ``("btcusdt@kline_1m",)``.

        :raises NotFound: for a symbol that the exchange does not trade.
        :raises BadInput: for candles without a timeframe.
        """
        symbol = self._exchange_symbol(topic.symbol).lower()
        if topic.channel is Channel.TRADES:
            return (f"{symbol}@{self._venue.trades}",)
        if topic.channel is Channel.TICKERS:
            return f"{symbol}@bookTicker", f"{symbol}@ticker"
        if topic.channel is Channel.ORDER_BOOKS:
            return (f"{symbol}@depth@100ms",)
        if topic.timeframe is None:
            raise BadInput("timeframe", None, f"one, for {topic}")
        return (f"{symbol}@kline_{topic.timeframe}",)

    def connect(
        self, listeners: Mapping[Topic, Listener], refused: Callable[[RefusedMessage], None]
    ) -> AbstractAsyncContextManager[Connection]:
        """See :class:`exchange.stream.StreamClient`. What comes before the subscription is answered is handed on.

        :raises NotFound: on entering, for a symbol that the exchange does not trade.
        :raises RateLimited: on entering, where the exchange answers 429 or 418.
        """
        return self._connected(listeners, refused)

    @contextlib.asynccontextmanager
    async def _connected(
        self, listeners: Mapping[Topic, Listener], refused: Callable[[RefusedMessage], None]
    ) -> AsyncIterator[Connection]:
        async with AsyncExitStack() as stack:
            sockets: list[Socket] = []
            times = EventTimes(own_time=self._url is not None)
            for address, streams in self._plan(listeners, times).items():
                answers = _Answers(self._exchange)
                hear = dispatch(self._exchange, streams, refused, answers.take, self._clock.now_ms)
                socket = await stack.enter_async_context(
                    opened_socket(address, hear, rules=self._socket_rules, tls=self._tls)
                )
                await _subscribe(socket, answers, list(streams))
                sockets.append(socket)
            yield JoinedSockets(sockets)

    def _plan(self, listeners: Mapping[Topic, Listener], times: EventTimes) -> dict[str, dict[str, Stream]]:
        """Address to the streams that are wanted there, by name."""
        plan: dict[str, dict[str, Stream]] = {}
        for topic, listener in listeners.items():
            exchange_symbol = self._exchange_symbol(topic.symbol)
            for name in self.stream_names(topic):
                kind = name.split("@")[1].partition("_")[0]
                addresses = self._venue.addresses
                address = addresses.get(kind, addresses[""])
                if self._url is not None:
                    address = at_address(address, self._url)
                plan.setdefault(address, {})[name] = Stream(
                    name, exchange_symbol, topic, listener, times, futures=self._venue.futures
                )
        return plan

    def _exchange_symbol(self, symbol: str) -> str:
        try:
            return self._symbols[symbol]
        except KeyError:
            raise unknown_symbol(self._exchange, symbol, self._symbols) from None


class _Answers:
    """The answers to the requests of one socket."""

    def __init__(self, exchange: str) -> None:
        self._exchange = exchange
        self._awaited: dict[int | str, asyncio.Future[None]] = {}
        self._ids = count(1)

    def ask(self) -> tuple[int, asyncio.Future[None]]:
        """The id for a request, and what its answer will be set on."""
        number = next(self._ids)
        self._awaited[number] = asyncio.get_running_loop().create_future()
        return number, self._awaited[number]

    def take(self, answer: SubscribeAnswer) -> None:
        """An answer has come."""
        # An error that names no request is about the only one there is.
        number = answer.id if answer.id is not None or not self._awaited else next(iter(self._awaited))
        waiting = self._awaited.pop(number, None) if number is not None else None
        if waiting is None or waiting.done():
            log.warning("stream_answer_unasked", exchange=self._exchange, id=answer.id, error=answer.error)
        elif answer.error is None:
            waiting.set_result(None)
        else:
            said = f"{self._exchange} did not subscribe (code {answer.code}): {one_line(answer.error)}"
            waiting.set_exception(ExchangeUnavailable(said) if answer.code in _PASSING else ExchangeRefused(said))


async def _subscribe(socket: Socket, answers: _Answers, names: Sequence[str]) -> None:
    """Subscribe to all of `names`.

    :raises ExchangeUnavailable: where the connection ends first, or an answer does not come.
    :raises ExchangeRefused: where the exchange refuses.
    """
    ended = asyncio.ensure_future(socket.ended())
    try:
        for start in range(0, len(names), _CHUNK):
            if start:
                await asyncio.wait({ended}, timeout=_PACE)
            number, answered = answers.ask()
            request = {"method": "SUBSCRIBE", "params": names[start : start + _CHUNK], "id": number}
            socket.send(msgspec.json.encode(request))
            await asyncio.wait({ended, answered}, timeout=ANSWER_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
            # An answer that says why comes before the end that follows it.
            if answered.done():
                answered.result()
            elif ended.done():
                ended.result()
            else:
                raise ExchangeUnavailable(f"no answer to a SUBSCRIBE within {ANSWER_TIMEOUT:g} s")
    finally:
        ended.cancel()
        await asyncio.gather(ended, return_exceptions=True)
