"""What every candle store does, wherever it keeps its rows: one set of contract tests runs over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from market.candle import Refusal
from market.coverage import Covered
from market.fingerprint import Digest
from market.instrument import Instrument, Series
from market.interval import Interval, IntervalSet
from market.timeframe import Timeframe
from store.answer import SeriesInfo
from store.batch import CandleBatch, Written
from store.control import Control, OperatingState, SafetyState

#: The tier of what a store read from its own tables.
DATABASE_TIER = "database"


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """One day, month or year of a series, as its digest row says."""

    #: Epoch milliseconds.
    start: int
    digest: Digest
    #: The series' revision when it last changed.
    revision: int
    #: The part of it that is in the archive and no longer in the database.
    archived: Digest = field(default_factory=Digest)


@dataclass(frozen=True, kw_only=True)
class SeriesFacts:
    """What a reader must know of a series before reading it."""

    #: Counts up with each change.
    revision: int
    #: Where three-day buckets count from.
    origin_ms: int
    #: From the first to the last instant the ledger says anything of; None for an empty ledger.
    known: Interval | None


@dataclass(frozen=True, kw_only=True)
class SeriesVersion:
    """What tells whether anything that a reader sees of a series has changed."""

    #: Counts up with each change of candles or ledger.
    revision: int
    #: Where three-day buckets count from.
    origin_ms: int


@dataclass(frozen=True, kw_only=True)
class SeriesDelta:
    """What has become of a series since a revision, all as of one moment."""

    facts: SeriesFacts
    #: The whole ledger.
    coverage: list[Covered]
    #: Those that changed after that revision, oldest first.
    chunks: list[Chunk]
    #: Stored candles that open after the instant asked for, candle schema, sorted.
    rows: pa.Table
    #: True where a limit cut `rows`: the newest are missing.
    more: bool = False


@dataclass(frozen=True, kw_only=True)
class StoredPage:
    """Candles and the ledger beside them, as of one moment."""

    #: Candle schema, sorted.
    table: pa.Table
    #: Clipped to what was asked, or to what a limit left of it.
    coverage: list[Covered]
    #: Where candles lie in the archive alone, so that `table` lacks them.
    unread: IntervalSet = field(default_factory=IntervalSet)
    #: Another one where a second store answered for the database (:mod:`store.hybrid.agreement`) ...
    tier: str = DATABASE_TIER
    #: ... and the milliseconds since that agreed with it.
    age_ms: int = 0
    #: The series' revision as of that moment; None where it cannot be told, as of a second store.
    revision: int | None = None


class CandleStore(Protocol):
    """Candles, ledger, corrections and quarantine. All times are epoch milliseconds, all ranges half-open."""

    @property
    def location(self) -> str:
        """Where the rows are, for people; never with a password."""
        ...

    async def schema_version(self) -> int:
        """The version of the store's schema."""
        ...

    async def write(self, batch: CandleBatch) -> Written:
        """One batch in one transaction: quarantine, candles, corrections, coverage. Durable when it returns.

        :raises StoreBusy: somebody else held what it needs for too long; nothing was written.
        :raises StoreReadOnly: the safety state forbids it (:meth:`set_control`); nothing was written. So does every
            other call that writes data.
        """
        ...

    async def write_all(self, batches: Sequence[CandleBatch]) -> list[Written]:
        """Batches of many series in one transaction, each as by :meth:`write`; durable when it returns.

        Batches of one series are written in their order.

        :raises StoreBusy: as :meth:`write`; nothing of any batch was written.
        """
        ...

    async def read(
        self,
        series: Series,
        start_ms: int,
        end_ms: int,
        *,
        limit: int | None = None,
        newest: bool = False,
        as_of_ms: int | None = None,
    ) -> pa.Table:
        """Stored candles with ``start_ms <= open_time < end_ms``, sorted, in the candle schema.

        Archived candles are not among them; :meth:`page` says where these are.

        :param limit: at most this many rows: the first ones, or the last ones where `newest`.
        :param as_of_ms: the rows as they were known then; epoch milliseconds of our clock.
        """
        ...

    async def page(
        self,
        series: Series,
        interval: Interval,
        *,
        limit: int | None = None,
        newest: bool = False,
        as_of_ms: int | None = None,
    ) -> StoredPage:
        """:meth:`read` with the ledger of the part that was read, both from one snapshot of the database."""
        ...

    async def rolled(self, series: Series, interval: Interval, timeframe: Timeframe, origin_ms: int) -> StoredPage:
        """Larger candles made of the stored candles of `series` that open in `interval`, and the ledger of these.

        :param interval: whole buckets of `timeframe`.
        """
        ...

    async def facts(self, series: Series) -> SeriesFacts | None:
        """What a reader must know of a series first; None where it is not stored."""
        ...

    async def coverage(self, series: Series, interval: Interval | None = None) -> list[Covered]:
        """The ledger, sorted and disjoint; clipped to `interval` where one is given."""
        ...

    async def chunks(self, series: Series) -> list[Chunk]:
        """The digests of all chunks of a series, oldest first."""
        ...

    def change_mark(self) -> int | None:
        """A number that is another one once anybody has committed anything since; None where it cannot be told.

        It takes microseconds and never waits, so that it can be asked on the event loop before each read. It may
        change without a change of data. Ask it before reading what it is to be kept with.
        """
        ...

    def writes_here(self) -> int:
        """Where the mark cannot tell: another number once a write of this process has ended, however it ended."""
        ...

    async def versions(self, series: Sequence[Series]) -> tuple[dict[Series, SeriesVersion], Control]:
        """What tells whether these series have changed, and the control state, as of one moment.

        Equal versions mean that rows and ledger are equal, but for a series that a database has begun anew. Series
        that are not stored are left out.
        """
        ...

    async def delta(self, series: Series, *, since: int, after_ms: int, limit: int) -> SeriesDelta | None:
        """What has become of a series, from one snapshot; None where it is not stored.

        :param since: a revision: the chunks that changed after it are told; -1 for all chunks.
        :param after_ms: the stored candles with ``open_time > after_ms`` are told ...
        :param limit: ... but only the first so many.
        """
        ...

    async def control(self) -> Control:
        """What an operator has switched."""
        ...

    async def set_control(
        self, *, safety: SafetyState | None = None, operating: OperatingState | None = None, reason: str = ""
    ) -> Control:
        """Switch what is not None, for all processes; what holds now.

        Once this has returned with a safety state that forbids writing, no write of data commits any more.

        :param reason: kept in the place of the one before; left out, that stays where `safety` is None.
        :raises BadInput: a reason that cannot be kept.
        :raises StoreBusy: a write that began before has not ended yet; the state may hold already. Call it again.
        """
        ...

    async def series(self) -> list[SeriesInfo]:
        """Every series with its metadata, by exchange, symbol and timeframe."""
        ...

    async def save_instruments(self, instruments: Sequence[Instrument], complete: bool = False) -> None:
        """Keep what an exchange says of its markets, and since when it says so; known ones are brought up to date.

        :param complete: these are all that their exchanges have. The others become inactive; nothing is deleted.
            An empty list says nothing of any exchange.
        """
        ...

    async def instruments(self, exchange: str | None = None, as_of_ms: int | None = None) -> list[Instrument]:
        """Known instruments, by exchange and symbol.

        :param as_of_ms: as the exchange had described them by then, epoch milliseconds of our clock; without those
            that it had not described.
        """
        ...

    async def quarantined(self, series: Series, limit: int = 100) -> list[Refusal]:
        """The newest refused rows of a series."""
        ...

    async def count(self) -> tuple[int, int]:
        """How many series, and candles in all of them."""
        ...

    async def size(self) -> tuple[int, int]:
        """Bytes used, and bytes free inside them."""
        ...

    async def integrity(self) -> list[str]:
        """What the database itself finds wrong; empty when sound."""
        ...
