"""The trades of an exchange whose ids do not count up: each once, as far as can be told.

A hole cannot be seen between two such trades. So whatever could have made one (a reconnect, a silence, the start)
is followed by asking REST for the trades since the last one, while what the stream sends waits; the ids tell which
are known. Where the answer does not reach back to the last known trade, the candles in between are not built.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

from ingest.route import Path, RouteStatus, Silence, Spawn, Standing
from ingest.trade_route import TradeHistory, TradeRules
from market.channel import Topic
from market.clock import Clock
from market.errors import BadInput, ExchangeRefused, Mismatch, RateLimited, Retryable
from market.trade import Trade

#: Ids that are remembered; the oldest are forgotten. No exchange repeats older ones.
_MOST_REMEMBERED = 50_000
#: Trades that wait for a refill. Rule: the oldest are delivered without waiting any longer.
_MOST_WAITING = 50_000


class UnnumberedTradeRoute:
    """Trades with ids that say nothing of what lies between.

    Parameters as for :class:`ingest.trade_route.TradeRoute`, but:

    :param known: the newest stored trades, so that a restart does not deliver them again.
    """

    def __init__(
        self,
        topic: Topic,
        history: TradeHistory,
        clock: Clock,
        spawn: Spawn,
        *,
        sinks: Sequence[Callable[[Trade], None]],
        known: Sequence[Trade] = (),
        broken: Callable[[], None],
        room: Callable[[], Awaitable[None]],
        rules: TradeRules | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.topic = topic
        self._history = history
        self._spawn = spawn
        self._sinks = tuple(sinks)
        self._broken = broken
        self._room = room
        self._rules = rules or TradeRules()
        self._sleep = sleep
        self._clock = clock
        self._silence = Silence(self._rules.silence, clock.now_ms())
        self._standing = Standing(topic, clock)
        self._remembered: OrderedDict[int | str, None] = OrderedDict((trade.id, None) for trade in known)
        self._last: Trade | None = known[-1] if known else None
        self._waiting: list[Trade] = []
        self._filling = False
        #: A message could not be used: what comes waits until the next look, which asks.
        self._doubted = False
        #: After a refusal, nothing is asked until then.
        self._not_before = 0
        self._messages = 0
        self._repeated = 0
        self._refills = 0
        self._refilled = 0
        self._refilled_before = 0

    @property
    def missing_out(self) -> bool:
        return self._standing.path is Path.REST and self._refilled > self._refilled_before

    def on_message(self, trade: Trade) -> None:
        self._messages += 1
        self._standing.heard_at = trade.received_at
        if (self._filling or self._doubted) and len(self._waiting) < _MOST_WAITING:
            self._waiting.append(trade)
            return
        self._take(trade)
        if self._standing.path is Path.STARTING:
            self._standing.on(Path.STREAM, None)

    def connected(self) -> None:
        if self._last is not None and not self._filling:
            self._fill()

    def disconnected(self, reason: str) -> None:
        self._refilled_before = self._refilled
        if self._standing.path is not Path.REFUSED:
            self._standing.on(Path.REST, reason)

    def refused(self, reason: str) -> None:
        """Nothing in the next trade will show that one is missing: trades wait until :meth:`check` has asked, once
        for all of a second."""
        self._doubted = self._last is not None and self._standing.path is not Path.REFUSED

    def check(self, now_ms: int, still_ms: int = 0) -> None:
        heard = self._silence.heard(self._messages, now_ms)
        if self._filling:
            return
        if self._standing.path is Path.REFUSED:
            if now_ms >= self._not_before:
                self._fill()
            return
        if heard:
            self._standing.on(Path.STREAM, None)
        if self._doubted:
            self._fill()
        elif not heard and (self._standing.path is Path.REST or self._silence.silent(now_ms, still_ms)):
            if self._standing.path is not Path.REST:
                self._refilled_before = self._refilled
                self._standing.silent(now_ms)
            if self._silence.look(now_ms):
                self._fill()

    def status(self) -> RouteStatus:
        return RouteStatus(
            topic=self.topic,
            path=self._standing.path,
            since=self._standing.since,
            heard_at=self._standing.heard_at,
            messages=self._messages,
            repeated=self._repeated,
            refills=self._refills,
            refilled=self._refilled,
            reason=self._standing.reason,
        )

    def _take(self, trade: Trade) -> bool:
        """Deliver a trade unless it is known; true if it was not."""
        if trade.id in self._remembered:
            self._repeated += 1
            return False
        self._remembered[trade.id] = None
        if len(self._remembered) > _MOST_REMEMBERED:
            self._remembered.popitem(last=False)
        self._last = trade
        for sink in self._sinks:
            sink(trade)
        return True

    def _fill(self) -> None:
        self._filling, self._doubted = True, False
        self._spawn(self._filled())

    async def _filled(self) -> None:
        """Ask until REST has nothing newer, then deliver what waited."""
        before, wait = self._refilled, self._rules.first_wait
        try:
            while True:
                await self._room()
                try:
                    if await self._step():
                        self._standing.answered()
                        return
                    wait = self._rules.first_wait
                except (Retryable, Mismatch) as error:
                    self._standing.reason = str(error)
                    least = error.retry_after if isinstance(error, RateLimited) else 0.0
                    await self._sleep(max(least, wait + random.uniform(0, wait)))
                    wait = min(wait * 2, self._rules.longest_wait)
        except (ExchangeRefused, BadInput) as error:
            self._standing.on(Path.REFUSED, str(error))
            self._not_before = self._clock.now_ms() + round(self._rules.refused_wait * 1000)
            self._broken()
        finally:
            self._filling = False
            self._doubted = self._doubted and self._standing.path is not Path.REFUSED
            if not self._doubted:
                waiting, self._waiting = self._waiting, []
                for trade in waiting:
                    self._take(trade)
            found = self._refilled > before
            self._refills += found
            self._silence.looked(self._clock.now_ms(), found=found)

    async def _step(self) -> bool:
        """One page; true if nothing newer is there."""
        page = await self._history.trades_after(self.topic.symbol, self._last)
        if page.missing:
            self._broken()
        taken = sum(self._take(trade) for trade in page.trades)
        self._refilled += taken
        # Exchanges whose answers overlap never say that they are complete; one without anything new says it.
        return page.complete or not taken
