"""Keeping series current: after each close, fill the gaps; in between, poll the candle that is forming.

This loop asks over REST. Streams bring closes and forming candles sooner (`ingest.candle_route`); what they brought
is in the ledger, so the loop asks for nothing but what they did not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from ingest.backfill import find_instruments, run_together
from ingest.clock import ExchangeClock
from ingest.gap_filler import CandleStore, GapFiller
from ingest.patience import Gate, History, Patience, PatientHistory, Sleep
from market.candle import open_times_ms
from market.clock import Clock
from market.coverage import CoverageState
from market.errors import ChandleryError, ExchangeRefused, Mismatch, NotFound, RateLimited, Retryable
from market.instrument import Instrument, Series
from market.interval import Interval
from market.timeframe import DAY_MS, Timeframe
from store.live import LiveCandles

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class LiveRules:
    """How to keep series current."""

    #: Milliseconds after its end in which a candle may still change and is left alone; longer where the settle
    #: check learns that candles change for longer.
    settle_ms: int = 2_000
    #: How far back the loop fills gaps when it starts, milliseconds; older ones are a backfill's work.
    look_back_ms: int = DAY_MS
    #: Nothing that opens before this instant is asked for, epoch milliseconds.
    since_ms: int = 0
    #: Seconds between two polls of the forming candle.
    poll_every: float = 3.0
    #: The shortest pause between two rounds, seconds; an exchange that runs fast is asked no more often.
    shortest_pause: float = 0.2
    #: Seconds to wait after an error; doubled with each further one, up to the longest.
    first_wait: float = 1.0
    longest_wait: float = 60.0
    #: Series asked at once.
    concurrency: int = 4


@dataclass(frozen=True, kw_only=True)
class LiveStatus:
    """How current one series is."""

    series: Series
    #: Open time of the newest stored candle, epoch milliseconds; None before the first.
    last_closed: int | None = None
    #: Exchange time minus the end of that candle, milliseconds.
    lag_ms: int | None = None
    #: Exchange time of the last round, epoch milliseconds.
    checked_at: int | None = None
    #: What went wrong in the last round, or None.
    error: str | None = None
    #: The exchange refused it for good: it no longer trades the symbol, say.
    refused: bool = False


class LiveLoop:
    """Keeps a set of series of one exchange current until cancelled.

    :param clock: our own clock.
    :param on_status: told after each round of each series; must return at once.
    :param on_closed: told of each newly stored candle's open time; must return at once.
    :param polls: false for a series whose forming candle a stream brings.
    """

    def __init__(
        self,
        history: History,
        store: CandleStore,
        live: LiveCandles,
        clock: Clock,
        symbols: Sequence[str],
        timeframe: Timeframe,
        *,
        rules: LiveRules | None = None,
        on_status: Callable[[LiveStatus], None] | None = None,
        on_closed: Callable[[Series, int], None] | None = None,
        polls: Callable[[Series], bool] | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._history = history
        self._store = store
        self._live = live
        self._local = clock
        self._symbols = symbols
        self._timeframe = timeframe
        self._rules = rules or LiveRules()
        self._on_status = on_status
        self._on_closed = on_closed
        self._polls = polls
        self._sleep = sleep
        # One try each: the loop itself comes round again, and must not hang in one series' retries.
        gate = Gate(longest_obeyed=float("inf"))
        self._patient = PatientHistory(history, gate, Patience(attempts=1))
        self._clock = ExchangeClock(self._patient, clock)
        self._room = asyncio.Semaphore(self._rules.concurrency)
        self._statuses: dict[Series, LiveStatus] = {}
        #: Milliseconds; never less than the rules say.
        self.settle_ms = self._rules.settle_ms
        # Series in trouble: how often in a row, and until when they are left alone (our clock).
        self._failures: dict[Series, tuple[int, int]] = {}
        self._woken = asyncio.Event()

    @property
    def statuses(self) -> Mapping[Series, LiveStatus]:
        """The last status of each series."""
        return self._statuses

    @property
    def clock(self) -> ExchangeClock:
        """Exchange time, as this loop reads it."""
        return self._clock

    def wake(self) -> None:
        """Look for gaps now, whatever the time: a connection is back."""
        self._woken.set()

    async def run(self, instruments: Sequence[Instrument] = ()) -> None:
        """Run until cancelled. Errors of the exchange and a busy store are logged and survived.

        :param instruments: those of the symbols, where they are known.
        :raises NotFound: for a symbol the exchange does not trade, when the loop starts.
        :raises BadInput: for a timeframe it does not serve.
        :raises StoreUnusable: if the store cannot be written.
        """
        self._history.check_timeframe(self._timeframe)
        failures = 0
        while True:
            try:
                now = await self._clock.read()
                if not instruments:
                    instruments = await find_instruments(
                        self._patient, self._store, self._symbols, self._timeframe, now
                    )
                error = await self._round(instruments)
            except (Retryable, ExchangeRefused, Mismatch) as stopped:
                error = stopped
                self._tell_all(stopped)
            failures = failures + 1 if error else 0
            if error is not None:
                log.warning(
                    "live_round_failed", exchange=self._history.exchange, error=str(error), failures=failures
                )
            await self._pause_or_woken(self._pause(error, failures))

    async def _pause_or_woken(self, seconds: float) -> None:
        """Sleep, but not over a call of :meth:`wake`."""
        pause = asyncio.ensure_future(self._sleep(seconds))
        woken = asyncio.ensure_future(self._woken.wait())
        try:
            await asyncio.wait({pause, woken}, return_when=asyncio.FIRST_COMPLETED)
            if pause.done():
                pause.result()
        finally:
            for one in (pause, woken):
                one.cancel()
            await asyncio.gather(pause, woken, return_exceptions=True)
        self._woken.clear()

    async def _round(self, instruments: Sequence[Instrument]) -> ChandleryError | None:
        """One round over all series; the error that concerns them all, if there is one."""
        errors = await run_together([self._one(instrument) for instrument in instruments])
        found = [error for error in errors if error is not None]
        limit = next((error for error in found if isinstance(error, RateLimited)), None)
        return limit or (found[0] if len(found) == len(errors) else None)

    async def _one(self, instrument: Instrument) -> ChandleryError | None:
        """One series. One in trouble is left alone for a while, a longer one each time, and holds up no other."""
        series = Series(self._history.exchange, instrument.symbol, self._timeframe)
        times, until = self._failures.get(series, (0, 0))
        if self._local.now_ms() < until:
            return None
        async with self._room:
            try:
                await self._fill(series, instrument)
                if self._polls is None or self._polls(series):
                    await self._poll_forming(series, instrument)
            except (Retryable, ExchangeRefused, Mismatch, NotFound) as error:
                self._tell(replace(_failed(self._status(series), error), checked_at=self._clock.now_ms()))
                wait = min(self._rules.longest_wait, self._rules.first_wait * 2.0 ** min(times, 16))
                self._failures[series] = (times + 1, self._local.now_ms() + int(wait * 1000))
                return error
            self._failures.pop(series, None)
            return None

    async def _fill(self, series: Series, instrument: Instrument) -> None:
        filler = GapFiller(
            self._patient,
            self._store,
            self._clock,
            self._local,
            instrument,
            settle_ms=self.settle_ms,
        )
        now = self._clock.now_ms()
        status = self._status(series)
        # A loop that was held up for longer than the look-back goes on where it stopped.
        start = now - self._rules.look_back_ms
        start = start if status.last_closed is None else min(start, status.last_closed)
        recent = filler.closed(series, Interval(min(max(start, self._rules.since_ms), now - 1), now))
        newest = None if recent is None else series.timeframe.next(recent.end, -1)
        if recent is not None and (status.last_closed != newest or status.error):
            await filler.fill(series, recent)
            present = [
                one for one in await self._store.coverage(series, recent) if one.state is CoverageState.PRESENT
            ]
            if present:
                status = self._closed(status, series.timeframe.next(present[-1].interval.end, -1))
        if status.last_closed is not None:
            status = replace(status, lag_ms=now - series.timeframe.next(status.last_closed))
        self._tell(replace(status, checked_at=now, error=None, refused=False))

    def _closed(self, status: LiveStatus, last_closed: int) -> LiveStatus:
        """The status with a newer last candle; each new one is told."""
        if self._on_closed is not None:
            timeframe = status.series.timeframe
            # Of what was filled at the start, the newest alone: the others have settled long ago.
            newest = last_closed if status.last_closed is None else timeframe.next(status.last_closed)
            while newest <= last_closed:
                self._on_closed(status.series, newest)
                newest = timeframe.next(newest)
        return replace(status, last_closed=last_closed)

    async def _poll_forming(self, series: Series, instrument: Instrument) -> None:
        """Put the forming candle into memory; it never goes to the store."""
        now = self._clock.now_ms()
        start = series.timeframe.floor(now, instrument.origin_ms)
        # A fast exchange may have opened the next bucket meanwhile: ask for it too, keep the newest row.
        end = series.timeframe.next(start, 2)
        page = await self._patient.candles(series.symbol, series.timeframe, start, end)
        if not page.table.num_rows:
            return
        row = page.table.slice(page.table.num_rows - 1)
        if int(open_times_ms(row)[0]) >= start:
            self._live.put(series, row, now)

    def _pause(self, error: ChandleryError | None, failures: int) -> float:
        """Seconds until the next round."""
        rules = self._rules
        if isinstance(error, RateLimited):
            return error.retry_after
        if error is not None:
            return min(rules.longest_wait, rules.first_wait * 2.0 ** min(failures - 1, 16))
        now = self._clock.now_ms()
        due = self._timeframe.next(self._timeframe.floor(now - self.settle_ms)) + self.settle_ms
        until_close = (due - now) / 1000 / self._clock.pace
        return max(rules.shortest_pause, min(rules.poll_every, until_close))

    def _status(self, series: Series) -> LiveStatus:
        return self._statuses.get(series, LiveStatus(series=series))

    def _tell(self, status: LiveStatus) -> None:
        self._statuses[status.series] = status
        if self._on_status is not None:
            self._on_status(status)

    def _tell_all(self, error: ChandleryError) -> None:
        for symbol in self._symbols:
            series = Series(self._history.exchange, symbol, self._timeframe)
            self._tell(_failed(self._status(series), error))


def _failed(status: LiveStatus, error: ChandleryError) -> LiveStatus:
    """The status after a round that went wrong."""
    return replace(status, error=str(error), refused=isinstance(error, NotFound | ExchangeRefused))
