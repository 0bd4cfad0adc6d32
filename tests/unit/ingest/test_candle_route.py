"""Candles of a stream: each closed one written once, the forming one shown, and said when nobody tells of it."""

from __future__ import annotations

from typing import Any

import pytest

from ingest.candle_route import CandleRoute
from ingest.route import Path, SilenceRules
from market.candle import CandleState, open_times_ms
from market.candle_update import CandleUpdate
from market.instrument import Series
from market.timeframe import MINUTE_MS, ONE_MINUTE
from store.batch import CandleBatch
from store.live import LiveCandles
from tests.conftest import ManualClock

SERIES = Series("binance", "BTC/USDT", ONE_MINUTE)
#: 2023-11-14T22:13:00Z.
START = 1_699_999_980_000


class Bench:
    """A route, and what came out of it."""

    def __init__(self, **more: Any) -> None:
        self.clock = ManualClock()
        self.live = LiveCandles(self.clock)
        self.written: list[CandleBatch] = []
        self.told: list[CandleUpdate] = []
        self.connections = 0
        self.route = CandleRoute(
            SERIES,
            self.live,
            self,
            self.clock,
            told=[self.told.append],
            connected=self._connected,
            silence=SilenceRules(silent_after=10_000, usual=1.0),
            **more,
        )

    def candles(self, batch: CandleBatch, received_at: int) -> None:
        assert received_at == self.clock.now_ms()
        self.written.append(batch)

    def _connected(self) -> None:
        self.connections += 1

    def hear(self, minute: int, *, closed: bool = False, close: float = 1.0, at: int | None = None) -> None:
        """A message of the minute counted from START."""
        open_time = START + minute * MINUTE_MS
        event_time = open_time + (MINUTE_MS if closed else 30_000) if at is None else at
        prices = (1.0, max(1.0, close), min(1.0, close), close)
        rest = (5.0, 5.0, 3, 2.0, 2.0, None, closed, event_time, self.clock.now_ms())
        self.route.on_message(CandleUpdate(open_time, *prices, *rest))

    def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1000)
            self.route.check(self.clock.now_ms())

    @property
    def minutes(self) -> list[int]:
        """The written candles."""
        return [int(open_times_ms(one.table)[0] - START) // MINUTE_MS for one in self.written]

    @property
    def shown(self) -> int | None:
        """The forming candle that readers see."""
        held = self.live.get(SERIES)
        return None if held is None else int(open_times_ms(held[0])[0] - START) // MINUTE_MS

    @property
    def path(self) -> Path:
        return self.route.status().path


def test_a_closed_candle_is_written_once() -> None:
    bench = Bench()
    bench.hear(0)
    assert (bench.minutes, bench.shown) == ([], 0)
    for _ in range(3):
        bench.hear(0, closed=True)
    assert bench.minutes == [0]
    (batch,) = bench.written
    assert (batch.state, batch.source, batch.now_ms) == (CandleState.CLOSED, "binance stream", START + MINUTE_MS)
    assert bench.route.status().repeated == 2
    assert len(bench.told) == 2


def test_a_candle_that_closes_before_its_end_counts_as_ended() -> None:
    bench = Bench()
    bench.hear(0, closed=True, at=START + MINUTE_MS - 5)
    assert bench.written[0].now_ms == START + MINUTE_MS


def test_closed_candles_that_overtake_each_other_are_all_written_once() -> None:
    bench = Bench()
    for minute in (2, 0, 1, 2, 0, 1):
        bench.hear(minute, closed=True)
    assert bench.minutes == [2, 0, 1]
    assert bench.route.status().repeated == 3


def test_a_closed_candle_that_says_something_else_is_a_correction() -> None:
    bench = Bench()
    bench.hear(0, closed=True)
    bench.hear(0, closed=True, close=1.5)
    assert [one.table["close"].to_pylist() for one in bench.written] == [[1.0], [1.5]]
    assert bench.route.status().repeated == 0


def test_a_candle_does_not_form_after_it_has_closed() -> None:
    bench = Bench()
    bench.hear(1, closed=True)
    bench.hear(1, close=9.0)
    bench.hear(0, close=9.0)
    assert bench.shown is None
    assert [one.closed for one in bench.told] == [True]
    assert bench.route.status().repeated == 2
    bench.hear(2)
    assert bench.shown == 2


def test_no_more_than_the_last_closed_candles_are_remembered() -> None:
    bench = Bench()
    for minute in range(100):
        bench.hear(minute, closed=True)
    bench.hear(99, closed=True)
    assert len(bench.written) == 100
    # Forgotten; writing the same again changes nothing in the store.
    bench.hear(0, closed=True)
    assert bench.minutes[-1] == 0


def test_where_the_exchange_does_not_say_closed_nothing_is_written() -> None:
    bench = Bench(says_closed=False)
    for minute in (0, 0, 1, 2):
        bench.hear(minute, closed=True)
    assert (bench.minutes, bench.shown) == ([], 2)


def test_who_polls_is_told_when_the_stream_is_silent_or_away() -> None:
    bench = Bench()
    assert (bench.path, bench.route.needs_polling) == (Path.STARTING, True)
    bench.route.connected()
    assert bench.connections == 1
    bench.hear(0)
    assert (bench.path, bench.route.needs_polling) == (Path.STREAM, False)
    bench.pass_time(9)
    assert bench.path is Path.STREAM
    bench.pass_time(3)
    assert (bench.path, bench.route.needs_polling) == (Path.REST, True)
    assert "the stream has been silent for" in (bench.route.status().reason or "")
    bench.hear(0)
    assert (bench.path, bench.route.needs_polling) == (Path.STREAM, False)
    bench.route.disconnected("cut")
    assert (bench.path, bench.route.needs_polling, bench.route.status().reason) == (Path.REST, True, "cut")
    assert not bench.route.missing_out


def test_what_rest_refuses_is_refused_once_the_stream_is_silent_too() -> None:
    bench = Bench()
    bench.hear(0)
    bench.route.asked("delisted")
    assert bench.path is Path.STREAM
    bench.pass_time(12)
    assert (bench.path, bench.route.status().reason) == (Path.REFUSED, "delisted")
    bench.pass_time(100)
    bench.route.disconnected("cut")
    assert (bench.path, bench.route.needs_polling) == (Path.REFUSED, True)
    bench.route.asked(None)
    assert bench.path is Path.REST
    bench.route.asked("delisted again")
    assert (bench.path, bench.route.status().reason) == (Path.REFUSED, "delisted again")
    bench.hear(1)
    assert bench.path is Path.STREAM


@pytest.mark.parametrize("reason", ["", "anything"])
def test_a_message_that_could_not_be_used_changes_nothing(reason: str) -> None:
    bench = Bench()
    bench.hear(0)
    before = bench.route.status()
    bench.route.refused(reason)
    assert bench.route.status() == before
