"""``archive``: bring the Parquet archive up to the store, or check it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from chandlery.options import AsJson, Home, load, run
from chandlery.output import print_json, print_table, remark
from chandlery.settings import Settings
from chandlery.wiring import archive, opened_store
from market.errors import NotFound
from market.instrument import Series
from store.archive.archive import ArchiveReport


def archive_series(
    exchange: Annotated[str | None, typer.Option("--exchange", help="Only this exchange.")] = None,
    symbol: Annotated[str | None, typer.Option("--symbol", help="Only this symbol.")] = None,
    timeframe: Annotated[str | None, typer.Option("--timeframe", help="Only this timeframe.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Only compare every file with the manifest.")] = False,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Write what changed since the last time into the Parquet archive.

    Can be stopped at any moment: the archive is then in its old or its new state. With --verify exit code 1 if
    a file differs from the manifest.
    """
    settings = load(home)
    if verify:
        _verify(settings, exchange, symbol, timeframe, as_json)
        return
    reports = run(_build(settings, exchange, symbol, timeframe))
    if as_json:
        print_json({"archive": str(settings.archive_path), "series": [_record(one) for one in reports]})
        return
    print_table(
        ["series", "files", "candles", "written", "removed", "bytes", "fingerprint"],
        [
            [str(one.series), one.files, one.rows, one.written, one.removed, one.size, one.fingerprint[:16]]
            for one in reports
        ],
    )


async def _build(
    settings: Settings, exchange: str | None, symbol: str | None, timeframe: str | None
) -> list[ArchiveReport]:
    async with opened_store(settings, read_only=True) as store:
        stored = [one.series for one in await store.series()]
        chosen = _chosen(stored, exchange, symbol, timeframe)
        return [await archive(settings).build(store, one) for one in chosen]


def _verify(
    settings: Settings, exchange: str | None, symbol: str | None, timeframe: str | None, as_json: bool
) -> None:
    books = archive(settings)
    chosen = _chosen([one.series for one in books.manifests()], exchange, symbol, timeframe)
    wrong = [line for one in chosen for line in books.verify(one)]
    if as_json:
        print_json({"archive": str(settings.archive_path), "series": len(chosen), "wrong": wrong})
    else:
        for line in wrong:
            remark(line)
        remark(f"{settings.archive_path}: {len(chosen)} series, {len(wrong)} files differ")
    if wrong:
        raise typer.Exit(1)


def _chosen(stored: list[Series], exchange: str | None, symbol: str | None, timeframe: str | None) -> list[Series]:
    for field, value, known in (
        ("--exchange", exchange, sorted({one.exchange for one in stored})),
        ("--symbol", symbol, sorted({one.symbol for one in stored})),
        ("--timeframe", timeframe, sorted({one.timeframe.name for one in stored})),
    ):
        if value is not None and value not in known:
            raise NotFound(field, value, known)
    return [
        one
        for one in stored
        if exchange in (None, one.exchange)
        and symbol in (None, one.symbol)
        and timeframe in (None, one.timeframe.name)
    ]


def _record(report: ArchiveReport) -> dict[str, Any]:
    return {
        "exchange": report.series.exchange,
        "symbol": report.series.symbol,
        "timeframe": report.series.timeframe.name,
        "files": report.files,
        "rows": report.rows,
        "written": report.written,
        "removed": report.removed,
        "bytes": report.size,
        "fingerprint": report.fingerprint,
    }
