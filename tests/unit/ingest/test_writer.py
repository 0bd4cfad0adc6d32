"""The writer: batches, order, bounds, and what it does when the store is away, slow, refusing or at its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from exchange.stream import RefusedMessage
from ingest.journal import Journal
from ingest.journal_record import Batch, encode
from ingest.metrics import WriterMetrics
from ingest.waiting import TRADE_BYTES, WaitingRules
from ingest.writer import Writer, WriterRules
from ingest.writer_status import Landed, WriterState
from market.channel import Channel, Topic
from market.errors import ChandleryError, StoreBusy, StoreUnavailable, StoreUnusable
from market.trade import Trade
from store.batch import CandleBatch
from store.trade_batch import TradeBatch
from tests.support.failing_store import until
from tests.support.made_candles import BTC, ETH, batch, made
from tests.support.scripted_writes import ScriptedWrites, trade

AWAY = StoreUnavailable("the server is down")
#: A trade waits for others until somebody asks, so that tests say when.
PATIENT = WaitingRules(trades_every=3600.0)
NOW = 1_700_000_000_000


class Pauses:
    """The sleep of a writer: ends when the test lets it."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self._go = asyncio.Event()

    async def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)
        self._go.clear()
        await self._go.wait()

    def end(self) -> None:
        self._go.set()

    async def wait_for(self, count: int) -> None:
        await until(lambda: len(self.asked) >= count)


class Bench:
    """A writer with everything around it in the hands of the test."""

    def __init__(self, folder: Path, clock: Any, waiting: WaitingRules = PATIENT, **rules: Any) -> None:
        self.folder = folder
        self.clock = clock
        clock.time_ms = NOW
        self.store = ScriptedWrites()
        self.pauses = Pauses()
        self.rules = WriterRules(waiting=waiting, **rules)
        self.crowded: list[bool] = []
        #: Rows that waited when it was told so.
        self.waiting_then: list[int] = []
        self.durable: list[tuple[Batch, Landed]] = []
        self.registry = CollectorRegistry()
        self.metrics = WriterMetrics(self.registry)
        self.writer: Writer

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Writer]:
        async with Writer.opened(
            self.store,
            self.folder,
            self.clock,
            rules=self.rules,
            on_crowded=self._on_crowded,
            on_durable=lambda one, landed: self.durable.append((one, landed)),
            metrics=self.metrics,
            sleep=self.pauses,
        ) as self.writer:
            yield self.writer

    def _on_crowded(self, crowded: bool) -> None:
        self.crowded.append(crowded)
        self.waiting_then.append(self.writer.status().waiting_rows)

    def put(self, first: int, last: int, symbol: str = "BTC/USDT") -> None:
        sink = self.writer.trade_sink("binance", symbol, True)
        for number in range(first, last):
            sink(trade(number, NOW))

    def candle(self, minute: int, version: int = 0) -> None:
        self.writer.candles(batch(made([minute], version), series=BTC), NOW)

    async def in_state(self, state: WriterState) -> None:
        await until(lambda: self.writer.status().state is state)

    def landed(self) -> list[tuple[int, Landed]]:
        return [(len(one.trades), landed) for one, landed in self.durable if isinstance(one, TradeBatch)]


@pytest.fixture
def bench(tmp_path: Path, clock: Any) -> Bench:
    return Bench(tmp_path / "journal", clock)


def journaled(folder: Path) -> int:
    with Journal.opened(folder) as journal:
        return journal.records


async def test_everything_that_waits_becomes_one_transaction(bench: Bench) -> None:
    async with bench.opened() as writer:
        bench.put(0, 10)
        bench.put(0, 5, "ETH/USDT")
        bench.put(10, 12)
        assert writer.status().waiting_rows == 17
        await writer.durable()
        assert bench.store.calls == [("trades", 17)]
        assert bench.store.trades == {"BTC/USDT": list(range(12)), "ETH/USDT": list(range(5))}
        status = writer.status()
        assert (status.state, status.waiting_rows, status.waiting_bytes, status.written_rows) == (
            "direct",
            0,
            0,
            17,
        )
        assert (status.oldest_waiting, status.spilled_rows, status.error) == (None, 0, None)


async def test_candles_do_not_wait_for_trades(bench: Bench) -> None:
    async with bench.opened() as writer:
        bench.put(0, 10)
        bench.candle(1)
        await until(lambda: writer.status().written_rows == 1)
        assert bench.store.calls == [("candles", 1)]
        bench.candle(2)
        await writer.durable()
        assert bench.store.calls == [("candles", 1), ("candles", 1), ("trades", 10)]


