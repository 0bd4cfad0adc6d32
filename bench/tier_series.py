"""Many made-up series in one SQLite database, and the questions and writes of many readers to them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa

from bench.market import START, walk
from bench.tier_places import CLOCK
from market.candle import CandleState
from market.instrument import Series
from market.timeframe import MINUTE_MS, ONE_MINUTE, TIMEFRAMES
from store.answer import CandleAnswer
from store.batch import CandleBatch
from store.candle_store import CandleStore
from store.market_data import MarketData
from store.sqlite.store import SqliteStore

#: Rows in one transaction while series are made.
_TOGETHER = 200_000
#: Minutes that can be written to each series later.
_LATER = 2_000
_DERIVED = tuple(TIMEFRAMES[name] for name in ("5m", "1h", "1d"))
_WEEK = 7 * 24 * 60

Ask = Callable[[MarketData], Awaitable[CandleAnswer]]


def series_of(number: int) -> Series:
    """One of many."""
    return Series("bench", f"C{number}/USDT", ONE_MINUTE)


def _batch(number: int, table: pa.Table) -> CandleBatch:
    return CandleBatch(
        series=series_of(number), source="bench", now_ms=CLOCK.now_ms(), table=table, state=CandleState.VERIFIED
    )


async def _make(path: Path, series: int, rows: int) -> None:
    table = walk(rows)
    step = max(_TOGETHER // rows, 1)
    async with SqliteStore.opened(path, CLOCK) as store:
        for first in range(0, series, step):
            await store.write_all([_batch(one, table) for one in range(first, min(first + step, series))])


def _made(path: Path, series: int, rows: int) -> None:
    asyncio.run(_make(path, series, rows))


def make(path: Path, series: int, rows: int) -> None:
    """So many series of so many minutes, all alike; in another process, so that this one's memory stays small."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as elsewhere:
        elsewhere.submit(_made, path, series, rows).result()


@dataclass(frozen=True)
class Asked:
    """One operation of the mix: a question, or a write where `ask` is None."""

    #: ``latest``, ``range``, ``derived`` or ``write``.
    kind: str
    number: int
    ask: Ask | None = None


class Mix:
    """Operations by chance, always the same for the same seed.

    Series by Zipf's law: the n-th has 1/n of the first one's. 70 of 100 reads ask for the latest 10 to 1,000
    candles, 20 for a range and 10 for the latest candles of a larger timeframe; one operation of 100 is a write.
    Two of three ranges end now, the others anywhere. They are as likely to be of one hour to two as of one week to
    two; the longest is of three weeks.

    :param flat: all series are equally likely.
    """

    def __init__(self, series: int, rows: int, seed: int, *, writes: float = 0.01, flat: bool = False) -> None:
        self._rng = np.random.default_rng(seed)
        weights = np.ones(series) if flat else 1 / np.arange(1, series + 1)
        self._shares = np.cumsum(weights / weights.sum())
        self._rows = rows
        self._writes = writes
        self._walk = walk(rows + _LATER)
        #: Rows of each series, and corrections so far.
        self._length = [rows] * series
        self._corrections = 0

    def next(self) -> Asked:
        """The next operation."""
        rng = self._rng
        number = min(int(np.searchsorted(self._shares, rng.random())), len(self._length) - 1)
        if rng.random() < self._writes:
            return Asked("write", number)
        series, kind, limit = series_of(number), rng.random(), int(rng.integers(10, 1_001))
        if kind < 0.7:
            return Asked("latest", number, lambda market_data: market_data.candles(series, limit=limit))
        if kind < 0.9:
            start, end = self._range(number)
            return Asked(
                "range", number, lambda market_data: market_data.candles(series, start_ms=start, end_ms=end)
            )
        larger = series.at(_DERIVED[int(rng.integers(len(_DERIVED)))])
        return Asked("derived", number, lambda market_data: market_data.candles(larger, limit=limit))

    def _range(self, number: int) -> tuple[int, int]:
        rng, length = self._rng, self._length[number]
        longest = min(3 * _WEEK, length)
        minutes = int(math.exp(rng.uniform(math.log(60), math.log(max(longest, 61)))))
        last = length if rng.random() < 2 / 3 else int(rng.integers(min(minutes, length), length + 1))
        end = START + last * MINUTE_MS
        return end - minutes * MINUTE_MS, end

    async def write(self, store: CandleStore, number: int) -> None:
        """Append the next minute, or as often correct one of the last day."""
        length = self._length[number]
        if self._rng.random() < 0.5 and length < self._walk.num_rows:
            self._length[number] += 1
            await store.write(_batch(number, self._walk.slice(length, 1)))
            return
        self._corrections += 1
        at = length - 1 - int(self._rng.integers(min(24 * 60, self._rows)))
        row = self._walk.slice(at, 1)
        place = row.schema.get_field_index("high")
        high = pa.array([row.column("high")[0].as_py() + self._corrections / 100])
        await store.write(_batch(number, row.set_column(place, row.schema.field(place), high)))
