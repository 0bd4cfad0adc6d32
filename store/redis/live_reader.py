"""What the ingest of another process holds live, read from Redis.

An answer is kept in this process for the time to live of its kind (50 ms for order books, 100 ms for the rest), and
"there is none" as well. However many ask, Redis is asked once per key at a time.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from market.book_message import BookSnapshot
from market.clock import Clock
from market.instrument import Series
from market.ticker import Ticker
from market.trade import Trade
from store.cache.entries import Entries
from store.cache.memory import MEMORY_TIER
from store.cache.shared_values import ROUTER_TIER, SharedAway
from store.cache.single_flight import SingleFlight
from store.cache.statistics import TierStatistics
from store.cache.time_to_live import TimesToLive
from store.live_books import LiveBook
from store.live_source import Forming, LiveValue
from store.redis.command import Command, RedisRefused, Reply
from store.redis.live_rules import RedisCommands
from store.redis.live_values import (
    RedisTrades,
    ask_forming,
    ask_symbols,
    ask_ticker,
    read_forming,
    read_symbols,
    read_ticker,
    read_trades,
)
from store.redis.order_book import RedisOrderBook, read_book

_T = TypeVar("_T")

#: Asked for in place of fewer, so that readers of different depths share one answer.
_DEPTHS = (20, 100, 500, 1_000, 2_000)
_TRADES = (100, 1_000, 10_000)
#: A trade received longer ago is no longer served.
_TRADES_MS = 10 * 60_000
_TICKERS_TOGETHER = 1_000
#: Of process memory, for all answers together.
LIMIT_BYTES = 32 * 2**20

#: Kind, exchange, and what else tells one answer from another.
_Key = tuple[Any, ...]


class _Answer(NamedTuple):
    """What Redis said; None where it has nothing that can be read."""

    value: Any
    #: Monotonic milliseconds when it was asked.
    asked_at: float
    tier: str = ROUTER_TIER


class RedisMarket:
    """A :class:`store.live_source.LiveSource` over Redis. Clocks of the machines are taken to agree.

    :param times: of the cache; follows the operating state.
    :param reads: whether the cache may be read now (the safety state); nothing is answered while it may not.
    """

    def __init__(
        self,
        connection: RedisCommands,
        clock: Clock,
        *,
        times: TimesToLive | None = None,
        statistics: TierStatistics | None = None,
        reads: Callable[[], bool] = lambda: True,
        limit_bytes: int = LIMIT_BYTES,
        monotonic_ms: Callable[[], float] = lambda: time.monotonic_ns() / 1e6,
    ) -> None:
        self._connection = connection
        self._clock = clock
        self._times = times or TimesToLive()
        self._statistics = statistics or TierStatistics(clock.now_ms)
        self._reads = reads
        self._monotonic_ms = monotonic_ms
        self._held: Entries[_Key, _Answer] = Entries(limit_bytes, monotonic_ms=monotonic_ms)
        self._flights: SingleFlight[_Key, _Answer] = SingleFlight(
            most_waiting=10_000, named=lambda key: ":".join(map(str, key)), monotonic_ms=monotonic_ms
        )

    async def ticker(self, exchange: str, symbol: str) -> LiveValue[Ticker] | None:
        async def load() -> Ticker | None:
            return read_ticker(await self._ask(ask_ticker(exchange, symbol)))

        found = await self._answer(("ticker", exchange, symbol), load, _same_size(500))
        return None if found.value is None else self._aged(found.value, found.tier)

    async def tickers(self, exchange: str) -> dict[str, LiveValue[Ticker]]:
        async def load() -> dict[str, Ticker]:
            symbols = read_symbols(await self._ask(ask_symbols(exchange)) or ())
            found: dict[str, Ticker] = {}
            for first in range(0, len(symbols), _TICKERS_TOGETHER):
                some = symbols[first : first + _TICKERS_TOGETHER]
                replies = await self._ask_many([ask_ticker(exchange, symbol) for symbol in some])
                for symbol, reply in zip(some, replies, strict=True):
                    if (ticker := read_ticker(reply)) is not None:
                        found[symbol] = ticker
            return found

        answer = await self._answer(("ticker", exchange), load, lambda found: 200 + 600 * len(found))
        return {symbol: self._aged(ticker, answer.tier) for symbol, ticker in answer.value.items()}

    async def order_book(self, exchange: str, symbol: str, levels: int) -> LiveBook | None:
        answer = await self._book(exchange, symbol, levels)
        book = answer.value
        if not isinstance(book, BookSnapshot):
            return None
        cut = book._replace(bids=book.bids[:levels], asks=book.asks[:levels])
        return LiveBook(cut, max(self._clock.now_ms() - book.received_at, 0), answer.tier)

    async def why_no_book(self, exchange: str, symbol: str) -> str:
        book = (await self._book(exchange, symbol, 1)).value
        if isinstance(book, str):
            return book
        if book is None:
            return f"no order book of {symbol} is kept for {exchange} in Redis"
        return "it is there"

    async def trades(self, exchange: str, symbol: str, limit: int) -> LiveValue[list[Trade]]:
        depth = _deep_enough(_TRADES, limit)
        commands = RedisTrades(exchange, symbol)

        async def load() -> list[Trade]:
            return read_trades(await self._ask(commands.ask(depth)) or ())

        answer = await self._answer(("trades", exchange, symbol, depth), load, lambda found: 200 + 250 * len(found))
        oldest = self._clock.now_ms() - _TRADES_MS
        trades = [one for one in answer.value[-limit:] if one.received_at >= oldest]
        return LiveValue(trades, max(round(self._monotonic_ms() - answer.asked_at), 0), answer.tier)

    async def forming(self, series: Series) -> Forming | None:
        async def load() -> Forming | None:
            update = read_forming(await self._ask(ask_forming(series)))
            return None if update is None else (update.table(), update.received_at)

        found: Forming | None = (await self._answer(_forming_key(series), load, _same_size(2_000))).value
        return found

    def fresh_forming(self, series: Series) -> tuple[bool, Forming | None]:
        held = self._fresh(_forming_key(series)) if self._reads() else None
        return (False, None) if held is None else (True, held.value)

    async def _book(self, exchange: str, symbol: str, levels: int) -> _Answer:
        """The book to this depth, or the words why there is none."""
        depth = _deep_enough(_DEPTHS, levels)
        for deeper in _DEPTHS[_DEPTHS.index(depth) :]:
            if self._reads() and (held := self._fresh(("order_book", exchange, symbol, deeper))) is not None:
                return held
        command = RedisOrderBook(exchange, symbol).read(depth)

        async def load() -> BookSnapshot | str | None:
            reply = await self._ask(command)
            return None if reply is None else read_book(reply)

        return await self._answer(("order_book", exchange, symbol, depth), load, _book_size)

    async def _answer(self, key: _Key, load: Callable[[], Awaitable[_T]], size: Callable[[_T], int]) -> _Answer:
        """What this process holds, if it is fresh, else what Redis says."""
        if not self._reads():
            raise SharedAway("the safety state forbids reading the cache")
        held = self._fresh(key)
        if held is not None:
            return held
        lifetime = self._lifetime(key)

        async def fly() -> _Answer:
            asked_at = self._monotonic_ms()
            try:
                value = await load()
            except SharedAway:
                self._statistics.error(ROUTER_TIER, key[0])
                raise
            if value is None or value == [] or isinstance(value, str):
                self._statistics.miss(ROUTER_TIER, key[0])
            else:
                self._statistics.hit(ROUTER_TIER, key[0])
            answer = _Answer(value, asked_at)
            # From when it was asked, for it may have changed at once.
            left = lifetime - (self._monotonic_ms() - asked_at)
            self._held.put(key, answer._replace(tier=MEMORY_TIER), size(value), left)
            return answer

        return await self._flights.run(key, fly, younger_than_ms=lifetime)

    def _fresh(self, key: _Key) -> _Answer | None:
        found = self._held.get(key)
        # The operating state may have changed since.
        if found is None or self._monotonic_ms() - found.asked_at >= self._lifetime(key):
            self._statistics.miss(MEMORY_TIER, key[0])
            return None
        self._statistics.hit(MEMORY_TIER, key[0])
        return found

    def _lifetime(self, key: _Key) -> int:
        return self._times.milliseconds(key[0], self._clock.now_ms())

    async def _ask(self, one: Command) -> Reply:
        (reply,) = await self._ask_many([one])
        return reply

    async def _ask_many(self, commands: Sequence[Command]) -> list[Reply]:
        """The answers; None where something lies under our name that is not of our kind."""
        try:
            return await self._connection.pipeline(commands)
        except RedisRefused:
            if len(commands) == 1:
                return [None]
            return [await self._ask(one) for one in commands]

    def _aged(self, ticker: Ticker, tier: str) -> LiveValue[Ticker]:
        return LiveValue(ticker, max(self._clock.now_ms() - ticker.received_at, 0), tier)


def _forming_key(series: Series) -> _Key:
    return "forming_candle", series.exchange, series.symbol, series.timeframe.name


def _deep_enough(depths: Sequence[int], wanted: int) -> int:
    return next((depth for depth in depths if depth >= wanted), depths[-1])


def _same_size(size: int) -> Callable[[object], int]:
    return lambda value: size


def _book_size(book: BookSnapshot | str | None) -> int:
    return 500 if not isinstance(book, BookSnapshot) else 500 + 150 * (len(book.bids) + len(book.asks))