async def test_trades_wait_for_others_only_so_long(tmp_path: Path, clock: Any) -> None:
    bench = Bench(tmp_path, clock, WaitingRules(trades_every=0.01))
    async with bench.opened():
        for round_ in range(3):
            bench.put(round_ * 4, round_ * 4 + 4)
            await until(lambda: bench.writer.status().waiting_rows == 0)
    assert bench.store.calls == [("trades", 4)] * 3


async def test_enough_trades_do_not_wait(tmp_path: Path, clock: Any) -> None:
    bench = Bench(tmp_path, clock, WaitingRules(trades_every=3600.0, trades_at_once=100))
    async with bench.opened() as writer:
        bench.put(0, 99)
        await asyncio.sleep(0)
        assert bench.store.calls == []
        bench.put(99, 100)
        await until(lambda: writer.status().waiting_rows == 0)
        # Again and again, not only the first time.
        bench.put(100, 200)
        await until(lambda: writer.status().waiting_rows == 0)
        assert bench.store.calls == [("trades", 100)] * 2


async def test_a_long_queue_goes_in_parts_with_candles_between(tmp_path: Path, clock: Any) -> None:
    bench = Bench(tmp_path, clock, WaitingRules(trades_every=3600.0, trades_at_once=100))
    async with bench.opened() as writer:
        bench.store.gate.clear()
        bench.put(0, 130)
        bench.put(0, 120, "ETH/USDT")
        await until(lambda: bench.store.under_way == 1)
        bench.candle(1)
        bench.store.gate.set()
        await writer.durable()
        assert bench.store.calls == [("trades", 100), ("candles", 1), ("trades", 100), ("trades", 50)]
        assert bench.store.trades == {"BTC/USDT": list(range(130)), "ETH/USDT": list(range(120))}
        assert bench.store.most_under_way == 1


async def test_durable_speaks_for_what_was_there_and_not_for_later(bench: Bench) -> None:
    async with bench.opened() as writer:
        bench.store.gate.clear()
        bench.put(0, 5)
        first = asyncio.ensure_future(writer.durable())
        await until(lambda: bench.store.under_way == 1)
        bench.put(5, 6)
        second = asyncio.ensure_future(writer.durable())
        await asyncio.sleep(0)
        assert not first.done()
        bench.store.gate.set()
        await first
        assert bench.store.calls[0] == ("trades", 5)
        await second
        assert bench.store.calls == [("trades", 5), ("trades", 1)]
        assert bench.store.trades == {"BTC/USDT": [0, 1, 2, 3, 4, 5]}
        # With nothing to wait for it returns too.
        await writer.durable()


async def test_leaving_makes_durable_what_waits(bench: Bench) -> None:
    async with bench.opened():
        bench.put(0, 10)
        bench.candle(3)
    assert bench.store.trades == {"BTC/USDT": list(range(10))}
    assert len(bench.store.candles) == 1


async def test_what_comes_while_leaving_does_not_wait_either(bench: Bench) -> None:
    async with bench.opened():
        bench.store.gate.clear()
        bench.put(0, 10)

        async def come_late() -> None:
            await until(lambda: bench.store.under_way == 1)
            bench.put(10, 15)
            bench.store.gate.set()

        late = asyncio.ensure_future(come_late())
    await late
    assert bench.store.trades == {"BTC/USDT": list(range(15))}


async def test_leaving_by_an_error_does_too(bench: Bench) -> None:
    async def work() -> None:
        async with bench.opened():
            bench.put(0, 10)
            raise RuntimeError("the stream broke")

    with pytest.raises(RuntimeError, match="the stream broke"):
        await work()
    assert bench.store.trades == {"BTC/USDT": list(range(10))}


