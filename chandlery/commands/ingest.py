"""``ingest``: keep series current, without serving them."""

from __future__ import annotations

import typer

from chandlery.exchanges import opened_exchange
from chandlery.options import Exchange, ExchangeUrl, Home, Symbols, Timeframe, load, run, symbols_of
from chandlery.output import remark
from chandlery.settings import Settings
from chandlery.wiring import CLOCK, holding, opened_store
from ingest.live import LiveLoop, LiveRules, LiveStatus
from market import timeframe as timeframes
from market.clock import iso
from store.live import LiveCandles


def ingest(
    exchange: Exchange,
    symbols: Symbols,
    timeframe: Timeframe = "1m",
    exchange_url: ExchangeUrl = None,
    home: Home = None,
) -> None:
    """Keep series current until Ctrl-C: each closed candle is stored shortly after it closed.

    Gaps of the last day are filled; older ones are a backfill's work.
    """
    settings = load(home)
    length = timeframes.Timeframe.parse(timeframe)
    try:
        run(_keep_current(settings, exchange, exchange_url, symbols_of(symbols), length))
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


async def _keep_current(
    settings: Settings, exchange: str, url: str | None, symbols: list[str], timeframe: timeframes.Timeframe
) -> None:
    with holding(settings, "ingest"):
        async with opened_store(settings) as store, opened_exchange(exchange, url) as history:
            rules = LiveRules(settle_ms=settings.settle_ms, concurrency=settings.concurrency)
            loop = LiveLoop(
                history,
                store,
                LiveCandles(CLOCK),
                CLOCK,
                symbols,
                timeframe,
                rules=rules,
                on_status=Teller(),
            )
            await loop.run()


class Teller:
    """Says on stderr when a series got a new candle, and when it got into trouble or out of it."""

    def __init__(self) -> None:
        self._said: dict[object, tuple[int | None, str | None]] = {}

    def __call__(self, status: LiveStatus) -> None:
        said = (status.last_closed, status.error)
        if self._said.get(status.series) == said:
            return
        self._said[status.series] = said
        if status.error is not None:
            remark(f"{status.series}: {status.error}")
        elif status.last_closed is not None:
            remark(f"{status.series}: current up to {iso(status.series.timeframe.next(status.last_closed))}")
