"""``check``: prove what is stored, and say what is wrong or missing."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from chandlery.options import AsJson, Home, load, run
from chandlery.output import print_json, print_table, remark
from chandlery.settings import Settings
from chandlery.wiring import CLOCK, opened_store
from market.clock import iso
from market.errors import NotFound
from store.integrity import check_series


def check(
    exchange: Annotated[str | None, typer.Option("--exchange", help="Only this exchange.")] = None,
    symbol: Annotated[str | None, typer.Option("--symbol", help="Only this symbol.")] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Read everything and compare: rules, ledger, digests, gaps, larger candles against minutes.

    Exit code 1 on a finding.
    """
    report = run(_check(load(home), exchange, symbol))
    if as_json:
        print_json(report)
    else:
        if report["findings"]:
            keys = ["series", "kind", "start", "end", "detail"]
            print_table(keys, [[one[key] for key in keys] for one in report["findings"]])
        for line in report["database"]:
            remark(f"database: {line}")
        remark(f"{report['series']} series, {report['rows']:,} candles: {len(report['findings'])} findings")
    if report["findings"] or report["database"]:
        raise typer.Exit(1)


async def _check(settings: Settings, exchange: str | None, symbol: str | None) -> dict[str, Any]:
    async with opened_store(settings, read_only=True) as store:
        stored = await store.series()
        if exchange is not None and exchange not in {one.series.exchange for one in stored}:
            raise NotFound("--exchange", exchange, sorted({one.series.exchange for one in stored}))
        if symbol is not None and symbol not in {one.series.symbol for one in stored}:
            raise NotFound("--symbol", symbol, sorted({one.series.symbol for one in stored}))
        chosen = [
            one for one in stored if exchange in (None, one.series.exchange) and symbol in (None, one.series.symbol)
        ]
        findings = [found for one in chosen for found in await check_series(store, one.series, CLOCK)]
        return {
            "series": len(chosen),
            "rows": sum(one.rows for one in chosen),
            "database": await store.integrity(),
            "findings": [
                {
                    "series": str(one.series),
                    "kind": one.kind,
                    "start": iso(one.start),
                    "end": iso(one.end),
                    "detail": one.detail,
                }
                for one in findings
            ],
        }