@pytest.mark.parametrize("late", [False, True])
async def test_while_the_store_is_away_the_journal_takes_it(bench: Bench, late: bool) -> None:
    """Also where the store was lost while it committed, and nobody knows what it has."""
    async with bench.opened() as writer:
        bench.put(0, 3)
        await writer.durable()
        bench.store.error, bench.store.late = AWAY, late
        for first in range(3, 30, 3):
            bench.put(first, first + 3)
            bench.candle(first)
            await writer.durable()
        await bench.in_state(WriterState.SPILLING)
        status = writer.status()
        assert (status.waiting_rows, status.written_rows, status.spilled_rows) == (0, 3, 27 + 9)
        assert status.journal_records == 18
        assert status.journal_bytes > 0
        assert status.error == "the server is down"
        await bench.pauses.wait_for(1)
        bench.store.error = None
        bench.pauses.end()
        await bench.in_state(WriterState.DIRECT)
        assert bench.store.trades == {"BTC/USDT": list(range(30))}
        assert len(bench.store.candles) == 9
        status = writer.status()
        assert (status.journal_records, status.journal_bytes, status.written_rows) == (0, 0, 3 + 36)
        bench.put(30, 33)
        await writer.durable()
        assert writer.status().spilled_rows == 36
        assert bench.landed()[-1] == (3, Landed.STORE)
    assert journaled(bench.folder) == 0


async def test_a_busy_store_is_away_too(bench: Bench) -> None:
    async with bench.opened() as writer:
        bench.store.error = StoreBusy("locked")
        bench.put(0, 3)
        await writer.durable()
        assert writer.status().spilled_rows == 3


async def test_a_store_that_is_away_is_asked_more_and_more_seldom(bench: Bench) -> None:
    async with bench.opened() as writer:
        bench.store.error = AWAY
        bench.put(0, 1)
        await writer.durable()
        for count in range(1, 8):
            await bench.pauses.wait_for(count)
            bench.pauses.end()
        await bench.pauses.wait_for(8)
        assert bench.pauses.asked == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]


async def test_no_row_overtakes_an_older_one(bench: Bench) -> None:
    """While the journal is on its way to a store that was away, new rows go behind it, and wait for nothing."""
    async with bench.opened() as writer:
        bench.store.error = AWAY
        bench.candle(1, version=1)
        await writer.durable()
        await bench.pauses.wait_for(1)
        bench.store.error = None
        bench.store.gate.clear()
        bench.pauses.end()
        await until(lambda: bench.store.under_way == 1)
        bench.candle(1, version=2)
        await writer.durable()
        assert writer.status().spilled_rows == 2
        bench.store.gate.set()
        await bench.in_state(WriterState.DIRECT)
        assert bench.store.most_under_way == 1
        (close,) = bench.store.candles.values()
        assert close == made([1], 2).column("close")[0].as_py()


@pytest.mark.parametrize("away", [True, False])
async def test_the_last_of_the_journal_is_waited_for(bench: Bench, away: bool) -> None:
    async with bench.opened() as writer:
        bench.store.error = AWAY
        bench.put(0, 1)
        await writer.durable()
    bench.store.error = AWAY if away else None
    bench.store.gate.clear()
    async with bench.opened() as writer:
        await until(lambda: bench.store.under_way == 1)
        bench.put(1, 2)
        waiting = asyncio.ensure_future(writer.durable())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        bench.store.gate.set()
        await waiting
        # Straight to the store; where that failed, to the journal like the others.
        assert writer.status().spilled_rows == int(away)
        assert bench.store.most_under_way == 1


async def test_a_market_that_never_rests_leaves_the_journal_too(bench: Bench) -> None:
    async with bench.opened() as writer:
        stopped = False

        async def stream() -> int:
            count = 0
            while not stopped:
                bench.put(count, count + 3)
                count += 3
                await writer.durable()
            return count

        bench.store.error = AWAY
        streaming = asyncio.ensure_future(stream())
        await bench.pauses.wait_for(1)
        await until(lambda: writer.status().journal_records > 20)
        bench.store.error = None
        bench.pauses.end()
        await bench.in_state(WriterState.DIRECT)
        spilled = writer.status().spilled_rows
        await until(lambda: writer.status().written_rows > 2 * spilled)
        stopped = True
        count = await streaming
        assert writer.status().spilled_rows == spilled
        assert bench.store.trades == {"BTC/USDT": list(range(count))}


async def test_a_full_journal_is_waited_for_while_the_store_empties_it(tmp_path: Path, clock: Any) -> None:
    bench = Bench(tmp_path, clock, journal_bytes=1000)
    async with bench.opened():
        bench.store.error = AWAY
        bench.put(0, 20)
    bench.store.error = None
    bench.store.gate.clear()
    async with bench.opened() as writer:
        bench.put(20, 40)
        waiting = asyncio.ensure_future(writer.durable())
        with capture_logs() as logs:
            await until(lambda: "journal_takes_no_more" in [entry["event"] for entry in logs])
        assert not waiting.done()
        bench.store.gate.set()
        await waiting
    assert bench.store.trades == {"BTC/USDT": list(range(40))}


