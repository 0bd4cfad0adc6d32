"""Tickers: from the stream, over REST while that is silent, and not for ever where the exchange refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from ingest.route import Path, SilenceRules
from ingest.ticker_route import TickerRoute
from market.channel import Channel, Topic
from market.errors import ExchangeUnavailable, NotFound
from market.ticker import Ticker
from tests.conftest import ManualClock

TOPIC = Topic(Channel.TICKERS, "BTC/USDT")


class Bench:
    """A route, an exchange that is asked, and what came out."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.heard: list[Ticker] = []
        self.errors: list[Exception] = []
        self.asked = 0
        self.works: list[asyncio.Task[None]] = []
        silence = SilenceRules(silent_after=10_000, usual=1.0, look_every=2_000)
        self.route = TickerRoute(TOPIC, self, self.clock, self._spawn, sinks=(self.heard.append,), silence=silence)

    async def ticker(self, symbol: str) -> Ticker:
        assert symbol == TOPIC.symbol
        self.asked += 1
        if self.errors:
            raise self.errors[0]
        return Ticker(self.clock.now_ms(), last=2.0)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.works.append(asyncio.get_running_loop().create_task(work))

    def hear(self) -> None:
        self.route.on_message(Ticker(self.clock.now_ms(), bid=1.0))

    async def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1000)
            self.route.check(self.clock.now_ms())
            await asyncio.gather(*self.works)
            self.works.clear()

    @property
    def path(self) -> Path:
        return self.route.status().path


async def test_tickers_come_from_the_stream_alone_while_it_is_heard() -> None:
    bench = Bench()
    assert bench.path is Path.STARTING
    for _ in range(30):
        bench.hear()
        await bench.pass_time(1)
    assert (bench.path, bench.asked, len(bench.heard)) == (Path.STREAM, 0, 30)
    assert bench.route.status().heard_at == bench.clock.now_ms()


async def test_rest_takes_over_in_silence_and_hands_back() -> None:
    bench = Bench()
    bench.hear()
    await bench.pass_time(1)
    await bench.pass_time(9)
    assert (bench.path, bench.asked) == (Path.STREAM, 0)
    await bench.pass_time(21)
    status = bench.route.status()
    assert (status.path, status.refilled, bench.heard[-1].last) == (Path.REST, bench.asked, 2.0)
    # Every two seconds, once the silence was seen.
    assert 9 <= bench.asked <= 11
    bench.hear()
    await bench.pass_time(1)
    assert bench.path is Path.STREAM
    asked = bench.asked
    await bench.pass_time(8)
    assert bench.asked == asked


async def test_rest_takes_over_at_once_after_a_cut_and_survives_its_own_failures() -> None:
    bench = Bench()
    bench.hear()
    await bench.pass_time(1)
    bench.errors = [ExchangeUnavailable("away")]
    bench.route.disconnected("cut")
    assert (bench.path, bench.route.status().reason) == (Path.REST, "cut")
    await bench.pass_time(5)
    assert (bench.path, bench.route.status().reason, len(bench.heard)) == (Path.REST, "away", 1)
    bench.errors = []
    await bench.pass_time(4)
    assert len(bench.heard) > 1


async def test_what_the_exchange_refuses_is_asked_for_seldom_and_comes_back() -> None:
    bench = Bench()
    bench.errors = [NotFound("symbol", "BTC/USDT", hint="a symbol that is traded")]
    await bench.pass_time(12)
    assert (bench.path, bench.asked) == (Path.REFUSED, 1)
    assert "expected a symbol that is traded" in (bench.route.status().reason or "")
    bench.route.disconnected("cut")
    bench.route.connected()
    await bench.pass_time(280)
    assert (bench.path, bench.asked) == (Path.REFUSED, 1)
    await bench.pass_time(40)
    assert (bench.path, bench.asked) == (Path.REFUSED, 2)
    bench.errors = []
    await bench.pass_time(310)
    assert (bench.path, bench.heard[-1].last) == (Path.REST, 2.0)


async def test_a_refused_ticker_that_streams_again_needs_no_rest() -> None:
    bench = Bench()
    bench.errors = [NotFound("symbol", "BTC/USDT")]
    await bench.pass_time(12)
    bench.hear()
    bench.route.refused("a message nobody can read")
    await bench.pass_time(1)
    assert (bench.path, bench.asked, bench.route.missing_out) == (Path.STREAM, 1, False)
