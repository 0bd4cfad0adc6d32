"""A scripted exchange and a store in memory, for the tests of ingest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from exchange.page import CandlePage
from market.candle import candles, check, open_times_ms
from market.coverage import CoverageState, Covered
from market.instrument import Instrument, Series
from market.interval import Interval, IntervalSet
from market.timeframe import ONE_MINUTE, Timeframe
from store.batch import CandleBatch, Written

MINUTE = 60_000
#: 2023-03-24T12:00:00Z
START = 1_679_659_200_000


def minutes(*indexes: int) -> list[int]:
    """Open times `indexes` minutes after START."""
    return [START + index * MINUTE for index in indexes]


def table_of(times: Sequence[int]) -> pa.Table:
    """Candles at `times`; every value follows from the open time."""
    index = (np.array(times, np.int64) - START) / MINUTE
    price = 100.0 + index
    return candles(
        {"open_time": np.array(times, np.int64)}
        | dict.fromkeys(("open", "high", "low", "close"), price)
        | {"volume": 1.0 + index % 7}
    )


class ScriptedHistory:
    """A market with known candles, paged like Binance (`windows` false) or by windows of fixed length.

    `before` is called with each question's name before it is answered, and may raise. `lossy(index)` says which
    page reads lose rows; no two in a row do, or no second read could tell.
    """

    exchange = "scripted"

    def __init__(self, times: Sequence[int], *, page: int = 1000, windows: bool = False) -> None:
        self.times = np.array(sorted(times), np.int64)
        self.page = page
        self.windows = windows
        self.now = START + 100_000 * MINUTE
        self.before: Callable[[str], None] = lambda question: None
        self.lossy: Callable[[int], bool] = lambda index: False
        self.asked: list[tuple[str, int, int]] = []
        #: Open times whose candles the exchange has changed since: their volume is larger by one.
        self.changed: set[int] = set()
        self._reads = 0
        self._lost_last = False

    async def candles(self, symbol: str, timeframe: Timeframe, start_ms: int, end_ms: int) -> CandlePage:
        self._ask("candles", start_ms, end_ms)
        times = self.times[(self.times >= start_ms) & (self.times < end_ms) & (self.times <= self.now)]
        if self.windows:
            end = min(end_ms, start_ms + self.page * MINUTE)
            times = times[times < end]
            reaches = end if not len(times) else int(times[-1]) + MINUTE
        else:
            whole = len(times) < self.page
            times = times[: self.page]
            reaches = end_ms if whole else int(times[-1]) + MINUTE
        if self._loses() and len(times):
            times = times[: len(times) // 2] if len(times) % 2 else times[:-1][::2]
            # Who takes a short page for the last one believes it up to the end: rows are missing far and wide.
            reaches = reaches if self.windows else end_ms
        return CandlePage(table=self._changed(table_of(times)), reaches=reaches)

    def _changed(self, table: pa.Table) -> pa.Table:
        more = np.isin(open_times_ms(table), list(self.changed)).astype(float)
        place = table.column_names.index("volume")
        return table.set_column(place, table.schema.field(place), pc.add(table.column("volume"), pa.array(more)))

    def _loses(self) -> bool:
        self._reads += 1
        self._lost_last = not self._lost_last and self.lossy(self._reads)
        return self._lost_last

    async def first_open(self, symbol: str, timeframe: Timeframe, start_ms: int, end_ms: int) -> int | None:
        self._ask("first_open", start_ms, end_ms)
        times = self.times[(self.times >= start_ms) & (self.times < end_ms) & (self.times <= self.now)]
        return int(times[0]) if len(times) else None

    async def instruments(self) -> list[Instrument]:
        self._ask("instruments", 0, 0)
        return [
            Instrument(exchange=self.exchange, symbol=f"{base}/USDT", exchange_symbol=base, base=base, quote="USDT")
            for base in ("BTC", "ETH")
        ]

    async def server_time(self) -> int:
        self._ask("server_time", 0, 0)
        return self.now

    def check_timeframe(self, timeframe: Timeframe) -> None:
        pass

    async def close(self) -> None:
        pass

    def _ask(self, question: str, start: int, end: int) -> None:
        self.asked.append((question, start, end))
        self.before(question)

    def count(self, *questions: str) -> int:
        """How often any of `questions` was asked."""
        return sum(asked[0] in questions for asked in self.asked)


class MemoryStore:
    """Rows and ledger of each series, in dictionaries. `before_write` may raise: then nothing is written."""

    def __init__(self) -> None:
        self.rows: dict[Series, dict[int, dict[str, object]]] = {}
        self.ledger: dict[Series, list[Covered]] = {}
        self.batches: list[CandleBatch] = []
        self.instruments: list[Instrument] = []
        self.before_write: Callable[[], None] = lambda: None

    async def write(self, batch: CandleBatch) -> Written:
        self.before_write()
        self.batches.append(batch)
        good, refusals = check(batch.table, batch.series.timeframe, batch.now_ms)
        table = batch.table.filter(pa.array(good))
        rows = self.rows.setdefault(batch.series, {})
        inserted = corrected = 0
        for time, row in zip(open_times_ms(table).tolist(), table.to_pylist(), strict=True):
            inserted += time not in rows
            corrected += time in rows and rows[time] != row
            rows[time] = row
        new = [
            Covered(interval=one, state=CoverageState.PRESENT, source=batch.source, learned_at=0)
            for one in IntervalSet.of_candles(open_times_ms(table), batch.series.timeframe)
        ]
        new += [
            Covered(
                interval=one.interval,
                state=one.state,
                source=batch.source,
                learned_at=0,
                expires_at=one.expires_at,
                evidence=one.evidence,
            )
            for one in batch.absences
        ]
        for one in new:
            self._cover(batch.series, one)
        return Written(inserted=inserted, corrected=corrected, refusals=tuple(refusals))

    def _cover(self, series: Series, new: Covered) -> None:
        kept = [new]
        for one in self.ledger.get(series, []):
            for part in IntervalSet([one.interval]) - IntervalSet([new.interval]):
                kept.append(
                    Covered(
                        interval=part,
                        state=one.state,
                        source=one.source,
                        learned_at=0,
                        expires_at=one.expires_at,
                        evidence=one.evidence,
                    )
                )
        self.ledger[series] = sorted(kept, key=lambda one: one.interval)

    async def coverage(self, series: Series, interval: Interval | None = None) -> list[Covered]:
        if interval is None:
            return self.ledger.get(series, [])
        return [
            Covered(
                interval=part,
                state=one.state,
                source=one.source,
                learned_at=0,
                expires_at=one.expires_at,
                evidence=one.evidence,
            )
            for one in self.ledger.get(series, [])
            for part in IntervalSet([one.interval]).clip(interval.start, interval.end)
        ]

    async def save_instruments(self, instruments: Sequence[Instrument]) -> None:
        self.instruments = list(instruments)

    def times(self, series: Series) -> list[int]:
        """Open times stored for `series`."""
        return sorted(self.rows.get(series, {}))

    def in_state(self, series: Series, state: CoverageState) -> IntervalSet:
        """The ledger's intervals of one state."""
        return IntervalSet(one.interval for one in self.ledger.get(series, []) if one.state is state)


BTC = Series("scripted", "BTC/USDT", ONE_MINUTE)
ETH = Series("scripted", "ETH/USDT", ONE_MINUTE)
