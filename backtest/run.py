"""One backtest from start to end: archive, strategy, result."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from backtest.blocks import merged, streams
from backtest.engine import Costs, Engine
from backtest.equity import EquityRecorder, curve_step
from backtest.feed import READ_ROWS, Feed, Piece
from backtest.result import Leak, Result, SeriesUsed
from backtest.source import Source, find_sources, finest
from backtest.tripwire import Pieces, cut_points, indicator_leaks, order_leak, scrambling
from market.coverage import CoverageState
from market.errors import BadInput, StrategyFailed
from market.instrument import check_exchange, check_symbol
from market.interval import Interval, IntervalSet
from market.timeframe import Timeframe
from trading.catalogue import blamed, method_line, source_sha256
from trading.strategy import Strategy, Subscription


def run_backtest(
    archive_root: Path,
    strategy: Strategy,
    exchange: str,
    symbols: Sequence[str],
    timeframe: Timeframe,
    interval: Interval | None = None,
    *,
    start_ms: int | None = None,
    end_ms: int | None = None,
    fee: float = 0.1,
    slippage: float = 0.0,
    cash: float = 10_000.0,
    missing: str = "refuse",
    tripwire: bool = False,
    read_rows: int = READ_ROWS,
) -> Result:
    """Run `strategy` over archived candles.

    :param strategy: not changed; each run has a fresh one with its parameters.
    :param interval: candles that open and end inside it are shown; None for all that the archive holds of every
        series. Candles before it are read for the warm-up where the archive has them.
    :param start_ms: where there is no `interval`, another start than the archive's.
    :param end_ms: likewise the end.
    :param fee: percent of the notional.
    :param slippage: basis points.
    :param cash: quote units to begin with.
    :param missing: ``refuse`` a range with holes, or ``mask`` them: nothing is shown there and indicators begin
        anew behind. Minutes verified to be empty at the exchange are no hole.
    :param tripwire: also look for look-ahead, see :mod:`backtest.tripwire`; takes a few times as long.
    :param read_rows: archived rows in memory at once, about; the result does not depend on it.
    :raises BadInput: naming what cannot be accepted; nothing was run.
    :raises StoreUnusable: a damaged file of the archive, named.
    :raises Mismatch: the archive contradicts itself.
    :return: with `failure` set where the strategy failed on the way: a partial result.
    """
    costs = Costs(fee=fee, slippage=slippage)
    if not math.isfinite(cash) or cash <= 0:
        raise BadInput("cash", cash, "a finite number above zero")
    wanted = _subscriptions(strategy, check_exchange(exchange), symbols, timeframe)
    chosen, sources = find_sources(archive_root, exchange, wanted, interval, missing, start_ms, end_ms)
    step = min(one.series.timeframe for one in sources)
    recorder = EquityRecorder(cash, curve_step(chosen, step))
    started = time.perf_counter()
    with Feed(archive_root, read_rows) as feed:
        pieces = partial(_pieces, feed, chosen, len(sources))
        engine, failure = _run(strategy, sources, chosen, costs, recorder, pieces)
        seconds = time.perf_counter() - started
        result = Result(
            settings=_settings(strategy, exchange, symbols, timeframe, costs, cash, missing, wanted),
            interval=chosen,
            series=[_used(source, chosen) for source in sources],
            fingerprint=feed.fingerprint,
            candles=engine.candles,
            seconds=seconds,
            fills=engine.ledger.fills,
            refused=engine.ledger.refused,
            cash=cash,
            final_equity=recorder.last,
            equity=list(zip(recorder.times, recorder.values, strict=True)),
            max_drawdown_percent=100 * recorder.drawdown,
            exposure_percent=100 * recorder.held_instants / recorder.instants if recorder.instants else 0.0,
            sharpe=recorder.sharpe,
            failure=failure,
        )
        if not tripwire or failure is not None:
            return result
        cuts = cut_points(chosen, step)
        try:
            leaks = _leaks(strategy, sources, chosen, costs, cash, pieces, cuts, engine)
        except StrategyFailed as error:
            return replace(result, tripwire_cuts=cuts, failure=f"with scrambled candles of the tripwire, {error}")
        return replace(result, tripwire_cuts=cuts, leaks=leaks)


def _pieces(feed: Feed, interval: Interval, share: int, source: Source) -> Iterable[Piece]:
    return feed.pieces(source, interval, share)


def _run(
    strategy: Strategy,
    sources: Sequence[Source],
    interval: Interval,
    costs: Costs,
    recorder: EquityRecorder,
    pieces: Pieces,
    until_ms: int | None = None,
) -> tuple[Engine, str | None]:
    """One pass; and why it ended early."""
    fresh = strategy.fresh()
    engine = Engine(fresh, finest(sources), costs, recorder.cash, recorder)
    try:
        with _rare_collections():
            engine.run(merged(streams(sources, fresh, interval.start, pieces)), until_ms)
    except StrategyFailed as error:
        return engine, str(error)
    return engine, None


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Fewer looks for cyclic garbage: a run keeps many small records and makes no cycles.

    Worth an eighth of the time of a run with many fills. The setting is the whole process's, so it is put back.
    """
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], 50_000) if before[0] else 0, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _leaks(
    strategy: Strategy,
    sources: Sequence[Source],
    interval: Interval,
    costs: Costs,
    cash: float,
    pieces: Pieces,
    cuts: Sequence[int],
    original: Engine,
) -> list[Leak]:
    """Everything the tripwire catches, by cut."""
    fresh = strategy.fresh()
    with blamed(fresh):
        found = list(indicator_leaks(fresh, sources, pieces, cuts))
    for cut in cuts:
        recorder = EquityRecorder(cash, min(one.series.timeframe for one in sources))
        again, failure = _run(strategy, sources, interval, costs, recorder, scrambling(pieces, cut), cut)
        if failure is not None:
            raise StrategyFailed(failure)
        leak = order_leak(cut, original.ledger.decisions, again.ledger.decisions)
        if leak is not None:
            found.append(leak)
    return sorted(found, key=lambda one: one.cut_ms)


