"""The whole way of a live message, put together as the commands do, from a socket to memory, bus and database."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from bench.messages import SNAPSHOT_ID, SYMBOLS, snapshot
from exchange.binance.streams import BinanceStreams
from exchange.trade_page import TradePage
from ingest.feed_routes import FeedRoutes
from ingest.feed_rules import FeedRules
from ingest.live import LiveLoop
from ingest.publisher import Publisher
from ingest.router import Router
from ingest.writer import Writer
from ingest.writer_status import OnDurable
from market.book_message import BookSnapshot
from market.channel import Channel
from market.clock import SystemClock
from market.errors import ExchangeUnavailable
from market.instrument import Instrument
from market.ticker import Ticker
from market.timeframe import ONE_MINUTE
from market.trade import Trade
from store.bus.memory import MemoryBus
from store.live_market import LiveMarket
from store.sqlite.store import SqliteStore

CLOCK = SystemClock()
EXCHANGE = "binance"
ALL = frozenset(Channel)
#: Seconds without a message after which the sender is given up.
_PATIENCE = 20.0


class _Rest:
    """What the routes ask over REST: books to begin with, and nothing else, for nothing is missing."""

    exchange = EXCHANGE

    async def trades_after(self, symbol: str, last: Trade | None, *, limit: int = 1000) -> TradePage:
        return TradePage(trades=[], complete=True, missing=False)

    async def order_book(self, symbol: str, levels: int = 1000) -> BookSnapshot:
        return BookSnapshot(SNAPSHOT_ID, *snapshot(symbol), None, CLOCK.now_ms())

    async def ticker(self, symbol: str) -> Ticker:
        raise ExchangeUnavailable("no REST here")


@dataclass(frozen=True)
class Chain:
    """An open chain: connected, subscribed, waiting for messages."""

    router: Router
    routes: FeedRoutes
    publisher: Publisher
    store: SqliteStore
    writer: Writer
    memory: LiveMarket
    #: Messages of the bus that its one subscriber has had.
    heard: list[int]

    @property
    def received(self) -> int:
        """Frames from the socket, the answers to subscribing included."""
        return sum(one.frames for one in self.router.connections())

    async def until(self, received: int, look: Callable[[int], None] | None = None) -> None:
        """Wait until so many frames have come.

        :param look: told now and then how many have come so far.
        """
        loop = asyncio.get_running_loop()
        last, since = self.received, loop.time()
        while last < received:
            await asyncio.sleep(0.002 if received - last < 10_000 else 0.02)
            before, last = last, self.received
            if look is not None:
                look(last)
            if last != before:
                since = loop.time()
            elif loop.time() - since > _PATIENCE:
                raise RuntimeError(f"{last} of {received} messages came, and no more")

    def check(self) -> None:
        """Nothing was missed or refused on the way.

        :raises RuntimeError: something was.
        """
        wrong: list[str] = []
        for one in self.router.statuses():
            # A book may have been polled before the first message.
            if one.repeated or one.lost or (one.refilled and one.topic.channel is Channel.TRADES):
                wrong.append(f"{one.topic}: repeated {one.repeated}, lost {one.lost}, refilled {one.refilled}")
        for symbol, route in self.routes.books.items():
            if route.book_status().resyncs or self.memory.order_books.get(EXCHANGE, symbol, 1) is None:
                wrong.append(f"the book of {symbol}: {route.why()}")
        for symbol, built in self.routes.built.items():
            if built.agreement.different:
                wrong.append(f"{symbol}: {built.agreement.different} candles differ from their trades")
        if self.writer.status().refused_messages:
            wrong.append(f"{self.writer.status().refused_messages} messages were refused")
        if wrong:
            raise RuntimeError("; ".join(wrong))


@contextlib.asynccontextmanager
async def opened_chain(
    url: str,
    home: Path,
    *,
    channels: frozenset[Channel] = ALL,
    record_trades: bool = False,
    on_durable: OnDurable | None = None,
) -> AsyncIterator[Chain]:
    """The chain, with everything of `channels` subscribed to at `url`, and a new database in `home`.

    What the live loop would ask over REST besides is left out.
    """
    # Results are the only thing to be said.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    # None of what is left out is asked of it.
    rest: Any = _Rest()
    memory, bus, heard = LiveMarket(CLOCK), MemoryBus(), [0]
    client = BinanceStreams(EXCHANGE, SYMBOLS, url)
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(SqliteStore.opened(home / "market_data.sqlite3", CLOCK))
        crowds: list[Callable[[bool], None]] = []
        writer = await stack.enter_async_context(
            Writer.opened(
                store,
                home / "journal",
                CLOCK,
                on_crowded=lambda crowded: [tell(crowded) for tell in crowds] and None,
                on_durable=on_durable,
            )
        )
        publisher = await stack.enter_async_context(Publisher(bus, EXCHANGE))
        loop = LiveLoop(rest, store, memory.candles, CLOCK, list(SYMBOLS), ONE_MINUTE)
        rules = FeedRules(channels=channels, record_trades=record_trades)
        routes = FeedRoutes(
            rest, store, memory, CLOCK, ONE_MINUTE, loop, rules, publisher, asyncio.sleep
        )  # fmt: skip
        router = Router(client, CLOCK, refused=writer.refused)
        crowds += [routes.crowded, router.crowd]
        await routes.add_to(router, client, _instruments(), writer)
        subscription = await stack.enter_async_context(bus.subscribe("market_data.#"))
        async with asyncio.TaskGroup() as group:
            works = [group.create_task(router.run()), group.create_task(_listen(subscription, heard))]
            chain = Chain(router, routes, publisher, store, writer, memory, heard)
            await until(lambda: any(one.open for one in router.connections()))
            # The books are asked for; what comes before they are there would be kept.
            await asyncio.sleep(0.1)
            try:
                yield chain
            finally:
                for work in works:
                    work.cancel()


async def until(true: Callable[[], bool]) -> None:
    """Wait for something that tells nobody when it comes.

    :raises TimeoutError: it has not come.
    """
    async with asyncio.timeout(_PATIENCE):
        while not true():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


async def _listen(subscription: Any, heard: list[int]) -> None:
    async for _ in subscription:
        heard[0] += 1


def _instruments() -> list[Instrument]:
    return [
        Instrument(exchange=EXCHANGE, symbol=symbol, exchange_symbol=name, base=symbol.split("/")[0], quote="USDT")
        for symbol, name in SYMBOLS.items()
    ]
