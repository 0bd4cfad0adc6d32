"""A process of its own that reads a home through the tiers and writes to it, one operation after the other.

After each read it asks the database the same, with nothing written in between, and says where the two differ. It
also looks again at answers it gave earlier: what a reader holds must not change under its hands.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
import traceback
import warnings
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import structlog

from chandlery import wiring
from chandlery.settings import Settings
from chandlery.tiers import opened_tiers
from market.candle import candles
from market.errors import ChandleryError, StoreBusy, StoreReadOnly, StoreUnavailable
from market.instrument import Instrument
from market.interval import Interval
from store.answer import CandleAnswer
from store.batch import Absence, CandleBatch, Written
from store.control import SafetyState
from store.live_source import LocalMarket
from store.market_data import MarketData
from store.tiers.encoded import Encoded
from tests.support.made_candles import MINUTE
from tests.support.tiers_model import (
    CLOSED,
    Ask,
    Forget,
    Form,
    InProcess,
    Listed,
    Read,
    Safety,
    Write,
    WriteAll,
)

#: What every answer says alike, whichever tier gave it.
COMPARED = ("series", "interval", "coverage", "gaps", "fingerprint", "next_start", "derived_from")
TIERS = frozenset({"memory", "router", "disk", "database", "archive"})
#: Milliseconds that a candle may be behind where nobody tells us of changes (class ``price``).
LIFETIME_MS = 100
#: Added to every comparison of times that were rounded to milliseconds.
ROUNDING_MS = 5
#: Seconds until a stale answer must have caught up.
CATCH_UP = 10.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a process opens."""

    #: For :class:`chandlery.settings.Settings`.
    settings: dict[str, Any]
    #: ``served`` as the HTTP service does, ``together`` as `up` does.
    role: str = "served"
    #: Whether an answer may be behind by its declared age.
    may_be_stale: bool = False


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What became of an operation."""

    #: In words; None where all is well.
    wrong: str | None = None
    #: What a write changed; None where the safety state forbade it.
    written: Any = None
    refused: bool = False
    #: Answers by tier.
    tiers: Counter[str] = field(default_factory=Counter)
    #: Answers that were behind the database, and said so.
    stale: int = 0
    #: Seconds of processor that the operation took.
    processor: float = 0.0


class SetClock:
    """Our clock, as the test sets it."""

    time_ms = 0

    def now_ms(self) -> int:
        return self.time_ms


class Process:
    """What one process has open."""

    def __init__(self, clock: SetClock) -> None:
        self._clock = clock
        self._stack = contextlib.AsyncExitStack()
        self._place = Place(settings={})
        self._store: Any = None
        self._tiered: Any = None
        self._plain: Any = None
        #: Earlier answers: what was given, and what it was.
        self._held: deque[tuple[Read, CandleAnswer, CandleAnswer]] = deque(maxlen=10)

    async def open(self, place: Place) -> None:
        """Open the home, for reading through the tiers and for writing."""
        self._place = place
        settings = Settings(**place.settings)
        if place.role == "together":
            self._store = await self._stack.enter_async_context(wiring.opened_store(settings))
            self._tiered = await self._stack.enter_async_context(together(settings, self._store))
        else:
            # A reader finds a home that is there already.
            self._store = await self._stack.enter_async_context(wiring.opened_store(settings))
            self._tiered = await self._stack.enter_async_context(wiring.served_market_data(settings))
        live = self._tiered._live
        self._plain = MarketData(self._store, live, self._clock, wiring.archive(settings))
        self._live = live

    async def close(self) -> None:
        self._held.clear()
        self._store = self._tiered = self._plain = None
        await self._stack.aclose()

    async def perform(self, one: InProcess, written_at: float) -> Reply:
        """:param written_at: monotonic seconds before which nothing was changed since the last change."""
        match one:
            case Read():
                return await self._read(one, written_at)
            case Ask():
                return await self._ask(one, written_at)
            case Write() | WriteAll() | Listed() | Safety():
                return await self._change(one)
            case Forget():
                self._tiered._views.forget(one.series)
                return Reply()
            case Form():
                row = made([one.open_time], one.version)
                if isinstance(self._live, LocalMarket):
                    self._live._market.candles.put(one.series, row, self._clock.now_ms())
                return Reply()
        raise AssertionError(one)

    # Writing.

    async def _change(self, one: InProcess) -> Reply:
        try:
            return Reply(written=await self._changed(one))
        except StoreReadOnly:
            return Reply(refused=True)

    async def _changed(self, one: InProcess) -> Any:
        match one:
            case Write():
                return await self._store.write(to_batch(one))
            case WriteAll():
                return sum(await self._store.write_all([to_batch(each) for each in one.batches]), Written())
            case Listed():
                base, _, quote = one.symbol.partition("/")
                said = Instrument(
                    exchange="binance",
                    symbol=one.symbol,
                    exchange_symbol=one.symbol.replace("/", ""),
                    base=base,
                    quote=quote.partition(":")[0],
                    listed_ms=one.at,
                )
                return await self._store.save_instruments([said])
            case Safety():
                return await self._store.set_control(safety=SafetyState(one.state), reason="model")

    # Reading.

    async def _read(self, one: Read, written_at: float) -> Reply:
        self._look_again()
        arguments = {
            "start_ms": one.start,
            "end_ms": one.end,
            "limit": one.limit,
            "as_of_ms": one.as_of,
            "include_forming": one.forming,
        }

        async def ask(market_data: Any) -> list[Any]:
            if one.encoded and market_data is self._tiered:
                return [await outcome(kept(market_data, one, arguments))]
            if len(one.series) == 1:
                answer = await outcome(market_data.candles(one.series[0], **arguments))
                return [answer]
            answers = await outcome(market_data.batch(one.series, **arguments))
            return answers if isinstance(answers, list) else [answers]

        return await self._compared(one, ask, written_at)

    async def _ask(self, one: Ask, written_at: float) -> Reply:
        async def ask(market_data: Any) -> list[Any]:
            within = Interval(one.start, one.end) if one.end else None
            if one.what in ("coverage", "gaps"):
                return [await outcome(getattr(market_data, one.what)(one.series, within))]
            return [await outcome(getattr(market_data, one.what)())]

        return await self._compared(one, ask, written_at)

    async def _compared(self, one: Any, ask: Any, written_at: float) -> Reply:
        started = time.monotonic()
        given = await ask(self._tiered)
        ended = time.monotonic()
        expected = await ask(self._plain)
        tiers = Counter(answer.tier for answer in given if isinstance(answer, CandleAnswer))
        wrong = implausible(given, 0 if not self._place.may_be_stale else LIFETIME_MS, ended - started)
        wrong = wrong or differing(given, expected)
        if wrong is None:
            self._held += [
                (one, mine, right)
                for mine, right in zip(given, expected, strict=True)
                if isinstance(mine, CandleAnswer)
            ]
            return Reply(tiers=tiers)
        ages = [answer.age_ms for answer in given if isinstance(answer, CandleAnswer)] or [LIFETIME_MS]
        if not self._place.may_be_stale or ended - (max(ages) + ROUNDING_MS) / 1000 > written_at:
            return Reply(wrong=f"{wrong}\n  its age was said to be {max(ages)} ms", tiers=tiers)
        return await self._caught_up(ask, tiers, wrong)

    async def _caught_up(self, ask: Any, tiers: Counter[str], wrong: str) -> Reply:
        started, now = time.monotonic(), self._clock.time_ms
        while differing(await ask(self._tiered), await ask(self._plain)) is not None:
            # During an operation our clock stands still, except here.
            self._clock.time_ms = now + int((time.monotonic() - started) * 1000)
            if self._clock.time_ms - now > CATCH_UP * 1000:
                return Reply(wrong=f"{wrong}\n  and so it stayed", tiers=tiers)
        return Reply(tiers=tiers, stale=1)

    def _look_again(self) -> None:
        """An answer that somebody holds is what it was."""
        if not self._held:
            return
        self._held.rotate()
        one, given, expected = self._held[0]
        wrong = differing([given], [expected])
        if wrong is not None:
            raise AssertionError(f"an answer changed after it was given: {one}\n{wrong}")


@contextlib.asynccontextmanager
async def together(settings: Settings, store: Any) -> AsyncIterator[MarketData]:
    """The read interface of a process that also writes, over the same store."""
    archive = wiring.archive(settings)
    async with opened_tiers(settings, store, archive, wiring.CLOCK) as views:
        yield MarketData(store, LocalMarket.empty(wiring.CLOCK), wiring.CLOCK, archive, views)


def to_batch(one: Write) -> CandleBatch:
    """The batch that an operation speaks of."""
    return CandleBatch(
        series=one.series,
        source=one.source,
        now_ms=CLOSED,
        table=made(one.open_times, one.version),
        state=one.state,
        absences=tuple(
            Absence(
                interval=Interval(gone.start, gone.end),
                state=gone.state,
                evidence=gone.evidence,
                expires_at=gone.expires_at,
            )
            for gone in one.gone
        ),
    )


def made(open_times: Sequence[int], version: int) -> pa.Table:
    """The same open time and version always give the same candle, of numbers that add up fast: short in binary."""
    times = np.array(open_times, np.int64).reshape(-1)
    number = times // MINUTE % 997
    opens = 100 + number / 8
    volume = 1 + (number % 13 + version) / 16
    # A trading halt ended the bucket early.
    halted = number % 89 == 0
    return candles(
        {
            "open_time": times,
            "open": opens,
            "high": opens + 2 + version,
            "low": opens - 1,
            "close": opens + 1 + version / 4,
            "volume": volume,
            "quote_volume": pa.array(volume * 100, mask=number % 11 == 0),
            "trades": number % 5 + version,
            "taker_buy_volume": pa.array(volume / 2, mask=number % 3 == 0),
            "early_close_time": pa.array(times + 30_000, pa.int64(), mask=~halted),
        }
    )


async def kept(market_data: MarketData, one: Read, arguments: dict[str, Any]) -> CandleAnswer:
    """An answer of one series as the HTTP service keeps it."""
    series = one.series[0]

    async def make() -> Encoded[CandleAnswer]:
        answer = await market_data.candles(series, **arguments)
        return Encoded(answer, answer.table.nbytes, (answer,))

    question = (series, one.start, one.end, one.limit, one.as_of, one.forming)
    answer, age_ms = await market_data.encoded(question, [series], make)
    return answer if age_ms is None else replace(answer, tier="memory", age_ms=age_ms)


async def outcome(asked: Awaitable[Any]) -> Any:
    """An answer, or the error of ours in its place."""
    try:
        return await asked
    except (StoreBusy, StoreUnavailable):
        raise
    except ChandleryError as error:
        return type(error).__name__, str(error)


def implausible(given: list[Any], most_ms: int, took: float) -> str | None:
    """What cannot be true of tier and age, whatever the candles are."""
    for one in given:
        if isinstance(one, CandleAnswer):
            if one.tier not in TIERS:
                return f"tier {one.tier!r}"
            most = most_ms and most_ms + took * 1000 + ROUNDING_MS
            if not 0 <= one.age_ms <= most:
                return f"an age of {one.age_ms} ms, where {most:.0f} ms are the most"
    return None


def differing(given: list[Any], expected: list[Any]) -> str | None:
    """In words, where two lists of answers differ; None where they do not."""
    if len(given) != len(expected):
        return f"{len(given)} answers instead of {len(expected)}"
    for mine, right in zip(given, expected, strict=True):
        if not (isinstance(mine, CandleAnswer) and isinstance(right, CandleAnswer)):
            if mine != right:
                return f"through the tiers: {mine}\n  the database: {right}"
            continue
        found = [name for name in COMPARED if getattr(mine, name) != getattr(right, name)]
        if not mine.table.schema.equals(right.table.schema, check_metadata=True):
            found.append("schema")
        if not mine.table.equals(right.table):
            found.append("table")
        if found:
            said = [f"{mine.series} from {mine.tier} differs in {', '.join(found)}"]
            said += [f"  {name}: {getattr(mine, name)}, not {getattr(right, name)}" for name in found[:3]
                     if name not in ("table", "schema")]  # fmt: skip
            if "table" in found:
                said.append("  " + rows_that_differ(mine.table, right.table))
            return "\n".join(said)
    return None


def rows_that_differ(given: pa.Table, expected: pa.Table) -> str:
    """The first rows that stand in one table alone."""
    mine, right = given.to_pylist(), expected.to_pylist()
    extra = [row for row in mine if row not in right][:2]
    lacking = [row for row in right if row not in mine][:2]
    counts = f"{len(mine)} rows, not {len(right)}"
    return f"{counts}\n    only through the tiers: {extra}\n    only in the database: {lacking}"


async def work(connection: Connection) -> None:
    """Do what is asked until told to stop."""
    clock = SetClock()
    wiring.CLOCK = clock  # type: ignore[assignment]
    loop = asyncio.get_running_loop()
    failures: list[str] = []
    loop.set_exception_handler(lambda _, context: failures.append(str(context)))
    process = Process(clock)
    ready = asyncio.Event()
    loop.add_reader(connection.fileno(), ready.set)
    while True:
        # The loop goes on between two operations: what runs beside them may.
        await ready.wait()
        ready.clear()
        if not connection.poll():
            continue
        try:
            command, *rest = connection.recv()
        except EOFError:
            return
        before = time.process_time()
        try:
            reply = Reply()
            if command == "open":
                clock.time_ms = rest[1]
                await process.open(rest[0])
            elif command in ("close", "stop"):
                await process.close()
            else:
                one, clock.time_ms, written_at = rest
                reply = await process.perform(one, written_at)
        except BaseException as error:  # noqa: BLE001, whatever it is, the test has to hear of it
            failures.append("".join(traceback.format_exception(error)))
        if failures:
            reply = Reply(wrong="\n".join(failures))
            failures.clear()
        connection.send(replace(reply, processor=time.process_time() - before))
        if command == "stop":
            return


def main(connection: Connection, folder: Path) -> None:
    """The body of a process."""
    warnings.simplefilter("error")
    for name in [name for name in os.environ if name.startswith("CHANDLERY_")]:
        del os.environ[name]
    os.chdir(folder)
    # What goes wrong is said in replies.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    asyncio.run(work(connection))
