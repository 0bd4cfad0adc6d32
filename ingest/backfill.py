"""Backfill: fill the gaps of many series of one exchange, and report what is still missing."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from exchange.symbol import unknown_symbol
from ingest.clock import ExchangeClock
from ingest.gap_filler import CandleStore, Filled, GapFiller
from ingest.patience import Gate, History, Patience, PatientHistory
from ingest.report import NoProgress, Progress, SeriesReport
from market.clock import EARLIEST_MS, Clock, iso
from market.coverage import CoverageState, gaps
from market.errors import BadInput, ChandleryError, ExchangeRefused, Mismatch, NotFound, Retryable
from market.instrument import Instrument, Series
from market.interval import Interval, IntervalSet
from market.timeframe import Timeframe

Outcome = TypeVar("Outcome")


@dataclass(frozen=True, kw_only=True)
class BackfillRules:
    """How to backfill."""

    #: Milliseconds after its end in which a candle may still change and is left alone.
    settle_ms: int = 2_000
    #: Series fetched at once.
    concurrency: int = 4
    #: Read what is known too, to learn of candles that the exchange has changed.
    again: bool = False
    #: How often and how long to try.
    patience: Patience = field(default_factory=Patience)


async def backfill(
    history: History,
    store: CandleStore,
    clock: Clock,
    symbols: Sequence[str],
    timeframe: Timeframe,
    wanted: Interval,
    *,
    rules: BackfillRules | None = None,
    progress: Progress | None = None,
) -> list[SeriesReport]:
    """Fill the gaps of `symbols` in `wanted`, and say for each what is stored and what is missing.

    An interval that reaches past the exchange's now ends at the last settled candle; what lies after it is not
    missing. Cancelled or killed at any moment, everything up to the last committed page stays, and the next
    call goes on there. A series whose exchange gives up is reported with its error; the others go on.

    :param clock: our own clock.
    :return: one report for each symbol, in their order.
    :raises NotFound: for a symbol the exchange does not trade, before any candle is asked for.
    :raises BadInput: for a timeframe it does not serve or a start in its future, likewise.
    :raises ExchangeUnavailable: if it cannot even be asked for its time and its instruments.
    :raises StoreUnusable: if the store cannot be written; all series stop.
    """
    rules = rules or BackfillRules()
    progress = progress or NoProgress()
    history.check_timeframe(timeframe)
    gate = Gate(rules.patience.longest_obeyed)
    first = PatientHistory(history, gate, rules.patience)
    now = await ExchangeClock(first, clock).read()
    if wanted.start >= now:
        raise BadInput("since", iso(wanted.start), f"an instant before the exchange's now, {iso(now)}")
    instruments = await find_instruments(first, store, symbols, timeframe, now)
    room = asyncio.Semaphore(rules.concurrency)

    async def one(instrument: Instrument) -> SeriesReport:
        async with room:
            patient = PatientHistory(history, gate, rules.patience)
            exchange_clock = ExchangeClock(patient, clock)
            filler = GapFiller(
                patient,
                store,
                exchange_clock,
                clock,
                instrument,
                settle_ms=rules.settle_ms,
                progress=progress,
            )
            series = Series(history.exchange, instrument.symbol, timeframe)
            filled, error, closed = Filled(), None, filler.closed(series, wanted)
            try:
                await exchange_clock.read()
                # Decided once: candles that close while we work are not missing afterwards.
                closed = filler.closed(series, wanted)
                if closed is not None:
                    await filler.fill(series, closed, filled, again=rules.again)
            except (Retryable, ExchangeRefused, Mismatch, NotFound) as stopped:
                error = stopped
            report = await _report(series, closed, filler, store, clock, filled, patient.requests, error)
            progress.finished(report)
            return report

    return await run_together([one(instrument) for instrument in instruments])


async def run_together(works: Sequence[Coroutine[None, None, Outcome]]) -> list[Outcome]:
    """The outcomes of `works`, run at once; if one raises, or we are cancelled, none goes on.

    Nothing may still write into a store that the caller is about to close.
    """
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def find_instruments(
    history: PatientHistory, store: CandleStore, symbols: Sequence[str], timeframe: Timeframe, now_ms: int
) -> list[Instrument]:
    """The instruments called `symbols`, in that order; the exchange's whole list is saved on the way.

    Three-day candles count from the listing day. Where the exchange does not tell it (Binance spot), its first
    three-day candle does.

    :param now_ms: exchange time.
    :raises NotFound: naming the first symbol that the exchange does not trade, with the nearest ones.
    """
    listed = await history.instruments()
    by_symbol = {one.symbol: one for one in listed}
    if not symbols:
        raise BadInput("symbols", "", "at least one symbol, such as BTC/USDT")
    for symbol in symbols:
        if symbol not in by_symbol:
            raise unknown_symbol(history.exchange, symbol, by_symbol)
    if timeframe.name == "3d":
        for symbol in symbols:
            if by_symbol[symbol].listed_ms is None:
                first = await history.first_open(symbol, timeframe, EARLIEST_MS, now_ms)
                by_symbol[symbol] = replace(by_symbol[symbol], listed_ms=first)
    await store.save_instruments(list(by_symbol.values()))
    return [by_symbol[symbol] for symbol in dict.fromkeys(symbols)]


async def _report(
    series: Series,
    closed: Interval | None,
    filler: GapFiller,
    store: CandleStore,
    clock: Clock,
    filled: Filled,
    requests: int,
    error: ChandleryError | None,
) -> SeriesReport:
    """What the ledger knows about `closed` now."""
    covered = await store.coverage(series, closed) if closed else []
    missing = gaps(closed, covered, clock.now_ms()) if closed else IntervalSet()

    def buckets(intervals: IntervalSet) -> int:
        return sum(filler.buckets(series, one) for one in intervals)

    def in_state(*states: CoverageState) -> IntervalSet:
        return IntervalSet(one.interval for one in covered if one.state in states) - missing

    return SeriesReport(
        series=series,
        stored=buckets(in_state(CoverageState.PRESENT, CoverageState.ARCHIVED)),
        written=filled.written.written,
        verified_empty=buckets(in_state(CoverageState.EMPTY)),
        missing=buckets(missing),
        missing_intervals=missing,
        refused=len(filled.written.refusals),
        requests=requests,
        error=error,
    )
