"""In what two stores differ that should hold the same: candles, ledgers, digests, instruments. Pure functions."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from market.candle import COLUMNS, open_times_ms
from market.clock import iso
from market.coverage import CoverageState, Covered
from market.fingerprint import Digest
from market.instrument import Instrument, Series
from market.interval import Interval, IntervalSet
from market.timeframe import DAY_MS, TIMEFRAMES, Int64s, Timeframe
from store.candle_store import Chunk

_INSTANTS = ("open_time", "early_close_time")
_MONTH = TIMEFRAMES["1M"]


class DifferenceKind(StrEnum):
    """In what two stores differ."""

    #: Candles that only the primary has.
    ONLY_PRIMARY = "missing on the secondary"
    #: Candles that only the secondary has.
    ONLY_SECONDARY = "missing on the primary"
    #: One candle with two values.
    CANDLE = "candle"
    LEDGER = "ledger"
    #: Equal rows, but digests that differ: the bookkeeping of one of them is wrong.
    DIGEST = "digest"


@dataclass(frozen=True)
class Unequal:
    """One named thing with two values, in words."""

    name: str
    primary: str
    secondary: str

    def __str__(self) -> str:
        return f"{self.name} is {self.primary} on the primary and {self.secondary} on the secondary"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One thing in which the two stores differ."""

    series: Series
    kind: DifferenceKind
    #: Where; a run of candles that one store lacks is one difference.
    interval: Interval
    #: How many candles, where some are missing.
    candles: int = 0
    #: The columns of a candle, or the state of the ledger, that differ.
    values: tuple[Unequal, ...] = ()

    @property
    def detail(self) -> str:
        """In words."""
        if self.candles:
            return f"{self.candles:,} candle{'s are' if self.candles > 1 else ' is'} {self.kind.value}"
        return "; ".join(str(one) for one in self.values)


@dataclass(frozen=True, kw_only=True)
class InstrumentDifference:
    """An instrument that the two stores do not describe alike."""

    exchange: str
    symbol: str
    detail: str


@dataclass(frozen=True)
class ChunkDifference:
    """One chunk whose digests differ; None where a store has no candle in it."""

    start: int
    primary: Digest | None
    secondary: Digest | None


@dataclass(frozen=True)
class LedgerDifference:
    """One interval of which the two ledgers do not say the same; None where a ledger says nothing."""

    interval: Interval
    primary: Covered | None
    secondary: Covered | None


@dataclass(frozen=True)
class CandleDifferences:
    """How two tables of candles differ; all by open time."""

    only_primary: Int64s
    only_secondary: Int64s
    changed: dict[int, tuple[Unequal, ...]]

    def __bool__(self) -> bool:
        return bool(len(self.only_primary) or len(self.only_secondary) or self.changed)

    def __and__(self, other: CandleDifferences) -> CandleDifferences:
        return CandleDifferences(
            np.intersect1d(self.only_primary, other.only_primary),
            np.intersect1d(self.only_secondary, other.only_secondary),
            {time: values for time, values in self.changed.items() if other.changed.get(time) == values},
        )

    @property
    def open_times(self) -> Int64s:
        """Every open time that is concerned."""
        changed = np.array(list(self.changed), np.int64)
        return np.concatenate((self.only_primary, self.only_secondary, changed))


def chunk_interval(start: int, timeframe: Timeframe) -> Interval:
    """The period of the chunk that starts there: a day, a month or a year by the length of the timeframe."""
    if timeframe.seconds < 3600:
        return Interval(start, start + DAY_MS)
    return Interval(start, _MONTH.next(start, 1 if timeframe.milliseconds < DAY_MS else 12))


def chunk_differences(primary: Iterable[Chunk], secondary: Iterable[Chunk]) -> list[ChunkDifference]:
    """The chunks that do not hold the same rows, oldest first, as far as digests can be trusted."""
    ours = {one.start: one.digest for one in primary}
    theirs = {one.start: one.digest for one in secondary}
    return [
        ChunkDifference(start, ours.get(start), theirs.get(start))
        for start in sorted(ours.keys() | theirs.keys())
        if ours.get(start) != theirs.get(start)
    ]


def candle_differences(primary: pa.Table, secondary: pa.Table) -> CandleDifferences:
    """Row by row and column by column; nulls equal nulls."""
    ours, theirs = open_times_ms(primary), open_times_ms(secondary)
    both = np.intersect1d(ours, theirs, assume_unique=True)
    a = primary.filter(pa.array(np.isin(ours, both)))
    b = secondary.filter(pa.array(np.isin(theirs, both)))
    changed: dict[int, tuple[Unequal, ...]] = {}
    for name in COLUMNS[1:]:
        left, right = a.column(name), b.column(name)
        same = pc.equal(left, right).fill_null(False).to_numpy()
        same = same | (left.is_null().to_numpy() & right.is_null().to_numpy())
        for row in np.flatnonzero(~same):
            value = Unequal(name, _shown(name, left[int(row)]), _shown(name, right[int(row)]))
            changed[int(both[row])] = (*changed.get(int(both[row]), ()), value)
    return CandleDifferences(np.setdiff1d(ours, theirs), np.setdiff1d(theirs, ours), changed)


