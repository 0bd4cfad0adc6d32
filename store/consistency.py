"""Comparing two stores that should hold the same, in pieces: a billion candles take the memory of a thousand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa

from market.candle import open_times_ms
from market.clock import LATEST_MS
from market.instrument import Series
from market.interval import Interval, IntervalSet
from market.timeframe import Timeframe
from store.candle_store import CandleStore, SeriesFacts
from store.difference import (
    CandleDifferences,
    ChunkDifference,
    Difference,
    DifferenceKind,
    candle_differences,
    chunk_differences,
    chunk_interval,
    ledger_differences,
    of_candles,
    of_digests,
    of_ledger,
)
from store.merge import chunk_starts

#: Buckets whose candles, and whose ledger, are in memory at a time.
_ROWS_AT_ONCE = 50_000
_LEDGER_AT_ONCE = 200_000


async def differences(
    primary: CandleStore, secondary: CandleStore, series: Series, *, rows: bool = True
) -> AsyncIterator[Difference]:
    """Everything in which two stores differ over one series: candles, then digests, then the ledger.

    Candles that one of them has in the archive alone are compared by their digests only.

    What differs is read twice: a write may have reached one of the stores between the two readings of one moment.

    :param rows: read all candles of both and trust no digest; else only where digests differ, which takes
        milliseconds where none does.
    """
    ours, theirs = await primary.chunks(series), await secondary.chunks(series)
    unequal = chunk_differences(ours, theirs)
    # Whoever dropped them has their digests still, and these are compared.
    archived = {one.start for one in (*ours, *theirs) if one.archived.rows}
    spans = _all_spans(primary, secondary, series) if rows else _chunk_spans(unequal, series.timeframe)
    explained: set[int] = set()
    runs = _Runs()
    async for span in spans:
        found = await _compared(primary, secondary, series, span, archived)
        if found:
            found &= await _compared(primary, secondary, series, span, archived)
            explained |= set(chunk_starts(found.open_times, series.timeframe).tolist())
            for one in runs.joined(of_candles(series, found)):
                yield one
    for one in runs.left():
        yield one
    if any(one.start not in explained for one in unequal):
        still = set(chunk_differences(await primary.chunks(series), await secondary.chunks(series)))
        for chunk in unequal:
            if chunk in still and chunk.start not in explained:
                yield of_digests(series, chunk)
    facts = [await store.facts(series) for store in (primary, secondary)]
    for span in ledger_pieces(facts, series.timeframe):
        for one in runs.joined(await _ledgers(primary, secondary, series, span)):
            yield one
    for one in runs.left():
        yield one


def ledger_pieces(facts: Iterable[SeriesFacts | None], timeframe: Timeframe) -> Iterator[Interval]:
    """Everything that any of the ledgers knows of, in pieces to be read one after the other."""
    hull = IntervalSet(one.known for one in facts if one is not None and one.known is not None).hull
    if hull is not None:
        yield from pieces(hull, timeframe, _LEDGER_AT_ONCE)


async def _compared(
    primary: CandleStore, secondary: CandleStore, series: Series, span: Interval, archived: set[int]
) -> CandleDifferences:
    ours = await primary.read(series, span.start, span.end)
    theirs = await secondary.read(series, span.start, span.end)
    if ours.equals(theirs):
        nothing = np.empty(0, np.int64)
        return CandleDifferences(nothing, nothing, {})
    if archived:
        ours, theirs = (_in_database(one, series.timeframe, archived) for one in (ours, theirs))
    return candle_differences(ours, theirs)


def _in_database(table: pa.Table, timeframe: Timeframe, archived: set[int]) -> pa.Table:
    """The candles of chunks that neither store has dropped."""
    chunks = chunk_starts(open_times_ms(table), timeframe)
    return table.filter(pa.array(~np.isin(chunks, list(archived))))


async def _ledgers(
    primary: CandleStore, secondary: CandleStore, series: Series, span: Interval
) -> list[Difference]:
    found = set(ledger_differences(await primary.coverage(series, span), await secondary.coverage(series, span)))
    if not found:
        return []
    again = ledger_differences(await primary.coverage(series, span), await secondary.coverage(series, span))
    return [of_ledger(series, one) for one in again if one in found]


async def _all_spans(primary: CandleStore, secondary: CandleStore, series: Series) -> AsyncIterator[Interval]:
    """From the first to the last row that is in either store, whatever ledger and digests say."""
    ends = []
    for store in (primary, secondary):
        for newest in (False, True):
            table = await store.read(series, 0, LATEST_MS, limit=1, newest=newest)
            ends += open_times_ms(table).tolist()
    if ends:
        for span in pieces(Interval(min(ends), max(ends) + 1), series.timeframe, _ROWS_AT_ONCE):
            yield span


async def _chunk_spans(unequal: Iterable[ChunkDifference], timeframe: Timeframe) -> AsyncIterator[Interval]:
    for run in IntervalSet(chunk_interval(one.start, timeframe) for one in unequal):
        for span in pieces(run, timeframe, _ROWS_AT_ONCE):
            yield span


def pieces(interval: Interval, timeframe: Timeframe, buckets: int) -> Iterator[Interval]:
    """An interval in parts of at most that many buckets."""
    start = interval.start
    while start < interval.end:
        end = min(start + buckets * timeframe.milliseconds, interval.end)
        yield Interval(start, end)
        start = end


class _Runs:
    """Joins a run that goes on in the next piece; differences come in any order of kinds."""

    def __init__(self) -> None:
        self._open: dict[DifferenceKind, Difference] = {}

    def joined(self, found: Iterable[Difference]) -> Iterator[Difference]:
        for one in found:
            before = self._open.pop(one.kind, None)
            alike = before is not None and one.kind is not DifferenceKind.CANDLE and before.values == one.values
            if before is not None and alike and before.interval.end == one.interval.start:
                whole = Interval(before.interval.start, one.interval.end)
                one = replace(before, interval=whole, candles=before.candles + one.candles)
            elif before is not None:
                yield before
            self._open[one.kind] = one

    def left(self) -> list[Difference]:
        found = sorted(self._open.values(), key=lambda one: one.interval)
        self._open.clear()
        return found
