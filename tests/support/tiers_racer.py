"""Processes that write and read at the same time: a series as a register of versions.

Each write gives all candles of a series another version and adds one at the end, in one transaction. So every
answer says which version it read; all of its candles have to be of that one, it must have been the newest at some
moment of the read, or as long before as the age of the answer says.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow as pa

from chandlery import wiring
from chandlery.settings import Settings
from market.candle import open_times_ms
from market.clock import to_ms
from market.coverage import CoverageState
from market.errors import StoreBusy, StoreReadOnly
from market.instrument import Series
from market.interval import Interval, IntervalSet
from market.rollup import roll_up
from market.timeframe import ONE_MINUTE, TIMEFRAMES, Timeframe
from store.answer import CandleAnswer
from store.batch import CandleBatch
from tests.support.made_candles import DAY, MINUTE
from tests.support.tiers_model import CLOSED
from tests.support.tiers_worker import LIFETIME_MS, ROUNDING_MS, Place, made, together

RACED = Series("binance", "AAA/USDT", ONE_MINUTE)
#: Where the candles are that every write changes: both sides of a year and of two months.
EDGES = (to_ms("2023-01-01"), to_ms("2023-02-01"), to_ms("2023-03-01"))
FIRST = EDGES[0] - 20 * MINUTE
#: Where those are that it adds; candles of every version up to the tail's end.
TAIL = to_ms("2023-03-01T23:30:00Z")
MOST_VERSIONS = 20_000


@dataclass(frozen=True)
class Register:
    """What all processes know of the versions of the series; without locks, which a killed process would keep."""

    #: The newest that was begun, and the newest that was committed.
    begun: Any
    committed: Any
    #: By version: when it was known to be committed, monotonic seconds; 0 where it was left out.
    committed_at: Any
    #: Not 0 when everybody is to come to an end.
    over: Any

    @classmethod
    def of(cls, context: Any) -> Register:
        """A new one; its parts may be handed to processes of `context`."""
        number = partial(context.Value, lock=False)
        times = context.Array("d", MOST_VERSIONS + 1, lock=False)
        return cls(begun=number("q", -1), committed=number("q", -1), committed_at=times, over=number("b", 0))


def fixed() -> list[int]:
    """The open times that are there from the first version on."""
    return [edge + minute * MINUTE for edge in EDGES for minute in range(-20, 20)]


def times_of(version: int) -> list[int]:
    return [*fixed(), *range(TAIL, TAIL + (version + 1) * MINUTE, MINUTE)]


def table_of(version: int, timeframe: Timeframe, interval: Interval) -> pa.Table:
    """What an answer has to be."""
    minutes = made(times_of(version), version)
    if timeframe is not ONE_MINUTE:
        minutes = roll_up(minutes, timeframe).table
    times = open_times_ms(minutes)
    return minutes.filter(pa.array((times >= interval.start) & (times < interval.end)))


def version_of(table: pa.Table) -> int:
    """The version of the first candle: its high says it."""
    number = int(open_times_ms(table)[0]) // MINUTE % 997
    high: float = table.column("high")[0].as_py()
    return round(high - 102 - number / 8)


# Writing.


async def write(place: Place, register: Register) -> Counter[str]:
    """One version after the other, until it is over; after what an earlier writer left."""
    counts: Counter[str] = Counter()
    async with wiring.opened_store(Settings(**place.settings)) as store:
        stored = await store.read(RACED, FIRST, FIRST + MINUTE)
        if stored.num_rows:
            # The last one may have been killed after its commit.
            last = version_of(stored)
            register.committed_at[last] = register.committed_at[last] or time.monotonic()
            register.committed.value = max(register.committed.value, last)
        while not register.over.value and register.begun.value < MOST_VERSIONS:
            version = register.begun.value + 1
            table = made(times_of(version), version)
            register.begun.value = version
            batch = CandleBatch(series=RACED, source="race", now_ms=CLOSED, table=table)
            try:
                await store.write(batch)
            except (StoreReadOnly, StoreBusy):
                counts["refused"] += 1
                # The version was never there: the next one takes its place, and none is read in between.
                register.begun.value = version - 1
                continue
            register.committed_at[version] = time.monotonic()
            register.committed.value = version
            counts["written"] += 1
            # A writer that never rests keeps everybody else from the lock of an SQLite file.
            await asyncio.sleep(0.005)
    return counts


# Reading.


async def read(place: Place, register: Register, seed: int) -> Counter[str]:
    """Reads of all kinds, each held against the register, until it is over.

    :raises AssertionError: an answer that the database never gave, or not any more.
    """
    counts: Counter[str] = Counter()
    rng = random.Random(seed)
    settings = Settings(**place.settings)
    async with contextlib.AsyncExitStack() as stack:
        if place.role == "together":
            store = await stack.enter_async_context(wiring.opened_store(settings))
            market_data = await stack.enter_async_context(together(settings, store))
        else:
            market_data = await stack.enter_async_context(wiring.served_market_data(settings))
        while not register.over.value:
            asked = [question(rng) for _ in range(rng.choice((1, 1, 1, 2, 5)))]
            # Several at once: what one of them loads is what the others get.
            found = await asyncio.gather(*(checked(one, market_data, register, place, counts) for one in asked))
            counts["reads"] += len(found)
    return counts


def question(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A timeframe and what is asked of it; runs of larger candles short enough for one statement."""
    timeframe = rng.choice(("1m", "1m", "1m", "1h", "4h", "1d", "5m"))
    edge = rng.choice(EDGES)
    kind = rng.randrange(5)
    if kind == 0:
        return timeframe, {"limit": rng.choice((1, 5, 50))}
    if kind == 1:
        return timeframe, {"start_ms": edge - DAY, "end_ms": edge + DAY}
    if kind == 2 and timeframe != "5m":
        return timeframe, {"start_ms": EDGES[1] - DAY, "end_ms": EDGES[2] + 3 * DAY}
    if kind == 3:
        return timeframe, {"start_ms": edge - rng.randrange(300) * MINUTE, "limit": rng.choice((1, 7, 30))}
    return "1m", {"start_ms": FIRST, "end_ms": EDGES[2] + 2 * DAY}


