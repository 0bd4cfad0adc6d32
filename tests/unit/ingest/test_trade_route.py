"""Each trade once and in order, whatever stream and REST do; what is lost is said."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exchange.trade_page import TradePage
from ingest.route import Path, SilenceRules
from ingest.trade_route import LostTrades, TradeRoute, TradeRules
from market.channel import Channel, Topic
from market.errors import ExchangeRefused, ExchangeUnavailable
from market.trade import Trade
from tests.conftest import ManualClock

TOPIC = Topic(Channel.TRADES, "BTC/USDT")
PAGE = 7


def made(id_: int) -> Trade:
    return Trade(id_, 10.0 + id_, 1.0, 1_700_000_000_000 + id_, True, 1_700_000_000_000 + id_)


class Exchange:
    """Trades 0, 1, 2 ... of which REST serves those from `oldest` on."""

    def __init__(self) -> None:
        self.traded = 0
        self.oldest = 0
        #: What the next answers do: "fail", "cut" (only the first half), "refuse".
        self.faults: list[str] = []
        self.asked = 0

    async def trades_after(self, symbol: str, last: Trade | None, *, limit: int = 1000) -> TradePage:
        self.asked += 1
        await asyncio.sleep(0)
        fault = self.faults.pop() if self.faults else None
        if fault == "fail":
            raise ExchangeUnavailable("no answer")
        if fault == "refuse":
            raise ExchangeRefused("an API key is needed")
        first = max(self.oldest, 0 if last is None else int(last.id) + 1)
        ids = list(range(first, min(self.traded, first + PAGE)))
        if fault == "cut":
            ids = ids[: len(ids) // 2]
        trades = [made(id_) for id_ in ids]
        return TradePage(trades=trades, complete=len(ids) < PAGE, missing=last is not None and first != last.id + 1)


class Bench:
    """A route with everything around it, and what came out of it."""

    def __init__(self, exchange: Exchange, last: Trade | None = None, *, clock: ManualClock | None = None) -> None:
        self.exchange = exchange
        self.clock = clock or ManualClock()
        self.delivered: list[int] = []
        self.lost: list[LostTrades] = []
        self.breaks: list[int] = []
        self.works: list[asyncio.Task[None]] = []
        self.route = TradeRoute(
            TOPIC,
            exchange,
            self.clock,
            self._spawn,
            sinks=[lambda trade: self.delivered.append(int(trade.id))],
            last=last,
            lost=self.lost.append,
            broken=lambda: self.breaks.append(len(self.delivered)),
            room=self._room,
            rules=TradeRules(silence=SilenceRules(silent_after=10_000, look_every=2_000)),
            sleep=self._sleep,
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.works.append(asyncio.get_running_loop().create_task(work))

    async def _room(self) -> None:
        await asyncio.sleep(0)

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)

    async def settled(self) -> None:
        """Until no refill runs."""
        while pending := [task for task in self.works if not task.done()]:
            await asyncio.wait(pending)
        for task in self.works:
            task.result()

    def stream(self, *ids: int) -> None:
        self.exchange.traded = max(self.exchange.traded, *(one + 1 for one in ids))
        for id_ in ids:
            self.route.on_message(made(id_))


async def test_in_order_without_asking_rest() -> None:
    bench = Bench(Exchange())
    bench.stream(*range(5, 50))
    assert bench.delivered == list(range(5, 50))
    assert bench.exchange.asked == 0
    assert bench.route.status().path is Path.STREAM


async def test_a_hole_is_filled_before_what_follows_it() -> None:
    bench = Bench(Exchange())
    bench.stream(0, 1, 30, 31)
    assert bench.route.status().path is Path.REFILL
    bench.stream(32)
    await bench.settled()
    bench.stream(33)
    assert bench.delivered == list(range(34))
    status = bench.route.status()
    assert (status.path, status.refills, status.lost) == (Path.STREAM, 1, 0)


async def test_an_overtaken_trade_costs_no_request() -> None:
    bench = Bench(Exchange())
    bench.stream(0, 2, 1, 3)
    await bench.settled()
    bench.stream(4)
    assert bench.delivered == [0, 1, 2, 3, 4]
    assert bench.exchange.asked == 0


async def test_a_reconnect_asks_for_what_was_missed_without_waiting_for_the_next_trade() -> None:
    bench = Bench(Exchange())
    bench.stream(0, 1)
    bench.route.disconnected("cut")
    bench.exchange.traded = 40
    bench.route.connected()
    await bench.settled()
    assert bench.delivered == list(range(40))


async def test_a_restart_goes_on_after_the_last_stored_trade() -> None:
    exchange = Exchange()
    exchange.traded = 100
    bench = Bench(exchange, made(41))
    bench.route.connected()
    await bench.settled()
    bench.stream(100)
    assert bench.delivered == list(range(42, 101))


async def test_what_the_exchange_no_longer_serves_is_lost_and_said_so() -> None:
    bench = Bench(Exchange())
    bench.stream(0, 1)
    bench.exchange.oldest = 20
    bench.stream(30)
    await bench.settled()
    assert bench.delivered == [0, 1, *range(20, 31)]
    (lost,) = bench.lost
    assert (lost.first_id, lost.last_id) == (2, 19)
    assert (lost.first_time, lost.last_time) == (made(1).event_time, made(20).event_time)
    assert bench.breaks == [2]
    assert bench.route.status().lost == 18


async def test_one_partial_answer_is_not_believed() -> None:
    bench = Bench(Exchange())
    bench.stream(0)
    bench.exchange.faults = ["cut", "fail", "cut"]
    bench.stream(60)
    await bench.settled()
    bench.stream(61)
    await bench.settled()
    assert bench.delivered == list(range(62))
    assert bench.lost == []


async def test_where_rest_is_refused_the_stream_goes_on_and_the_hole_is_told_but_not_lost() -> None:
    bench = Bench(Exchange())
    bench.stream(0)
    bench.exchange.faults = ["refuse"]
    bench.stream(5, 6)
    await bench.settled()
    bench.stream(7, 9)
    assert bench.delivered == [0, 5, 6, 7, 9]
    assert bench.breaks == [1, 4]
    assert bench.lost == []
    status = bench.route.status()
    assert status.path is Path.REFUSED
    assert "API key" in str(status.reason)


async def test_a_trade_that_only_a_liar_knows_does_not_stop_the_others() -> None:
    bench = Bench(Exchange())
    bench.stream(0, 1)
    bench.route.on_message(made(10**15))
    await bench.settled()
    bench.stream(2, 3)
    assert bench.delivered == [0, 1, 2, 3]
    assert "REST knows none" in str(bench.route.status().reason)


async def test_silence_asks_rest_more_and_more_seldom_and_a_message_ends_it() -> None:
    bench = Bench(Exchange())
    bench.stream(*range(10))
    looks = []
    for _ in range(120):
        bench.clock.advance(1000)
        asked = bench.exchange.asked
        bench.route.check(bench.clock.now_ms())
        await bench.settled()
        if bench.exchange.asked > asked:
            looks.append(bench.clock.now_ms())
    pauses = [later - earlier for earlier, later in itertools.pairwise(looks)]
    assert bench.route.status().path is Path.REST
    assert pauses == sorted(pauses)
    assert pauses[0] <= 4_000
    assert pauses[-1] > 20_000
    bench.exchange.traded = 15
    bench.clock.advance(60_000)
    bench.route.check(bench.clock.now_ms())
    await bench.settled()
    assert bench.delivered == list(range(15))
    assert bench.route.missing_out
    bench.stream(15)
    bench.route.check(bench.clock.now_ms())
    assert bench.route.status().path is Path.STREAM
    assert not bench.route.missing_out


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("trade"), st.integers(1, 12)),
        st.tuples(st.just("lose"), st.integers(1, 12)),
        st.tuples(st.just("repeat"), st.integers(1, 30)),
        st.tuples(st.just("swap"), st.just(0)),
        st.tuples(st.just("cut"), st.integers(0, 20)),
        st.tuples(st.just("turn"), st.integers(1, 5)),
        st.tuples(st.sampled_from(["fail", "partial"]), st.integers(1, 3)),
        st.tuples(st.just("forget"), st.integers(1, 10)),
    ),
    max_size=40,
)


@given(EVENTS, st.booleans())
@settings(max_examples=150)
def test_nothing_is_missed_doubled_or_out_of_order(events: list[tuple[str, int]], resumed: bool) -> None:
    asyncio.run(played(events, resumed))


async def played(events: list[tuple[str, int]], resumed: bool) -> None:
    exchange = Exchange()
    exchange.traded = 5 if resumed else 0
    bench = Bench(exchange, made(2) if resumed else None)
    bench.stream(exchange.traded)
    first = 3 if resumed else 0
    for kind, count in events:
        if kind == "trade":
            bench.stream(*range(exchange.traded, exchange.traded + count))
        elif kind == "lose":
            exchange.traded += count
        elif kind == "repeat":
            for id_ in range(max(0, exchange.traded - count), exchange.traded):
                bench.route.on_message(made(id_))
        elif kind == "swap":
            bench.stream(exchange.traded + 1, exchange.traded)
        elif kind == "cut":
            bench.route.disconnected("cut")
            exchange.traded += count
            bench.route.connected()
        elif kind == "turn":
            for _ in range(count):
                await asyncio.sleep(0)
        elif kind == "forget":
            exchange.oldest = max(exchange.oldest, exchange.traded - count)
        else:
            exchange.faults += ["fail" if kind == "fail" else "cut"] * count
    exchange.faults.clear()
    bench.stream(exchange.traded)
    await bench.settled()
    bench.stream(exchange.traded)
    await bench.settled()
    lost = {id_ for one in bench.lost for id_ in range(one.first_id, one.last_id + 1)}
    assert bench.delivered == sorted(set(bench.delivered))
    assert lost.isdisjoint(bench.delivered)
    assert lost | set(bench.delivered) == set(range(first, exchange.traded))
    # Lost is only what the exchange does not serve.
    assert all(id_ < exchange.oldest for id_ in lost)
    assert len(bench.lost) == len(bench.breaks)


@pytest.mark.parametrize("waiting", [49_999, 50_010])
async def test_what_waits_is_bounded_and_still_arrives(waiting: int) -> None:
    bench = Bench(Exchange())
    bench.stream(0)
    bench.exchange.faults = ["fail"] * 40
    for id_ in range(2, waiting):
        bench.route.on_message(made(id_))
    bench.exchange.traded = waiting
    await bench.settled()
    bench.stream(waiting)
    await bench.settled()
    assert bench.delivered == list(range(waiting + 1))


async def test_what_rest_refuses_is_asked_for_again_after_minutes_and_told_while_it_lasts() -> None:
    bench = Bench(Exchange())
    bench.stream(0)
    bench.exchange.faults = ["refuse"] * 3
    bench.stream(5)
    await bench.settled()
    asked = bench.exchange.asked
    bench.route.disconnected("cut")
    for second in range(900):
        bench.clock.advance(1000)
        bench.route.check(bench.clock.now_ms())
        await bench.settled()
        if second < 850 and bench.exchange.asked < 3:
            assert bench.route.status().path is Path.REFUSED
    # Twice more in vain, then it answers.
    assert bench.exchange.asked >= asked + 3
    assert bench.route.status().path is Path.REST
    bench.stream(6)
    bench.clock.advance(1000)
    bench.route.check(bench.clock.now_ms())
    assert bench.route.status().path is Path.STREAM
    assert bench.delivered == [0, 5, 6]


async def test_trades_that_come_while_a_refused_route_asks_again_wait_for_the_answer() -> None:
    bench = Bench(Exchange())
    bench.stream(0)
    bench.exchange.faults = ["refuse"]
    bench.stream(5)
    await bench.settled()
    bench.route.connected()
    bench.exchange.traded = 20
    bench.stream(12)
    await bench.settled()
    assert bench.delivered == [0, *range(5, 20)]
    assert bench.route.status().path is Path.REST


async def test_a_message_that_could_not_be_used_shows_by_the_next_trade() -> None:
    bench = Bench(Exchange())
    bench.stream(0)
    bench.route.refused("p: is missing")
    assert bench.exchange.asked == 0
    bench.stream(2)
    await bench.settled()
    assert bench.delivered == [0, 1, 2]
