"""Live messages from a socket to memory, candle builder, bus and database, beside what others do with the same.

python -m bench.ingest [--json] [--candles N] [--rounds N]

The exchange is another process (`bench.sender`) that sends as fast as it is read. Rates are by the processor time
of our whole process, all its threads, so that a busy machine spoils them less; more than a core is never used.
Others get the messages from a list, without a socket. A tenth of `--candles` messages in a round; the hour of 3.6
million messages is as long as `--candles` is to a million.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import httpx
import pyarrow as pa
import uvicorn
import uvloop

from bench.chain import ALL, CLOCK, EXCHANGE, opened_chain, until
from bench.figures import Figures
from bench.handlers import ccxt_pro, cryptofeed, decoding
from bench.messages import PER_SECOND, SYMBOLS, MadeMessages
from bench.paired import Measured, Result, run
from bench.sender import MIXES, Sender
from ingest.writer_status import Landed
from market.candle import open_times_ms
from market.channel import Channel
from market.instrument import Series
from market.timeframe import MINUTE_MS, ONE_MINUTE
from serve.app import create_app
from store.market_data import MarketData
from store.trade_batch import TradeBatch

_T = TypeVar("_T")

#: Messages in a second of processor time, from the socket on.
BUDGET = 100_000
#: Milliseconds from a closed candle's frame to a read that shows it, 99 of 100 times.
READABLE_BUDGET = 10.0
#: Messages for those who are slow, at most; their time is scaled.
_SLOW = {"cryptofeed's Binance handler": 50_000, "ccxt.pro's Binance handler": 5_000}
_LAG_SECONDS, _LAG_RATES = 10, (5_000, 20_000)
_HOUR = 3600 * PER_SECOND
_CLOSES = 150


def _start(minutes_ago: int) -> int:
    return (CLOCK.now_ms() // MINUTE_MS - minutes_ago) * MINUTE_MS


async def _through(sender: Sender, mix: str, messages: int, *, record_trades: bool = False) -> tuple[float, float]:
    """Seconds of processor time, and by the clock, for so many messages through the chain."""
    channels = frozenset({Channel.TRADES}) if mix == "trades" else ALL
    with tempfile.TemporaryDirectory() as home:
        async with opened_chain(sender.url, Path(home), channels=channels, record_trades=record_trades) as chain:
            await sender.make(messages)
            before = chain.received
            busy, began = time.process_time(), time.perf_counter()
            sender.go()
            await chain.until(before + messages)
            if record_trades:
                await chain.writer.durable()
            seconds = time.process_time() - busy, time.perf_counter() - began
            chain.check()
            return seconds


def _run(work: Awaitable[_T]) -> _T:
    async def waited() -> _T:
        return await work

    # As our commands run.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(waited())


def rates(messages: int, rounds: int, mix: str) -> list[Result]:
    """The chain in turn with the others, all with the same messages."""
    start = _start(120)
    made = list(islice(MadeMessages(MIXES[mix], start), messages))
    aggregated = list(islice(MadeMessages(MIXES[mix], start, trades="aggTrade"), messages))
    others: dict[str, tuple[int, Callable[[], float]]] = {"msgspec decode only": (messages, decoding(made))}
    for name, handler, texts in (
        # It knows no single trades of Binance, only aggregated ones.
        ("cryptofeed's Binance handler", cryptofeed, aggregated),
        ("ccxt.pro's Binance handler", ccxt_pro, made),
    ):
        few = texts[: _SLOW[name]]
        try:
            others[name] = len(few), handler(few)
        except ImportError as error:
            print(f"{name}: left out, {error}")
    ours: list[tuple[float, float]] = []
    recorded: list[float] = []
    theirs: dict[str, list[float]] = {name: [] for name in others}
    with Sender(mix, start) as sender:
        for count in range(rounds + 1):
            through = _run(_through(sender, mix, messages))
            durably, _ = _run(_through(sender, mix, messages, record_trades=True))
            times = {name: work() * messages / part for name, (part, work) in others.items()}
            if count:
                ours.append(through)
                recorded.append(durably)
                for name, seconds in times.items():
                    theirs[name].append(seconds)
    what = f"binance {mix}: socket to memory, builder, bus"
    found: list[Result] = []
    for name, seconds_of in theirs.items():
        found.append(
            Measured(
                name=what,
                units=messages,
                baseline=name,
                ours_seconds=statistics.median(busy for busy, _ in ours),
                baseline_seconds=statistics.median(seconds_of),
                rounds=rounds,
                budget_per_second=BUDGET,
            )
        )
    found.append(
        Measured(
            name=what,
            units=messages,
            baseline="the same, each trade in SQLite too",
            ours_seconds=statistics.median(busy for busy, _ in ours),
            baseline_seconds=statistics.median(recorded),
            rounds=rounds,
        )
    )
    by_clock = statistics.median(messages / seconds for _, seconds in ours)
    found.append(Figures(name=what, unit="messages a second by the clock", values={"median": by_clock}))
    return found


async def _lag(rate: int) -> Figures:
    """From the receipt of a trade to its commit, at a steady rate."""
    lags: list[int] = []

    def durable(batch: object, landed: Landed) -> None:
        if isinstance(batch, TradeBatch) and landed is Landed.STORE:
            now = CLOCK.now_ms()
            lags.extend(now - trade.received_at for trade in batch.trades)

    messages = rate * _LAG_SECONDS
    with Sender("trades", _start(120)) as sender, tempfile.TemporaryDirectory() as home:
        async with opened_chain(
            sender.url, Path(home), channels=frozenset({Channel.TRADES}), record_trades=True, on_durable=durable
        ) as chain:
            await sender.make(messages, rate)
            before = chain.received
            began = time.perf_counter()
            sender.go()
            await chain.until(before + messages)
            await chain.writer.durable()
            seconds = time.perf_counter() - began
            chain.check()
    if len(lags) != messages:
        raise RuntimeError(f"{len(lags)} of {messages} trades are durable")
    return Figures(
        name=f"receipt to durable at {rate:,} trades/s",
        unit="ms",
        values=_spread([float(one) for one in lags]),
        more={"trades/s": messages / seconds},
    )


def _spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    last = len(ordered) - 1
    return {"p50": ordered[round(last * 0.5)], "p99": ordered[round(last * 0.99)], "longest": ordered[-1]}


async def _closes(times: int) -> list[Result]:
    """From a closed candle's frame, one of 20 at the same moment, to the first read that shows it."""
    start = _start(2 * times + 60)
    series = [Series(EXCHANGE, symbol, ONE_MINUTE) for symbol in SYMBOLS]
    found: dict[bool, list[float]] = {False: [], True: []}
    of_all: list[float] = []
    with Sender("candles", start) as sender, tempfile.TemporaryDirectory() as home:
        async with opened_chain(sender.url, Path(home), channels=frozenset({Channel.CANDLES})) as chain:
            market_data = MarketData(chain.store, chain.memory.candles, CLOCK)

            async def shown(one: Series, open_time: int) -> bool:
                table = (await market_data.candles(one, limit=1)).table
                return int(open_times_ms(table)[-1]) == open_time

            # The first makes the series known.
            await sender.close_candles()
            await until(lambda: chain.writer.status().written_rows >= len(series))
            async with _served(market_data) as http:
                for count in range(1, 2 * times + 1):
                    one, over_http = series[count % len(series)], count % 2 == 0
                    open_time = start + count * MINUTE_MS
                    look = partial(_answered, http) if over_http else shown
                    sent = await sender.close_candles()
                    while not await look(one, open_time):
                        pass
                    found[over_http].append((time.monotonic_ns() - sent) / 1e6)
                    if not all(await asyncio.gather(*(shown(other, open_time) for other in series))):
                        raise RuntimeError("not all of the candles that closed together can be read")
                    if not over_http:
                        of_all.append((time.monotonic_ns() - sent) / 1e6)
    what = "20 candles close: frame to"
    budget = ("p99", READABLE_BUDGET)
    return [
        Figures(name=f"{what} a read of one", unit="ms", values=_spread(found[False]), budget=budget),
        Figures(name=f"{what} a read of one over HTTP", unit="ms", values=_spread(found[True])),
        Figures(name=f"{what} reads of all 20", unit="ms", values=_spread(of_all)),
    ]


