"""Redis goes away under load: not one read of candles fails, and everything else is said exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from chandlery.settings import Settings
from chandlery.wiring import opened_store
from market.candle_update import CandleUpdate
from market.clock import SystemClock
from market.errors import NotFound, StoreUnavailable
from market.instrument import Series
from market.system_event import BROKER_DISCONNECT, BROKER_RECONNECT, Severity, SystemEvent
from market.ticker import Ticker
from market.timeframe import ONE_MINUTE
from store.cache.breaker import BreakerState, CircuitBreaker
from store.market_data import MarketData
from store.redis.address import RedisUrl
from store.redis.command import command
from store.redis.connection import RedisConnection
from store.redis.keys import tag
from store.redis.live_keys import live_key
from store.redis.live_reader import RedisMarket
from store.redis.live_values import write_forming, write_ticker
from store.redis.node import RedisRules
from tests.support.made_candles import HOUR, MINUTE, at
from tests.support.notes import eventually
from tests.support.redis_server import PrivateRedis
from tests.support.served_home import COLUMNS, LAST, SYMBOLS, Row, Service, Truth, fill, serving
from tests.support.tiered import tiered

BTC, ETH = (Series("binance", symbol, ONE_MINUTE) for symbol in SYMBOLS)
CLOCK = SystemClock()
PATIENT = RedisRules(answer_seconds=10, connect_seconds=10)
LIFETIME_MS = 600_000
READERS = 3


@contextlib.asynccontextmanager
async def connected(url: str, breaker: CircuitBreaker | None = None) -> AsyncIterator[RedisConnection]:
    """As patient as a busy machine needs."""
    nobody = CircuitBreaker("redis", CLOCK, lambda event: None, failures=1000)
    async with RedisConnection.opened(RedisUrl.parse(url), PATIENT, breaker or nobody) as connection:
        yield connection


def forming(close: float) -> CandleUpdate:
    """The minute after the last one that is stored."""
    now = CLOCK.now_ms()
    return CandleUpdate(at(LAST), 100.0, 200.0, 50.0, close, 3.0, None, 5, 1.0, None, None, False, now, now)


async def send(url: str, *commands: Any) -> None:
    async with connected(url) as connection:
        await connection.pipeline(commands)


@dataclass
class Load:
    """Readers of candles that never stop, and what they saw."""

    url: str
    truth: Truth
    #: Answers, and answers with the forming candle, by stage.
    answers: Counter[str] = field(default_factory=Counter)
    formed: Counter[str] = field(default_factory=Counter)
    stage: str = "before"
    wrong: list[str] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with httpx.AsyncClient(base_url=self.url, timeout=60) as http:
            tasks = [asyncio.create_task(self._run(http, random.Random(number))) for number in range(READERS)]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                ended = await asyncio.gather(*tasks, return_exceptions=True)
                assert all(isinstance(one, asyncio.CancelledError) for one in ended), ended

    async def some(self, stage: str, more: Callable[[], bool] = lambda: True) -> None:
        """Begin a stage; return after a hundred answers in it, and when `more` is so as well."""
        self.stage = stage

        async def reached() -> bool:
            return self.wrong != [] or (self.answers[stage] >= 100 and more())

        await eventually(reached, f"reads {stage}")
        assert self.wrong == []

    async def _run(self, http: httpx.AsyncClient, chosen: random.Random) -> None:
        while True:
            stage = self.stage
            parameters, expected = self._question(chosen)
            try:
                answer = await http.get("/v1/candles", params={"exchange": "binance", **parameters})
                found = answer.json()["data"] if answer.status_code == 200 else answer.text
            except httpx.HTTPError as error:
                found = repr(error)
            if "include_forming" in parameters and found[-1][0] == at(LAST):
                self.formed[stage] += 1
                if found.pop()[1:] != [100.0, 200.0, 50.0, 150.0, 3.0]:
                    found = "another forming candle"
            if found != expected:
                self.wrong.append(f"{stage}: {parameters}: {found!s:.500}")
            self.answers[stage] += 1

    def _question(self, chosen: random.Random) -> tuple[dict[str, str | int], list[Row]]:
        symbol, limit = chosen.choice(SYMBOLS), chosen.randint(1, 300)
        asked: dict[str, str | int] = {"symbol": symbol, "timeframe": "1m", "columns": ",".join(COLUMNS)}
        kind = chosen.choice(["newest", "forming", "forming", "range", "hours"])
        if kind == "newest":
            return {**asked, "limit": limit}, self.truth.newest(symbol, limit)
        if kind == "forming":
            return {**asked, "limit": limit, "include_forming": "true"}, self.truth.newest(symbol, limit)
        start = at(chosen.randrange(LAST - 6 * 1440, LAST - 600, 60))
        if kind == "range":
            end = start + limit * MINUTE
            return {**asked, "start": start, "end": end, "limit": 1000}, self.truth.range(symbol, start, end)
        end = start + 10 * HOUR
        asked |= {"timeframe": "1h", "columns": "open,high,low,close", "start": start, "end": end, "limit": 1000}
        return asked, self.truth.hours(symbol, start, end)


async def test_no_read_of_candles_fails_while_redis_is_away(tmp_path: Path) -> None:
    """It stands still, dies, and comes back."""
    truth = await asyncio.to_thread(fill, Settings(home=tmp_path))
    with PrivateRedis() as redis, serving(tmp_path, {"CHANDLERY_REDIS_URL": redis.url}) as service:
        await send(redis.url, write_forming(BTC, forming(150.0), LIFETIME_MS))
        load = Load(service.url, truth)
        async with load.running():
            await load.some("before", lambda: load.formed["before"] > 10)
            redis.pause()
            load.stage = "breaking"
            # Each answer of Redis was awaited in vain, and then it is left alone.
            await eventually(lambda: _errors(service, 5), "the breaker has seen five failures")
            await load.some("frozen")
            redis.kill()
            await load.some("dead")
            redis.start()
            await load.some("back")
        assert load.wrong == []
        # Candles that have closed come without the one that has not.
        assert (load.formed["frozen"], load.formed["dead"]) == (0, 0)
        assert service.counted("memory", "candles", "errors") == 0
        said = service.ended()
    # It may have seemed away before, where the machine was too busy to answer within 100 ms.
    assert said.count(BROKER_DISCONNECT) - said.count(BROKER_RECONNECT) == 1, said
    assert "Traceback" not in said


async def _errors(service: Service, wanted: int) -> bool:
    return await asyncio.to_thread(service.counted, "router", "forming_candle", "errors") >= wanted


@dataclass
class Opened:
    """A reader in this process whose time goes by when the test says so."""

    data: MarketData
    breaker: CircuitBreaker
    events: list[SystemEvent]
    now: list[float]
    truth: Truth

    def later(self, seconds: float) -> None:
        self.now[0] += seconds

    async def candles_right(self) -> None:
        answer = await self.data.candles(BTC, limit=100, include_forming=True)
        table = answer.table
        times = [int(one.timestamp() * 1000) for one in table.column("open_time").to_pylist()]
        columns = [table.column(name).to_pylist() for name in COLUMNS[1:]]
        rows = [list(row) for row in zip(times, *columns, strict=True)]
        assert rows[:100] == self.truth.newest(BTC.symbol, 100)

    def counts(self, tier: str, kind: str) -> tuple[int, int, int]:
        """Hits, misses, errors."""
        status = self.data.tiers()
        assert status is not None
        for one in status.counts:
            if (one.tier, one.kind) == (tier, kind):
                return one.hits, one.misses, one.errors
        return 0, 0, 0


@contextlib.asynccontextmanager
async def opened(home: Path, url: str) -> AsyncIterator[Opened]:
    settings = Settings(home=home)
    truth = await asyncio.to_thread(fill, settings)
    events: list[SystemEvent] = []
    now = [1000.0]
    breaker = CircuitBreaker("redis", CLOCK, events.append, monotonic=lambda: now[0])
    async with opened_store(settings) as store, connected(url, breaker) as connection:
        views = tiered(store, None, CLOCK, home / "cache")
        live = RedisMarket(
            connection,
            CLOCK,
            times=views.times,
            statistics=views.statistics,
            monotonic_ms=lambda: now[0] * 1000,
        )
        yield Opened(MarketData(store, live, CLOCK, None, views), breaker, events, now, truth)
        views.close()


async def test_the_breaker_opens_and_closes_and_everything_is_counted(tmp_path: Path) -> None:
    with PrivateRedis() as redis:
        async with opened(tmp_path, redis.url) as one:
            await _outage(redis, one)


async def _outage(redis: PrivateRedis, one: Opened) -> None:
    kept = write_ticker("binance", BTC.symbol, Ticker(CLOCK.now_ms(), CLOCK.now_ms() - 3, last=57.5), LIFETIME_MS)
    await send(redis.url, kept)
    # Seven times anew, each followed by two answers out of memory; a market of which there is none, three times.
    for _ in range(7):
        for tier in ("router", "memory", "memory"):
            found = await one.data.ticker("binance", BTC.symbol)
            assert (found.ticker.last, found.tier) == (57.5, tier)
        one.later(0.1)
    for _ in range(3):
        with pytest.raises(NotFound, match="tickers among its channels"):
            await one.data.ticker("binance", ETH.symbol)
    assert one.counts("router", "ticker") == (7, 1, 0)
    # That there is none is held as well: two hits.
    assert one.counts("memory", "ticker") == (14 + 2, 7 + 1, 0)

    redis.kill()
    one.later(1)
    for failed in range(1, 6):
        assert one.breaker.state is BreakerState.CLOSED
        assert one.events == []
        await _no_ticker(one)
        assert one.counts("router", "ticker") == (7, 1, failed)
        await one.candles_right() if failed == 5 else None
    assert one.breaker.state is BreakerState.OPEN
    assert [(event.name, event.severity) for event in one.events] == [(BROKER_DISCONNECT, Severity.CRITICAL)]
    # It is not asked any more: that is an error of each question, and no failure of Redis.
    for _ in range(10):
        await _no_ticker(one)
        await one.candles_right()
    assert one.counts("router", "ticker") == (7, 1, 15)
    assert one.breaker.counts.failures == 5
    # One of them, before the breaker opened, was asked for with the candles.
    assert one.counts("router", "forming_candle")[2] == 11

    one.later(59.9)
    assert one.breaker.state is BreakerState.OPEN
    one.later(0.2)
    assert one.breaker.state is BreakerState.HALF_OPEN
    # One trial; it fails, so the next one is a minute later.
    await _no_ticker(one)
    assert (one.breaker.state, one.breaker.counts.failures) == (BreakerState.OPEN, 6)
    redis.start()
    await send(redis.url, kept)
    await _no_ticker(one)
    await one.candles_right()
    assert len(one.events) == 1
    one.later(60)
    assert (await one.data.ticker("binance", BTC.symbol)).tier == "router"
    assert one.breaker.state is BreakerState.CLOSED
    assert [event.name for event in one.events] == [BROKER_DISCONNECT, BROKER_RECONNECT]
    assert (await one.data.ticker("binance", BTC.symbol)).tier == "memory"
    assert one.breaker.counts.outages == 1
    assert one.counts("router", "ticker") == (8, 1, 17)
    hits, misses, errors = one.counts("memory", "ticker")
    # Every question was asked of memory first, and those that it could not answer of Redis.
    assert (hits, misses, errors) == (17, 8 + 1 + 17, 0)
    # Of candles nothing failed, wherever they came from.
    status = one.data.tiers()
    assert status is not None
    assert {each.tier: each.errors for each in status.counts if each.kind == "candles"} == {"memory": 0}


async def _no_ticker(one: Opened) -> None:
    with pytest.raises(StoreUnavailable, match="router memory does not answer"):
        await one.data.ticker("binance", BTC.symbol)


async def test_values_of_another_version_are_not_read(tmp_path: Path) -> None:
    """Nor are bytes that are none of ours under our names."""
    whole = write_ticker("binance", BTC.symbol, Ticker(CLOCK.now_ms(), CLOCK.now_ms() - 3, last=57.5), LIFETIME_MS)
    key, value = live_key("binance", BTC.symbol, "ticker"), whole.arguments[0]
    formed = live_key("binance", BTC.symbol, "forming_candle", "1m")
    other = tag("binance", BTC.symbol).replace("chandlery:1:", "chandlery:2:")
    with PrivateRedis() as redis:
        async with opened(tmp_path, redis.url) as one, connected(redis.url) as connection:
            await connection.execute("SET", key.replace(tag("binance", BTC.symbol), other), value)
            foreign: list[list[Any]] = [
                [],
                [command("SET", key, b"not ours"), command("SET", formed, b"\x00" * 100)],
                [command("SET", key, b""), command("SET", formed, b"")],
                [command("SET", key, value[:-1]), command("SET", formed, b"\xc1")],
                # A list that is too short, and one with texts for numbers.
                [command("SET", key, b"\x90"), command("SET", formed, b"\x91\xa3abc")],
                [command("HSET", key, "a", "b"), command("LPUSH", formed, "a")],
            ]
            for commands in foreign:
                await connection.pipeline([command("DEL", key), command("DEL", formed), *commands])
                one.later(1)
                with pytest.raises(NotFound):
                    await one.data.ticker("binance", BTC.symbol)
                answer = await one.data.candles(BTC, limit=100, include_forming=True)
                assert answer.table.num_rows == 100
                await one.candles_right()
            await connection.pipeline([command("DEL", key), whole])
            one.later(1)
            assert (await one.data.ticker("binance", BTC.symbol)).ticker.last == 57.5
    assert one.events == []
    assert one.counts("router", "ticker") == (1, len(foreign), 0)
