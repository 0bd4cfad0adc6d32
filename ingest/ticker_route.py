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
        self._standing.on(Path.REST, reason)

    def check(self, now_ms: int, still_ms: int = 0) -> None:
        if self._standing.path is Path.REFUSED:
            return
        if self._silence.heard(self._messages, now_ms):
            self._standing.heard_at = now_ms
            self._standing.on(Path.STREAM, None)
        elif self._standing.path is Path.REST or self._silence.silent(now_ms, still_ms):
            if self._standing.path is not Path.REST:
                self._standing.silent(now_ms)
            if not self._looking and self._silence.look(now_ms):
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
            self._standing.heard_at = ticker.received_at
            for sink in self._sinks:
                sink(ticker)
        except (ExchangeRefused, BadInput) as error:
            self._standing.on(Path.REFUSED, str(error))
        except Retryable as error:
            self._standing.reason = str(error)
        finally:
            self._looking = False
            self._silence.looked(self._clock.now_ms(), found=True)
