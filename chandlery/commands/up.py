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
from chandlery.exchanges import opened_exchange
from chandlery.live_feed import FeedPlan, OpenedFeed, opened_feed
from chandlery.options import ExchangeUrl, Home, Since, Timeframe, instant, load, run, symbols_of
from chandlery.output import remark
from chandlery.progress import backfill_bar
from chandlery.redis import opened_redis, opened_safety
from chandlery.settings import SIMULATED, Settings
from chandlery.status_file import STATUS_NAME
from chandlery.tiers import opened_tiers
from chandlery.wiring import CLOCK, archive, holding, opened_store, recorded
from exchange.budget import Purpose
from exchange.simulator.server import SimulatorConfig, running_simulator
from ingest.backfill import BackfillRules, backfill
from ingest.patience import History
from ingest.report import SeriesReport
from market import timeframe as timeframes
from market.clock import iso
from market.errors import BadInput, Retryable
from market.interval import Interval
from market.timeframe import DAY_MS
from serve.app import create_app
from serve.server import serve_app
from store.archive.archive import ArchiveReport
from store.candle_store import CandleStore
from store.live_market import LiveMarket
from store.live_source import LocalMarket
from store.market_data import MarketData

_DEFAULT_DAYS = 7
#: A demonstration's exchange begins at the same instant each time, so that its numbers can be compared; in the week
#: before it the made-up market has an outage.
_DEMO_NOW = "2024-05-31T00:00:30Z"
_DEMO_SPEED = 60.0
_ARCHIVE_EVERY_SECONDS = 3600.0
_RETRY_SECONDS = 60.0


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
            store = await stack.enter_async_context(opened_store(settings))
            memory = LiveMarket(CLOCK)
            views = await stack.enter_async_context(opened_tiers(settings, store, archive(settings), CLOCK))
            market_data = MarketData(
                store, LocalMarket(memory, CLOCK), CLOCK, archive(settings), views, recorded(settings, store)
            )
            ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            app = create_app(lambda: _shared(market_data), archive(settings))
            # The service comes first: a port in use is known before anything is fetched, and what is stored
            # already can be read while the rest comes in.
            serving = asyncio.create_task(serve_app(app, settings.host, settings.port, ready.set_result))
            stack.push_async_callback(_end, serving)
            await _first(ready, serving)
            announce(ready.result())
            url = plan.url
            if plan.simulator is not None:
                url = await stack.enter_async_context(running_simulator(plan.simulator))
                remark(f"simulated exchange on {url}")
            history = await stack.enter_async_context(
                opened_exchange(plan.exchange, url, settings.limits_folder, Purpose.BACKFILL)
            )
            feed = FeedPlan(
                exchange=plan.exchange,
                url=url,
                symbols=plan.symbols,
                timeframe=plan.timeframe,
                since_ms=plan.since or 0,
            )
            connection = await stack.enter_async_context(opened_redis(settings))
            writable = await stack.enter_async_context(opened_safety(store, connection))
            live = await stack.enter_async_context(
                opened_feed(
                    feed,
                    settings,
                    store,
                    memory,
                    Teller(),
                    connection=connection,
                    cache_writable=writable,
                )
            )
            keeping = asyncio.create_task(_keep(plan, demo, history, store, live, ready.result()))
            stack.push_async_callback(_end, keeping)
            await _first(keeping, serving)
            return keeping.result()


async def _keep(plan: Plan, demo: bool, history: History, store: CandleStore, live: OpenedFeed, url: str) -> bool:
    """Fill, keep current and archive, until cancelled or shown; true if nothing is missing."""
    settings = plan.settings
    reports: list[SeriesReport] = []
    try:
        reports = await _fill(plan, history, store)
    except Retryable as error:
        if demo:
            raise
        # What is stored is served meanwhile; the exchange may come back.
        remark(f"{error}; trying again every {_RETRY_SECONDS:.0f} s")
    print_reports(reports)
    complete = bool(reports) and all(one.complete for one in reports)
    # An explicit start is a bound: the loop fills the gaps of the last day, but nothing that was not asked for.
    works: list[asyncio.Task[Any]] = [asyncio.create_task(live.run(settings.home / STATUS_NAME))]
    if demo:
        works.append(asyncio.create_task(show(settings, store, live.feed.loop, url, reports)))
    else:
        works.append(asyncio.create_task(_archive_hourly(settings, store)))
        if not complete:
            works.append(asyncio.create_task(_fill_the_rest(plan, history, store)))
    try:
        await _first(*works[:2])
        return complete
    finally:
        for task in works:
            await _end(task)


async def _first(*works: asyncio.Future[Any]) -> None:
    """Return when one of `works` has ended; its error is ours."""
    done, _ = await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


async def _end(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has let go of everything; what went wrong in it was said before."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()


async def _fill(plan: Plan, history: History, store: CandleStore) -> list[SeriesReport]:
    now = await history.server_time()
    start = now - _DEFAULT_DAYS * DAY_MS if plan.since is None else plan.since
    if start >= now:
        raise BadInput("--since", iso(start), f"an instant before the exchange's now ({iso(now)})")
    rules = BackfillRules(settle_ms=plan.settings.settle_ms, concurrency=plan.settings.concurrency)
    with backfill_bar() as bar:
        return await backfill(
            history, store, CLOCK, plan.symbols, plan.timeframe, Interval(start, now), rules=rules, progress=bar
        )


async def _fill_the_rest(plan: Plan, history: History, store: CandleStore) -> None:
    """Try again, a while later each time, what an exchange in trouble left unfilled."""
    complete = False
    while not complete:
        await asyncio.sleep(_RETRY_SECONDS)
        try:
            complete = all(one.complete for one in await _fill(plan, history, store))
        except Retryable as error:
            remark(f"still incomplete: {error}")


@contextlib.asynccontextmanager
async def _shared(market_data: MarketData) -> AsyncIterator[MarketData]:
    """The service reads through the same objects that ingest writes; who made them closes them."""
    yield market_data


async def _archive_hourly(settings: Settings, store: CandleStore) -> None:
    while True:
        try:
            await archive_all(settings, store)
        except Retryable as error:
            # Somebody else is archiving this home just now.
            remark(str(error))
        await asyncio.sleep(_ARCHIVE_EVERY_SECONDS)


async def archive_all(settings: Settings, store: CandleStore) -> list[ArchiveReport]:
    """Bring the archive of every series up to the store."""
    return [await archive(settings).build(store, one.series) for one in await store.series()]
