"""The end of a demonstration: what was fetched, kept, archived, served and backtested, on one screen."""

from __future__ import annotations

import asyncio
import time

import httpx

from backtest.run import run_backtest
from chandlery.output import console, print_table
from chandlery.settings import Settings
from chandlery.wiring import archive
from ingest.live import LiveLoop
from ingest.report import SeriesReport
from market.clock import iso
from market.errors import Mismatch
from market.timeframe import TIMEFRAMES
from store.archive.archive import ArchiveReport
from store.candle_store import CandleStore
from trading.catalogue import load_strategy

_PATIENCE_SECONDS = 60.0
_STRATEGY = "sma_cross"


async def show(
    settings: Settings, store: CandleStore, loop: LiveLoop, url: str, reports: list[SeriesReport]
) -> None:
    """Wait for live candles, archive, ask the service, backtest, and print what came of it.

    :raises Mismatch: no live candle came within a minute.
    """
    live = await _live_candles(loop, store, reports)
    archived = [await archive(settings).build(store, one.series) for one in reports]
    series = reports[0].series
    names = {"exchange": series.exchange, "symbol": series.symbol, "timeframe": "15m", "limit": "4"}
    async with httpx.AsyncClient(base_url=url, timeout=10.0) as client:
        started = time.perf_counter()
        response = await client.get("/v1/candles", params=names)
        answered = (time.perf_counter() - started) * 1000
    response.raise_for_status()
    body = response.json()

    console.print("\nKept", style="bold")
    print_table(
        ["series", "fetched", "live", "verified empty", "missing", "requests"],
        [
            [str(one.series), one.stored, live[one.symbol], one.verified_empty, one.missing, one.requests]
            for one in reports
        ],
    )
    _print_archive(archived)
    console.print(f"\nServed: GET /v1/candles?{response.request.url.query.decode()}", style="bold")
    print_table(
        ["open time", *body["columns"][1:6]],
        [[iso(row[0]), *row[1:6]] for row in body["data"]],
    )
    console.print(
        f"{response.status_code} in {answered:.1f} ms, complete: {body['meta']['complete']}", highlight=False
    )
    result = await asyncio.to_thread(
        run_backtest,
        settings.archive_path,
        load_strategy(_STRATEGY, {}),
        series.exchange,
        [series.symbol],
        TIMEFRAMES["15m"],
    )
    console.print(f"\nBacktested: {_STRATEGY} on {series.symbol} 15m", style="bold")
    print_table(["", ""], result.summary())


def _print_archive(archived: list[ArchiveReport]) -> None:
    console.print("\nArchived", style="bold")
    print_table(
        ["series", "files", "candles", "bytes", "fingerprint"],
        [[str(one.series), one.files, one.rows, one.size, one.fingerprint[:16]] for one in archived],
    )


async def _live_candles(loop: LiveLoop, store: CandleStore, reports: list[SeriesReport]) -> dict[str, int]:
    """How many candles of each series came after the backfill, once each has some."""
    before = {one.symbol: one.stored for one in reports}
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        rows = {info.series: info.rows for info in await store.series()}
        live = {one.symbol: rows.get(one.series, 0) - before[one.symbol] for one in reports}
        if all(count > 1 for count in live.values()):
            return live
        await asyncio.sleep(0.2)
    errors = "; ".join(status.error for status in loop.statuses.values() if status.error) or "no error was seen"
    raise Mismatch(f"no live candle came within {_PATIENCE_SECONDS:.0f} s: {errors}")
