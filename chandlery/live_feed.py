"""The part of the composition root that puts a live feed together, and says how it fares."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
from prometheus_client import CollectorRegistry, start_http_server

from chandlery.exchanges import opened_exchange, streams_of
from chandlery.output import remark
from chandlery.settings import Settings
from chandlery.wiring import CLOCK
from exchange.budget import Purpose
from exchange.stream import StreamClient
from ingest.feed import Feed
from ingest.feed_rules import FeedRules, FeedStore
from ingest.live import LiveRules, LiveStatus
from ingest.metrics import WriterMetrics
from ingest.route import SilenceRules
from ingest.writer import Writer, WriterRules
from ingest.writer_status import OnDurable
from market.errors import Terminal
from market.timeframe import Timeframe
from store.bus.opening import opened_bus
from store.files import UNFINISHED
from store.live_market import LiveMarket
from store.redis.live_rules import RedisCommands
from store.redis.live_writer import RedisLiveWriter

_STATUS_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class FeedPlan:
    """What a live feed is to bring."""

    exchange: str
    #: None for the exchange's own address.
    url: str | None
    symbols: list[str]
    timeframe: Timeframe
    #: Nothing that opens before this instant is asked for, epoch milliseconds.
    since_ms: int = 0


@dataclass(frozen=True)
class OpenedFeed:
    """A feed with its writer."""

    feed: Feed
    writer: Writer
    #: Writes what is live to Redis; None where no other process is to see it.
    live_writer: RedisLiveWriter | None = None

    async def run(self, status_file: Path) -> None:
        """Run until cancelled, and keep saying how it fares."""
        saying = asyncio.create_task(self._say(status_file))
        try:
            await self.feed.run(self.writer)
        finally:
            saying.cancel()
            await asyncio.gather(saying, return_exceptions=True)

    async def _say(self, file: Path) -> None:
        while True:
            body = {"pid": os.getpid(), **self.feed.status(self.writer).as_json()}
            if self.live_writer is not None:
                body["redis"] = asdict(self.live_writer.status)
            # A full disk must not end what is kept in a database elsewhere.
            with contextlib.suppress(OSError):
                _replace(file, orjson.dumps(body))
            await asyncio.sleep(_STATUS_SECONDS)


@contextlib.asynccontextmanager
async def opened_feed(
    plan: FeedPlan,
    settings: Settings,
    store: FeedStore,
    memory: LiveMarket,
    on_status: Callable[[LiveStatus], None] | None = None,
    on_durable: OnDurable | None = None,
    connection: RedisCommands | None = None,
    cache_writable: Callable[[], bool] = lambda: True,
) -> AsyncIterator[OpenedFeed]:
    """A feed, ready to run; what its writer holds is made durable at the end.

    :param on_durable: told of every batch of the streams that became durable.
    :param connection: the Redis through which other processes see what is live; None for no others.
    :param cache_writable: whether the safety state lets it be written; asked often.
    :raises StoreUnusable: on leaving, where neither the store nor the journal can be written.
    """
    registry = CollectorRegistry()
    async with contextlib.AsyncExitStack() as stack:
        history = await stack.enter_async_context(
            opened_exchange(plan.exchange, plan.url, settings.limits_folder, Purpose.LIVE)
        )
        bus = await stack.enter_async_context(opened_bus(settings.bus_url))
        live_writer = None
        if connection is not None:
            live_writer = await stack.enter_async_context(
                RedisLiveWriter.opened(connection, memory, CLOCK, allowed=cache_writable)
            )
        feed = Feed(
            history,
            _streams(plan) if settings.streams else None,
            store,
            memory,
            CLOCK,
            plan.symbols,
            plan.timeframe,
            rules=_rules(plan, settings),
            bus=bus,
            on_status=on_status,
            limits=history.budgets,
        )
        writer = await stack.enter_async_context(
            Writer.opened(
                store,
                settings.home / "journal",
                CLOCK,
                rules=WriterRules(journal_bytes=settings.journal_bytes),
                on_crowded=feed.crowded,
                on_durable=on_durable,
                metrics=WriterMetrics(registry),
            )
        )
        if settings.metrics_port is not None:
            stack.callback(_stop, *_metrics(settings.metrics_port, registry))
        yield OpenedFeed(feed, writer, live_writer)


def _replace(file: Path, body: bytes) -> None:
    """Readers see the old content or the new one. It need not survive a power cut, so nothing is synced."""
    temporary = file.with_name(file.name + UNFINISHED)
    temporary.write_bytes(body)
    temporary.replace(file)


def _streams(plan: FeedPlan) -> Callable[[Mapping[str, str]], StreamClient]:
    return lambda symbols: streams_of(plan.exchange, plan.url, symbols)


def _rules(plan: FeedPlan, settings: Settings) -> FeedRules:
    channels = set(settings.channels)
    return FeedRules(
        channels=frozenset(channels),
        record_trades=settings.record_trades,
        live=LiveRules(settle_ms=settings.settle_ms, concurrency=settings.concurrency, since_ms=plan.since_ms),
        silence=SilenceRules(silent_after=round(settings.silence * 1000)),
    )


def _metrics(port: int, registry: CollectorRegistry) -> tuple[Any, Any]:
    """Serve the metrics of `registry`."""
    try:
        server, thread = start_http_server(port, "127.0.0.1", registry)
    except OSError as error:
        raise Terminal(
            f"cannot serve metrics on 127.0.0.1:{port}: {error.strerror}. Choose another port"
        ) from error
    remark(f"metrics on http://127.0.0.1:{server.server_port}/metrics")
    return server, thread


def _stop(server: Any, thread: Any) -> None:
    server.shutdown()
    server.server_close()
    thread.join()
