"""Trades without numbers: each once over reconnects, as far as ids and REST tell."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from exchange.trade_page import TradePage
from ingest.route import Path, SilenceRules
from ingest.trade_route import TradeRules
from ingest.unnumbered_trade_route import UnnumberedTradeRoute
from market.channel import Channel, Topic
from market.errors import ExchangeRefused, ExchangeUnavailable
from market.trade import Trade
from tests.conftest import ManualClock

TOPIC = Topic(Channel.TRADES, "BTC/USDT")


def made(number: int) -> Trade:
    # Two trades in each millisecond, with ids in no order.
    return Trade(f"{number * 7919 % 10007:05}", 10.0, 1.0, 1_700_000_000_000 + number // 2, True, number)


class Bench:
    """A route, an exchange and what came out."""

    def __init__(self, known: list[Trade] | None = None) -> None:
        self.clock = ManualClock()
        self.traded: list[Trade] = list(known or [])
        self.served = 1000
        self.faults: list[Exception] = []
        self.delivered: list[Trade] = []
        self.breaks = 0
        self.works: list[asyncio.Task[None]] = []
        self.route = UnnumberedTradeRoute(
            TOPIC,
            self,
            self.clock,
            self._spawn,
            sinks=[self.delivered.append],
            known=known or (),
            broken=self._broken,
            room=self._room,
            rules=TradeRules(silence=SilenceRules(silent_after=10_000)),
            sleep=self._sleep,
        )

    async def trades_after(self, symbol: str, last: Trade | None, *, limit: int = 1000) -> TradePage:
        await asyncio.sleep(0)
        if self.faults:
            raise self.faults.pop()
        since = 0 if last is None else last.event_time
        kept = self.traded[-self.served :]
        after = [trade for trade in kept if trade.event_time >= since and trade != last]
        reaches = last is None or last in kept
        return TradePage(trades=after[:5], complete=len(after) <= 5, missing=not reaches)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.works.append(asyncio.get_running_loop().create_task(work))

    def _broken(self) -> None:
        self.breaks += 1

    async def _room(self) -> None:
        await asyncio.sleep(0)

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)

    async def settled(self) -> None:
        while pending := [task for task in self.works if not task.done()]:
            await asyncio.wait(pending)
        for task in self.works:
            task.result()

    def trade(self, *numbers: int, streamed: bool = True) -> None:
        for number in numbers:
            self.traded.append(made(number))
            if streamed:
                self.route.on_message(made(number))


async def test_a_reconnect_brings_what_was_missed_and_nothing_twice() -> None:
    bench = Bench()
    bench.trade(*range(10))
    bench.route.disconnected("cut")
    bench.trade(*range(10, 31), streamed=False)
    bench.faults = [ExchangeUnavailable("no answer")]
    bench.route.connected()
    bench.trade(31, 32)
    bench.route.on_message(made(31))
    await bench.settled()
    bench.trade(33)
    assert bench.delivered == [made(number) for number in range(34)]
    assert bench.breaks == 0
    status = bench.route.status()
    assert status.refills == 1
    assert status.refilled >= 21


async def test_a_restart_does_not_deliver_stored_trades_again() -> None:
    bench = Bench([made(number) for number in range(8)])
    bench.trade(8, 9, streamed=False)
    bench.route.connected()
    await bench.settled()
    assert bench.delivered == [made(8), made(9)]


async def test_an_answer_that_does_not_reach_back_breaks_the_candles() -> None:
    bench = Bench()
    bench.trade(*range(4))
    bench.served = 3
    bench.trade(*range(4, 20), streamed=False)
    bench.route.connected()
    await bench.settled()
    assert bench.breaks == 1
    assert bench.delivered == [made(number) for number in (*range(4), 17, 18, 19)]


async def test_where_rest_is_refused_the_stream_goes_on() -> None:
    bench = Bench()
    bench.trade(0)
    bench.faults = [ExchangeRefused("delisted")]
    bench.route.connected()
    bench.trade(1, 2)
    await bench.settled()
    bench.trade(3)
    assert bench.delivered == [made(number) for number in range(4)]
    assert (bench.route.status().path, bench.breaks) == (Path.REFUSED, 1)


async def test_silence_asks_rest_and_a_message_ends_it() -> None:
    bench = Bench()
    bench.trade(0)
    bench.route.check(bench.clock.now_ms())
    bench.clock.advance(30_000)
    bench.trade(1, streamed=False)
    bench.route.check(bench.clock.now_ms())
    await bench.settled()
    assert bench.delivered == [made(0), made(1)]
    assert bench.route.status().path is Path.REST
    assert bench.route.missing_out
    bench.trade(2)
    bench.route.check(bench.clock.now_ms())
    assert bench.route.status().path is Path.STREAM


async def test_after_messages_that_could_not_be_used_rest_is_asked_once() -> None:
    bench = Bench()
    bench.trade(0)
    bench.trade(1, streamed=False)
    for _ in range(10):
        bench.route.refused("px: is missing")
    bench.trade(2)
    assert bench.works == []
    bench.route.check(bench.clock.now_ms())
    bench.route.check(bench.clock.now_ms())
    await bench.settled()
    assert len(bench.works) == 1
    assert sorted(one.received_at for one in bench.delivered) == [0, 1, 2]


async def test_what_rest_refuses_is_asked_for_again_after_minutes() -> None:
    bench = Bench()
    bench.trade(0)
    bench.faults = [ExchangeRefused("delisted")]
    bench.route.connected()
    await bench.settled()
    bench.route.disconnected("cut")
    assert bench.route.status().path is Path.REFUSED
    for seconds, path in ((290, Path.REFUSED), (20, Path.REST)):
        bench.clock.advance(seconds * 1000)
        bench.route.check(bench.clock.now_ms())
        await bench.settled()
        assert bench.route.status().path is path
