"""Coinbase's live streams: trades, tickers and order books. Its feed has no candles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager

from exchange.address import at_address
from exchange.coinbase.wire import WireName, read, request, wire_name
from exchange.joined_sockets import SocketPlan, joined_sockets
from exchange.socket import SocketRules
from exchange.stream import Connection, Listener, RefusedMessage, StreamRules
from exchange.symbol import unknown_symbol
from market.book_message import BookChain, BookStart
from market.channel import Channel, Topic
from market.clock import Clock, SystemClock

URL = "wss://ws-feed.exchange.coinbase.com"


class CoinbaseStreams:
    """The live streams of Coinbase.

    :param exchange: ccxt's id: ``coinbaseexchange``, or ``coinbase``, which trades in the same books.
    :param symbols: unified symbol to Coinbase's: ``{"BTC/USD": "BTC-USD"}``.
    :param url: another address (http or https) to find the same paths at. What is there may live in a time of its
        own, so event times are judged less strictly.
    """

    def __init__(
        self,
        exchange: str,
        symbols: Mapping[str, str],
        url: str | None = None,
        *,
        clock: Clock | None = None,
    ) -> None:
        self._symbols = symbols
        self._exchange = exchange
        self._url = url
        self._clock = clock or SystemClock()
        self._rules = StreamRules(
            channels=frozenset({Channel.TRADES, Channel.TICKERS, Channel.ORDER_BOOKS}),
            # The feed cuts off a connection that does not take its messages; many books fill one quickly.
            topics_per_connection=100,
            connects=8,
            connect_seconds=1.0,
            # Counted within a product.
            dense_trade_ids=True,
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
        """Open one connection; see ``StreamClient``.

        :raises NotFound: for a symbol that Coinbase does not trade.
        :raises BadInput: for candles.
        """
        topics: dict[WireName, Topic] = {}
        for topic in listeners:
            name = self._symbols.get(topic.symbol)
            if name is None:
                raise unknown_symbol(self._exchange, topic.symbol, self._symbols)
            topics[wire_name(topic, name)] = topic
        plan = SocketPlan(
            url=URL if self._url is None else at_address(URL, self._url),
            requests=[request("subscribe", list(topics))],
            awaited=frozenset(topics),
            read=lambda raw, received_at: read(raw, topics, received_at),
            rules=SocketRules(),
        )
        plans = [plan] if topics else []
        return joined_sockets(
            self._exchange, plans, listeners, refused, self._clock, own_time=self._url is not None
        )
