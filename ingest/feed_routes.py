"""The routes of a live feed: which topics there are, and where the messages of each go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import structlog

from exchange.stream import StreamClient
from ingest.book_route import BookRoute
from ingest.built_candles import BuiltCandles
from ingest.candle_route import CandleRoute
from ingest.feed_rules import FeedRules, FeedStore, LiveHistory
from ingest.live import LiveLoop
from ingest.patience import Sleep
from ingest.publisher import Publisher
from ingest.route import Path
from ingest.router import Router
from ingest.ticker_route import TickerRoute
from ingest.trade_holes import fill_holes
from ingest.trade_route import LostTrades, TradeRoute
from ingest.unnumbered_trade_route import UnnumberedTradeRoute
from ingest.writer import Writer
from market.channel import Channel, Topic
from market.clock import Clock
from market.errors import BadInput, ExchangeRefused, Mismatch, Retryable
from market.instrument import Instrument, Series
from market.order_book import BookMark, BookState
from market.timeframe import Timeframe
from market.trade import Trade
from store.live_market import LiveMarket

log = structlog.get_logger(__name__)

#: Of an exchange that does not count its trades, the stored ones of so long are known after a restart.
_REMEMBERED_MS = 60_000
#: Seconds between two looks whether the journal of an earlier process is in the store.
_JOURNAL_LOOK = 0.1
#: Exchanges tell of a forming candle at an even pace, Binance every two seconds, so a shorter silence is unusual
#: than of trades, which come in bursts. And it costs next to nothing to ask for a candle.
_USUAL_OF_CANDLES = 5.0


class FeedRoutes:
    """Makes the routes of one exchange and keeps them.

    :param loop: the live loop, which fills what the candle streams do not bring, and knows exchange time.
    :param publisher: where messages are published; None for nowhere.
    """

    def __init__(
        self,
        history: LiveHistory,
        store: FeedStore,
        memory: LiveMarket,
        clock: Clock,
        timeframe: Timeframe,
        loop: LiveLoop,
        rules: FeedRules,
        publisher: Publisher | None,
        sleep: Sleep,
    ) -> None:
        self._history = history
        self._store = store
        self._memory = memory
        self._local = clock
        self._timeframe = timeframe
        self._loop = loop
        self._rules = rules
        self._trade_rules = replace(rules.trades, silence=rules.silence)
        self._book_rules = replace(rules.books, silence_ms=rules.silence.silent_after)
        self._publisher = publisher
        self._sleep = sleep
        self._room = asyncio.Event()
        self._room.set()
        self.candles: dict[Series, CandleRoute] = {}
        self.trades: dict[str, TradeRoute | UnnumberedTradeRoute] = {}
        self.books: dict[str, BookRoute] = {}
        self.built: dict[str, BuiltCandles] = {}
        #: Messages of each trade stream when time was last let pass.

    def crowded(self, crowded: bool) -> None:
        """Refills wait while the writer has too much to do."""
        if crowded:
            self._room.clear()
        else:
            self._room.set()

    def show(self) -> None:
        """Let readers see the candles that are forming from trades, where the exchange has no stream of them."""
        for symbol, route in self.trades.items():
            if route.status().path is Path.STREAM:
                self.built[symbol].show()

    async def add_to(
        self, router: Router, client: StreamClient, instruments: Sequence[Instrument], writer: Writer
    ) -> None:
        """A route for each topic that is wanted and to be had.

        :raises BadInput: a channel that the exchange has no stream of.
        """
        wanted = self._rules.channels
        missing = wanted - client.rules.channels - {Channel.CANDLES}
        if missing:
            raise BadInput(
                "channels", ", ".join(sorted(missing)), "some of " + ", ".join(sorted(client.rules.channels))
            )
        for instrument in instruments:
            if Channel.TRADES in wanted:
                router.add(await self._trade_route(client, router, instrument, writer))
            if Channel.CANDLES in client.rules.channels:
                router.add(self._candle_route(client, instrument, writer))
            if Channel.TICKERS in wanted:
                router.add(self._ticker_route(router, instrument))
            if Channel.ORDER_BOOKS in wanted:
                router.add(self._book_route(client, router, instrument))

    def _outlet(self, topic: Topic) -> list[Callable[[Any], None]]:
        return [] if self._publisher is None else [self._publisher.outlet(topic).add]

    async def _trade_route(
        self, client: StreamClient, router: Router, instrument: Instrument, writer: Writer
    ) -> TradeRoute | UnnumberedTradeRoute:
        exchange, symbol = self._history.exchange, instrument.symbol
        topic = Topic(Channel.TRADES, symbol)
        has_candles = Channel.CANDLES in client.rules.channels
        series = Series(exchange, symbol, self._timeframe)
        built = BuiltCandles(
            series,
            instrument.origin_ms,
            sink=None if has_candles else writer,
            live=None if has_candles else self._memory.candles,
        )
        self.built[symbol] = built
        sinks = [self._memory.trades.sink(exchange, symbol), built.add, *self._outlet(topic)]
        if self._memory.changes is not None:
            sinks.append(self._memory.changes.trade_sink(exchange, symbol))
        dense = client.rules.dense_trade_ids
        stored: list[Trade] = []
        if self._rules.record_trades:
            sinks.append(writer.trade_sink(exchange, symbol, dense))
            stored = await self._stored(symbol, dense, writer)
        if not dense:
            unnumbered = UnnumberedTradeRoute(
                topic,
                self._history,
                self._local,
                router.spawn,
                sinks=sinks,
                known=stored,
                broken=built.broken,
                room=self._has_room,
                rules=self._trade_rules,
                sleep=self._sleep,
            )
            self.trades[symbol] = unnumbered
            return unnumbered
        if self._rules.record_trades:
            router.spawn(self._fill_holes(symbol))
        route = TradeRoute(
            topic,
            self._history,
            self._local,
            router.spawn,
            sinks=sinks,
            last=stored[-1] if stored else None,
            lost=lambda lost: router.spawn(self._lose(lost)),
            broken=built.broken,
            room=self._has_room,
            rules=self._trade_rules,
            sleep=self._sleep,
        )
        self.trades[symbol] = route
        return route

    def _candle_route(self, client: StreamClient, instrument: Instrument, writer: Writer) -> CandleRoute:
        series = Series(self._history.exchange, instrument.symbol, self._timeframe)
        told: list[Callable[[Any], None]] = []
        if instrument.symbol in self.built:
            told.append(self.built[instrument.symbol].theirs)
        told += self._outlet(Topic(Channel.CANDLES, instrument.symbol, self._timeframe))
        route = CandleRoute(
            series,
            self._memory.candles,
            writer,
            self._local,
            told=told,
            connected=self._loop.wake,
            says_closed=client.rules.says_closed,
            silence=replace(self._rules.silence, usual=_USUAL_OF_CANDLES),
        )
        self.candles[series] = route
        return route

    def _ticker_route(self, router: Router, instrument: Instrument) -> TickerRoute:
        exchange, symbol = self._history.exchange, instrument.symbol
        topic = Topic(Channel.TICKERS, symbol)
        sinks = [self._memory.tickers.sink(exchange, symbol), *self._outlet(topic)]
        if self._memory.changes is not None:
            sinks.append(self._memory.changes.ticker_sink(exchange, symbol))
        return TickerRoute(
            topic,
            self._history,
            self._local,
            router.spawn,
            sinks=tuple(sinks),
            silence=self._rules.silence,
        )

    def _book_route(self, client: StreamClient, router: Router, instrument: Instrument) -> BookRoute:
        exchange, symbol = self._history.exchange, instrument.symbol
        topic = Topic(Channel.ORDER_BOOKS, symbol)
        outlets = self._outlet(topic)
        changes = self._memory.changes
        route = BookRoute(
            topic,
            client.rules,
            self._local,
            router.spawn,
            ask=self._history.order_book,
            on_top=outlets[0] if outlets else None,
            mark=partial(self._marked, topic),
            taken=None if changes is None else changes.book_sink(exchange, symbol),
            rules=self._book_rules,
            sleep=self._sleep,
        )
        self._memory.order_books.put(exchange, symbol, route)
        if changes is not None:
            changes.follow(exchange, symbol, route)
        self.books[symbol] = route
        return route

    def _marked(self, topic: Topic, mark: BookMark) -> None:
        """An order book has changed its state: whoever records it must not join what is before and after."""
        if self._memory.changes is not None and mark.state is not BookState.LIVE:
            self._memory.changes.urgent.set()
        log.info(
            "order book",
            exchange=self._history.exchange,
            topic=str(topic),
            state=str(mark.state),
            reason=mark.reason,
            resyncs=mark.resyncs,
            last_id=mark.last_id,
        )

    async def _has_room(self) -> None:
        await self._room.wait()

    async def _stored(self, symbol: str, dense: bool, writer: Writer) -> list[Trade]:
        """The newest stored trades, oldest first: one where the exchange counts them, else those of the last time.

        None where they are so old that going on from them would take too long.
        """
        exchange, wait = self._history.exchange, self._rules.live.first_wait
        while True:
            # Before the look into the store, as it moves from the one to the other.
            journal = writer.status().journal_records
            try:
                newest = await self._store.newest_trade(exchange, symbol)
                if newest is None or newest.event_time < self._loop.clock.now_ms() - self._rules.holes_ms:
                    if not journal:
                        return []
                    # Newer ones may be in what an earlier process left in the journal: a start without them would
                    # leave a hole after them.
                    await self._sleep(_JOURNAL_LOOK)
                    continue
                if dense:
                    return [newest]
                end = newest.event_time + 1
                return await self._store.trades(exchange, symbol, end - _REMEMBERED_MS, end)
            except Retryable as error:
                log.warning("the newest stored trades are not known yet", symbol=symbol, error=str(error))
                await self._sleep(wait)

    async def _fill_holes(self, symbol: str) -> None:
        since = self._loop.clock.now_ms() - self._rules.holes_ms
        await self._persistently(
            lambda: fill_holes(self._history.exchange, symbol, self._history, self._store, since)
        )

    async def _lose(self, lost: LostTrades) -> None:
        await self._persistently(
            lambda: self._store.lose_trades(
                self._history.exchange,
                lost.symbol,
                lost.first_id,
                lost.last_id,
                lost.first_time,
                lost.last_time,
                lost.evidence,
            )
        )

    async def _persistently(self, work: Callable[[], Awaitable[Any]]) -> None:
        """`work`, until it has succeeded; not where the exchange refuses it for good."""
        wait = self._rules.live.first_wait
        while True:
            try:
                await work()
                return
            except (ExchangeRefused, BadInput) as error:
                log.warning("given up", error=str(error))
                return
            except (Retryable, Mismatch) as error:
                log.info("tried again later", error=str(error))
                await self._sleep(wait)
                wait = min(wait * 2, self._rules.live.longest_wait)