async def checked(
    asked: tuple[str, dict[str, Any]], market_data: Any, register: Register, place: Place, counts: Counter[str]
) -> None:
    timeframe, arguments = TIMEFRAMES[asked[0]], asked[1]
    least, started = register.committed.value, time.monotonic()
    answer: CandleAnswer = await market_data.candles(RACED.at(timeframe), **arguments)
    ended, most = time.monotonic(), register.begun.value
    counts[f"tier {answer.tier}"] += 1
    said = f"{asked} from {answer.tier}, {answer.age_ms} ms old, versions {least} to {most}"
    given = answer.table.drop_columns(["missing"])
    if not given.num_rows:
        # The bucket at the end may not have closed yet; all others have candles.
        expected = table_of(most, timeframe, answer.interval)
        assert expected.num_rows <= (0 if timeframe is ONE_MINUTE else 1), f"nothing: {said}"
        return
    version = version_by_rows(given, timeframe, answer.interval, least, most)
    if version is None and answer.tier == "database" and timeframe is not ONE_MINUTE and "limit" in arguments:
        # Past the tiers, the windows of larger candles are read one after the other.
        counts["torn"] += 1
        return
    assert version is not None, f"no version, or several: {said}\n{torn(given, timeframe)}"
    assert version <= most, f"version {version}, which was not begun: {said}"
    if version < least:
        # The next one may have been left out, by a writer that was killed.
        old = ended - next(at for at in register.committed_at[version + 1 : least + 1] if at)
        assert place.may_be_stale, f"version {version}, which was replaced before: {said}"
        assert old * 1000 <= answer.age_ms + ROUNDING_MS + (ended - started) * 1000, f"{version} is old: {said}"
        assert answer.age_ms <= LIFETIME_MS + (ended - started) * 1000 + ROUNDING_MS, f"too old: {said}"
        counts["stale"] += 1
    if timeframe is ONE_MINUTE:
        present = IntervalSet(one.interval for one in answer.coverage if one.state is CoverageState.PRESENT)
        covered = IntervalSet.of_candles(open_times_ms(given), ONE_MINUTE)
        assert present == covered, f"the ledger, {list(present)}, is not that of {list(covered)}: {said}"


def version_by_rows(given: pa.Table, timeframe: Timeframe, interval: Interval, least: int, most: int) -> int | None:
    """The version of which `given` is a part; None if there is none."""
    if timeframe is ONE_MINUTE:
        versions: Sequence[int] = [version_of(given)]
    else:
        # The newest first: that is what it is nearly always.
        versions = range(most, max(least - 30, -1), -1)
    for version in versions:
        expected = table_of(version, timeframe, interval)
        times = open_times_ms(given)
        first, last = int(times[0]), int(times[-1])
        there = open_times_ms(expected)
        inside = expected.filter(pa.array((there >= first) & (there <= last)))
        if inside.equals(given.combine_chunks()):
            return version
    return None


def torn(given: pa.Table, timeframe: Timeframe) -> str:
    """The versions that its candles are of."""
    if timeframe is not ONE_MINUTE:
        return str(given.to_pylist()[:3])
    rows = [given.slice(place, 1) for place in range(given.num_rows)]
    return str(Counter(version_of(one) for one in rows))


def main(connection: Connection, folder: Path, action: str, *arguments: Any) -> None:
    """The body of a process: says what it counted, or what went wrong."""
    warnings.simplefilter("error")
    for name in [name for name in os.environ if name.startswith("CHANDLERY_")]:
        del os.environ[name]
    os.chdir(folder)
    work: Callable[..., Any] = {"write": write, "read": read}[action]
    try:
        connection.send(asyncio.run(work(*arguments)))
    except BaseException:  # noqa: BLE001, whatever it is, the test has to hear of it
        connection.send(traceback.format_exc())
