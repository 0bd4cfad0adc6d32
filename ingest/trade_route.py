"""The trades of one instrument: each once, in order, whatever the streams do.

Ids of a dense exchange count up by one, so a hole is seen at the next trade. What the stream sends from then on
waits, while REST is asked for the trades from the last one on, until both meet. The same happens after a reconnect,
at the start (from the last stored trade on) and while the stream is silent. What the exchange no longer serves, two
reads agreeing, is lost, and said so, never passed over. REST decides: what the stream claims and REST does not know
after a while is dropped.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from exchange.trade_page import TradePage
from ingest.route import Path, RouteStatus, Silence, SilenceRules, Spawn, Standing
from market.channel import Topic
from market.clock import Clock
from market.errors import BadInput, ExchangeRefused, Mismatch, RateLimited, Retryable
from market.trade import Trade

log = structlog.get_logger(__name__)

#: Trades of the stream that wait for a refill. Rule: when more come, the waiting ones are dropped, because REST
#: serves them too.
_MOST_WAITING = 50_000
#: No id: nothing follows it, so that every trade is looked at closely.
_NONE = -1


class TradeHistory(Protocol):
    """Where trades can be asked for afterwards."""

    async def trades_after(self, symbol: str, last: Trade | None, *, limit: int = 1000) -> TradePage:
        """Trades that follow `last` (None: the newest), oldest first."""
        ...


@dataclass(frozen=True, kw_only=True)
class LostTrades:
    """Ids that the exchange no longer serves."""

    symbol: str
    #: Inclusive, both.
    first_id: int
    last_id: int
    #: Event times of the trades before and after, epoch milliseconds.
    first_time: int
    last_time: int
    evidence: str


@dataclass(frozen=True, kw_only=True)
class TradeRules:
    """How to keep trades complete."""

    silence: SilenceRules = field(default_factory=SilenceRules)
    #: Seconds in which a trade that was overtaken may still come by itself.
    overtaken: float = 0.05
    #: Seconds to wait after an error, or where REST is behind the stream; doubled up to the longest.
    first_wait: float = 0.2
    longest_wait: float = 20.0
    #: Seconds after which REST, if it has nothing newer, is believed more than a stream that claims there is.
    doubt: float = 15.0
    #: Seconds before REST is asked again after it has refused for good; a new connection asks at once.
    refused_wait: float = 300.0


class TradeRoute:
    """Trades with dense ids.

    :param last: the last trade that is known already; None begins with the first one that comes.
    :param sinks: each gets every trade once, in order; they return at once and never raise.
    :param broken: called before the first trade after missing ones.
    :param room: returns when there is room for more trades; a refill may bring any number.
    """

    def __init__(
        self,
        topic: Topic,
        history: TradeHistory,
        clock: Clock,
        spawn: Spawn,
        *,
        sinks: Sequence[Callable[[Trade], None]],
        last: Trade | None = None,
        lost: Callable[[LostTrades], None],
        broken: Callable[[], None],
        room: Callable[[], Awaitable[None]],
        rules: TradeRules | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.topic = topic
        self._history = history
        self._clock = clock
        self._spawn = spawn
        self._sinks = tuple(sinks)
        self._lost = lost
        self._broken = broken
        self._room = room
        self._rules = rules or TradeRules()
        self._sleep = sleep
        now = clock.now_ms()
        self._silence = Silence(self._rules.silence, now)
        self._last = last
        # While the next trade is known and nothing waits, its id; else none.
        self._next = _NONE
        self._waiting: dict[int, Trade] = {}
        self._filling = False
        # After a refusal, nothing is asked until then.
        self._not_before = 0
        self._standing = Standing(self.topic, clock)
        self._in_order = 0
        self._other = 0
        self._repeated = 0
        self._refills = 0
        self._refilled = 0
        self._refilled_before = 0
        self._lost_count = 0

    @property
    def missing_out(self) -> bool:
        return self._standing.path is Path.REST and self._refilled > self._refilled_before

    def on_message(self, trade: Trade) -> None:
        """The next trade of the stream, usually."""
        if trade.id == self._next:
            self._next += 1
            self._in_order += 1
            self._last = trade
            for sink in self._sinks:
                sink(trade)
            return
        self._other += 1
        self._unexpected(trade)

    def connected(self) -> None:
        """Look for what was missed, without waiting for the next trade to show it."""
        if self._last is not None and not self._filling:
            self._fill("connected")

    def disconnected(self, reason: str) -> None:
        self._refilled_before = self._refilled
        if self._standing.path is not Path.REFUSED:
            self._standing.on(Path.REST, reason)

    def refused(self, reason: str) -> None:
        """The next trade shows that one is missing."""

    def check(self, now_ms: int, still_ms: int = 0) -> None:
        heard = self._silence.heard(self._in_order + self._other, now_ms)
        if heard:
            self._standing.heard_at = now_ms
        if self._filling:
            return
        if self._standing.path is Path.REFUSED:
            if now_ms >= self._not_before:
                self._fill(None)
        elif heard:
            self._standing.on(Path.STREAM, None)
        elif self._standing.path is Path.REST or self._silence.silent(now_ms, still_ms):
            if self._standing.path is not Path.REST:
                self._refilled_before = self._refilled
                self._standing.silent(now_ms)
            if self._silence.look(now_ms):
                self._fill(None)

    def status(self) -> RouteStatus:
        return RouteStatus(
            topic=self.topic,
            path=self._standing.path,
            since=self._standing.since,
            heard_at=self._standing.heard_at,
            messages=self._in_order + self._other,
            repeated=self._repeated,
            refills=self._refills,
            refilled=self._refilled,
            lost=self._lost_count,
            reason=self._standing.reason,
        )

    def _unexpected(self, trade: Trade) -> None:
        """A trade that is not the next one in order."""
        id_ = trade.id
        if not isinstance(id_, int):
            return
        if self._last is None:
            self._deliver(trade)
            self._next = id_ + 1
            self._standing.on(Path.STREAM, None)
        elif id_ <= self._last_id():
            self._repeated += 1
        else:
            if len(self._waiting) >= _MOST_WAITING:
                self._waiting.clear()
            self._repeated += id_ in self._waiting
            self._waiting[id_] = trade
            if self._filling:
                return
            if self._standing.path is Path.REFUSED:
                self._go_on()
            else:
                self._fill(f"trades {self._last_id() + 1} to {id_ - 1} did not come")

    def _last_id(self) -> int:
        id_ = None if self._last is None else self._last.id
        return id_ if isinstance(id_, int) else _NONE

    def _deliver(self, trade: Trade) -> None:
        self._last = trade
        for sink in self._sinks:
            sink(trade)

    def _fill(self, reason: str | None) -> None:
        """Ask REST from the last trade on; until that is done, what the stream sends waits."""
        self._filling = True
        self._next = _NONE
        if self._standing.path not in (Path.REST, Path.REFUSED):
            self._standing.on(Path.REFILL, reason)
        self._spawn(self._filled())

    async def _filled(self) -> None:
        """Until REST and the stream meet. Where REST has nothing new and nothing waits, they have."""
        before = self._refilled
        try:
            waited = bool(self._waiting)
            if waited:
                await self._sleep(self._rules.overtaken)
                self._drain()
            if not (waited and self._met()):
                await self._ask_until_met()
        except (ExchangeRefused, BadInput) as error:
            # Delisted, or not to be had. The stream goes on alone; the hole stays unknown.
            self._standing.on(Path.REFUSED, str(error))
            self._not_before = self._clock.now_ms() + round(self._rules.refused_wait * 1000)
            self._go_on()
        finally:
            self._filling = False
            found = self._refilled > before
            self._refills += found
            self._silence.looked(self._clock.now_ms(), found=found)

    async def _ask_until_met(self) -> None:
        wait, quiet = self._rules.first_wait, 0.0
        while True:
            await self._room()
            pause = wait + random.uniform(0, wait)
            try:
                complete, moved = await self._step()
            except (Retryable, Mismatch) as error:
                self._standing.reason = str(error)
                complete = moved = False
                pause = max(pause, error.retry_after) if isinstance(error, RateLimited) else pause
            if complete and not moved:
                quiet += pause
                if self._waiting and quiet > self._rules.doubt:
                    self._standing.reason = (
                        f"trades up to {max(self._waiting)} were announced, and REST knows none of them"
                    )
                    self._waiting.clear()
            if complete and self._met():
                return
            wait = self._rules.first_wait if moved else min(wait * 2, self._rules.longest_wait)
            if not moved:
                await self._sleep(pause)

    def _met(self) -> bool:
        """True, and back to the order of the stream, if nothing waits any more."""
        if self._waiting:
            return False
        self._next = self._last_id() + 1
        if self._standing.path is Path.REFILL:
            self._standing.on(Path.STREAM, None)
        self._standing.answered()
        return True

    async def _step(self) -> tuple[bool, bool]:
        """One page. Says whether nothing newer was there, and whether anything moved."""
        before = self._last_id()
        page = await self._history.trades_after(self.topic.symbol, self._last)
        if not self._take_in_order(page.trades):
            # Not every answer with a hole is true: partial ones happen.
            again = await self._history.trades_after(self.topic.symbol, self._last)
            following = [one for one in again.trades if isinstance(one.id, int) and one.id > self._last_id()]
            if not self._take_in_order(following) and following:
                self._lose(following[0])
                self._take_in_order(following)
            page = again
        self._drain()
        return page.complete, self._last_id() > before

    def _take_in_order(self, trades: Sequence[Trade]) -> bool:
        """Deliver what follows the last trade; false where the next one is missing."""
        for trade in trades:
            id_ = trade.id
            if isinstance(id_, int) and self._last is not None and id_ > self._last_id() + 1:
                # The stream may have brought what the answer lacks.
                self._drain()
            if not isinstance(id_, int) or id_ <= self._last_id():
                continue
            if self._last is not None and id_ > self._last_id() + 1:
                return False
            self._waiting.pop(id_, None)
            self._refilled += 1
            self._standing.heard_at = trade.received_at
            self._deliver(trade)
        return True

    def _lose(self, following: Trade) -> None:
        """The trades between the last one and `following` cannot be had any more."""
        last = self._last
        if last is None or not isinstance(following.id, int):
            return
        first_id, last_id = self._last_id() + 1, following.id - 1
        self._lost_count += last_id - first_id + 1
        log.warning("trades are lost", topic=str(self.topic), first=first_id, last=last_id)
        self._lost(
            LostTrades(
                symbol=self.topic.symbol,
                first_id=first_id,
                last_id=last_id,
                first_time=last.event_time,
                last_time=following.event_time,
                evidence=f"asked twice for trades after {last.id}, the exchange answered from {following.id} on",
            )
        )
        self._broken()
        # What follows is the next one in order.
        self._last = last._replace(id=last_id)

    def _drain(self) -> None:
        """Deliver what waited and comes next now."""
        if not self._waiting:
            return
        known = self._last_id()
        for id_ in [one for one in self._waiting if one <= known]:
            del self._waiting[id_]
            self._repeated += 1
        while (trade := self._waiting.pop(self._last_id() + 1, None)) is not None:
            self._deliver(trade)

    def _go_on(self) -> None:
        """Deliver what waits, over holes that nobody can fill."""
        for id_ in sorted(self._waiting):
            trade = self._waiting.pop(id_)
            if id_ != self._last_id() + 1:
                self._broken()
            self._deliver(trade)
        self._next = self._last_id() + 1
