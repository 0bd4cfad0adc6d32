"""Reading a home folder without a service: the store, read-only, behind the same questions as HTTP.

The store is asynchronous and the client is not, and a notebook has an event loop of its own that must not be
entered again; so the store runs in the loop of one background thread.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import pyarrow as pa

from chandlery.wiring import postgres_module
from market.clock import SystemClock
from market.errors import NotFound
from market.instrument import Series, check_exchange
from serve.columns import chosen_columns
from serve.ranges import asked_interval, check_as_of, check_order, check_start
from serve.records import covered_record, instrument_record, pairs, series_record
from store.cache.statistics import TierStatistics
from store.cache.time_to_live import TimesToLive
from store.candle_store import CandleStore
from store.live_source import LocalMarket
from store.market_data import MarketData
from store.postgres.address import DatabaseUrl
from store.sqlite.store import DATABASE_NAME, SqliteStore
from store.tiers.process_memory import ProcessMemory
from store.tiers.tiered_views import TieredViews

_T = TypeVar("_T")

#: Candles that are kept in memory, bytes.
_MEMORY_BYTES = 256 << 20


class HomeSource:
    """The store of one home. Open with :meth:`opened`."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, thread: Thread, resources: AsyncExitStack, store: CandleStore
    ) -> None:
        self._loop = loop
        self._clock = SystemClock()
        statistics = TierStatistics(self._clock.now_ms)
        views = TieredViews(
            store,
            None,
            self._clock,
            entries=ProcessMemory(_MEMORY_BYTES, statistics),
            # A reader leaves no files behind.
            disk=None,
            times=TimesToLive(),
            statistics=statistics,
        )
        resources.callback(views.close)
        self._market_data = MarketData(store, LocalMarket.empty(self._clock), self._clock, views=views)
        # A client that nobody closes (a line in a shell) is closed with the interpreter.
        self._finalizer = weakref.finalize(self, _close, loop, thread, resources)

    @classmethod
    def opened(cls, home: Path) -> HomeSource:
        """Open the store of `home` for reading.

        :raises NotFound: there is no database.
        """
        path = home / DATABASE_NAME
        if not path.is_file():
            hint = f"a home folder with a {DATABASE_NAME} in it; `chandlery backfill` makes one"
            raise NotFound("home", str(home), hint=hint)
        return cls._running(SqliteStore.opened(path, SystemClock(), read_only=True))

    @classmethod
    def opened_database(cls, url: str) -> HomeSource:
        """Open the PostgreSQL database at `url` for reading.

        :raises BadInput: what the URL says is not so, or the extra ``postgres`` is not installed.
        :raises StoreUnavailable: the server does not answer.
        """
        address = DatabaseUrl.parse(url, "target")
        return cls._running(postgres_module(address).PostgresStore.opened(address, SystemClock(), read_only=True))

    @classmethod
    def _running(cls, opening: AbstractAsyncContextManager[CandleStore]) -> HomeSource:
        """The store, in the loop of a thread of its own."""
        loop = asyncio.new_event_loop()
        thread = Thread(target=loop.run_forever, name="chandlery-home", daemon=True)
        thread.start()
        resources = AsyncExitStack()
        try:
            store = asyncio.run_coroutine_threadsafe(resources.enter_async_context(opening), loop).result()
        except BaseException:
            _stop(loop, thread)
            raise
        return cls(loop, thread, resources, store)

    def candles(self, question: Mapping[str, Any]) -> pa.Table:
        """Every row of a question."""
        columns = chosen_columns(question["columns"], question["include_forming"])
        return self._run(self._candles(question)).select(columns)

    def records(self, noun: str, question: Mapping[str, Any]) -> list[Any]:
        """What ``/v1/<noun>`` gives under ``data``."""
        return self._run(self._records(noun, question))

    def close(self) -> None:
        """Close the store and end the thread; a second time does nothing."""
        self._finalizer()

    async def _candles(self, question: Mapping[str, Any]) -> pa.Table:
        series = _series(question)
        start_ms, end_ms, as_of_ms = question["start"], question["end"], question["as_of"]
        if start_ms is not None and end_ms is not None:
            check_order(start_ms, end_ms)
        if start_ms is not None:
            await check_start(self._market_data, self._clock, series, start_ms)
        if as_of_ms is not None:
            check_as_of(as_of_ms, self._clock)
        answer = await self._market_data.candles(
            series,
            start_ms=start_ms,
            end_ms=end_ms,
            limit=question["limit"],
            as_of_ms=as_of_ms,
            include_forming=question["include_forming"],
        )
        return answer.table

    async def _records(self, noun: str, question: Mapping[str, Any]) -> list[Any]:
        market_data = self._market_data
        if noun == "series":
            return [series_record(one) for one in await market_data.series()]
        if noun == "instruments":
            return await self._instruments(question.get("exchange"))
        series = _series(question)
        interval = await asked_interval(market_data, self._clock, series, question["start"], question["end"])
        if noun == "gaps":
            _, gaps = await market_data.gaps(series, interval)
            return pairs(gaps)
        _, covered = await market_data.coverage(series, interval)
        return [covered_record(one) for one in covered]

    async def _instruments(self, exchange: str | None) -> list[Any]:
        found = await self._market_data.instruments()
        if exchange is not None:
            known = sorted({one.exchange for one in found})
            found = [one for one in found if one.exchange == check_exchange(exchange)]
            if not found:
                raise NotFound("exchange", exchange, known)
        return [instrument_record(one) for one in found]

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _series(question: Mapping[str, Any]) -> Series:
    return Series.parse(question["exchange"], question["symbol"], question["timeframe"])


def _close(loop: asyncio.AbstractEventLoop, thread: Thread, resources: AsyncExitStack) -> None:
    asyncio.run_coroutine_threadsafe(resources.aclose(), loop).result()
    _stop(loop, thread)


def _stop(loop: asyncio.AbstractEventLoop, thread: Thread) -> None:
    asyncio.run_coroutine_threadsafe(loop.shutdown_default_executor(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