@pytest.mark.parametrize("error", [AWAY, StoreUnusable("read-only")], ids=["away", "read-only"])
async def test_a_full_journal_is_not_waited_for_in_vain(tmp_path: Path, clock: Any, error: ChandleryError) -> None:
    bench = Bench(tmp_path, clock, journal_bytes=1000)
    async with bench.opened():
        bench.store.error = AWAY
        bench.put(0, 20)
    bench.store.error = error
    bench.store.gate.clear()

    async def work() -> None:
        async with bench.opened() as writer:
            bench.put(20, 40)
            await until(lambda: bench.store.under_way == 1)
            bench.store.gate.set()
            await writer.durable()

    with pytest.raises(StoreUnusable, match="may hold 1,000" if error is AWAY else "read-only"):
        await work()
    assert journaled(bench.folder) == 1


async def test_what_a_killed_process_left_comes_first(bench: Bench) -> None:
    left = [TradeBatch(exchange="binance", symbol="BTC/USDT", trades=[trade(n)], dense=True) for n in range(5)]
    with Journal.opened(bench.folder) as journal:
        journal.append([encode(one) for one in left])
    bench.store.gate.clear()
    async with bench.opened() as writer:
        assert writer.status().state is WriterState.REPLAYING
        bench.put(5, 10)
        bench.store.gate.set()
        await writer.durable()
        await bench.in_state(WriterState.DIRECT)
        assert bench.store.trades == {"BTC/USDT": list(range(10))}
        stored = [rows for rows, landed in bench.landed() if landed is Landed.STORE]
        assert stored == [1, 1, 1, 1, 1, 5]
        # The first five were not received in this process: no lag of those.
        assert writer.status().lag.longest == 0


async def test_leaving_while_the_store_is_away_leaves_the_journal(bench: Bench) -> None:
    async with bench.opened():
        bench.store.error = AWAY
        bench.put(0, 10)
        bench.candle(1)
    assert bench.store.trades == {}
    assert journaled(bench.folder) == 2
    bench.store.error = None
    async with bench.opened():
        await bench.in_state(WriterState.DIRECT)
    assert bench.store.trades == {"BTC/USDT": list(range(10))}
    assert journaled(bench.folder) == 0


async def test_a_refused_batch_does_not_block_the_others(bench: Bench) -> None:
    bench.store.refuses = lambda one: isinstance(one, TradeBatch) and one.symbol == "ODD/USDT"
    async with bench.opened() as writer:
        for symbol in ("BTC/USDT", "ODD/USDT", "ETH/USDT", "SOL/USDT"):
            bench.put(0, 3, symbol)
        with capture_logs() as logs:
            await writer.durable()
        assert sorted(bench.store.trades) == ["BTC/USDT", "ETH/USDT", "SOL/USDT"]
        assert [entry["log_level"] for entry in logs if entry["event"] == "record_set_aside"] == ["error"]
        status = writer.status()
        assert (status.set_aside_rows, status.written_rows, status.waiting_rows) == (3, 9, 0)
        assert (3, Landed.SET_ASIDE) in bench.landed()
    (kept,) = bench.folder.glob("*.refused")
    # Once the store takes it, it can be brought back.
    kept.rename(kept.with_suffix(".journal"))
    bench.store.refuses = lambda one: False
    async with bench.opened():
        await bench.in_state(WriterState.DIRECT)
    assert bench.store.trades["ODD/USDT"] == [0, 1, 2]


async def test_a_refused_batch_does_not_block_the_journal(bench: Bench) -> None:
    bench.store.refuses = lambda one: isinstance(one, CandleBatch) and one.series == ETH
    async with bench.opened() as writer:
        bench.store.error = AWAY
        writer.candles(batch(made([1]), series=ETH), NOW)
        bench.put(0, 3)
        await writer.durable()
        await bench.pauses.wait_for(1)
        bench.store.error = None
        bench.pauses.end()
        await bench.in_state(WriterState.DIRECT)
        assert bench.store.trades == {"BTC/USDT": [0, 1, 2]}
        assert writer.status().set_aside_rows == 1
    assert len(list(bench.folder.glob("*.refused"))) == 1


async def test_what_cannot_even_be_written_down_is_kept_as_text(bench: Bench) -> None:
    async with bench.opened() as writer:
        bench.store.error = AWAY
        writer.trade_sink("binance", "ODD/USDT", True)(trade(2**70))
        bench.put(0, 3)
        await writer.durable()
        status = writer.status()
        assert (status.set_aside_rows, status.spilled_rows, status.journal_records) == (1, 3, 1)
    (kept,) = bench.folder.glob("*.refused")
    assert str(2**70).encode() in kept.read_bytes()


