"""A clock, a sleep and a background for routes, all moved by the test; and an exchange that is asked for books."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from typing import Any

from exchange.stream import StreamRules
from ingest.book_route import BookRoute
from ingest.book_rules import BookRules
from market.book_message import BookChain, BookSnapshot, BookStart
from market.channel import Channel, Topic
from market.errors import ChandleryError
from market.order_book import BookMark
from tests.conftest import ManualClock
from tests.unit.market.true_market import AT, Event, TrueMarket

TOPIC = Topic(Channel.ORDER_BOOKS, "BTC/USDT")


class BookWorld:
    """One market, one route, and the time between them."""

    def __init__(
        self,
        chain: BookChain = BookChain.FIRST_ID,
        start: BookStart = BookStart.REST,
        rules: BookRules | None = None,
        *,
        asks: bool = True,
    ) -> None:
        self.clock = ManualClock(AT)
        self.market = TrueMarket(chain)
        #: What the next questions are answered with, instead of the true book: an age in numbers, or an error.
        self.answers: deque[int | Exception] = deque()
        #: (when, levels) of each question.
        self.asked: list[tuple[int, int]] = []
        #: Milliseconds that an answer takes.
        self.answer_takes = 0
        self.marks: list[BookMark] = []
        self.tops: list[tuple[int, BookSnapshot]] = []
        self.reports: list[ChandleryError] = []
        self._sleepers: list[tuple[int, asyncio.Future[None]]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.route = BookRoute(
            TOPIC,
            StreamRules(channels=frozenset(Channel), book_start=start, book_chain=chain),
            self.clock,
            self._spawn,
            ask=self._ask if asks else None,
            on_top=lambda top: self.tops.append((self.clock.now_ms(), top)),
            mark=self.marks.append,
            report=self.reports.append,
            rules=rules,
            sleep=self.sleep,
            chance=lambda: 1.0,
        )

    async def pass_time(self, milliseconds: int) -> None:
        """Let everything happen that happens until then; the route is checked once a second."""
        end = self.clock.now_ms() + milliseconds
        while True:
            await self.settle()
            next_second = (self.clock.now_ms() // 1000 + 1) * 1000
            until = min([end, next_second, *(due for due, _ in self._sleepers)])
            self.clock.time_ms = max(until, self.clock.time_ms)
            for sleeper in [one for one in self._sleepers if one[0] <= self.clock.time_ms]:
                self._sleepers.remove(sleeper)
                if not sleeper[1].done():
                    sleeper[1].set_result(None)
            await self.settle()
            if self.clock.time_ms % 1000 == 0:
                self.route.check(self.clock.time_ms)
                await self.settle()
            if self.clock.time_ms >= end:
                return

    async def settle(self) -> None:
        """Let the tasks run until all of them wait for time to pass."""
        for _ in range(12):
            await asyncio.sleep(0)
        for task in [one for one in self._tasks if one.done()]:
            self._tasks.discard(task)
            task.result()

    async def sleep(self, seconds: float) -> None:
        waiting = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.clock.now_ms() + max(1, round(seconds * 1000)), waiting))
        await waiting

    def deliver(self, *events: Event) -> None:
        """Events, told over the stream at once."""
        self.route.on_message(self.market.happen(events)._replace(received_at=self.clock.now_ms()))

    def deliver_whole(self) -> None:
        """The whole book, over the stream."""
        self.route.on_message(self.market.snapshot()._replace(received_at=self.clock.now_ms()))

    def lose(self, *events: Event) -> None:
        """Events that the stream does not tell of."""
        self.market.happen(events)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(asyncio.get_running_loop().create_task(work))

    async def _ask(self, symbol: str, levels: int) -> BookSnapshot:
        assert symbol == TOPIC.symbol
        self.asked.append((self.clock.now_ms(), levels))
        answer = self.answers.popleft() if self.answers else 0
        if isinstance(answer, Exception):
            raise answer
        snapshot = self.market.snapshot(answer, levels)
        if self.answer_takes:
            await self.sleep(self.answer_takes / 1000)
        return snapshot._replace(received_at=self.clock.now_ms())
