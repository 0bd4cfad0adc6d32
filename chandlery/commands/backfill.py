"""``backfill``: fill the gaps of series from an exchange."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from chandlery.exchanges import opened_exchange
from chandlery.options import (
    AsJson,
    Exchange,
    ExchangeUrl,
    Home,
    Since,
    Symbols,
    Timeframe,
    Until,
    interval_of,
    load,
    run,
    symbols_of,
)
from chandlery.output import print_json, print_table, remark
from chandlery.progress import backfill_bar
from chandlery.settings import Settings
from chandlery.wiring import CLOCK, opened_store
from ingest.backfill import BackfillRules, backfill
from ingest.report import SeriesReport
from market import timeframe as timeframes
from market.clock import LATEST_MS, iso
from market.interval import Interval


def backfill_series(
    exchange: Exchange,
    symbols: Symbols,
    timeframe: Timeframe = "1m",
    since: Since = None,
    until: Until = None,
    exchange_url: ExchangeUrl = None,
    again: Annotated[bool, typer.Option("--again", help="Read what is known too, for corrections.")] = False,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Fetch what is unknown of some series and keep it. Resumes where it stopped.

    Exit code 1 if anything is still missing; the output lists it.
    """
    settings = load(home)
    wanted = interval_of(since, until, CLOCK.now_ms() if exchange_url is None else LATEST_MS - 1)
    listed = symbols_of(symbols)
    length = timeframes.Timeframe.parse(timeframe)
    reports = run(fill(settings, exchange, exchange_url, listed, length, wanted, again))
    if as_json:
        print_json({"series": [record(one) for one in reports]})
    else:
        print_reports(reports)
    if not all(one.complete for one in reports):
        raise typer.Exit(1)


async def fill(
    settings: Settings,
    exchange: str,
    url: str | None,
    symbols: list[str],
    timeframe: timeframes.Timeframe,
    wanted: Interval,
    again: bool,
) -> list[SeriesReport]:
    """Backfill with a progress bar on stderr."""
    asking = opened_exchange(exchange, url, settings.limits_folder)
    async with opened_store(settings) as store, asking as history:
        with backfill_bar() as bar:
            rules = BackfillRules(settle_ms=settings.settle_ms, concurrency=settings.concurrency, again=again)
            return await backfill(history, store, CLOCK, symbols, timeframe, wanted, rules=rules, progress=bar)


def record(report: SeriesReport) -> dict[str, Any]:
    """A report as scripts read it."""
    return {
        "exchange": report.series.exchange,
        "symbol": report.symbol,
        "timeframe": report.timeframe,
        "stored": report.stored,
        "written": report.written,
        "verified_empty": report.verified_empty,
        "missing": report.missing,
        "missing_intervals": [[iso(one.start), iso(one.end)] for one in report.missing_intervals],
        "refused": report.refused,
        "requests": report.requests,
        "error": None if report.error is None else str(report.error),
    }


def print_reports(reports: list[SeriesReport]) -> None:
    """A table, and a line for whatever is still missing."""
    print_table(
        ["symbol", "timeframe", "stored", "written", "verified empty", "missing", "refused", "requests"],
        [
            [
                one.symbol,
                one.timeframe,
                one.stored,
                one.written,
                one.verified_empty,
                one.missing,
                one.refused,
                one.requests,
            ]
            for one in reports
        ],
    )
    for one in reports:
        for interval in list(one.missing_intervals)[:20]:
            remark(f"{one.symbol} {one.timeframe} misses {interval}")
        if one.error is not None:
            remark(f"{one.symbol} {one.timeframe} is incomplete: {one.error}")
