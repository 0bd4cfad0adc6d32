"""Commands of Redis as its server sees them, while order books, trades and tickers are written and read.

python -m bench.tier_redis [--json] [--candles N] [--rounds N]

A writer sends what changed every 50 ms, as ingest does. Readers ask for it, with nothing kept in their process;
values that caches share are put and got besides. `--rounds` times two seconds, and as much less as `--candles` is
less than a million. Beside the scripts stand plain commands.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Coroutine, Sequence
from typing import Any

import structlog
import uvloop

from bench.figures import Figures
from bench.paired import Result, run
from bench.turns import milliseconds
from market.book_message import BookChain, BookChange, BookSnapshot, BookStart
from market.clock import SystemClock
from market.errors import Mismatch
from market.order_book import BookState, OrderBook
from market.ticker import Ticker
from market.trade import Trade
from store.cache.breaker import CircuitBreaker
from store.cache.key import CacheKey
from store.live_books import BookEdition
from store.live_market import LiveMarket
from store.redis.address import RedisUrl
from store.redis.connection import RedisConnection
from store.redis.figures import CommandLatency, command_latency, memory_usage, reset_command_latency
from store.redis.invalidations import Invalidations
from store.redis.live_reader import RedisMarket
from store.redis.live_writer import RedisLiveWriter
from store.redis.node import RedisRules
from store.redis.values import RedisValues
from tests.support.redis_server import PrivateRedis

EXCHANGE = "bench"
CLOCK = SystemClock()
#: Milliseconds, 99 of 100 times, for every command.
BUDGET = 1.0
SYMBOLS = [f"C{number}/USDT" for number in range(20)]
_LEVELS = 1_000
#: Levels that a message changes. Each book, ticker and market has one message in a step, of so many seconds.
_CHANGED = 20
_STEP = 0.05
_READERS = 4
#: Commands that are not about what is shared.
_OWN = ("info", "config", "client", "hello", "select", "command", "script", "auth")


class KeptBook:
    """A book as ingest keeps it, fed with made-up changes."""

    def __init__(self, market: LiveMarket, symbol: str, chance: random.Random) -> None:
        changes = market.followed()
        self._chance = chance
        self._book = OrderBook(BookChain.COUNTED, BookStart.STREAM, taken=changes.book_sink(EXCHANGE, symbol))
        changes.follow(EXCHANGE, symbol, self)
        bids = [(round(1000 - number / 100, 2), 1.0) for number in range(1, _LEVELS + 1)]
        asks = [(round(1000 + number / 100, 2), 1.0) for number in range(1, _LEVELS + 1)]
        now = CLOCK.now_ms()
        if not self._book.snapshot(BookSnapshot(1, bids, asks, now, now)):
            raise Mismatch("a made-up book was refused")

    def top(self, levels: int) -> BookSnapshot | None:
        return self._book.top(levels) if self._book.state is BookState.LIVE else None

    def edition(self) -> BookEdition | None:
        live = self._book.state is BookState.LIVE
        return BookEdition(self._book.bases, True, *self._book.bounds) if live else None

    def why(self) -> str:
        return str(self._book.reason)

    def change(self) -> None:
        """Some levels, most of them near the best price."""
        now, number, chance = CLOCK.now_ms(), self._book.last_id + 1, self._chance
        distances = [1 + int(min(chance.expovariate(1 / 50), _LEVELS - 1)) for _ in range(_CHANGED)]
        sizes = [0.0 if chance.random() < 0.2 else round(chance.random(), 5) for _ in distances]
        half = _CHANGED // 2
        bids = [(round(1000 - at / 100, 2), size) for at, size in zip(distances[:half], sizes, strict=False)]
        asks = [(round(1000 + at / 100, 2), size) for at, size in zip(distances[half:], sizes[half:], strict=True)]
        if not self._book.apply(BookChange(number, number, None, bids, asks, now, now)):
            raise Mismatch("a made-up change was refused")


class Feed:
    """What ingest holds, and keeps changing."""

    def __init__(self, market: LiveMarket) -> None:
        chance = self._chance = random.Random(1)
        changes = market.followed()
        self._books = [KeptBook(market, symbol, chance) for symbol in SYMBOLS]
        self._tickers = [
            (market.tickers.sink(EXCHANGE, symbol), changes.ticker_sink(EXCHANGE, symbol)) for symbol in SYMBOLS
        ]
        self._trades = [
            (market.trades.sink(EXCHANGE, symbol), changes.trade_sink(EXCHANGE, symbol)) for symbol in SYMBOLS
        ]
        self._number = 0

    async def run(self) -> None:
        """Until it is cancelled, one step every so often."""
        began, done = time.perf_counter(), 0
        while True:
            await asyncio.sleep(_STEP)
            due = int((time.perf_counter() - began) / _STEP)
            # What a busy machine kept us from is left out.
            if due > done:
                self._step()
            done = due

    def _step(self) -> None:
        now, chance = CLOCK.now_ms(), self._chance
        for book, tickers, trades in zip(self._books, self._tickers, self._trades, strict=True):
            book.change()
            for sink in tickers:
                sink(Ticker(now, now, bid=999.99, bid_quantity=1.0, ask=1000.01, ask_quantity=1.0, last=1000.0))
            self._number += 1
            trade = Trade(self._number, 1000.0, round(chance.random(), 5), now, True, now)
            for put in trades:
                put(trade)


class Reads:
    """What readers ask, one after the other, and how long each took as they see it."""

    def __init__(self, market: RedisMarket, values: RedisValues) -> None:
        self._market = market
        self._values = values
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)

    async def run(self, seed: int) -> None:
        """Until it is cancelled."""
        chance = random.Random(seed)
        while True:
            symbol, kind = chance.choice(SYMBOLS), chance.random()
            if kind < 0.5:
                levels = chance.choice((20, 100, 1_000))
                await self._timed(f"order book of {levels:,}", self._market.order_book(EXCHANGE, symbol, levels))
            elif kind < 0.7:
                await self._timed("ticker", self._market.ticker(EXCHANGE, symbol))
            elif kind < 0.8:
                await self._timed("100 trades", self._market.trades(EXCHANGE, symbol, 100))
            else:
                key = CacheKey.of("query", EXCHANGE, symbol, str(chance.randrange(100)))
                if kind < 0.9:
                    await self._timed("put of 1 kB", self._values.put([(key, b"x" * 1_000, 60_000)]))
                else:
                    await self._timed("get of 1 kB", self._values.get([key]))
            # Others in this process have their turn; as fast as they all can is not how it is used.
            await asyncio.sleep(0.002)

    async def _timed(self, name: str, asked: Awaitable[object]) -> None:
        began = time.perf_counter()
        await asked
        self.seconds[name].append(time.perf_counter() - began)


@contextlib.asynccontextmanager
async def _working(work: Sequence[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """These at work, for as long as the context lasts.

    :raises Mismatch: one has ended before.
    """
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
        for task in tasks:
            if task.done():
                raise Mismatch("a writer or reader has stopped") from task.exception()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _measure(seconds: float, url: str) -> list[Result]:
    breaker = CircuitBreaker("redis", CLOCK, lambda event: None, failures=1_000)
    # Patient, so that what a busy machine makes slow is measured and not given up.
    rules = RedisRules(answer_seconds=10, connect_seconds=10)
    async with contextlib.AsyncExitStack() as stack:
        connections = [
            await stack.enter_async_context(RedisConnection.opened(RedisUrl.parse(url), rules, breaker))
            for _ in range(2)
        ]
        market = LiveMarket(CLOCK)
        writer = await stack.enter_async_context(RedisLiveWriter.opened(connections[0], market, CLOCK))
        reader = connections[1]
        reads = Reads(RedisMarket(reader, CLOCK, limit_bytes=0), RedisValues(reader, Invalidations(reader)))
        feed = Feed(market)
        # Whole books and scripts are sent first.
        await writer.flush()
        await reset_command_latency(reader)
        async with _working([feed.run(), *(reads.run(seed) for seed in range(_READERS))]):
            await asyncio.sleep(seconds)
        found = await command_latency(reader)
        used = await memory_usage(reader)
    if writer.status.failures or not writer.status.books_changed:
        raise Mismatch(f"the writer failed: {writer.status}")
    flushes = Figures(
        name="Redis: what the writer sent",
        unit="a second",
        values={
            "round trips": writer.status.pipelines / seconds,
            "commands": writer.status.commands / seconds,
            "books by changes": writer.status.books_changed / seconds,
            "trades": writer.status.trades / seconds,
        },
        more={"longest flush ms": writer.status.longest_flush_ms, "memory MiB": used / (1 << 20)},
    )
    seen = [
        Figures(
            name=f"Redis: {name}, as a reader sees it",
            unit="ms",
            values=milliseconds(took),
            more={"reads": len(took)},
        )
        for name, took in sorted(reads.seconds.items())
    ]
    return [*_by_command(found), flushes, *seen]


def _by_command(found: dict[str, CommandLatency]) -> list[Figures]:
    """Those of the market and of shared values; not what asks the server about itself, or greets it."""
    lines = []
    for name, one in sorted(found.items(), key=lambda item: -item[1].calls):
        if one.p50 is None or one.p99 is None or one.p999 is None or name.startswith(_OWN):
            continue
        values = {"p50": one.p50, "p99": one.p99, "p99.9": one.p999}
        more = {"calls": one.calls, "mean": round(one.mean, 4)}
        lines.append(
            Figures(
                name=f"Redis server: {name.upper()}", unit="ms", values=values, budget=("p99", BUDGET), more=more
            )
        )
    return lines


def measure(count: int, rounds: int) -> list[Result]:
    """Every command, then what was sent and seen."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with PrivateRedis() as server, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(max(2.0 * rounds * count / 1_000_000, 1.0), server.url))


if __name__ == "__main__":
    run(measure, __doc__)
