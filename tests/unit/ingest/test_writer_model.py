"""Whatever happens to the store, the process and the journal: nothing acknowledged is lost or out of order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingest.waiting import WaitingRules
from ingest.writer import Writer, WriterRules
from ingest.writer_status import WriterState
from market.clock import SystemClock
from market.errors import StoreBusy, StoreUnavailable
from tests.support.failing_store import until
from tests.support.made_candles import at, batch, made
from tests.support.scripted_writes import ScriptedWrites, trade

SYMBOLS = ("BTC/USDT", "ETH/USDT")
#: This is about what is written in which order, not about the disk.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
HIGH = 60
BURST = 25
RULES = WriterRules(
    waiting=WaitingRules(trades_every=0.001, trades_at_once=7, high_rows=HIGH, low_rows=20, most_refused=5),
    # Small files, so that there are many.
    segment_bytes=600,
)

ACTION = st.one_of(
    st.tuples(st.just("trades"), st.sampled_from(SYMBOLS), st.integers(1, BURST)),
    st.tuples(st.just("candle"), st.integers(0, 2)),
    st.tuples(st.just("durable")),
    st.tuples(st.just("store"), st.sampled_from(["up", "away", "lost answer", "busy", "slow"])),
    st.tuples(st.just("turns"), st.integers(1, 30)),
    st.tuples(st.just("kill"), st.binary(max_size=30), st.booleans()),
    st.tuples(st.just("restart")),
)


class Model:
    """A writer, what was put into it, and what of that it has acknowledged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = ScriptedWrites()
        self.put = dict.fromkeys(SYMBOLS, 0)
        self.acknowledged = dict.fromkeys(SYMBOLS, 0)
        #: The most that were ever put in: of what was put in before a kill, nobody knows how much arrived.
        self.most = dict.fromkeys(SYMBOLS, 0)
        #: By minute: the latest version, the latest put into this writer, and the latest acknowledged one.
        self.versions: dict[int, int] = {}
        self.candles: dict[int, int] = {}
        self.acknowledged_candles: dict[int, int] = {}
        self.crowded = False
        self.most_waiting = 0
        self._end = contextlib.AsyncExitStack()
        self.writer: Writer

    async def open(self) -> None:
        self.crowded = False
        self._end = contextlib.AsyncExitStack()
        self.writer = await self._end.enter_async_context(
            Writer.opened(
                self.store,
                self.folder,
                SystemClock(),
                rules=RULES,
                on_crowded=lambda crowded: setattr(self, "crowded", crowded),
                sleep=lambda seconds: asyncio.sleep(seconds / 1000),
            )
        )

    async def act(self, name: str, *arguments: object) -> None:
        await getattr(self, "_" + name)(*arguments)
        self.most_waiting = max(self.most_waiting, self.writer.status().waiting_rows)

    async def _trades(self, symbol: str, count: int) -> None:
        if self.crowded:
            return
        sink = self.writer.trade_sink("binance", symbol, True)
        for _ in range(count):
            sink(trade(self.put[symbol]))
            self.put[symbol] += 1
        self.most[symbol] = max(self.most[symbol], self.put[symbol])

    async def _candle(self, minute: int) -> None:
        if self.crowded:
            return
        self.candles[minute] = self.versions[minute] = version = self.versions.get(minute, -1) + 1
        self.writer.candles(batch(made([minute], version)), 0)

    async def _durable(self) -> None:
        put, candles = dict(self.put), dict(self.candles)
        if not self.store.gate.is_set():
            self.store.gate.set()
        await self.writer.durable()
        self.acknowledged = put
        self.acknowledged_candles.update(candles)

    async def _store(self, how: str) -> None:
        self.store.error = {
            "away": StoreUnavailable("down"),
            "lost answer": StoreUnavailable("lost"),
            "busy": StoreBusy("locked"),
        }.get(how)
        self.store.late = how == "lost answer"
        if how == "slow":
            self.store.gate.clear()
        else:
            self.store.gate.set()

    async def _turns(self, count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    async def _kill(self, garbage: bytes, tear: bool) -> None:
        """End without any of what an orderly end does; a write that never finished may lie at the journal's end."""
        assert self.writer._task is not None
        self.writer._task.cancel()
        await self._end.aclose()
        self.store.gate.set()
        if tear and (files := sorted(self.folder.glob("*.journal"))):
            with files[-1].open("ab") as file:
                file.write(garbage)
        # What was not acknowledged may be lost: the exchange is asked for it again.
        self.put, self.candles = dict(self.acknowledged), {}
        await self.open()

    async def _restart(self) -> None:
        self.store.gate.set()
        await self._end.aclose()
        self.acknowledged = dict(self.put)
        self.acknowledged_candles.update(self.candles)
        await self.open()

    async def finish(self) -> None:
        await self.act("store", "up")
        await self.act("durable")
        await until(lambda: self.writer.status().state is WriterState.DIRECT)
        await self._end.aclose()

    def check(self) -> None:
        for symbol in SYMBOLS:
            # The store takes each id once; here it shows in which order they first came.
            stored = self.store.trades.get(symbol, [])
            assert stored == list(range(len(stored)))
            assert self.put[symbol] <= len(stored) <= self.most[symbol]
        for minute, newest in self.versions.items():
            oldest = self.acknowledged_candles.get(minute)
            closes = [made([minute], one).column("close")[0].as_py() for one in range(oldest or 0, newest + 1)]
            possible = closes if oldest is not None else [*closes, None]
            assert self.store.candles.get(("BTC/USDT", at(minute))) in possible
        assert not list(self.folder.glob("*.journal"))
        assert not list(self.folder.glob("*.refused"))
        assert self.most_waiting <= HIGH + BURST
        assert self.store.most_under_way <= 1


async def play(folder: Path, actions: list[tuple[object, ...]]) -> None:
    model = Model(folder)
    await model.open()
    for name, *arguments in actions:
        await model.act(str(name), *arguments)
    await model.finish()
    model.check()


@given(st.lists(ACTION, max_size=40))
@settings(max_examples=int(os.environ.get("CHANDLERY_TEST_WRITER_RUNS", "40")))
@example(
    [("store", "away"), ("trades", "BTC/USDT", 5), ("durable",), ("kill", b"", True), ("trades", "BTC/USDT", 3)]
)
@example([("candle", 1), ("store", "lost answer"), ("candle", 1), ("durable",), ("store", "up"), ("candle", 1)])
def test_all_that_is_acknowledged_arrives_once_and_in_order(actions: list[tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        asyncio.run(play(Path(folder), actions))
