"""Reading closed candles again: did they change, when do they stop changing, and so how long to wait for them.

Exchanges correct candles after they have closed, some by late trades, some by a slow aggregator. Every closed
candle is read again once it is a minute old, which makes it verified; a sample is read sooner and later too. What
was found is added up in the store by exchange, timeframe and age; the delay after which candles no longer change
follows from it.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import structlog

from exchange.page import CandlePage
from ingest.gap_filler import VERIFIED_AFTER_MS
from market.candle import CandleState, candles, open_times_ms
from market.clock import Clock
from market.errors import BadInput, ExchangeRefused, Mismatch, Retryable
from market.instrument import Series
from market.timeframe import Timeframe
from store.batch import CandleBatch, Written
from store.settling import SettleCheck, SettleCount

log = structlog.get_logger(__name__)

#: Checks that wait at most. Rule: a sample candle beyond it is not checked early; nothing else is lost, because a
#: backfill with ``--again`` reads everything again.
_MOST_WAITING = 50_000
#: A share of changes that is taken for none, and how many checks it takes to say so.
_TOLERATED = 0.001
_ENOUGH = 20


@dataclass(frozen=True, kw_only=True)
class SettleRules:
    """When to read closed candles again. Milliseconds after their end, by exchange time."""

    #: Every candle.
    always: int = VERIFIED_AFTER_MS
    #: One candle in `sample` too.
    sometimes: tuple[int, ...] = (5_000, 20_000, 300_000)
    sample: int = 10
    #: Seconds between two looks for what is due.
    look_every: float = 1.0
    #: A candle that could not be read is tried again after this, and given up after so many times.
    again_after: int = 60_000
    attempts: int = 5
    #: No settle delay longer than this is learnt.
    longest: int = 120_000


class Candles(Protocol):
    """Where candles are read again."""

    async def candles(self, symbol: str, timeframe: Timeframe, start_ms: int, end_ms: int) -> CandlePage:
        """Candles that open in ``[start_ms, end_ms)``."""
        ...


class SettleStore(Protocol):
    """Where candles are, and what is known of their changes."""

    async def write(self, batch: CandleBatch) -> Written:
        """A batch in one transaction."""
        ...

    async def read(self, series: Series, start_ms: int, end_ms: int) -> pa.Table:
        """Stored candles with ``start_ms <= open_time < end_ms``."""
        ...

    async def record_settle(self, exchange: str, timeframe: Timeframe, counts: Sequence[SettleCount]) -> None:
        """Add to what is known."""
        ...

    async def settle_checks(self, exchange: str | None = None) -> list[SettleCheck]:
        """What is known."""
        ...


class _Due(NamedTuple):
    """One candle to read again."""

    at: int
    series: Series
    open_time: int
    age: int
    attempt: int


class SettleChecker:
    """Reads the closed candles of one exchange again, until cancelled.

    :param clock: exchange time.
    :param learned: told of the delay in milliseconds after which candles of a timeframe no longer change, at the
        start and whenever it differs from before.
    """

    def __init__(
        self,
        history: Candles,
        store: SettleStore,
        clock: Clock,
        *,
        learned: Callable[[Timeframe, int], None],
        rules: SettleRules | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._history = history
        self._store = store
        self._clock = clock
        self._learned = learned
        self._rules = rules or SettleRules()
        self._sleep = sleep
        self._due: list[_Due] = []
        self._said: dict[Timeframe, int] = {}
        #: Candles read again, and those that had changed.
        self.checked = 0
        self.drifted = 0

    @property
    def waiting(self) -> int:
        """Checks that are not due yet."""
        return len(self._due)

    def closed(self, series: Series, open_time: int) -> None:
        """A candle has closed and is stored: have it read again."""
        rules = self._rules
        end = series.timeframe.next(open_time)
        ages = [rules.always]
        if open_time // (series.timeframe.seconds * 1000) % rules.sample == 0 and len(self._due) < _MOST_WAITING:
            ages += rules.sometimes
        for age in ages:
            heapq.heappush(self._due, _Due(end + age, series, open_time, age, 1))

    async def run(self) -> None:
        """Check what is due, until cancelled."""
        exchange: str | None = None
        while True:
            due = self._take()
            if due and exchange is None:
                exchange = due[0].series.exchange
                await self._surviving(self._tell(exchange))
            for (series, age), ones in _grouped(due).items():
                await self._check(series, age, ones)
            if due and exchange is not None:
                await self._surviving(self._tell(exchange))
            await self._sleep(self._rules.look_every)

    def _take(self) -> list[_Due]:
        now, due = self._clock.now_ms(), []
        while self._due and self._due[0].at <= now:
            due.append(heapq.heappop(self._due))
        return due

    async def _check(self, series: Series, age: int, ones: Sequence[_Due]) -> None:
        """Read some candles of one series again, and count how many had changed."""
        opens = sorted(one.open_time for one in ones)
        start, end = opens[0], series.timeframe.next(opens[-1])
        try:
            now = self._clock.now_ms()
            page = await self._history.candles(series.symbol, series.timeframe, start, end)
            wanted = [time in set(opens) for time in open_times_ms(page.table).tolist()]
            theirs = page.table.filter(pa.array(wanted, pa.bool_()))
            ours = await self._store.read(series, start, end)
            table, changed = compared(theirs, ours)
            await self._write(series, table, age, now)
            counts = SettleCount(age, theirs.num_rows, len(changed), max(changed, default=None))
            await self._store.record_settle(series.exchange, series.timeframe, [counts])
        except (Retryable, Mismatch) as error:
            log.info("candles are read again later", series=str(series), error=str(error))
            self._later(ones)
            return
        except (ExchangeRefused, BadInput) as error:
            log.warning("candles cannot be read again", series=str(series), error=str(error))
            return
        self.checked += counts.checked
        self.drifted += counts.drifted
        if counts.drifted:
            log.info("candles changed after closing", series=str(series), age_ms=age, candles=counts.drifted)

    async def _write(self, series: Series, table: pa.Table, age: int, now: int) -> None:
        if not table.num_rows:
            return
        state = CandleState.VERIFIED if age >= VERIFIED_AFTER_MS else CandleState.CLOSED
        source = f"{series.exchange} rest, read again after {age / 1000:g} s"
        await self._store.write(CandleBatch(series=series, source=source, now_ms=now, table=table, state=state))

    def _later(self, ones: Iterable[_Due]) -> None:
        at = self._clock.now_ms() + self._rules.again_after
        for one in ones:
            if one.attempt < self._rules.attempts:
                heapq.heappush(self._due, one._replace(at=at, attempt=one.attempt + 1))

    async def _tell(self, exchange: str) -> None:
        """Tell of the delays that follow from everything known."""
        by_timeframe: dict[Timeframe, list[SettleCheck]] = {}
        for check in await self._store.settle_checks(exchange):
            by_timeframe.setdefault(check.timeframe, []).append(check)
        for timeframe, checks in by_timeframe.items():
            delay = min(settle_delay(checks), self._rules.longest)
            if self._said.get(timeframe) != delay:
                self._said[timeframe] = delay
                self._learned(timeframe, delay)

    async def _surviving(self, work: Awaitable[None]) -> None:
        """`work`, which a database that is away does not make fail."""
        try:
            await work
        except Retryable as error:
            log.info("settle delays are not told now", error=str(error))


def settle_delay(checks: Iterable[SettleCheck]) -> int:
    """The age in milliseconds from which on candles were not found changed; 0 where they never were.

    An age counts once enough candles were read at it, and where more than one in a thousand had changed.
    """
    ages = [one.age_ms for one in checks if one.checked >= _ENOUGH and one.drifted > _TOLERATED * one.checked]
    return max(ages, default=0)


def compared(theirs: pa.Table, ours: pa.Table) -> tuple[pa.Table, list[int]]:
    """What the exchange says now, and the open times of stored candles that differ from it.

    Where the exchange does not say a column over REST that we know from its stream, and agrees in what it says, our
    candle stays whole.
    """
    known: Mapping[Any, dict[str, Any]] = {row["open_time"]: row for row in ours.to_pylist()}
    rows, changed = [], []
    for row, open_time in zip(theirs.to_pylist(), open_times_ms(theirs).tolist(), strict=True):
        stored = known.get(row["open_time"])
        # Who tells of the quote volume tells of an early close too.
        tells_all = row["quote_volume"] is not None
        said = {
            name: value
            for name, value in row.items()
            if value is not None or (tells_all and name == "early_close_time")
        }
        if stored is not None and all(stored[name] == value for name, value in said.items()):
            row = {**stored, **said}
        elif stored is not None:
            changed.append(open_time)
        rows.append(row)
    if not rows:
        return theirs, changed
    columns = {name: [row[name] for row in rows] for name in theirs.column_names}
    return candles({name: pa.array(columns[name], theirs.schema.field(name).type) for name in columns}), changed


def _grouped(due: Iterable[_Due]) -> dict[tuple[Series, int], list[_Due]]:
    groups: dict[tuple[Series, int], list[_Due]] = {}
    for one in due:
        groups.setdefault((one.series, one.age), []).append(one)
    return groups