@contextlib.asynccontextmanager
async def _served(market_data: MarketData) -> AsyncIterator[httpx.AsyncClient]:
    """A client of our HTTP service, which runs on the same loop."""

    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[MarketData]:
        yield market_data

    server = uvicorn.Server(uvicorn.Config(create_app(opened), port=0, log_level="error", access_log=False))
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        yield http
    server.should_exit = True
    await serving


async def _answered(http: httpx.AsyncClient, one: Series, open_time: int) -> bool:
    query = {"exchange": one.exchange, "symbol": one.symbol, "timeframe": one.timeframe.name, "limit": "1"}
    answer = await http.get("/v1/candles", params={**query, "format": "arrow"})
    table = pa.ipc.open_stream(answer.raise_for_status().content).read_all()
    return int(open_times_ms(table)[-1]) == open_time


async def _memory(messages: int) -> Figures:
    """What the process holds while the messages of an hour go through the chain at full speed."""
    quarters: dict[str, float] = {}
    with Sender("mix", _start(120)) as sender, tempfile.TemporaryDirectory() as home:
        async with opened_chain(sender.url, Path(home)) as chain:
            await sender.make(messages)
            before = chain.received
            busy = time.process_time()

            def look(received: int) -> None:
                part = 4 * (received - before) // messages
                if part and f"{25 * part} %" not in quarters:
                    quarters[f"{25 * part} %"] = _resident()

            sender.go()
            await chain.until(before + messages, look)
            busy = time.process_time() - busy
            chain.check()
            closed = sum(one.agreement.equal for one in chain.routes.built.values())
    resident = list(quarters.values())
    growth = {"growth of the last quarter": resident[-1] - resident[-2], "messages/s": messages / busy}
    return Figures(
        name=f"resident memory, {messages:,} messages, {closed} candles",
        unit="MiB",
        values=quarters,
        more=growth,
    )


def _resident() -> float:
    """MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def measure(candles: int, rounds: int) -> list[Result]:
    """All of it. Memory first, before anything else has been taken."""
    messages = max(1000, candles // 10)
    found: list[Result] = [_run(_memory(max(10_000, _HOUR * candles // 1_000_000)))]
    for mix in ("mix", "trades"):
        found += rates(messages, rounds, mix)
    found += [_run(_lag(rate)) for rate in _LAG_RATES]
    return found + _run(_closes(max(20, _CLOSES * candles // 1_000_000)))


if __name__ == "__main__":
    run(measure, __doc__)
