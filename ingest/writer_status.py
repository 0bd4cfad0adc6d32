"""What became of the rows that the writer was given, and how it fares."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from ingest.journal_record import Batch
from ingest.lag import Lag, LagWindow
from ingest.metrics import WriterMetrics
from ingest.waiting import Held, rows_of
from market.clock import Clock
from store.trade_batch import TradeBatch

#: Trades of a batch whose lag is looked at.
_LAGS_LOOKED_AT = 8


class Landed(StrEnum):
    """Where a batch is durable."""

    #: Committed: a reader sees it.
    STORE = "store"
    #: On our own disk; the store follows.
    JOURNAL = "journal"
    #: Refused by the store; kept in the journal's folder for somebody to look at.
    SET_ASIDE = "set_aside"


#: Told of each batch that became durable, and again of one that came from the journal to the store. Returns at once
#: and never raises.
OnDurable: TypeAlias = Callable[[Batch, Landed], None]


class WriterState(StrEnum):
    """What the writer does."""

    #: Writing to the store.
    DIRECT = "direct"
    #: The store is away; writing to the journal.
    SPILLING = "spilling"
    #: Bringing the journal to the store; what is new is added at its end.
    REPLAYING = "replaying"
    #: Ended by an error.
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class WriterStatus:
    """How the writer fares."""

    state: WriterState
    #: Not durable yet.
    waiting_rows: int
    waiting_bytes: int
    #: When the oldest of them was received, epoch milliseconds of our clock.
    oldest_waiting: int | None
    #: The streams were told to pause.
    crowded: bool
    #: Durable, but not in the store yet.
    journal_records: int
    journal_bytes: int
    #: Rows so far: committed in the store (also by way of the journal), written to the journal, set aside.
    written_rows: int
    spilled_rows: int
    set_aside_rows: int
    #: Messages that could not be used, and those among them that were counted only.
    refused_messages: int
    refused_dropped: int
    lag: Lag
    #: What is or was last wrong with the store, in words.
    error: str | None


class WriterAccount:
    """Counts what the writer has done."""

    def __init__(self, clock: Clock, metrics: WriterMetrics) -> None:
        self._clock = clock
        self._metrics = metrics
        self._window = LagWindow()
        #: Rows, by where they became durable.
        self.rows = dict.fromkeys(Landed, 0)
        #: Messages that could not be used, and those among them that were counted only.
        self.refused = self.refused_dropped = 0
        for landed in Landed:
            # A counter that is missing until something is counted cannot be told from one that is misspelt.
            metrics.rows.labels(landed.value)

    @property
    def lag(self) -> Lag:
        """From receipt to durable."""
        return self._window.lag()

    def landed(self, held: Iterable[Held], landed: Landed, *, fresh: bool) -> None:
        """These are durable; `fresh` ones were not before."""
        now = self._clock.now_ms()
        rows = 0
        for batch, received_at in held:
            rows += rows_of(batch)
            if fresh:
                for received in _received(batch, received_at):
                    self._window.add(now - received)
                    self._metrics.lag.observe((now - received) / 1000)
        self.rows[landed] += rows
        self._metrics.rows.labels(landed.value).inc(rows)

    def refuse(self, kept: bool) -> None:
        """A message could not be used."""
        self.refused += 1
        self._metrics.refused.inc()
        if not kept:
            self.refused_dropped += 1
            self._metrics.refused_dropped.inc()


def _received(batch: Batch, received_at: int | None) -> list[int]:
    """When rows of a batch were received: of all, or of some of its trades."""
    if not isinstance(batch, TradeBatch):
        return [] if received_at is None else [received_at]
    return [trade.received_at for trade in batch.trades[:: max(1, len(batch.trades) // _LAGS_LOOKED_AT)]]