def _subscriptions(
    strategy: Strategy, exchange: str, symbols: Sequence[str], timeframe: Timeframe
) -> list[Subscription]:
    """What the strategy wants to see.

    :raises BadInput: no or repeated symbols.
    :raises StrategyFailed: what it asks for is not a list of different subscriptions.
    """
    for symbol in symbols:
        check_symbol(symbol, "symbols")
    if not symbols or len(set(symbols)) < len(symbols):
        raise BadInput("symbols", ", ".join(symbols), "one symbol or more, each once")
    with blamed(strategy):
        asked: object = strategy.required_subscriptions(tuple(symbols), timeframe)
    given = asked if isinstance(asked, list | tuple) else []
    wanted = [one for one in given if isinstance(one, Subscription)]
    if not wanted or len(wanted) < len(given) or len({(one.symbol, one.timeframe) for one in wanted}) < len(wanted):
        raise StrategyFailed(
            f"{method_line(strategy, 'required_subscriptions')} returned {asked!r:.100}; expected a list of "
            "Subscription, each series once"
        )
    return wanted


def _settings(
    strategy: Strategy,
    exchange: str,
    symbols: Sequence[str],
    timeframe: Timeframe,
    costs: Costs,
    cash: float,
    missing: str,
    wanted: Sequence[Subscription],
) -> dict[str, object]:
    return {
        "strategy": type(strategy).__name__,
        "parameters": dict(strategy.parameters),
        "source_sha256": source_sha256(strategy),
        "exchange": exchange,
        "symbols": list(symbols),
        "timeframe": timeframe.name,
        "subscriptions": [
            {"symbol": one.symbol, "timeframe": one.timeframe.name, "warm_up": one.warm_up} for one in wanted
        ],
        "fee_percent": costs.fee,
        "slippage_basis_points": costs.slippage,
        "cash": cash,
        "missing": missing,
    }


def _used(source: Source, interval: Interval) -> SeriesUsed:
    coverage = source.manifest.coverage
    empty = IntervalSet(one.interval for one in coverage if one.state is CoverageState.EMPTY)
    return SeriesUsed(
        series=source.series,
        derived_from=source.manifest.series if source.derived else None,
        missing=source.missing(interval),
        empty=empty.clip(interval.start, interval.end),
    )
