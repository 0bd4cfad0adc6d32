"""A live feed under load in the test's own process: trades by the thousand, and proofs of what becomes of them."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from chandlery.live_feed import FeedPlan, OpenedFeed, opened_feed
from chandlery.settings import Settings
from chandlery.wiring import CLOCK, Store, opened_store
from ingest.writer_status import Landed
from market.timeframe import ONE_MINUTE
from market.trade import Trade
from store.live_market import LiveMarket
from store.trade_batch import TradeBatch, TradesWritten
from tests.support.market_kept import BEGIN_MS, EXCHANGE, Told

#: How the instruments begin that no exchange knows: their trades are put into the writer directly.
LOADED = "LOAD"
#: Seconds between two heaps of them.
_TICK = 0.01


class Account:
    """What was told to be durable, how long that took, and whether the store got everything in order."""

    def __init__(self) -> None:
        #: Of the simulated exchange's symbols.
        self.told = Told()
        #: Up to which id the trades of each loaded symbol were told to be durable, and to which they are stored.
        self.durable: dict[str, int] = {}
        self.stored: dict[str, int] = {}
        #: Where the store was given a trade before an older one.
        self.overtaken: list[str] = []
        #: When trades became durable for the first time (monotonic seconds), after how many milliseconds.
        self.lags: list[tuple[float, int]] = []
        self.landed: Counter[str] = Counter()

    @property
    def rows(self) -> int:
        """Different rows told to be durable."""
        return self.told.rows + sum(self.durable.values())

    def on_durable(self, batch: object, landed: Landed) -> None:
        """The writer's notice."""
        if not isinstance(batch, TradeBatch) or not batch.symbol.startswith(LOADED):
            self.told.add(batch, landed)
            return
        self.landed[landed] += len(batch.trades)
        last = batch.trades[-1]
        if int(last.id) >= self.durable.get(batch.symbol, 0):
            self.durable[batch.symbol] = int(last.id) + 1
            self.lags.append((time.monotonic(), CLOCK.now_ms() - batch.trades[0].received_at))

    def committed(self, batch: TradeBatch) -> None:
        """The store has taken these: not one of them before an older one that it does not have."""
        ids = [int(one.id) for one in batch.trades]
        known = self.stored.get(batch.symbol)
        if known is not None and (ids[0] > known or ids != list(range(ids[0], ids[-1] + 1))):
            self.overtaken.append(f"{batch.symbol}: {ids[0]} to {ids[-1]} after {known - 1}")
        self.stored[batch.symbol] = max(known or 0, ids[-1] + 1)

    def p99(self, since: float, until: float = float("inf")) -> int | None:
        """Milliseconds within which 99 of 100 heaps became durable in this time (monotonic seconds)."""
        found = sorted(lag for at, lag in self.lags if since <= at < until)
        return found[round((len(found) - 1) * 0.99)] if found else None


class WatchedStore:
    """A store whose commits of trades are accounted for."""

    def __init__(self, store: Store, account: Account) -> None:
        self._store = store
        self._account = account

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def write_trades(self, batches: Sequence[TradeBatch]) -> TradesWritten:
        written = await self._store.write_trades(batches)
        for batch in batches:
            self._account.committed(batch)
        return written


class Watch:
    """Looks at the feed again and again: states of the writer, what waits, memory, and that streams are read."""

    def __init__(self, feed: OpenedFeed) -> None:
        self._feed = feed
        #: As of the last look. Making one takes a while, so nothing else asks for it all the time.
        self.writer = feed.writer.status()
        self.states: Counter[str] = Counter()
        self.most_waiting = self.most_journal_bytes = self.crowded = 0
        self.memory = self.most_memory = memory_bytes()
        #: Messages of all routes, by when that was looked at (monotonic seconds).
        self.messages: list[tuple[float, int]] = []

    async def run(self) -> None:
        while True:
            await asyncio.sleep(0.02)
            self.look()

    def begin(self) -> None:
        """Count the growth of memory from here on."""
        self.memory = self.most_memory = memory_bytes()

    def look(self) -> None:
        """Once."""
        status = self._feed.feed.status(self._feed.writer)
        self.writer = status.writer
        self.states[status.writer.state] += 1
        self.crowded += status.writer.crowded
        self.most_waiting = max(self.most_waiting, status.writer.waiting_rows)
        self.most_journal_bytes = max(self.most_journal_bytes, status.writer.journal_bytes)
        self.most_memory = max(self.most_memory, memory_bytes())
        self.messages.append((time.monotonic(), sum(one.messages for one in status.routes)))

    def longest_pause(self, since: float, until: float) -> float:
        """Seconds in which no route got a message, at most, in this time."""
        changed, longest, before = since, 0.0, -1
        for at, messages in self.messages:
            if since <= at <= until:
                if messages != before:
                    changed, before = at, messages
                longest = max(longest, at - changed)
        return longest


class Load:
    """Trades put into the writer's sinks, as streams do, so many a second in all; not while they are to pause."""

    def __init__(self, feed: OpenedFeed, watch: Watch, rate: int, symbols: int) -> None:
        self._feed = feed
        self._watch = watch
        self.symbols = [f"{LOADED}{number}/USDT" for number in range(symbols)]
        self._rate = rate
        self._stopped = False
        #: Trades of each instrument so far: their ids are 0 up to that.
        self.each = 0

    async def run(self) -> None:
        sinks = [self._feed.writer.trade_sink(EXCHANGE, symbol, True) for symbol in self.symbols]
        began, skipped = time.monotonic(), 0
        while not self._stopped:
            await asyncio.sleep(_TICK)
            due = int((time.monotonic() - began) * self._rate / len(sinks)) - self.each - skipped
            # What a busy machine kept us from sending for longer is not sent all at once.
            count = min(due, int(self._rate / len(sinks) * 0.5))
            skipped += due - count
            if self._watch.writer.crowded:
                skipped += count
                continue
            now = CLOCK.now_ms()
            for number in range(self.each, self.each + count):
                one = Trade(number, 100.0 + number % 800 / 8, 0.5, now, number % 2 == 0, now)
                for sink in sinks:
                    sink(one)
            self.each += count

    def stop(self) -> None:
        """No more."""
        self._stopped = True


@contextlib.asynccontextmanager
async def fed(
    url: str, settings: Settings, symbols: Sequence[str], account: Account
) -> AsyncIterator[tuple[OpenedFeed, Watch]]:
    """A feed of the simulated exchange that runs, and is watched, until the end of the context."""
    plan = FeedPlan(exchange=EXCHANGE, url=url, symbols=list(symbols), timeframe=ONE_MINUTE, since_ms=BEGIN_MS)
    async with opened_store(settings) as store:
        watched: Any = WatchedStore(store, account)
        memory = LiveMarket(CLOCK)
        async with opened_feed(plan, settings, watched, memory, on_durable=account.on_durable) as feed:
            watch = Watch(feed)
            tasks = [asyncio.create_task(feed.run(settings.home / "status")), asyncio.create_task(watch.run())]
            try:
                yield feed, watch
            finally:
                for task in tasks:
                    task.cancel()
                for ended in await asyncio.gather(*tasks, return_exceptions=True):
                    assert isinstance(ended, asyncio.CancelledError), ended


def memory_bytes() -> int:
    """What this process holds in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def reached(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Return as soon as the condition holds; others run meanwhile."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.005)