async def test_a_record_that_nobody_can_read_is_set_aside(bench: Bench) -> None:
    good = TradeBatch(exchange="binance", symbol="BTC/USDT", trades=[trade(1)], dense=True)
    with Journal.opened(bench.folder) as journal:
        journal.append([b"no batch", encode(good)])
    async with bench.opened():
        await bench.in_state(WriterState.DIRECT)
    assert bench.store.trades == {"BTC/USDT": [1]}
    (kept,) = bench.folder.glob("*.refused")
    assert b"no batch" in kept.read_bytes()


FULL = StoreUnusable("no space left for the database")


async def test_a_store_at_its_end_ends_the_writer_with_everything_in_the_journal(bench: Bench) -> None:
    async def work() -> None:
        async with bench.opened() as writer:
            bench.store.error = FULL
            bench.store.gate.clear()
            bench.put(0, 3)
            first = asyncio.ensure_future(writer.durable())
            await until(lambda: bench.store.under_way == 1)
            bench.put(3, 7)
            bench.candle(1)
            bench.store.gate.set()
            await first
            with pytest.raises(StoreUnusable, match="no space left for the database"):
                await writer.ended()
            status = writer.status()
            assert (status.state, status.waiting_rows, status.spilled_rows) == (WriterState.FAILED, 0, 8)
            assert status.error == "no space left for the database"

    with pytest.raises(StoreUnusable, match="no space left for the database"):
        await work()
    bench.store.error = None
    async with bench.opened():
        await bench.in_state(WriterState.DIRECT)
    assert bench.store.trades == {"BTC/USDT": list(range(7))}
    assert len(bench.store.candles) == 1


async def test_a_store_at_its_end_while_replaying_does_too(bench: Bench) -> None:
    async def work() -> None:
        async with bench.opened() as writer:
            bench.store.error = AWAY
            bench.put(0, 3)
            await writer.durable()
            await bench.pauses.wait_for(1)
            bench.put(3, 6)
            bench.store.error = FULL
            bench.pauses.end()
            await writer.ended()

    with pytest.raises(StoreUnusable, match="no space left"):
        await work()
    assert journaled(bench.folder) == 2


async def test_a_full_journal_is_a_loud_stop(tmp_path: Path, clock: Any) -> None:
    bench = Bench(tmp_path, clock, journal_bytes=1000)

    async def work() -> None:
        async with bench.opened() as writer:
            bench.store.error = AWAY
            bench.put(0, 5)
            await writer.durable()
            bench.put(5, 100)
            with pytest.raises(StoreUnusable, match="may hold 1,000"):
                await writer.durable()
            assert writer.status().waiting_rows == 95
            assert writer.status().state is WriterState.FAILED

    with pytest.raises(StoreUnusable, match="may hold 1,000"):
        await work()
    bench.store.error = None
    async with bench.opened():
        await bench.in_state(WriterState.DIRECT)
    assert bench.store.trades == {"BTC/USDT": list(range(5))}


async def test_an_error_that_nobody_thought_of_is_not_swallowed(bench: Bench) -> None:
    async def work() -> None:
        async with bench.opened() as writer:
            bench.store.error = ZeroDivisionError()
            bench.put(0, 5)
            await writer.durable()

    with pytest.raises(ZeroDivisionError):
        await work()


async def test_after_the_end_nobody_waits_in_vain(bench: Bench) -> None:
    async with bench.opened() as writer:
        bench.put(0, 5)
    await writer.durable()
    bench.put(5, 6)
    with pytest.raises(StoreUnusable, match="the writer is closed"):
        await writer.durable()


async def test_the_streams_pause_above_the_mark_and_go_on_below(tmp_path: Path, clock: Any) -> None:
    rules = WaitingRules(trades_every=3600.0, trades_at_once=40, high_rows=100, low_rows=30)
    bench = Bench(tmp_path, clock, rules)
    async with bench.opened() as writer:
        bench.store.gate.clear()
        bench.put(0, 99)
        assert bench.crowded == []
        bench.put(99, 130)
        assert bench.crowded == [True]
        assert writer.status().crowded
        bench.store.gate.set()
        await until(lambda: writer.status().waiting_rows == 0)
        assert bench.crowded == [True, False]
        # And once more, in the middle of a burst of candles.
        for minute in range(110):
            bench.candle(minute)
        assert bench.crowded == [True, False, True]
        await writer.durable()
        assert bench.crowded == [True, False, True, False]
        assert bench.waiting_then == [100, 10, 100, 30]
    assert bench.store.trades == {"BTC/USDT": list(range(130))}
    assert len(bench.store.candles) == 110


