"""The ticker of one instrument: from its stream, or over REST while that is silent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import structlog

from ingest.route import Path, RouteStatus, Silence, SilenceRules, Spawn, Standing
from market.channel import Topic
from market.clock import Clock
from market.errors import BadInput, ExchangeRefused, Retryable
from market.ticker import Ticker

log = structlog.get_logger(__name__)

#: After the exchange has refused to tell, ask again after this long, milliseconds of our clock.
_REFUSED_MS = 300_000


class TickerHistory(Protocol):
    """Where a ticker can be asked for."""

    async def ticker(self, symbol: str) -> Ticker:
        """The market now."""
        ...


class TickerRoute:
    """The ticker of one instrument. A missed one needs no repair: the next one replaces it.

    :param sinks: each gets every ticker; they return at once and never raise.
    """

    def __init__(
        self,
        topic: Topic,
        history: TickerHistory,
        clock: Clock,
        spawn: Spawn,
        *,
        sinks: tuple[Callable[[Ticker], None], ...],
        silence: SilenceRules | None = None,
    ) -> None:
        self.topic = topic
        self._history = history
        self._clock = clock
        self._spawn = spawn
        self._sinks = sinks
        now = clock.now_ms()
        self._silence = Silence(silence or SilenceRules(), now)
        self._standing = Standing(self.topic, clock)
        self._messages = 0
        self._looking = False
        # After a refusal, nothing is asked until then.
        self._not_before = 0
        self._refills = 0

    @property
    def missing_out(self) -> bool:
        return False

    def on_message(self, ticker: Ticker) -> None:
        self._messages += 1
        for sink in self._sinks:
            sink(ticker)

    def connected(self) -> None:
        pass

    def disconnected(self, reason: str) -> None:
        if self._standing.path is not Path.REFUSED:
            self._standing.on(Path.REST, reason)

    def refused(self, reason: str) -> None:
        """The next one replaces it."""

    def check(self, now_ms: int, still_ms: int = 0) -> None:
        away = self._standing.path in (Path.REST, Path.REFUSED)
        if self._silence.heard(self._messages, now_ms):
            self._standing.heard_at = now_ms
            self._standing.on(Path.STREAM, None)
        elif away or self._silence.silent(now_ms, still_ms):
            if not away:
                self._standing.silent(now_ms)
            if not self._looking and now_ms >= self._not_before and self._silence.look(now_ms):
                self._looking = True
                self._spawn(self._look())

    def status(self) -> RouteStatus:
        return RouteStatus(
            topic=self.topic,
            path=self._standing.path,
            since=self._standing.since,
            heard_at=self._standing.heard_at,
            messages=self._messages,
            refills=self._refills,
            refilled=self._refills,
            reason=self._standing.reason,
        )

    async def _look(self) -> None:
        try:
            ticker = await self._history.ticker(self.topic.symbol)
            self._refills += 1
            self._standing.answered()
            self._standing.heard_at = ticker.received_at
            for sink in self._sinks:
                sink(ticker)
        except (ExchangeRefused, BadInput) as error:
            self._standing.on(Path.REFUSED, str(error))
            self._not_before = self._clock.now_ms() + _REFUSED_MS
        except Retryable as error:
            self._standing.reason = str(error)
        finally:
            self._looking = False
            self._silence.looked(self._clock.now_ms(), found=True)
