"""OKX's live streams: trades, candles, tickers and order books."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager

from exchange.address import at_address
from exchange.joined_sockets import SocketPlan, joined_sockets
from exchange.okx.wire import SINGLE_TRADES, WireName, is_business, read, request, wire_name
from exchange.socket import SocketRules
from exchange.stream import Connection, Listener, RefusedMessage, StreamRules
from exchange.symbol import unknown_symbol
from market.book_checksum import okx_checksum
from market.book_message import BookChain, BookStart
from market.channel import Channel, Topic
from market.clock import Clock, SystemClock

PUBLIC_URL = "wss://ws.okx.com:8443/ws/v5/public"
BUSINESS_URL = "wss://ws.okx.com:8443/ws/v5/business"
#: Channels in one request: a request may have 64 KB.
_REQUESTED = 200
#: OKX ends a connection that was silent for 30 s; its ping is the text "ping".
_SOCKET = SocketRules(ping_after=25.0, pong_within=10.0, ping_text=b"ping")


class OkxStreams:
    """The live streams of OKX.

    :param exchange: ccxt's id.
    :param symbols: unified symbol to OKX's: ``{"BTC/USDT": "BTC-USDT"}``.
    :param url: another address (http or https) to find the same paths at. What is there may live in a time of its
        own, so event times are judged less strictly.
    :param trades: the channel for trades. Single ones have dense ids; with those that OKX adds up
        (``exchange.okx.wire.ADDED_TRADES``) ids have holes that are none.
    :param numbered_books: false for recordings from before 2023, whose books have checksums but no numbers.
    """

    def __init__(
        self,
        exchange: str,
        symbols: Mapping[str, str],
        url: str | None = None,
        *,
        trades: str = SINGLE_TRADES,
        numbered_books: bool = True,
        clock: Clock | None = None,
    ) -> None:
        self._symbols = symbols
        self._exchange = exchange
        self._url = url
        self._trades = trades
        self._clock = clock or SystemClock()
        self._rules = StreamRules(
            channels=frozenset(Channel),
            connects=3,
            connect_seconds=1.0,
            dense_trade_ids=trades == SINGLE_TRADES,
            says_closed=True,
            book_start=BookStart.STREAM,
            book_chain=BookChain.SNAPSHOT_CHAIN if numbered_books else BookChain.CONNECTION,
            book_checksum=okx_checksum,
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
        """Open one connection (two sockets where the channels need both addresses); see ``StreamClient``.

        :raises NotFound: for a symbol that OKX does not trade.
        :raises BadInput: for a candle length that it does not stream.
        """
        topics: dict[WireName, Topic] = {}
        for topic in listeners:
            name = self._symbols.get(topic.symbol)
            if name is None:
                raise unknown_symbol(self._exchange, topic.symbol, self._symbols)
            topics[wire_name(topic, name, trades=self._trades)] = topic
        plans = [self._plan(PUBLIC_URL, topics, False), self._plan(BUSINESS_URL, topics, True)]
        needed = [plan for plan in plans if plan.requests]
        return joined_sockets(
            self._exchange, needed, listeners, refused, self._clock, own_time=self._url is not None
        )

    def _plan(self, url: str, topics: Mapping[WireName, Topic], business: bool) -> SocketPlan:
        names = [name for name in topics if is_business(name) == business]
        return SocketPlan(
            url=url if self._url is None else at_address(url, self._url),
            requests=[request("subscribe", names[at : at + _REQUESTED]) for at in range(0, len(names), _REQUESTED)],
            awaited=frozenset(names),
            read=lambda raw, received_at: read(raw, topics, received_at),
            rules=_SOCKET,
        )
