"""``backtest``: run a strategy over the archive."""

from __future__ import annotations

from typing import Annotated

import typer

from backtest.result import Result
from backtest.run import run_backtest
from chandlery.options import (
    AsJson,
    Exchange,
    Home,
    Since,
    Symbols,
    Timeframe,
    Until,
    instant,
    load,
    symbols_of,
)
from chandlery.output import complain, console, print_json, print_table, remark
from market import timeframe as timeframes
from market.errors import BadInput, StrategyFailed
from trading.catalogue import load_strategy, parse_parameters


def backtest(
    strategy: Annotated[str, typer.Argument(help="A bundled strategy (sma_cross) or a Python file with one.")],
    exchange: Exchange,
    symbols: Symbols,
    timeframe: Timeframe = "1h",
    since: Since = None,
    until: Until = None,
    param: Annotated[list[str] | None, typer.Option("--param", help="key=value; may be repeated.")] = None,
    cash: Annotated[float, typer.Option("--cash", help="Quote units to begin with.")] = 10_000.0,
    fee: Annotated[float, typer.Option("--fee", help="Percent of the notional.")] = 0.1,
    slippage: Annotated[float, typer.Option("--slippage", help="Basis points.")] = 0.0,
    missing: Annotated[str, typer.Option("--missing", help="refuse a range with holes, or mask them.")] = "refuse",
    tripwire: Annotated[bool, typer.Option("--tripwire", help="Also look for look-ahead.")] = False,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Run a strategy over archived candles and print what came of it.

    Exit code 1 if the strategy failed on the way or the tripwire found look-ahead; 2 if nothing was run.
    """
    settings = load(home)
    start, end = instant(since, "--since"), instant(until, "--until")
    if start is not None and end is not None and start >= end:
        raise BadInput("--until", until, f"an instant after --since ({since}); ranges are [since, until)")
    try:
        result = run_backtest(
            settings.archive_path,
            load_strategy(strategy, parse_parameters(param or [])),
            exchange,
            symbols_of(symbols),
            timeframes.Timeframe.parse(timeframe),
            start_ms=start,
            end_ms=end,
            fee=fee,
            slippage=slippage,
            cash=cash,
            missing=missing,
            tripwire=tripwire,
        )
    except StrategyFailed as error:
        # Before the first candle; on the way it is a partial result.
        complain(str(error))
        raise typer.Exit(2) from error
    if as_json:
        print_json(result.to_json())
    else:
        print_result(result)
    if not result.ok:
        raise typer.Exit(1)


def print_result(result: Result) -> None:
    """The summary of a run, and what went wrong."""
    print_table(["", ""], result.summary())
    for leak in result.leaks or ():
        remark(f"look-ahead: {leak}")
    if result.failure is not None:
        console.print(f"partial result: {result.failure}", markup=False, highlight=False)
