"""``ingest``: keep series current, without serving them."""

from __future__ import annotations

from typing import Annotated

import typer

from chandlery.live_feed import FeedPlan, opened_feed
from chandlery.options import Exchange, ExchangeUrl, Home, Symbols, Timeframe, load, run, symbols_of
from chandlery.output import remark
from chandlery.redis import opened_redis, opened_safety
from chandlery.settings import Settings
from chandlery.status_file import STATUS_NAME
from chandlery.wiring import CLOCK, holding, opened_store
from ingest.live import LiveStatus
from market import timeframe as timeframes
from market.clock import iso
from store.live_market import LiveMarket

Channels = Annotated[
    str | None, typer.Option("--channels", help="Comma-separated: candles,trades,tickers,order_books.")
]


def ingest(
    exchange: Exchange,
    symbols: Symbols,
    timeframe: Timeframe = "1m",
    channels: Channels = None,
    record_trades: Annotated[
        bool | None, typer.Option("--record-trades/--no-record-trades", help="Keep every live trade.")
    ] = None,
    streams: Annotated[
        bool | None, typer.Option("--streams/--rest-only", help="Use live streams, or REST alone.")
    ] = None,
    bus: Annotated[
        str | None, typer.Option("--bus", help="Where messages are published: redis://…, amqp://…")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option("--metrics-port", help="Prometheus metrics on 127.0.0.1.")
    ] = None,
    exchange_url: ExchangeUrl = None,
    home: Home = None,
) -> None:
    """Keep series current until Ctrl-C: each closed candle is stored as soon as the exchange says so.

    Streams come first; REST fills what they miss. Gaps of the last day are filled; older ones are a backfill's
    work. `chandlery status` shows where the data comes from.
    """
    settings = load(
        home,
        channels=channels,
        record_trades=record_trades,
        streams=streams,
        bus_url=bus,
        metrics_port=metrics_port,
    )
    plan = FeedPlan(
        exchange=exchange,
        url=exchange_url,
        symbols=symbols_of(symbols),
        timeframe=timeframes.Timeframe.parse(timeframe),
    )
    try:
        run(_keep_current(settings, plan))
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


async def _keep_current(settings: Settings, plan: FeedPlan) -> None:
    with holding(settings, "ingest"):
        async with (
            opened_store(settings) as store,
            opened_redis(settings) as connection,
            opened_safety(store, connection) as writable,
            opened_feed(
                plan,
                settings,
                store,
                LiveMarket(CLOCK),
                Teller(),
                connection=connection,
                cache_writable=writable,
            ) as feed,
        ):
            await feed.run(settings.home / STATUS_NAME)


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
