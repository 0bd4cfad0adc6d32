"""From the streams to the store: what was acknowledged is durable, whatever becomes of the database or of us.

Streams put rows into a bounded queue (:mod:`ingest.waiting`). One task takes everything that waits, candles first,
and writes it to the store; rows count as durable once that has committed. While the store is away, they go to a
journal on the local disk (:mod:`ingest.journal`) and count as durable once they are synced there. From the first
such row on everything goes through the journal, which another task brings to the store in order, until it is empty:
no row overtakes an older one. What a killed process left in the journal comes before anything new.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import structlog
from prometheus_client import CollectorRegistry

from exchange.stream import RefusedMessage
from ingest.journal import MOST_BYTES, SEGMENT_BYTES
from ingest.journal_record import Batch
from ingest.metrics import WriterMetrics
from ingest.patience import Sleep
from ingest.spill import Oldest, Spill
from ingest.waiting import Held, Waiting, WaitingRules
from ingest.writer_status import Landed, OnDurable, WriterAccount, WriterState, WriterStatus
from market.clock import Clock
from market.errors import BadInput, Retryable, StoreUnusable, Terminal
from market.trade import Trade
from store.batch import CandleBatch, Written
from store.message_quarantine import QuarantinedMessage
from store.trade_batch import TradeBatch, TradesWritten

log = structlog.get_logger(__name__)


class WritableStore(Protocol):
    """Where rows go. Writing the same again changes nothing."""

    async def write_all(self, batches: Sequence[CandleBatch]) -> list[Written]:
        """Candles of many series in one transaction, those of one series in their order."""
        ...

    async def write_trades(self, batches: Sequence[TradeBatch]) -> TradesWritten:
        """Trades of many instruments in one transaction."""
        ...

    async def refuse_messages(self, refused: Sequence[QuarantinedMessage]) -> None:
        """Keep messages that could not be used."""
        ...


@dataclass(frozen=True, kw_only=True)
class WriterRules:
    """How the writer works."""

    waiting: WaitingRules = field(default_factory=WaitingRules)
    #: Seconds before the store is tried again while it is away; doubled each time, up to the longest.
    first_pause: float = 0.2
    longest_pause: float = 5.0
    #: Bytes that the journal may take, and bytes of one of its files.
    journal_bytes: int = MOST_BYTES
    segment_bytes: int = SEGMENT_BYTES


class Writer:
    """Open with :meth:`opened`. To be called from the thread of its event loop."""

    def __init__(
        self,
        store: WritableStore,
        spill: Spill,
        clock: Clock,
        rules: WriterRules,
        on_crowded: Callable[[bool], None] | None,
        on_durable: OnDurable | None,
        metrics: WriterMetrics,
        sleep: Sleep,
    ) -> None:
        self._store = store
        self._spill = spill
        self._rules = rules
        self._on_durable = on_durable
        self._sleep = sleep
        self._awake = asyncio.Event()
        self._queue = Waiting(rules.waiting, self._awake.set, on_crowded)
        #: Records in the journal or on their way there: while there are any, nothing goes to the store directly.
        self._behind = spill.records
        self._left = asyncio.Event()
        if self._behind:
            self._left.set()
        #: Of these, the ones on their way there.
        self._in_flight = 0
        #: Clear from when the last records of the journal go to the store: what is new waits for the outcome and
        #: then goes there directly. A busy market would never leave the journal otherwise.
        self._open = asyncio.Event()
        self._open.set()
        #: Set when the store has taken some of the journal, or has not.
        self._moved = asyncio.Event()
        self._away = False
        self._closing = False
        self._failure: BaseException | None = None
        self._error: str | None = None
        self._task: asyncio.Task[None] | None = None
        self._account = WriterAccount(clock, metrics)
        metrics.watch(
            lambda: self._queue.rows, lambda: self._queue.bytes, lambda: spill.records, lambda: spill.bytes
        )

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(
        cls,
        store: WritableStore,
        journal_folder: Path,
        clock: Clock,
        *,
        rules: WriterRules = WriterRules(),
        on_crowded: Callable[[bool], None] | None = None,
        on_durable: OnDurable | None = None,
        metrics: WriterMetrics | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> AsyncIterator[Writer]:
        """A writer at work. Leaving the context makes durable what waits, in the store or in the journal.

        :param clock: our own, the one that stamped `received_at`.
        :param on_crowded: told when the streams must pause (True) and may go on (False); returns at once.
        :raises StoreBusy: another process has the journal open.
        :raises StoreUnusable: on entering, the journal cannot be read; on leaving, see :meth:`ended`.
        """
        opening = Spill.opened(journal_folder, most_bytes=rules.journal_bytes, segment_bytes=rules.segment_bytes)
        metrics = metrics or WriterMetrics(CollectorRegistry())
        async with opening as spill:
            writer = cls(store, spill, clock, rules, on_crowded, on_durable, metrics, sleep)
            writer._task = asyncio.create_task(writer._run(), name="writer")
            try:
                yield writer
            finally:
                writer._close()
                await asyncio.wait({writer._task})
            await writer.ended()

    def candles(self, batch: CandleBatch, received_at: int) -> None:
        """Take candles. Returns at once; never raises."""
        self._queue.candles(batch, received_at)

    def trade_sink(self, exchange: str, symbol: str, dense: bool) -> Callable[[Trade], None]:
        """What takes the trades of one instrument, in the order of the exchange. It returns at once, never raises.

        :param dense: ids count up by one.
        """
        return self._queue.sink(exchange, symbol, dense)

    def refused(self, message: RefusedMessage) -> None:
        """Take a message that could not be used. Returns at once; never raises."""
        kept = QuarantinedMessage(
            exchange=message.exchange,
            channel=None if message.topic is None else message.topic.channel,
            symbol=None if message.topic is None else message.topic.symbol,
            reason=message.reason,
            raw=message.raw,
            received_at=message.received_at,
        )
        self._account.refuse(self._queue.refused(kept.storable()))

    async def durable(self) -> None:
        """Wait until everything that was put in before is durable.

        :raises Terminal: it will not be: the writer has ended.
        """
        assert self._task is not None
        mark = self._queue.mark()
        await asyncio.wait({mark, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if not mark.done():
            mark.cancel()
            await self.ended()
            if self._queue.rows:
                raise StoreUnusable("the writer is closed; what came after that is not written")

    async def ended(self) -> None:
        """Wait until the writer has ended, and raise what ended it. Nothing, where it was closed.

        :raises StoreUnusable: the store cannot be written until somebody acts, or the journal cannot while the
            store is away.
        """
        assert self._task is not None
        await asyncio.wait({self._task})
        if self._failure is not None:
            raise self._failure

    def status(self) -> WriterStatus:
        """How it fares."""
        return WriterStatus(
            state=self._state(),
            waiting_rows=self._queue.rows,
            waiting_bytes=self._queue.bytes,
            oldest_waiting=self._queue.oldest,
            crowded=self._queue.crowded,
            journal_records=self._spill.records,
            journal_bytes=self._spill.bytes,
            written_rows=self._account.rows[Landed.STORE],
            spilled_rows=self._account.rows[Landed.JOURNAL],
            set_aside_rows=self._account.rows[Landed.SET_ASIDE],
            refused_messages=self._account.refused,
            refused_dropped=self._account.refused_dropped,
            lag=self._account.lag,
            error=self._error,
        )

    def _state(self) -> WriterState:
        if self._failure is not None:
            return WriterState.FAILED
        if not self._behind:
            return WriterState.DIRECT
        return WriterState.SPILLING if self._away else WriterState.REPLAYING

    # Life.

    def _close(self) -> None:
        self._closing = True
        self._queue.hurry()

    def _fail(self, error: BaseException) -> None:
        """End with this error, unless another one came first."""
        if str(error) != self._error or self._failure is None:
            log.error("writer_failed", error=str(error), kind=type(error).__name__)
        if self._failure is None:
            self._failure, self._error = error, str(error)
        self._close()

    async def _run(self) -> None:
        taking = asyncio.create_task(self._take_in(), name="writer: take in")
        replaying = asyncio.create_task(self._replay(), name="writer: replay")
        try:
            await asyncio.wait({taking, replaying}, return_when=asyncio.FIRST_COMPLETED)
            if replaying.done() and (error := replaying.exception()):
                # What waits goes to the journal before the end.
                self._fail(error)
                await asyncio.wait({taking})
            if error := taking.exception():
                self._fail(error)
        finally:
            for task in (taking, replaying):
                task.cancel()
            await asyncio.wait({taking, replaying})

    async def _take_in(self) -> None:
        while not (self._closing and not self._queue.rows):
            await self._awake.wait()
            self._awake.clear()
            if self._closing:
                self._queue.hurry()
            taken = self._queue.take()
            await self._land(taken.candles)
            while taken.trades:
                await self._land(taken.next_trades(self._rules.waiting.trades_at_once))
                # No candle waits for more than one transaction of trades.
                await self._land(self._queue.take_candles())
            await self._land(taken.refused)
            self._queue.all_settled()
            for mark in taken.marks:
                if not mark.done():
                    mark.set_result(None)

    async def _land(self, held: list[Held]) -> None:
        """Make these durable."""
        while held:
            await self._open.wait()
            if not self._behind:
                try:
                    await self._commit(held, len(held), fresh=True)
                except Retryable as error:
                    self._away, self._error = True, str(error)
                    log.warning("store_away", error=self._error)
                except Terminal as error:
                    self._fail(error)
                if not held:
                    return
            try:
                await self._to_journal(held)
            except StoreUnusable as error:
                if self._away or self._failure is not None:
                    raise
                # The store takes what is in the journal: with that gone there is room again, or the store itself.
                log.warning("journal_takes_no_more", error=str(error))
                if self._behind:
                    self._moved.clear()
                    await self._moved.wait()

    # The store.

    async def _commit(self, held: list[Held], count: int, *, fresh: bool) -> None:
        """Write the first `count` to the store and take them out of `held`; set aside the ones that it refuses."""
        part = held[:count]
        try:
            await self._write([one.batch for one in part])
        except BadInput as error:
            if count > 1:
                # Whichever it is, the others must not suffer from it.
                await self._commit(held, count // 2, fresh=fresh)
                await self._commit(held, count - count // 2, fresh=fresh)
                return
            await self._spill.set_aside(part[0].batch, str(error))
            landed = Landed.SET_ASIDE
        else:
            landed = Landed.STORE
        self._landed(part, landed, fresh=fresh)
        del held[:count]

    async def _write(self, batches: Sequence[Batch]) -> None:
        candles = [one for one in batches if isinstance(one, CandleBatch)]
        trades = [one for one in batches if isinstance(one, TradeBatch)]
        refused = [one for one in batches if isinstance(one, QuarantinedMessage)]
        if candles:
            await self._store.write_all(candles)
        if trades:
            await self._store.write_trades(trades)
        if refused:
            await self._store.refuse_messages(refused)

    def _landed(self, held: Sequence[Held], landed: Landed, *, fresh: bool) -> None:
        """These are durable; `fresh` ones were not before."""
        self._account.landed(held, landed, fresh=fresh)
        for batch, _ in held:
            if fresh:
                self._queue.settled(batch)
            if self._on_durable is not None:
                self._on_durable(batch, landed)

    # The journal.

    async def _to_journal(self, held: list[Held]) -> None:
        """Write these to the journal and take them out of `held`."""
        count = len(held)
        # Before the first await: from here on nothing goes to the store directly.
        self._behind += count
        self._in_flight = count
        kept: list[Held] = []
        try:
            kept, aside = await self._spill.append(held)
        finally:
            self._behind -= count - len(kept)
            self._in_flight = 0
        if kept:
            self._left.set()
            self._landed(kept, Landed.JOURNAL, fresh=True)
        self._landed(aside, Landed.SET_ASIDE, fresh=True)
        held.clear()

    async def _replay(self) -> None:
        """Bring the journal to the store, whenever there is something in it."""
        pause = self._rules.first_pause
        try:
            while True:
                await self._left.wait()
                oldest = await self._spill.oldest()
                try:
                    await self._bring(oldest)
                except Retryable as error:
                    self._away, self._error = True, str(error)
                    log.warning("store_still_away", error=self._error, journal_records=self._spill.records)
                    self._let_on()
                    await self._sleep(pause)
                    pause = min(pause * 2, self._rules.longest_pause)
                else:
                    pause = self._rules.first_pause
        except Terminal as error:
            self._fail(error)
            raise
        finally:
            self._let_on()

    async def _bring(self, oldest: Oldest | None) -> None:
        if oldest is None:
            self._left.clear()
            self._let_on()
            return
        # Not for a store that is away: it may take a time-out to say so again.
        if not self._away and oldest.records >= self._behind - self._in_flight:
            self._open.clear()
        await self._commit(oldest.held, len(oldest.held), fresh=False)
        await self._spill.done(oldest.place)
        self._behind -= oldest.records
        if self._away:
            log.warning("store_back", journal_records=self._spill.records)
        self._away = False
        self._moved.set()
        if not self._behind:
            log.info("journal_empty")
            self._let_on()

    def _let_on(self) -> None:
        """Whoever waits for the journal need not wait any longer."""
        self._open.set()
        self._moved.set()
