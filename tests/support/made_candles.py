"""Made-up candles for the tests of the store: the same open time and version always give the same candle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from market.candle import COLUMNS, CandleState, candles
from market.clock import to_ms
from market.coverage import CoverageState
from market.instrument import Series
from market.interval import Interval
from market.timeframe import ONE_MINUTE, Timeframe
from store.batch import Absence, CandleBatch

START = to_ms("2023-01-01")
MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR
#: Exchange time of the batches: all made candles have closed by then.
NOW = to_ms("2024-01-01")
BTC = Series("binance", "BTC/USDT", ONE_MINUTE)
ETH = Series("binance", "ETH/USDT", ONE_MINUTE)


def at(minute: int) -> int:
    """The open time of a minute counted from START."""
    return START + minute * MINUTE


def made(minutes: Iterable[int], version: int = 0) -> pa.Table:
    """One-minute candles at these minutes from START, in the given order."""
    return made_at([at(one) for one in minutes], version)


def made_at(open_times: Sequence[int], version: int = 0) -> pa.Table:
    """Candles at these open times; another version differs in every price and quantity."""
    times = np.array(open_times, np.int64).reshape(-1)
    number = times // MINUTE % 997
    opens = 100 + number / 10
    trades = 1 + number % 5 + version
    volume = 1 + (number % 13 + version) / 100
    return candles(
        {
            "open_time": times,
            "open": opens,
            "high": opens + 2 + version,
            "low": opens - 1,
            "close": opens + 1 + version / 4,
            "volume": volume,
            "quote_volume": np.round(volume * 100, 4),
            "trades": trades,
            "taker_buy_volume": pa.array(volume / 2, mask=number % 3 == 0),
        }
    )


def batch(
    table: pa.Table | None = None,
    *,
    series: Series = BTC,
    state: CandleState = CandleState.CLOSED,
    absences: Sequence[Absence] = (),
    source: str = "test",
    now_ms: int = NOW,
) -> CandleBatch:
    """A batch; without a table, of absences alone."""
    return CandleBatch(
        series=series,
        source=source,
        now_ms=now_ms,
        table=made([]) if table is None else table,
        state=state,
        absences=tuple(absences),
    )


def absence(
    start: int,
    end: int,
    state: CoverageState = CoverageState.EMPTY,
    *,
    expires_at: int | None = None,
    evidence: str = "asked twice",
) -> Absence:
    """Nothing there in the minutes [start, end) from START."""
    return Absence(interval=Interval(at(start), at(end)), state=state, evidence=evidence, expires_at=expires_at)


def buckets(timeframe: Timeframe, count: int, start_ms: int = START) -> list[int]:
    """The first `count` open times of a timeframe."""
    return [timeframe.next(timeframe.ceil(start_ms), number) for number in range(count)]


def rows(table: pa.Table) -> list[tuple[object, ...]]:
    """A table as plain rows, for comparison."""
    return list(zip(*[table.column(name).to_pylist() for name in COLUMNS], strict=True))
