"""``up``: the whole of it in one process: exchange, backfill, live ingest, archive and HTTP service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from chandlery.commands.backfill import print_reports
from chandlery.commands.demo import show
from chandlery.commands.ingest import Teller
from chandlery.commands.serve import Host, Port, announce
from chandlery.exchanges import SIMULATED, opened_exchange
from chandlery.options import ExchangeUrl, Home, Since, Timeframe, instant, load, run, symbols_of
from chandlery.output import remark
from chandlery.progress import backfill_bar
from chandlery.settings import Settings
from chandlery.wiring import CLOCK, archive, holding, opened_store
from exchange.simulator.server import SimulatorConfig, running_simulator
from ingest.backfill import BackfillRules, backfill
from ingest.live import LiveLoop, LiveRules
from ingest.patience import History
from ingest.report import SeriesReport
from market import timeframe as timeframes
from market.errors import BadInput
from market.interval import Interval
from market.timeframe import DAY_MS
from serve.app import create_app
from serve.server import serve_app
from store.archive.archive import ArchiveReport
from store.live import LiveCandles
from store.market_data import MarketData
from store.sqlite.store import SqliteStore

_DEFAULT_DAYS = 7
#: A demonstration's exchange begins at the same instant each time, so that its numbers can be compared; in the week
#: before it the made-up market has an outage.
_DEMO_NOW = "2024-05-31T00:00:30Z"
_DEMO_SPEED = 60.0
_ARCHIVE_EVERY_SECONDS = 3600.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to run."""

    settings: Settings
    exchange: str
    #: None: the exchange's own address, or a simulated exchange started here.
    url: str | None
    simulator: SimulatorConfig | None
    symbols: list[str]
    timeframe: timeframes.Timeframe
    #: Epoch milliseconds; None for a week before exchange time.
    since: int | None


def up(
    exchange: Annotated[str, typer.Option("--exchange", help="ccxt exchange id, or simulated.")] = SIMULATED,
    symbols: Annotated[str, typer.Option("--symbols", help="Comma-separated.")] = "BTC/USDT,ETH/USDT",
    timeframe: Timeframe = "1m",
    since: Since = None,
    exchange_url: ExchangeUrl = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Recorded candles for the simulated exchange.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of its made-up market.")] = None,
    speed: Annotated[float | None, typer.Option("--speed", help="How many times faster its clock runs.")] = None,
    now: Annotated[str | None, typer.Option("--now", help="Its time at the start.")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="End by itself with a summary.")] = False,
    host: Host = None,
    port: Port = None,
    home: Home = None,
) -> None:
    """Fetch the last week, keep it current, archive it and serve it.

    Runs until Ctrl-C.

    By default from a simulated exchange that is started along; its candles are kept under the exchange name
    `simulated`. `--exchange binance` is the real one.
    """
    settings = load(home, host=host, port=0 if demo and port is None else port)
    simulator = None
    if exchange == SIMULATED and exchange_url is None:
        if demo and now is None and data is None:
            now = _DEMO_NOW
        simulator = SimulatorConfig(
            data=data,
            seed=seed,
            symbols=tuple(symbols_of(symbols)),
            now_ms=instant(now, "--now"),
            speed=speed if speed is not None else (_DEMO_SPEED if demo else 1.0),
            port=0,
        )
    elif data is not None or seed is not None or speed is not None or now is not None:
        raise BadInput("--data, --seed, --speed, --now", exchange, "--exchange simulated without --exchange-url")
    plan = Plan(
        settings=settings,
        exchange=exchange,
        url=exchange_url,
        simulator=simulator,
        symbols=symbols_of(symbols),
        timeframe=timeframes.Timeframe.parse(timeframe),
        since=instant(since, "--since"),
    )
    try:
        complete = run(_run(plan, demo))
    except KeyboardInterrupt:
        remark("stopped; everything committed stays")
        raise typer.Exit(0) from None
    if not complete:
        raise typer.Exit(1)


async def _run(plan: Plan, demo: bool) -> bool:
    """Everything, until cancelled or, in a demonstration, done; true if nothing is missing."""
    settings = plan.settings
    with holding(settings, "up"):
        async with contextlib.AsyncExitStack() as stack:
            url = plan.url
            if plan.simulator is not None:
                url = await stack.enter_async_context(running_simulator(plan.simulator))
                remark(f"simulated exchange on {url}")
            store = await stack.enter_async_context(opened_store(settings))
            history = await stack.enter_async_context(opened_exchange(plan.exchange, url))
            reports = await _fill(plan, history, store)
            print_reports(reports)
            live = LiveCandles(CLOCK)
            rules = LiveRules(settle_ms=settings.settle_ms, concurrency=settings.concurrency)
            loop = LiveLoop(
                history, store, live, CLOCK, plan.symbols, plan.timeframe, rules=rules, on_status=Teller()
            )
            market_data = MarketData(store, live, CLOCK)
            ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            app = create_app(lambda: _shared(market_data), archive(settings))
            works: list[asyncio.Future[Any]] = [
                asyncio.create_task(loop.run()),
                asyncio.create_task(serve_app(app, settings.host, settings.port, ready.set_result)),
                asyncio.create_task(_archive_hourly(settings, store)),
            ]
            try:
                await asyncio.wait([ready, *works], return_when=asyncio.FIRST_COMPLETED)
                if ready.done():
                    announce(ready.result())
                if demo and ready.done():
                    works.append(asyncio.create_task(show(settings, store, loop, ready.result(), reports)))
                done, _ = await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in works:
                    task.cancel()
                await asyncio.gather(*works, return_exceptions=True)
            return all(one.complete for one in reports)


async def _fill(plan: Plan, history: History, store: SqliteStore) -> list[SeriesReport]:
    now = await history.server_time()
    start = now - _DEFAULT_DAYS * DAY_MS if plan.since is None else plan.since
    if start >= now:
        raise BadInput("--since", start, "an instant before the exchange's now")
    rules = BackfillRules(settle_ms=plan.settings.settle_ms, concurrency=plan.settings.concurrency)
    with backfill_bar() as bar:
        return await backfill(
            history, store, CLOCK, plan.symbols, plan.timeframe, Interval(start, now), rules=rules, progress=bar
        )


@contextlib.asynccontextmanager
async def _shared(market_data: MarketData) -> AsyncIterator[MarketData]:
    """The service reads through the same objects that ingest writes; who made them closes them."""
    yield market_data


async def _archive_hourly(settings: Settings, store: SqliteStore) -> None:
    while True:
        await archive_all(settings, store)
        await asyncio.sleep(_ARCHIVE_EVERY_SECONDS)


async def archive_all(settings: Settings, store: SqliteStore) -> list[ArchiveReport]:
    """Bring the archive of every series up to the store."""
    return [await archive(settings).build(store, one.series) for one in await store.series()]