async def test_bytes_are_bounded_too(tmp_path: Path, clock: Any) -> None:
    rules = WaitingRules(trades_every=3600.0, high_bytes=50 * TRADE_BYTES, low_bytes=10 * TRADE_BYTES)
    bench = Bench(tmp_path, clock, rules)
    async with bench.opened() as writer:
        bench.put(0, 49)
        assert bench.crowded == []
        bench.put(49, 50)
        assert bench.crowded == [True]
        await writer.durable()
        assert bench.crowded == [True, False]


def refused(number: int, topic: Topic | None = Topic(Channel.TRADES, "BTC/USDT")) -> RefusedMessage:  # noqa: B008
    return RefusedMessage(
        exchange="binance", topic=topic, reason="no price", raw=f'{{"n": {number}, "\0": 1}}', received_at=NOW
    )


async def test_messages_that_cannot_be_used_are_kept_up_to_a_number(tmp_path: Path, clock: Any) -> None:
    bench = Bench(tmp_path, clock, WaitingRules(trades_every=3600.0, most_refused=5))
    async with bench.opened() as writer:
        for number in range(8):
            writer.refused(refused(number))
        writer.trade_sink("binance", "BTC/USDT", True)(trade(1))
        await writer.durable()
        assert [one.symbol for one in bench.store.messages] == ["BTC/USDT"] * 5
        assert bench.store.messages[0].raw == '{"n": 0, "\\x00": 1}'
        status = writer.status()
        assert (status.refused_messages, status.refused_dropped, status.waiting_rows) == (8, 3, 0)
        bench.store.error = AWAY
        writer.refused(refused(9, None))
        await writer.durable()
        await bench.pauses.wait_for(1)
        bench.store.error = None
        bench.pauses.end()
        await bench.in_state(WriterState.DIRECT)
        assert (bench.store.messages[-1].symbol, bench.store.messages[-1].channel) == (None, None)


async def test_messages_alone_are_written_after_a_while(tmp_path: Path, clock: Any) -> None:
    bench = Bench(tmp_path, clock, WaitingRules(trades_every=0.01))
    async with bench.opened() as writer:
        writer.refused(refused(1))
        await until(lambda: writer.status().waiting_rows == 0)
        writer.trade_sink("binance", "BTC/USDT", True)(trade(1))
        await until(lambda: writer.status().waiting_rows == 0)
    assert bench.store.calls == [("messages", 1), ("trades", 1)]


async def test_lag_and_age_are_told(bench: Bench) -> None:
    async with bench.opened() as writer:
        sink = writer.trade_sink("binance", "BTC/USDT", True)
        for number in range(100):
            sink(trade(number, NOW - 100 + number))
        assert writer.status().oldest_waiting == NOW - 100
        assert writer.status().lag.longest is None
        bench.clock.advance(7)
        await writer.durable()
        lag = writer.status().lag
        assert lag.longest == 107
        assert lag.p50 is not None
        assert lag.p99 is not None
        assert 7 <= lag.p50 <= lag.p99 <= 107
        assert writer.status().oldest_waiting is None

    def told(name: str, **labels: str) -> float | None:
        return bench.registry.get_sample_value(f"chandlery_ingest_{name}", labels)

    assert told("rows_total", where="store") == 100
    assert told("queue_rows") == told("queue_bytes") == told("journal_bytes") == 0
    assert told("lag_seconds_bucket", le="0.005") == 0
    assert told("lag_seconds_count") == told("lag_seconds_bucket", le="0.2")


@pytest.mark.parametrize("error", [AWAY, FULL], ids=["away", "full"])
async def test_a_journal_in_use_stops_the_start(bench: Bench, error: ChandleryError) -> None:
    bench.store.error = error
    with Journal.opened(bench.folder), pytest.raises(StoreBusy):
        async with bench.opened():
            pytest.fail("two writers on one journal")


async def test_the_sink_of_an_instrument_is_one(bench: Bench) -> None:
    async with bench.opened() as writer:
        one: Callable[[Trade], None] = writer.trade_sink("binance", "BTC/USDT", True)
        assert writer.trade_sink("binance", "BTC/USDT", True) is one
