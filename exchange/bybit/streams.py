"""Bybit's live streams: trades, candles, tickers and order books of spot, linear and inverse contracts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager

from exchange.address import at_address
from exchange.bybit.wire import read, request, wire_names
from exchange.joined_sockets import SocketPlan, joined_sockets
from exchange.socket import SocketRules
from exchange.stream import Connection, Listener, RefusedMessage, StreamRules
from exchange.symbol import unknown_symbol
from market.book_message import BookChain, BookStart
from market.channel import Channel, Topic
from market.clock import Clock, SystemClock
from market.errors import BadInput

#: Followed by the kind of market.
URL = "wss://stream.bybit.com/v5/public"
#: Topics in one request: spot refuses more than ten.
_REQUESTED = 10
_SOCKET = SocketRules(ping_after=20.0, pong_within=10.0, ping_text=b'{"op":"ping"}')


class BybitStreams:
    """The live streams of Bybit.

    :param exchange: ccxt's id.
    :param symbols: unified symbol to Bybit's: ``{"BTC/USDT": "BTCUSDT"}``; spot and contracts share names.
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
            channels=frozenset(Channel),
            connects=400,
            connect_seconds=300.0,
            says_closed=True,
            book_start=BookStart.STREAM,
            book_chain=BookChain.COUNTED,
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
        """Open one connection, with a socket for each kind of market; see ``StreamClient``.

        :raises NotFound: for a symbol that Bybit does not trade.
        :raises BadInput: for a candle length that it does not stream, and for options.
        """
        kinds: dict[str, dict[str, Topic]] = {}
        for topic in listeners:
            name = self._symbols.get(topic.symbol)
            if name is None:
                raise unknown_symbol(self._exchange, topic.symbol, self._symbols)
            kind = market_kind(topic.symbol)
            topics = kinds.setdefault(kind, {})
            for one in wire_names(topic, name, spot=kind == "spot"):
                topics[one] = topic
        plans = [self._plan(kind, topics) for kind, topics in kinds.items()]
        return joined_sockets(
            self._exchange, plans, listeners, refused, self._clock, own_time=self._url is not None
        )

    def _plan(self, kind: str, topics: Mapping[str, Topic]) -> SocketPlan:
        names = list(topics)
        parts = [names[at : at + _REQUESTED] for at in range(0, len(names), _REQUESTED)]
        return SocketPlan(
            url=f"{URL if self._url is None else at_address(URL, self._url)}/{kind}",
            requests=[request("subscribe", part, str(at)) for at, part in enumerate(parts)],
            # Bybit answers a request, not a topic.
            awaited=frozenset(str(at) for at in range(len(parts))),
            read=lambda raw, received_at: read(raw, topics, received_at),
            rules=_SOCKET,
        )


def market_kind(symbol: str) -> str:
    """Bybit's word for the kind of market of a ccxt symbol: spot, linear or inverse.

    :raises BadInput: for an option.
    """
    pair, _, settled = symbol.partition(":")
    if not settled:
        return "spot"
    currency, *rest = settled.split("-")
    if len(rest) > 1:
        raise BadInput("symbol", symbol, "spot or a linear or inverse contract: options are not streamed")
    return "inverse" if pair.partition("/")[0] == currency else "linear"
