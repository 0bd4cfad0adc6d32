"""``check``: prove what is stored, and say what is wrong or missing."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from chandlery.options import AsJson, Home, load, run
from chandlery.output import print_json, print_table, remark
from chandlery.settings import Settings
from chandlery.wiring import CLOCK, archive, opened_store
from market.clock import iso
from market.errors import NotFound
from store.difference import Difference, InstrumentDifference
from store.hybrid.store import HybridStore
from store.integrity import Finding, archived_candles, check_series
from store.message_quarantine import KEPT_MESSAGES, QuarantinedMessage
from store.trade_store import TradeStore

#: The kind of a finding in which two stores that should hold the same differ.
_BETWEEN = "primary/secondary"
#: Of the messages that could not be used, so many are shown of each exchange.
_SHOWN_MESSAGES = 3


def check(
    exchange: Annotated[str | None, typer.Option("--exchange", help="Only this exchange.")] = None,
    symbol: Annotated[str | None, typer.Option("--symbol", help="Only this symbol.")] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Read everything and compare: rules, ledger, digests, gaps, larger candles against minutes, two databases.

    Exit code 1 on a finding. Messages of live streams that could not be used are shown, and are none.
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
        if report["archived"]:
            remark(
                f"{report['archived']:,} candles are in the archive alone and were not looked at, but for their "
                "digests; `chandlery archive --verify` reads them"
            )
        for name, refused in report["refused_messages"].items():
            for line in _said(name, refused):
                remark(line)
        remark(f"{report['series']} series, {report['rows']:,} candles: {len(report['findings'])} findings")
    if report["findings"] or report["database"]:
        raise typer.Exit(1)


async def _check(settings: Settings, exchange: str | None, symbol: str | None) -> dict[str, Any]:
    async with opened_store(settings, read_only=True) as store:
        stored = await store.series()
        damage = await store.integrity()
        both = store if isinstance(store, HybridStore) else None
        # Where the secondary does not answer, `damage` says so.
        compared = both is not None and both.status.answering
        if both is not None and compared:
            known = {one.series for one in stored}
            stored += [one for one in await both.secondary_series() if one.series not in known]
        if exchange is not None and exchange not in {one.series.exchange for one in stored}:
            raise NotFound("--exchange", exchange, sorted({one.series.exchange for one in stored}))
        if symbol is not None and symbol not in {one.series.symbol for one in stored}:
            raise NotFound("--symbol", symbol, sorted({one.series.symbol for one in stored}))
        chosen = [
            one for one in stored if exchange in (None, one.series.exchange) and symbol in (None, one.series.symbol)
        ]
        findings: list[dict[str, Any]] = []
        archived = 0
        for one in chosen:
            findings += [_shown(found) for found in await check_series(store, one.series, CLOCK, archive(settings))]
            archived += await archived_candles(store, one.series)
            if both is not None and compared:
                findings += [_differing(found) async for found in both.differences(one.series)]
        if both is not None and compared:
            for found in await both.instrument_differences():
                if exchange in (None, found.exchange) and symbol in (None, found.symbol):
                    findings.append(_instrument(found))
        exchanges = {one.exchange for one in await store.instruments()} | {one.series.exchange for one in stored}
        refused = {
            name: shown
            for name in sorted(exchanges)
            if exchange in (None, name) and (shown := await _refused(store, name, symbol))
        }
        return {
            "series": len(chosen),
            "rows": sum(one.rows for one in chosen),
            "archived": archived,
            "database": damage,
            "findings": findings,
            "refused_messages": refused,
        }


async def _refused(store: TradeStore, exchange: str, symbol: str | None) -> dict[str, Any] | None:
    """The messages of an exchange that could not be used: how many, and the newest; None without any.

    :param symbol: only of this one, and those that did not say what they were about; None for all.
    """
    found = [
        one
        for one in await store.refused_messages(exchange, KEPT_MESSAGES)
        if symbol is None or one.symbol in (None, symbol)
    ]
    if not found:
        return None
    return {
        "kept": len(found),
        "received": sum(one.times for one in found),
        "newest": [_message(one) for one in found[:_SHOWN_MESSAGES]],
    }


def _message(one: QuarantinedMessage) -> dict[str, Any]:
    return {
        "channel": one.channel and str(one.channel),
        "symbol": one.symbol,
        "reason": one.reason,
        "times": one.times,
        "received_at": iso(one.received_at),
        "raw": one.raw,
    }


def _said(exchange: str, refused: dict[str, Any]) -> list[str]:
    """The same for people, in lines."""
    lines = [f"{exchange}: messages that could not be used: {refused['received']:,}; the newest:"]
    for one in refused["newest"]:
        about = " ".join(part for part in (one["channel"], one["symbol"]) if part) or "unknown topic"
        lines.append(f"  {one['received_at']}, {one['times']} times, {about}: {' '.join(one['reason'].split())}")
    return lines


def _shown(found: Finding) -> dict[str, Any]:
    return {
        "series": str(found.series),
        "kind": found.kind,
        "start": iso(found.start),
        "end": iso(found.end),
        "detail": found.detail,
    }


def _differing(found: Difference) -> dict[str, Any]:
    return {
        "series": str(found.series),
        "kind": _BETWEEN,
        "start": iso(found.interval.start),
        "end": iso(found.interval.end),
        "detail": found.detail,
    }


def _instrument(found: InstrumentDifference) -> dict[str, Any]:
    return {
        "series": f"{found.exchange} {found.symbol}",
        "kind": _BETWEEN,
        "start": None,
        "end": None,
        "detail": found.detail,
    }
