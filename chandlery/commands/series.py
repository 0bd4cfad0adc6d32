"""``series``, ``coverage`` and ``gaps``: what is stored, and what is not."""

from __future__ import annotations

from typing import Any

import typer

from chandlery.options import (
    AsJson,
    Exchange,
    Home,
    Since,
    Symbol,
    Timeframe,
    Until,
    check_past,
    instant,
    load,
    run,
)
from chandlery.output import console, print_json, print_table
from chandlery.wiring import CLOCK, opened_market_data
from market.clock import iso
from market.coverage import Covered
from market.errors import BadInput
from market.instrument import Series
from market.interval import Interval
from serve.records import series_record
from store.answer import SeriesInfo
from store.market_data import MarketData


def list_series(home: Home = None, as_json: AsJson = False) -> None:
    """List the stored series with rows, range, revision and what is missing."""
    settings = load(home)

    async def work() -> list[SeriesInfo]:
        async with opened_market_data(settings) as market_data:
            return await market_data.series()

    found = run(work())
    if as_json:
        print_json({"series": [_record(one) for one in found]})
        return
    print_table(
        ["exchange", "symbol", "timeframe", "rows", "first", "last", "missing", "empty", "corrections", "refused"],
        [
            [
                one.series.exchange,
                one.series.symbol,
                one.series.timeframe.name,
                one.rows,
                _instant(one.first_open),
                _instant(one.last_open),
                one.missing,
                one.verified_empty,
                one.corrections,
                one.quarantined,
            ]
            for one in found
        ],
    )


def show_coverage(
    exchange: Exchange,
    symbol: Symbol,
    timeframe: Timeframe = "1m",
    since: Since = None,
    until: Until = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Show what is known of a series over time: present, verified empty, outages, unknown."""
    settings = load(home)
    series = Series.parse(exchange, symbol, timeframe)

    async def work() -> dict[str, Any]:
        async with opened_market_data(settings) as market_data:
            interval, ledger = await market_data.coverage(series, await _asked(market_data, series, since, until))
            _, missing = await market_data.gaps(series, interval)
        known = [_entry(series, one.interval, one) for one in ledger]
        unknown = [_entry(series, one, None) for one in missing]
        return {
            "exchange": exchange,
            "symbol": symbol,
            "timeframe": timeframe,
            "start": iso(interval.start),
            "end": iso(interval.end),
            "complete": not missing,
            "coverage": sorted([*known, *unknown], key=lambda one: str(one["start"])),
        }

    report = run(work())
    if as_json:
        print_json(report)
        return
    console.print(f"{series} from {report['start']} to {report['end']}", highlight=False)
    print_table(
        ["start", "end", "state", "candles", "source", "evidence"],
        [
            [one[key] for key in ("start", "end", "state", "candles", "source", "evidence")]
            for one in report["coverage"]
        ],
    )


def show_gaps(
    exchange: Exchange,
    symbol: Symbol,
    timeframe: Timeframe = "1m",
    since: Since = None,
    until: Until = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """List the gaps of a series: what a backfill would fetch. Exit code 1 if there are any."""
    settings = load(home)
    series = Series.parse(exchange, symbol, timeframe)

    async def work() -> dict[str, Any]:
        async with opened_market_data(settings) as market_data:
            interval, missing = await market_data.gaps(series, await _asked(market_data, series, since, until))
        return {
            "exchange": exchange,
            "symbol": symbol,
            "timeframe": timeframe,
            "start": iso(interval.start),
            "end": iso(interval.end),
            "missing": sum(series.timeframe.count(one.start, one.end) for one in missing),
            "gaps": [
                {
                    "start": iso(one.start),
                    "end": iso(one.end),
                    "candles": series.timeframe.count(one.start, one.end),
                }
                for one in missing
            ],
        }

    report = run(work())
    if as_json:
        print_json(report)
    elif not report["gaps"]:
        console.print(f"{series} has no gap from {report['start']} to {report['end']}", highlight=False)
    else:
        print_table(
            ["start", "end", "candles"], [[one["start"], one["end"], one["candles"]] for one in report["gaps"]]
        )
    if report["gaps"]:
        raise typer.Exit(1)


async def _asked(market_data: MarketData, series: Series, since: str | None, until: str | None) -> Interval | None:
    """The interval that was asked for; open ends are where the series' knowledge ends."""
    start, end = instant(since, "--since"), instant(until, "--until")
    if start is None and end is None:
        return None
    whole, _ = await market_data.coverage(series)
    check_past(start, "--since", max(CLOCK.now_ms(), whole.end))
    start = whole.start if start is None else start
    end = max(whole.end, start + 1) if end is None else end
    if start >= end:
        raise BadInput(
            "--until", until or iso(end), f"an instant after --since ({iso(start)}); ranges are [since, until)"
        )
    return Interval(start, end)


def _entry(series: Series, interval: Interval, known: Covered | None) -> dict[str, Any]:
    """One interval of a series as it is printed; `known` is None where it is a gap."""
    return {
        "start": iso(interval.start),
        "end": iso(interval.end),
        "state": "unknown" if known is None else known.state.value,
        "candles": series.timeframe.count(interval.start, interval.end),
        "source": None if known is None else known.source,
        "evidence": None if known is None else known.evidence,
        "learned_at": None if known is None else iso(known.learned_at),
        "expires_at": None if known is None else _instant(known.expires_at),
    }


def _instant(ms: int | None) -> str | None:
    return None if ms is None else iso(ms)


def _record(info: SeriesInfo) -> dict[str, Any]:
    """What ``/v1/series`` says, with instants as text."""
    instants = {name: _instant(getattr(info, name)) for name in ("first_open", "last_open", "last_write")}
    return series_record(info) | instants
