"""The live loop against a scripted exchange whose time moves with each pause."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
import stamina

from exchange.page import CandlePage
from ingest.clock import ExchangeClock
from ingest.live import LiveLoop, LiveRules, LiveStatus
from market.candle import open_times_ms
from market.errors import ExchangeRefused, ExchangeUnavailable, NotFound, RateLimited, StoreUnusable
from market.timeframe import ONE_MINUTE, Timeframe
from store.live import LiveCandles
from tests.unit.ingest.scripted import BTC, ETH, MINUTE, START, MemoryStore, ScriptedHistory, minutes


class Local:
    """Our clock; it moves with the exchange's."""

    def __init__(self) -> None:
        self.time_ms = 1_700_000_000_000

    def now_ms(self) -> int:
        return self.time_ms


class Stage:
    """A loop, its exchange and its store; each pause moves the time, and the last one ends the run."""

    def __init__(
        self, times: list[int], now: int, pauses: int, symbols: tuple[str, ...] = ("BTC/USDT",), since_ms: int = 0
    ) -> None:
        self.history = ScriptedHistory(times)
        self.history.now = now
        self.store = MemoryStore()
        self.local = Local()
        self.live = LiveCandles(self.local)
        self.slept: list[float] = []
        self.pauses = pauses
        self.pace = 1
        self.told: list[LiveStatus] = []
        self.loop = LiveLoop(
            self.history,
            self.store,
            self.live,
            self.local,
            symbols,
            ONE_MINUTE,
            rules=LiveRules(look_back_ms=10 * MINUTE, since_ms=since_ms),
            on_status=self.told.append,
            sleep=self.sleep,
        )

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if len(self.slept) > self.pauses:
            raise asyncio.CancelledError
        passed = max(1, round(seconds * 1000))
        self.local.time_ms += passed
        self.history.now += passed * self.pace

    def run(self) -> None:
        async def main() -> None:
            with pytest.raises(asyncio.CancelledError):
                await self.loop.run()

        asyncio.run(main())

    @property
    def status(self) -> LiveStatus:
        return self.loop.statuses[BTC]


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    with stamina.set_testing(True, attempts=1, cap=True):
        yield


def fails_once(error: Exception, question: str) -> Callable[[str], None]:
    errors = [error]

    def before(asked: str) -> None:
        if asked == question and errors:
            raise errors.pop()

    return before


def test_the_first_round_fills_the_look_back_and_later_ones_the_new_minutes() -> None:
    stage = Stage(minutes(*range(100)), START + 50 * MINUTE + 5_000, pauses=60)
    stage.run()
    times = stage.store.times(BTC)
    assert times[0] == START + 41 * MINUTE
    assert len(times) > 10
    assert times == minutes(*range(41, 41 + len(times)))
    # Closed means ended and settled: nothing newer than two seconds before the exchange's now.
    assert times[-1] + MINUTE <= stage.history.now - 2_000
    assert stage.status.last_closed == times[-1]
    assert stage.status.lag_ms is not None
    assert stage.status.lag_ms < MINUTE + 5_000
    assert stage.status.error is None


def test_nothing_before_an_explicit_start_is_asked_for() -> None:
    stage = Stage(minutes(*range(100)), START + 50 * MINUTE + 5_000, pauses=5, since_ms=START + 47 * MINUTE)
    stage.run()
    assert stage.store.times(BTC)[0] == START + 47 * MINUTE


def test_rounds_come_every_few_seconds_and_just_after_a_close() -> None:
    stage = Stage(minutes(*range(100)), START + 50 * MINUTE + 50_000, pauses=5)
    stage.run()
    assert stage.slept[:5] == [3.0, 3.0, 3.0, 3.0, 3.0]
    stage = Stage(minutes(*range(100)), START + 51 * MINUTE + 1_000, pauses=1)
    stage.run()
    assert stage.slept[0] == 1.0


def test_the_forming_candle_is_in_memory_and_never_in_the_store() -> None:
    stage = Stage(minutes(*range(100)), START + 50 * MINUTE + 5_000, pauses=0)
    stage.run()
    held = stage.live.get(BTC)
    assert held is not None
    assert open_times_ms(held[0]).tolist() == minutes(50)
    assert minutes(50)[0] not in stage.store.times(BTC)


