"""Recorded sessions beside what a live feed hears of them."""

from __future__ import annotations

import asyncio
import gzip
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from exchange.stream import Connection, Listener, RefusedMessage, StreamClient, StreamRules
from market.book_message import BookChange
from market.channel import Topic
from store.live_market import LiveMarket


@dataclass
class Recording:
    """What one recorded session has, by exchange symbol and in order."""

    trades: dict[str, list[tuple[int, float, float, int, bool]]] = field(default_factory=lambda: defaultdict(list))
    #: Closed candles.
    candles: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    #: (number, best bid, best ask)
    tickers: dict[str, list[tuple[int, float, float]]] = field(default_factory=lambda: defaultdict(list))
    #: (first, last, previous number)
    changes: dict[str, list[tuple[int, int, int | None]]] = field(default_factory=lambda: defaultdict(list))
    candle_messages: int = 0

    @staticmethod
    def read(path: Path) -> Recording:
        one = Recording()
        with gzip.open(path) as lines:
            for raw in lines:
                line = orjson.loads(raw)
                if line["src"] == "ws":
                    one._take(line["msg"]["data"])
        return one

    def _take(self, data: dict[str, Any]) -> None:
        kind, symbol = data.get("e", "bookTicker"), data["s"]
        if kind in ("trade", "aggTrade"):
            trade = (data.get("t", data.get("a")), float(data["p"]), float(data["q"]), data["T"], not data["m"])
            self.trades[symbol].append(trade)
        elif kind == "bookTicker":
            self.tickers[symbol].append((data["u"], float(data["b"]), float(data["a"])))
        elif kind == "depthUpdate":
            self.changes[symbol].append((data["U"], data["u"], data.get("pu")))
        elif kind == "kline":
            self.candle_messages += 1
            if data["k"]["x"]:
                self.candles[symbol].append(data["k"])

    @property
    def messages(self) -> int:
        """All of them."""
        kinds: list[Mapping[str, list[Any]]] = [self.trades, self.tickers, self.changes]
        return self.candle_messages + sum(len(one) for kind in kinds for one in kind.values())


class Overheard:
    """A stream client that notes what comes through its sockets, and what the books are like after each change.

    :param books: it reads no further until so many order books have been asked for: at full speed a recording has
        run on for minutes by the time the answer is there, which took the recorder milliseconds.
    """

    def __init__(self, client: StreamClient, memory: LiveMarket, books: int) -> None:
        self._client = client
        self._memory = memory
        self._books = books
        self._waiting: list[Connection] = []
        #: There is a connection; until there is, it cannot be kept from reading on.
        self.connected = asyncio.Event()
        self.heard: dict[Topic, list[Any]] = defaultdict(list)
        self.refused: list[RefusedMessage] = []
        #: By symbol: (first number, last number, best bid, best ask) of each served book that the stream built.
        self.bests: dict[str, list[tuple[int, int, float | None, float | None]]] = defaultdict(list)

    @property
    def exchange(self) -> str:
        return self._client.exchange

    @property
    def rules(self) -> StreamRules:
        return self._client.rules

    @asynccontextmanager
    async def connect(
        self, listeners: Mapping[Topic, Listener], refused: Callable[[RefusedMessage], None]
    ) -> AsyncIterator[Connection]:
        def refuse(message: RefusedMessage) -> None:
            self.refused.append(message)
            refused(message)

        noted = {topic: self._noting(topic, listener) for topic, listener in listeners.items()}
        async with self._client.connect(noted, refuse) as connection:
            if self._books:
                connection.pause()
                self._waiting.append(connection)
            self.connected.set()
            yield connection

    def answered(self) -> None:
        """A book has been asked for, and here is the answer."""
        self._books -= 1
        if self._books <= 0:
            for one in self._waiting:
                one.resume()
            self._waiting.clear()

    def _noting(self, topic: Topic, listener: Listener) -> Listener:
        heard = self.heard[topic]

        def listen(message: Any) -> None:
            heard.append(message)
            listener(message)
            if isinstance(message, BookChange):
                self._look(topic.symbol, message)

        return listen

    def _look(self, symbol: str, change: BookChange) -> None:
        served = self._memory.order_books.get(self.exchange, symbol, 1)
        if served is not None and served.book.last_id == change.last_id:
            (bid, _), (ask, _) = served.book.bids[0], served.book.asks[0]
            self.bests[symbol].append((change.first_id, change.last_id, bid, ask))

    def count(self) -> int:
        return sum(len(one) for one in self.heard.values())
