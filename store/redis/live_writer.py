"""Writing to Redis what ingest holds live, so that other processes can read it.

What changed is put together and sent every 50 ms, many commands to a round trip. Ingest never waits for it. Only
the newest matters: nothing is kept for a Redis that is away, and when it is back it gets everything as it is then.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from functools import partial

import structlog

from market.clock import Clock
from market.instrument import Series
from store.cache.shared_values import SharedAway
from store.live_changes import LiveChanges, Market
from store.live_market import LiveMarket
from store.redis.command import RedisRefused, Reply
from store.redis.live_keys import symbols_key
from store.redis.live_rules import LiveWriterRules, LiveWriterStatus, RedisCommands, Step
from store.redis.live_symbol_writers import BookWriter, TradesWriter
from store.redis.live_values import list_symbol, write_forming, write_ticker

log = structlog.get_logger(__name__)

#: Failures in a row after which Redis is left alone for a moment.
_FAILURES = 2


class RedisLiveWriter:
    """Open with :meth:`opened` before anything is fed into the market, in the event loop that feeds it.

    :param memory: what ingest holds.
    :param allowed: whether the cache may be written now (the safety state); asked before each flush.
    """

    def __init__(
        self,
        connection: RedisCommands,
        memory: LiveMarket,
        clock: Clock,
        rules: LiveWriterRules,
        allowed: Callable[[], bool] = lambda: True,
    ) -> None:
        self._connection = connection
        self._memory = memory
        self._changes: LiveChanges = memory.followed()
        self._clock = clock
        self._rules = rules
        self._allowed = allowed
        #: Of this run: a writer that begins anew knows nothing of what it sent before.
        self._owner = uuid.uuid4().hex
        self.status = LiveWriterStatus()
        # What is to be sent, in this order.
        self._tickers: dict[Market, None] = {}
        self._candles: dict[Series, None] = {}
        self._books: dict[Market, BookWriter] = {}
        self._trades: dict[Market, TradesWriter] = {}
        # How each thing that there is looks after itself, in the order in which they do.
        self._known: set[tuple[str, Market | Series]] = set()
        self._round: deque[Callable[[], Iterator[Step]]] = deque()
        self._refused = 0
        self._failed = 0
        self._not_before = self._sent_anew_at = self._looked_at = float("-inf")

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(
        cls,
        connection: RedisCommands,
        memory: LiveMarket,
        clock: Clock,
        *,
        rules: LiveWriterRules | None = None,
        allowed: Callable[[], bool] = lambda: True,
    ) -> AsyncIterator[RedisLiveWriter]:
        """A writer at work. On leaving, the order books are taken away: nobody will keep them right."""
        writer = cls(connection, memory, clock, rules or LiveWriterRules(), allowed)
        work = asyncio.create_task(writer._run())
        work.add_done_callback(_ended)
        try:
            yield writer
        finally:
            work.cancel()
            await asyncio.wait([work])
            await writer._take_leave()

    async def flush(self) -> None:
        """Send what changed. Returns when Redis has it, or does not answer."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        if not self._allowed() or began < self._not_before:
            self._let_go()
            return
        self.status.flushes += 1
        before = self.status.pipelines
        try:
            if self.status.away:
                # Before all that there is is put together in vain.
                await self._connection.execute("EXISTS", symbols_key("any"))
                self.status.away = False
            await self._send_all(self._steps(began))
            if self.status.pipelines != before:
                self._failed = 0
        except SharedAway as error:
            self._fail(error, loop.time())
        if self.status.pipelines != before:
            self.status.flush_ms = (loop.time() - began) * 1000
            self.status.longest_flush_ms = max(self.status.longest_flush_ms, self.status.flush_ms)

    async def _run(self) -> None:
        loop, urgent = asyncio.get_running_loop(), self._changes.urgent
        while True:
            next_at = loop.time() + self._rules.flush_ms / 1000
            await self.flush()
            # Never without a pause, whatever is urgent: ingest has the same event loop.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(max(next_at, loop.time() + 0.001)):
                    await urgent.wait()
            urgent.clear()

    def _steps(self, now: float) -> Iterator[Step]:
        """What is to be sent. Each is made when there is room for it, so that it is as new as can be."""
        self._take_over()
        changes = self._changes
        for market in list(self._books):
            yield from self._book(market, look=False)
        # A market that began to trade while this was being sent is noted the next time.
        for market in self._trades.keys() & changes.traded():
            yield from self._traded(market, look=False)
        for market in list(self._tickers):
            yield from self._ticker(market)
        for series in list(self._candles):
            yield from self._candle(series)
        yield from self._looked_after(now)

    def _take_over(self) -> None:
        """Note what is new; what has failed to be sent is noted already."""
        changes = self._changes
        for market in changes.tickers:
            self._tickers[market] = None
            self._learn(("ticker", market), partial(self._ticker, market, listed=True))
        changes.tickers.clear()
        for series in changes.candles:
            self._candles[series] = None
            self._learn(("forming_candle", series), partial(self._candle, series))
        changes.candles.clear()
        common = self._owner, self._clock, self._rules, self.status
        for market, book in changes.books.items():
            if market not in self._books or self._books[market].book is not book:
                self._books[market] = BookWriter(market, book, *common)
                self._learn(("order_book", market), partial(self._book, market, look=True))
        for market in changes.traded():
            if market not in self._trades:
                self._trades[market] = TradesWriter(market, self._memory.trades, *common)
                self._learn(("trades", market), partial(self._traded, market, look=True))

    def _book(self, market: Market, *, look: bool) -> Iterator[Step]:
        step = self._books[market].step(self._changes.take_changes(market), look=look)
        if step is not None:
            yield step

    def _traded(self, market: Market, *, look: bool) -> Iterator[Step]:
        step = self._trades[market].step(self._changes.take_trades(market), look=look)
        if step is not None:
            yield step

    def _ticker(self, market: Market, *, listed: bool = False) -> Iterator[Step]:
        self._tickers.pop(market, None)
        ticker = self._memory.tickers.get(*market)
        if ticker is None:
            return
        now, lifetime = self._clock.now_ms(), self._rules.ticker_ms
        lifetime -= max(now - ticker.received_at, 0)
        if lifetime <= 0:
            return

        def again() -> None:
            self._tickers[market] = None

        yield Step(write_ticker(*market, ticker, lifetime), 1, _heedless, again)
        if listed:
            for command in list_symbol(*market, now, self._rules.ticker_ms):
                yield Step(command, 0, _heedless, again)

    def _candle(self, series: Series) -> Iterator[Step]:
        self._candles.pop(series, None)
        update = self._memory.candles.update(series)
        if update is None:
            return
        lifetime = self._rules.forming_ms - max(self._clock.now_ms() - update.received_at, 0)

        def again() -> None:
            self._candles[series] = None

        if lifetime > 0:
            yield Step(write_forming(series, update, lifetime), 1, _heedless, again)

    def _learn(self, what: tuple[str, Market | Series], look_after: Callable[[], Iterator[Step]]) -> None:
        if what not in self._known:
            self._known.add(what)
            # Soon looked after for the first time: a ticker is not listed before.
            self._round.appendleft(look_after)
            self._looked_at -= self._rules.refresh_ms / 1000 / len(self._known)

    def _looked_after(self, now: float) -> Iterator[Step]:
        """The next few of everything that there is, so that Redis gets again what it forgot."""
        whole = self._rules.refresh_ms / 1000
        self._looked_at = max(self._looked_at, now - whole)
        count = min(len(self._round), round(len(self._round) * (now - self._looked_at) / whole))
        if count:
            self._looked_at = now
        for _ in range(count):
            look_after = self._round[0]
            self._round.rotate(-1)
            yield from look_after()

    async def _send_all(self, steps: Iterable[Step]) -> None:
        together: list[Step] = []
        weight = 0
        for step in steps:
            together.append(step)
            weight += step.weight
            if len(together) >= self._rules.commands_together or weight >= self._rules.weight_together:
                await self._send(together)
                together, weight = [], 0
        if together:
            await self._send(together)
        self._send_anew()

    async def _send(self, steps: list[Step]) -> None:
        self.status.pipelines += 1
        self.status.commands += len(steps)
        try:
            replies = await self._connection.pipeline([step.command for step in steps])
        except SharedAway:
            for step in steps:
                step.lost()
            raise
        except RedisRefused as error:
            # What nobody expects: a script that fails. Which one is not said, so all of them come again.
            if self.status.error != str(error):
                log.error("live data was refused", error=str(error))
            self.status.error = str(error)
            self._not_before = asyncio.get_running_loop().time() + self._rules.away_ms / 1000
            for step in steps:
                step.lost()
            return
        for step, reply in zip(steps, replies, strict=True):
            step.answered(reply)

    def _send_anew(self) -> None:
        """Where Redis has forgotten one thing, it may have forgotten all: send what seldom changes, too."""
        if self.status.refused == self._refused:
            return
        self._refused = self.status.refused
        now = asyncio.get_running_loop().time()
        if now - self._sent_anew_at < self._rules.refresh_ms / 2000:
            return
        self._sent_anew_at = now
        self._looked_at = now - self._rules.refresh_ms / 1000

    def _fail(self, error: SharedAway, now: float) -> None:
        self.status.failures += 1
        self.status.error = str(error)
        self._failed += 1
        if self._failed >= _FAILURES or self.status.away:
            self._not_before = now + self._rules.away_ms / 1000
            self._let_go()

    def _let_go(self) -> None:
        """Keep nothing for a Redis that is away: when it is back, everything is sent as it is then."""
        self.status.away = True
        for writer in (*self._books.values(), *self._trades.values()):
            writer.doubt()
        # All are looked after at once when it is back.
        self._looked_at = float("-inf")
        self.status.dropped += self._changes.drop()

    async def _take_leave(self) -> None:
        if not self._allowed():
            # What may not be written may not be taken away; it goes when its time is over.
            return
        commands = [one for writer in self._books.values() if (one := writer.farewell()) is not None]
        with contextlib.suppress(SharedAway, RedisRefused):
            await self._connection.pipeline(commands)


def _heedless(reply: Reply) -> None:
    """Whether it was done shows in no answer."""


def _ended(work: asyncio.Task[None]) -> None:
    if not work.cancelled() and (error := work.exception()) is not None:
        log.error("live data is no longer written", exc_info=error)
