"""The candles of one series, as a stream tells them: the forming one to memory, closed ones to the writer.

A stream is never the only source of a closed candle. The live loop (`ingest.live`) looks into the coverage ledger
after each close, and asks REST for what the stream did not bring. So this route refills nothing itself; it says
when the stream is silent, so that the loop polls the forming candle too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from ingest.route import Path, RouteStatus, Silence, SilenceRules, Standing
from market.candle import CandleState
from market.candle_update import CandleUpdate
from market.channel import Channel, Topic
from market.clock import Clock
from market.instrument import Series
from store.batch import CandleBatch
from store.live import LiveCandles

log = structlog.get_logger(__name__)

#: What is compared of a repeated closed candle: all that is stored of it.
_NUMBERS = CandleUpdate._fields.index("closed")
#: Closed candles that are remembered; messages do not overtake each other by more.
_MOST_RECENT = 16


class CandleSink(Protocol):
    """Where closed candles go."""

    def candles(self, batch: CandleBatch, received_at: int) -> None:
        """Take a batch; returns at once."""
        ...


class CandleRoute:
    """The candle stream of one series.

    :param sink: gets each closed candle.
    :param told: each gets each message that is news, forming or closed; they return at once and never raise.
    :param connected: called when a connection is open, for somebody to look for what was missed.
    :param says_closed: false where the exchange does not say in its messages that a candle has closed.
    """

    def __init__(
        self,
        series: Series,
        live: LiveCandles,
        sink: CandleSink,
        clock: Clock,
        *,
        told: Sequence[Callable[[CandleUpdate], None]] = (),
        connected: Callable[[], None] | None = None,
        says_closed: bool = True,
        silence: SilenceRules | None = None,
    ) -> None:
        self.topic = Topic(Channel.CANDLES, series.symbol, series.timeframe)
        self._series = series
        self._live = live
        self._sink = sink
        self._clock = clock
        self._told = tuple(told)
        self._connected = connected
        self._says_closed = says_closed
        now = clock.now_ms()
        self._silence = Silence(silence or SilenceRules(), now)
        self._standing = Standing(self.topic, clock)
        self._messages = 0
        self._repeated = 0
        # Closed candles that came last, by open time, and where the latest of them ends.
        self._recent: dict[int, tuple[object, ...]] = {}
        self._closed_to = 0
        # What REST last refused with, in words; None where it answers.
        self._refusal: str | None = None

    @property
    def needs_polling(self) -> bool:
        """True where nobody tells of the forming candle."""
        return self._standing.path is not Path.STREAM

    @property
    def missing_out(self) -> bool:
        return False

    def on_message(self, update: CandleUpdate) -> None:
        self._messages += 1
        self._standing.heard_at = update.received_at
        if self._standing.path is not Path.STREAM:
            self._standing.on(Path.STREAM, None)
        if not (self._closed(update) if update.closed and self._says_closed else self._forming(update)):
            self._repeated += 1
            return
        for told in self._told:
            told(update)

    def connected(self) -> None:
        if self._connected is not None:
            self._connected()

    def disconnected(self, reason: str) -> None:
        if self._standing.path is not Path.REFUSED:
            self._standing.on(Path.REST, reason)

    def asked(self, refusal: str | None) -> None:
        """The live loop has asked REST for candles: what it was refused with for good, or None for an answer."""
        self._refusal = refusal
        if refusal is None:
            self._standing.answered()
        elif self._standing.path is Path.REST:
            self._standing.on(Path.REFUSED, refusal)

    def refused(self, reason: str) -> None:
        """The next one says it all again; the live loop asks for a closed candle that is missing."""

    def check(self, now_ms: int, still_ms: int = 0) -> None:
        heard = self._silence.heard(self._messages, now_ms)
        away = self._standing.path in (Path.REST, Path.REFUSED)
        if not heard and not away and self._silence.silent(now_ms, still_ms):
            self._standing.silent(now_ms)
            self.asked(self._refusal)

    def status(self) -> RouteStatus:
        return RouteStatus(
            topic=self.topic,
            path=self._standing.path,
            since=self._standing.since,
            heard_at=self._standing.heard_at,
            messages=self._messages,
            repeated=self._repeated,
            reason=self._standing.reason,
        )

    def _forming(self, update: CandleUpdate) -> bool:
        """False for a candle that has closed: it cannot form again, whatever overtook what."""
        if update.open_time < self._closed_to:
            return False
        self._live.heard(self._series, update)
        return True

    def _closed(self, update: CandleUpdate) -> bool:
        """False for a closed candle that is known."""
        numbers = update[:_NUMBERS]
        if self._recent.get(update.open_time) == numbers:
            return False
        self._recent[update.open_time] = numbers
        if len(self._recent) > _MOST_RECENT:
            del self._recent[next(iter(self._recent))]
        end = self._series.timeframe.next(update.open_time)
        self._closed_to = max(self._closed_to, end)
        self._sink.candles(
            CandleBatch(
                series=self._series,
                source=f"{self._series.exchange} stream",
                # The exchange's own flag decides; its event time may lie a moment before the end.
                now_ms=max(update.event_time, end),
                table=update.table(),
                state=CandleState.CLOSED,
            ),
            update.received_at,
        )
        return True