def ledger_differences(primary: Sequence[Covered], secondary: Sequence[Covered]) -> Iterator[LedgerDifference]:
    """Where two ledgers (sorted, disjoint) differ in what they say, apart from when it was learned.

    Of present candles only that they are present counts: who brought them first may differ, and so may whether the
    database still holds them or the archive.
    """
    cuts = sorted({cut for one in (*primary, *secondary) for cut in (one.interval.start, one.interval.end)})
    ours, theirs = _Walk(primary), _Walk(secondary)
    pending: LedgerDifference | None = None
    for start, end in itertools.pairwise(cuts):
        a, b = ours.at(start), theirs.at(start)
        if _says(a) == _says(b):
            continue
        if (
            pending is not None
            and pending.interval.end == start
            and _says(pending.primary) == _says(a)
            and (_says(pending.secondary) == _says(b))
        ):
            pending = replace(pending, interval=Interval(pending.interval.start, end))
            continue
        if pending is not None:
            yield pending
        pending = LedgerDifference(Interval(start, end), a, b)
    if pending is not None:
        yield pending


def instrument_differences(
    primary: Sequence[Instrument], secondary: Sequence[Instrument]
) -> list[InstrumentDifference]:
    """The instruments that only one side knows, or that they describe differently; by exchange and symbol."""
    ours = {(one.exchange, one.symbol): one for one in primary}
    theirs = {(one.exchange, one.symbol): one for one in secondary}
    found = []
    for exchange, symbol in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get((exchange, symbol)), theirs.get((exchange, symbol))
        if a == b:
            continue
        if a is None or b is None:
            detail = f"the instrument is missing on the {'primary' if a is None else 'secondary'}"
        else:
            unequal = [(one.name, getattr(a, one.name), getattr(b, one.name)) for one in fields(Instrument)]
            detail = "; ".join(str(Unequal(name, str(x), str(y))) for name, x, y in unequal if x != y)
        found.append(InstrumentDifference(exchange=exchange, symbol=symbol, detail=detail))
    return found


def of_candles(series: Series, found: CandleDifferences) -> list[Difference]:
    """As differences of a series; runs of missing candles are one each."""
    timeframe = series.timeframe
    made = [
        Difference(
            series=series,
            kind=DifferenceKind.CANDLE,
            interval=Interval(time, timeframe.next(time)),
            values=values,
        )
        for time, values in found.changed.items()
    ]
    for kind, times in (
        (DifferenceKind.ONLY_PRIMARY, found.only_primary),
        (DifferenceKind.ONLY_SECONDARY, found.only_secondary),
    ):
        for run in IntervalSet.of_candles(times, timeframe):
            first, last = np.searchsorted(times, [run.start, run.end])
            made.append(Difference(series=series, kind=kind, interval=run, candles=int(last - first)))
    return sorted(made, key=lambda one: one.interval)


def of_digests(series: Series, chunk: ChunkDifference) -> Difference:
    """Of a chunk whose rows are equal."""

    def text(digest: Digest | None) -> str:
        return "none" if digest is None else f"{digest.hex[:12]} of {digest.rows:,} rows"

    return Difference(
        series=series,
        kind=DifferenceKind.DIGEST,
        interval=chunk_interval(chunk.start, series.timeframe),
        values=(Unequal("the rows are equal, but their digest", text(chunk.primary), text(chunk.secondary)),),
    )


def of_ledger(series: Series, one: LedgerDifference) -> Difference:
    """As a difference of a series."""
    ours, theirs = _words(one.primary), _words(one.secondary)
    if ours == theirs and one.primary is not None and one.secondary is not None:
        ours += f" ({one.primary.evidence}, {one.primary.source})"
        theirs += f" ({one.secondary.evidence}, {one.secondary.source})"
    return Difference(
        series=series,
        kind=DifferenceKind.LEDGER,
        interval=one.interval,
        values=(Unequal("the ledger", ours, theirs),),
    )


def _words(entry: Covered | None) -> str:
    if entry is None:
        return "unknown"
    return entry.state.value + ("" if entry.expires_at is None else f" until {iso(entry.expires_at)}")


def _says(entry: Covered | None) -> tuple[object, ...]:
    if entry is None:
        return ()
    if entry.state.has_candles:
        return (CoverageState.PRESENT,)
    return (entry.state, entry.source, entry.expires_at, entry.evidence)


def _shown(name: str, value: pa.Scalar) -> str:
    if not value.is_valid:
        return "none"
    return iso(value.cast(pa.int64()).as_py()) if name in _INSTANTS else str(value.as_py())


class _Walk:
    """The entry of a ledger at rising instants."""

    def __init__(self, entries: Sequence[Covered]) -> None:
        self._entries = entries
        self._at = 0

    def at(self, instant: int) -> Covered | None:
        while self._at < len(self._entries) and self._entries[self._at].interval.end <= instant:
            self._at += 1
        if self._at == len(self._entries) or self._entries[self._at].interval.start > instant:
            return None
        return self._entries[self._at]
