"""``import`` and ``export``: candle files from outside and for outside, and whole archives."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import typer

from chandlery.options import (
    AsJson,
    AsOf,
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
from chandlery.output import print_json, print_table, remark
from chandlery.settings import SIMULATED, Settings
from chandlery.wiring import CLOCK, opened_market_data, opened_store
from exchange.names import check_known
from market.candle import CANDLE_SCHEMA, CandleState
from market.clock import iso
from market.errors import BadInput
from market.instrument import Series
from store.archive.archive import Archive
from store.batch import CandleBatch, Written
from store.candle_files.reading import read_candle_file, recognise
from store.candle_files.writing import format_of, write_candle_file

_PAGE = 100_000
_SHOWN_REFUSALS = 10


def import_file(
    file: Annotated[Path, typer.Argument(help="A candle file, or the folder of an archive.")],
    exchange: Annotated[str | None, typer.Option("--exchange", help="ccxt exchange id.")] = None,
    symbol: Annotated[str | None, typer.Option("--symbol", help="ccxt unified symbol.")] = None,
    timeframe: Timeframe = "1m",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Store the candles of a file and say which layout was recognised.

    Rows that break a rule go to quarantine with their reasons; the others are stored. Exit code 1 if any were
    refused. The folder of an archive brings its own names: all its series are restored.
    """
    settings = load(home)
    if file.is_dir():
        report = run(_restore(settings, file))
    else:
        if exchange is None or symbol is None:
            raise BadInput("--exchange" if exchange is None else "--symbol", "", "the market that the file is of")
        series = Series.parse(exchange, symbol, timeframe)
        if exchange != SIMULATED:
            check_known(exchange, "--exchange")
        report = run(_import(settings, file, series))
    if as_json:
        print_json(report)
    else:
        remark(f"{file}: {report['format']}")
        counts = ["inserted", "corrected", "unchanged", "outranked", "refused"]
        print_table(
            ["series", *counts], [[one["series"], *[one[key] for key in counts]] for one in report["series"]]
        )
        for reason in report["refusals"]:
            remark(f"row {reason['row']}: {reason['reason']}")
        more = sum(one["refused"] for one in report["series"]) - len(report["refusals"])
        if more > 0:
            remark(f"... and {more:,} more refused rows, all in quarantine")
    if any(one["refused"] for one in report["series"]):
        raise typer.Exit(1)


async def _import(settings: Settings, file: Path, series: Series) -> dict[str, Any]:
    found = recognise(file)
    batches = read_candle_file(file, series.timeframe)
    total = Written()
    async with opened_store(settings) as store:
        for batch in batches:
            written = await store.write(
                CandleBatch(
                    series=series,
                    source=f"import {file.name}",
                    now_ms=CLOCK.now_ms(),
                    table=batch.table,
                    state=CandleState.VERIFIED,
                    refusals=batch.refusals,
                )
            )
            # Rows that the store refused are counted within the batch; people look for them in the file.
            by_store = written.refusals[len(batch.refusals) :]
            in_file = tuple(replace(one, row=int(batch.rows[one.row])) for one in by_store)
            total += replace(written, refusals=batch.refusals + in_file)
    return _report(found.name, found.description, [(series, total)])


async def _restore(settings: Settings, folder: Path) -> dict[str, Any]:
    source = Archive(folder)
    manifests = source.manifests()
    if not manifests:
        raise BadInput("file", str(folder), "a candle file, or a folder that `chandlery archive` wrote")
    async with opened_store(settings) as store:
        restored = [(one.series, await source.restore(store, one.series, CLOCK)) for one in manifests]
    return _report("chandlery archive", "Parquet files with a manifest for each series", restored)


def _report(name: str, description: str, written: list[tuple[Series, Written]]) -> dict[str, Any]:
    refusals = sorted((refusal for _, one in written for refusal in one.refusals), key=lambda one: one.row)
    return {
        "format": f"{name} ({description})",
        "series": [
            {
                "series": str(series),
                "inserted": one.inserted,
                "corrected": one.corrected,
                "unchanged": one.unchanged,
                "outranked": one.outranked,
                "refused": len(one.refusals),
            }
            for series, one in written
        ],
        "refusals": [
            {
                "row": one.row,
                "open_time": None if one.open_time is None else iso(one.open_time),
                "reason": one.reason,
                "raw": one.raw,
            }
            for one in refusals[:_SHOWN_REFUSALS]
        ],
    }


def export_file(
    exchange: Exchange,
    symbol: Symbol,
    out: Annotated[Path, typer.Option("--out", help="File to write: .csv, .parquet, .arrow or .feather.")],
    timeframe: Timeframe = "1m",
    since: Since = None,
    until: Until = None,
    as_of: AsOf = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Write the candles of a series to a file. It appears whole or not at all."""
    settings = load(home)
    series = Series.parse(exchange, symbol, timeframe)
    format_ = format_of(out)
    start, end = instant(since, "--since"), instant(until, "--until")
    if start is not None and end is not None and start >= end:
        raise BadInput("--until", until, f"an instant after --since ({since}); ranges are [since, until)")
    known_at = instant(as_of, "--as-of")
    check_past(known_at, "--as-of", CLOCK.now_ms())
    rows, incomplete = _export(settings, series, start, end, known_at, out, overwrite)
    if as_json:
        print_json({"file": str(out), "format": format_, "rows": rows, "incomplete": incomplete})
        return
    remark(f"{out}: {rows:,} candles of {series}")
    if incomplete:
        remark(f"{incomplete:,} of them lack minutes, see the column missing and `chandlery gaps`")


def _export(
    settings: Settings,
    series: Series,
    start: int | None,
    end: int | None,
    as_of: int | None,
    out: Path,
    overwrite: bool,
) -> tuple[int, int]:
    """Read a page, write a page: a long range needs the memory of one. Rows, and how many of them lack minutes."""
    incomplete = 0
    with asyncio.Runner() as runner:
        opened = contextlib.AsyncExitStack()
        market_data = runner.run(opened.enter_async_context(opened_market_data(settings)))
        try:
            whole, _ = runner.run(market_data.coverage(series))
            check_past(start, "--since", max(CLOCK.now_ms(), whole.end))
            first = whole.start if start is None else start
            last = max(whole.end, first + 1) if end is None else end

            def pages() -> Iterator[pa.Table]:
                nonlocal incomplete
                next_start: int | None = first
                while next_start is not None:
                    page = market_data.candles(
                        series, start_ms=next_start, end_ms=last, limit=_PAGE, as_of_ms=as_of
                    )
                    answer = runner.run(page)
                    incomplete += int(np.count_nonzero(answer.table["missing"].to_numpy()))
                    # Derived candles say what they lack, also to whoever imports them again.
                    derived = ("missing",) if answer.derived_from else ()
                    yield answer.table.select([*CANDLE_SCHEMA.names, *derived])
                    next_start = answer.next_start

            return write_candle_file(out, pages(), overwrite=overwrite), incomplete
        finally:
            runner.run(opened.aclose())
