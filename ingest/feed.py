"""The live feed of one exchange: streams, their routes, what repairs them, and where everything goes.

Streams come first and REST helps out. Closed candles and recorded trades go to the writer; forming candles,
tickers, trades and order books to router memory; all of it to the bus. The live loop fills what is missing in the
coverage ledger, the settle check reads closed candles again, and once a day the exchange's markets are captured.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import structlog

from exchange.stream import StreamClient
from ingest.backfill import find_instruments
from ingest.feed_routes import FeedRoutes
from ingest.feed_rules import FeedRules, FeedStore, LiveHistory
from ingest.feed_status import FeedStatus
from ingest.instrument_capture import capture_daily
from ingest.live import LiveLoop, LiveStatus
from ingest.patience import Gate, Patience, PatientHistory
from ingest.publisher import Publisher
from ingest.router import Router
from ingest.settle_check import SettleChecker
from ingest.writer import Writer
from market.channel import Channel
from market.clock import Clock
from market.errors import ExchangeRefused, Mismatch, NotFound, Retryable
from market.instrument import Instrument, Series
from market.timeframe import DAY_MS, Timeframe
from store.bus.bus import Bus
from store.live_market import LiveMarket
from store.trade_store import TRADE_HISTORY_DAYS

log = structlog.get_logger(__name__)

#: Seconds between two looks for trades that are too old to be kept.
_DROP_SECONDS = 6 * 3600.0


class Feed:
    """Keeps one exchange's live data coming until cancelled.

    :param streams: makes the stream client, from unified symbols to the exchange's; None for REST alone.
    :param writer: open; told to pause the streams where it has too much to do (:meth:`crowded`).
    :param bus: where everything is published; None for nowhere.
    """

    def __init__(
        self,
        history: LiveHistory,
        streams: Callable[[Mapping[str, str]], StreamClient] | None,
        store: FeedStore,
        memory: LiveMarket,
        clock: Clock,
        symbols: Sequence[str],
        timeframe: Timeframe,
        *,
        rules: FeedRules | None = None,
        bus: Bus | None = None,
        on_status: Callable[[LiveStatus], None] | None = None,
        limits: Callable[[], Sequence[Any]] = tuple,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._history = history
        self._streams = streams
        self._store = store
        self._memory = memory
        self._local = clock
        self._symbols = list(dict.fromkeys(symbols))
        self._timeframe = timeframe
        self._rules = rules or FeedRules()
        self._bus = bus
        self._on_status = on_status
        self._limits = limits
        self._sleep = sleep
        self._router: Router | None = None
        self._routes: FeedRoutes | None = None
        self._delays: dict[str, int] = {}
        # The loop itself comes round again: one try each.
        self._patient = PatientHistory(history, Gate(longest_obeyed=float("inf")), Patience(attempts=1))
        self.loop = LiveLoop(
            history,
            store,
            memory.candles,
            clock,
            self._symbols,
            timeframe,
            rules=self._rules.live,
            on_status=self._fared,
            on_closed=self._closed,
            polls=self._polls,
            sleep=sleep,
        )
        self._settle = SettleChecker(
            self._patient,
            store,
            self.loop.clock,
            learned=self._learned,
            rules=self._rules.settle,
            sleep=sleep,
        )

    def crowded(self, crowded: bool) -> None:
        """The writer has too much to do, or has caught up: pause the streams and refills, or go on."""
        if self._routes is not None:
            self._routes.crowded(crowded)
        if self._router is not None:
            self._router.crowd(crowded)

    async def run(self, writer: Writer) -> None:
        """Run until cancelled.

        :raises NotFound: for a symbol that the exchange does not trade, at the start.
        :raises BadInput: for a timeframe or channel that it does not serve.
        :raises StoreUnusable: if neither the store nor the journal can be written.
        """
        instruments = await self._find()
        async with AsyncExitStack() as stack:
            works: list[Coroutine[Any, Any, None]] = []
            if self._streams is not None:
                publisher = None
                if self._bus is not None:
                    publisher = await stack.enter_async_context(Publisher(self._bus, self._history.exchange))
                works += await self._streamed(self._streams, instruments, writer, publisher)
            # Only now: what is refused above leaves no work behind that was never begun.
            works += [self.loop.run(instruments), self._settle.run(), writer.ended()]
            works.append(capture_daily(self._history, self._store, self._local, self._listed, self._sleep))
            await _together(works)

    def status(self, writer: Writer) -> FeedStatus:
        """How everything fares."""
        router, routes, bus = self._router, self._routes, self._bus
        return FeedStatus(
            exchange=self._history.exchange,
            at=self._local.now_ms(),
            clock_offset_ms=self.loop.clock.offset_ms,
            series=list(self.loop.statuses.values()),
            routes=[] if router is None else router.statuses(),
            connections=[] if router is None else router.connections(),
            books=[] if routes is None else [(symbol, one.book_status()) for symbol, one in routes.books.items()],
            writer=writer.status(),
            built={} if routes is None else {symbol: one.agreement for symbol, one in routes.built.items()},
            settle_checked=self._settle.checked,
            settle_drifted=self._settle.drifted,
            settle_delays=dict(self._delays),
            bus=None if bus is None else {"published": bus.status.published, "dropped": bus.status.dropped},
            limits=self._limits(),
        )

    async def _streamed(
        self,
        streams: Callable[[Mapping[str, str]], StreamClient],
        instruments: Sequence[Instrument],
        writer: Writer,
        publisher: Publisher | None,
    ) -> list[Coroutine[Any, Any, None]]:
        """What keeps the streams and their routes going."""
        try:
            client = streams({one.symbol: one.exchange_symbol for one in instruments})
        except NotFound as error:
            if self._rules.channels != {Channel.CANDLES}:
                raise
            log.warning("candles come over REST alone", exchange=self._history.exchange, reason=str(error))
            return []
        router = Router(
            client,
            self._local,
            # Under our name of the exchange: the simulated one speaks as another.
            refused=lambda message: writer.refused(replace(message, exchange=self._history.exchange)),
            rules=self._rules.router,
            sleep=self._sleep,
        )
        routes = FeedRoutes(
            self._history,
            self._store,
            self._memory,
            self._local,
            self._timeframe,
            self.loop,
            self._rules,
            publisher,
            self._sleep,
        )
        await routes.add_to(router, client, instruments, writer)
        self._router, self._routes = router, routes
        return [router.run(), self._tick(routes), self._drop_old_trades()]

    async def _find(self) -> list[Instrument]:
        """The instruments of our symbols, however long the exchange is away."""
        self._history.check_timeframe(self._timeframe)
        wait = self._rules.live.first_wait
        while True:
            try:
                now = await self.loop.clock.read()
                return await find_instruments(self._patient, self._store, self._symbols, self._timeframe, now)
            except (Retryable, ExchangeRefused, Mismatch) as error:
                log.warning("the exchange's markets are not known yet", error=str(error))
                await self._sleep(wait)
                wait = min(wait * 2, self._rules.live.longest_wait)

    async def _drop_old_trades(self) -> None:
        """Keep recorded trades for as long as they are kept, looking a few times a day."""
        while True:
            try:
                await self._store.drop_trades(self.loop.clock.now_ms() - TRADE_HISTORY_DAYS * DAY_MS)
            except Retryable as error:
                log.info("old trades are dropped later", error=str(error))
            await self._sleep(_DROP_SECONDS)

    async def _tick(self, routes: FeedRoutes) -> None:
        while True:
            await self._sleep(1.0)
            routes.show()
            self._memory.trades.drop_old()

    def _polls(self, series: Series) -> bool:
        route = None if self._routes is None else self._routes.candles.get(series)
        return route is None or route.needs_polling

    def _fared(self, status: LiveStatus) -> None:
        """The live loop has been at a series."""
        route = None if self._routes is None else self._routes.candles.get(status.series)
        if route is not None and (status.refused or status.error is None):
            route.asked(status.error)
        if self._on_status is not None:
            self._on_status(status)

    def _closed(self, series: Series, open_time: int) -> None:
        self._settle.closed(series, open_time)

    def _learned(self, timeframe: Timeframe, delay_ms: int) -> None:
        self._delays[timeframe.name] = delay_ms
        if timeframe == self._timeframe:
            self.loop.settle_ms = max(self._rules.live.settle_ms, delay_ms)

    def _listed(self, listed: Sequence[Instrument]) -> None:
        """A symbol of ours that is no longer listed."""
        known = {one.symbol for one in listed if one.active}
        for symbol in self._symbols:
            if symbol not in known:
                log.warning("no longer traded; its candles are kept", symbol=symbol)


async def _together(works: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run `works` until one of them ends; its error is ours. None goes on after that."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
