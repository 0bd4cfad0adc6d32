"""Proving a series: rows obey the rules, the ledger says what is there, digests agree, nothing is missing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from market.candle import COLUMNS, check, open_times_ms
from market.clock import LATEST_MS, Clock, iso
from market.coverage import CoverageState, archived, known
from market.fingerprint import Digest, digest
from market.instrument import Series
from market.interval import Interval, IntervalSet
from market.rollup import roll_up
from market.timeframe import DEFAULT_ORIGIN_MS, ONE_MINUTE, TIMEFRAMES
from store.archive.archive import Archive, period_bounds, period_digests, period_of
from store.candle_store import CandleStore, Chunk

_MONTH = TIMEFRAMES["1M"]
_EXAMPLES = 20


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong, or missing."""

    series: Series
    #: ``gap``, ``rule``, ``ledger``, ``digest``, ``derived`` or ``archive``.
    kind: str
    #: Where, epoch milliseconds, half-open.
    start: int
    end: int
    #: In words.
    detail: str


async def check_series(
    store: CandleStore, series: Series, clock: Clock, archive: Archive | None = None
) -> list[Finding]:
    """Read a series from end to end, a month at a time, and compare it with all that is known of it.

    Candles that are in the archive alone are not read: :meth:`store.archive.archive.Archive.verify` does that.

    :param archive: where these should be: its manifest is compared with their digests.
    """
    findings: list[Finding] = []
    ledger = await store.coverage(series)
    present = IntervalSet(one.interval for one in ledger if one.state is CoverageState.PRESENT)
    if ledger:
        whole = IntervalSet.of((ledger[0].interval.start, ledger[-1].interval.end))
        for gap in whole - known(ledger, clock.now_ms()):
            count = series.timeframe.count(gap.start, gap.end)
            findings.append(
                _finding(series, "gap", gap, f"{count} candles are neither stored nor known to be empty")
            )
    facts = await store.facts(series)
    origin = DEFAULT_ORIGIN_MS if facts is None else facts.origin_ms
    runs: list[Interval] = []
    total = Digest()
    async for table in _months(store, series):
        total += digest(table)
        runs += IntervalSet.of_candles(open_times_ms(table), series.timeframe)
        _, refusals = check(table, series.timeframe, LATEST_MS, origin)
        for refusal in refusals[:_EXAMPLES]:
            opened = refusal.open_time or 0
            row = Interval(opened, series.timeframe.next(opened))
            findings.append(_finding(series, "rule", row, refusal.reason))
    stored = IntervalSet(runs)
    for extra in stored - present:
        findings.append(_finding(series, "ledger", extra, "candles are stored that the ledger does not know"))
    for lacking in present - stored:
        findings.append(_finding(series, "ledger", lacking, "the ledger says present, but no candle is stored"))
    chunks = await store.chunks(series)
    if archive is not None:
        findings += [one async for one in _against_archive(archive, series, chunks)]
    expected = sum((one.digest - one.archived for one in chunks), Digest())
    if expected != total:
        findings.append(
            _finding(
                series,
                "digest",
                stored.hull or Interval(0, 1),
                f"the rows ({total.rows:,}, {total.hex[:12]}) differ from the digests kept when they were written "
                f"({expected.rows:,}, {expected.hex[:12]}): something else changed the table",
            )
        )
    if series.timeframe.derives_from(ONE_MINUTE):
        findings += [one async for one in _against_minutes(store, series)]
    return findings


async def archived_candles(store: CandleStore, series: Series) -> int:
    """How many candles of a series :func:`check_series` cannot look at, because the archive alone has them."""
    return sum(one.archived.rows for one in await store.chunks(series))


async def _against_archive(archive: Archive, series: Series, chunks: Sequence[Chunk]) -> AsyncIterator[Finding]:
    """The digests of archived chunks against the files that should hold them; no file is read."""
    whole = period_digests(chunks, series.timeframe)
    files = {}
    if any(one.archived.rows for one in chunks):
        manifest = await asyncio.to_thread(archive.manifest, series)
        files = {} if manifest is None else {one.period: one for one in manifest.files}
    for period in sorted({period_of(one.start, series.timeframe) for one in chunks if one.archived.rows}):
        file = files.get(period)
        inside = [one for one in chunks if period_of(one.start, series.timeframe) == period]
        # Rows that were written since into the same period are in no file before the archive is built again.
        if any(one.archived != one.digest for one in inside):
            continue
        if file is None or Digest.of_hex(file.rows, file.digest) != whole[period]:
            what = "has no file of them" if file is None else f"has other ones ({file.name})"
            yield _finding(
                series,
                "archive",
                Interval(*period_bounds(period)),
                f"the candles are in the archive alone, and {archive.root} {what}; restore it from a backup",
            )


async def _months(store: CandleStore, series: Series) -> AsyncIterator[pa.Table]:
    facts = await store.facts(series)
    if facts is None or facts.known is None:
        return
    # Beyond what the ledger knows on either side, in case a row is there that it does not know.
    start = _MONTH.next(_MONTH.floor(facts.known.start), -1)
    while start < _MONTH.next(_MONTH.ceil(facts.known.end)):
        end = _MONTH.next(start)
        table = await store.read(series, start, end)
        if table.num_rows:
            yield table
        start = end


async def _against_minutes(store: CandleStore, series: Series) -> AsyncIterator[Finding]:
    """The stored candles of a larger timeframe against the ones its minutes make, where all minutes are known."""
    minutes = series.at(ONE_MINUTE)
    ledger = await store.coverage(minutes)
    covered = IntervalSet(one.interval for one in ledger) - archived(ledger)
    if not covered:
        return
    facts = await store.facts(series)
    origin = DEFAULT_ORIGIN_MS if facts is None else facts.origin_ms
    async for native in _months(store, series):
        times = open_times_ms(native)
        end = series.timeframe.next(int(times[-1]))
        derived = roll_up(await store.read(minutes, int(times[0]), end), series.timeframe, origin).table
        for opened, detail in _differences(native, derived):
            window = Interval(opened, series.timeframe.next(opened))
            if covered.clip(window.start, window.end).duration == window.duration:
                yield _finding(series, "derived", window, detail)


def _differences(native: pa.Table, derived: pa.Table) -> Iterator[tuple[int, str]]:
    times, made = open_times_ms(native), open_times_ms(derived)
    for opened in np.setdiff1d(times, made):
        yield int(opened), f"the exchange has a {iso(int(opened))} candle, its minutes make none"
    ours = native.filter(pa.array(np.isin(times, made)))
    theirs = derived.filter(pa.array(np.isin(made, times)))
    both = open_times_ms(ours)
    told = np.zeros(len(both), np.bool_)
    for name in COLUMNS[1:-1]:
        # What one of them does not know (null) cannot differ.
        differs = pc.not_equal(ours.column(name), theirs.column(name)).fill_null(False).to_numpy() & ~told
        for row in np.flatnonzero(differs):
            yield int(both[row]), f"{name} is {ours.column(name)[row]}, the minutes make {theirs.column(name)[row]}"
        told |= differs


def _finding(series: Series, kind: str, interval: Interval, detail: str) -> Finding:
    return Finding(series=series, kind=kind, start=interval.start, end=interval.end, detail=detail)