def test_a_quiet_round_asks_for_time_and_the_forming_candle_only() -> None:
    stage = Stage(minutes(*range(100)), START + 50 * MINUTE + 5_000, pauses=1)
    stage.run()
    asked = [question for question, _, _ in stage.history.asked]
    assert asked == ["server_time", "instruments", "candles", "candles", "server_time", "candles"]


def test_a_fast_exchange_is_kept_up_with() -> None:
    stage = Stage(minutes(*range(5_000)), START + 50 * MINUTE, pauses=60)
    stage.pace = 600
    stage.run()
    times = stage.store.times(BTC)
    assert times[-1] >= stage.history.now - 4 * MINUTE - 2_000
    assert times == minutes(*range(40, 40 + len(times)))
    assert max(stage.slept[2:]) <= 0.3


@pytest.mark.parametrize(
    "error, question",
    [
        (ExchangeUnavailable("no answer"), "candles"),
        (ExchangeUnavailable("no answer"), "server_time"),
        (ExchangeUnavailable("no answer"), "instruments"),
        (ExchangeRefused("not now"), "candles"),
        (RateLimited("slow down", 0.005), "candles"),
    ],
)
def test_errors_are_survived_and_said(error: Exception, question: str) -> None:
    stage = Stage(minutes(*range(100)), START + 50 * MINUTE + 5_000, pauses=2)
    stage.history.before = fails_once(error, question)
    stage.run()
    assert any(status.error and str(error) in status.error for status in stage.told)
    assert stage.status.error is None
    assert stage.slept[0] == (0.005 if isinstance(error, RateLimited) else 1.0)
    assert len(stage.store.times(BTC)) == 9


def test_waits_grow_while_the_exchange_is_away() -> None:
    def away(question: str) -> None:
        raise ExchangeUnavailable("no answer")

    stage = Stage(minutes(0), START, pauses=9)
    stage.history.before = away
    stage.run()
    assert stage.slept == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0]


def test_an_unknown_symbol_and_a_broken_store_end_the_loop() -> None:
    with pytest.raises(NotFound):
        asyncio.run(Stage([], START, 1, ("X/Y",)).loop.run())

    def full() -> None:
        raise StoreUnusable("the disk is full")

    stage = Stage(minutes(*range(100)), START + 50 * MINUTE, 1)
    stage.store.before_write = full
    with pytest.raises(StoreUnusable):
        asyncio.run(stage.loop.run())


def test_the_exchange_clock_is_never_ahead_and_knows_the_pace() -> None:
    local = Local()

    class Server:
        now = 5_000_000
        waited = 40

        async def server_time(self) -> int:
            local.time_ms += self.waited
            return self.now

    server = Server()
    clock = ExchangeClock(server, local)
    assert asyncio.run(clock.read()) == 5_000_000
    local.time_ms += 960
    server.now += 10_000
    asyncio.run(clock.read())
    assert clock.pace == 10.0
    assert clock.now_ms() == 5_010_000
    # A minute in a queue or under a rate limit passes before the question is sent, not after the answer.
    server.waited = 60_000
    assert asyncio.run(clock.read()) == 5_010_000


def test_a_series_that_is_gone_does_not_stop_the_others() -> None:
    stage = Stage(minutes(*range(60)), START + 50 * MINUTE + 5_000, pauses=2, symbols=("BTC/USDT", "ETH/USDT"))
    asked = stage.history.candles

    async def candles(symbol: str, timeframe: Timeframe, start_ms: int, end_ms: int) -> CandlePage:
        if symbol == "BTC/USDT":
            raise NotFound("symbol", symbol, hint="a symbol that is traded")
        return await asked(symbol, timeframe, start_ms, end_ms)

    stage.history.candles = candles  # type: ignore[method-assign]
    stage.run()
    assert stage.store.times(ETH) == minutes(*range(41, 50))
    assert "BTC/USDT" in str(stage.status.error)
