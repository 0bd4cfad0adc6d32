"""Random batches against a plain model: dictionaries by minute, no digests, no intervals, no SQL."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.candle import CandleState, by_open_time, open_times_ms
from market.coverage import CoverageState
from market.fingerprint import Digest, digest
from market.instrument import Series
from market.interval import Interval
from market.timeframe import ONE_MINUTE
from store.batch import Absence, CandleBatch, Written
from store.sqlite.store import DATABASE_NAME
from tests.conftest import ManualClock
from tests.support.candle_stores import STORES
from tests.support.made_candles import MINUTE, NOW, START, at, made, rows
from tests.support.proof import prove

#: Minutes on both sides of two midnights, so that batches span chunks.
MINUTES = [*range(1430, 1450), *range(2870, 2890)]
WHOLE = Interval(START, at(10_000))
#: Plans that are tried; of the others fewer, because their answers are held against SQLite's by
#: ``tests/integration/test_stores_in_lockstep.py`` as well.
EXAMPLES = {"sqlite": 100, "hybrid": 60}
BAD = 9


@dataclass(frozen=True)
class Row:
    minute: int
    #: 0..2, or BAD for a row that breaks a rule.
    version: int


@dataclass(frozen=True)
class Write:
    rows: tuple[Row, ...]
    state: CandleState
    absences: tuple[Absence, ...]
    source: str
    #: Milliseconds our clock moves before it.
    pause: int


def spans() -> st.SearchStrategy[tuple[int, int]]:
    starts = st.sampled_from(MINUTES)
    return st.tuples(starts, st.integers(1, 8)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@st.composite
def writes(draw: st.DrawFn) -> Write:
    version = draw(st.integers(0, 2))
    found: list[Row] = []
    for start, end in draw(st.lists(spans(), max_size=3)):
        found += [Row(minute, version) for minute in range(start, end)]
    found += draw(st.lists(st.builds(Row, st.sampled_from(MINUTES), st.sampled_from([0, 1, 2, BAD])), max_size=4))
    absences = [
        Absence(
            interval=Interval(at(start), at(end)),
            state=draw(st.sampled_from([CoverageState.EMPTY, CoverageState.EXCHANGE_OUTAGE])),
            evidence=draw(st.sampled_from(["a", "b"])),
            expires_at=draw(st.sampled_from([None, NOW])),
        )
        for start, end in draw(st.lists(spans(), max_size=2))
    ]
    return Write(
        rows=tuple(draw(st.permutations(found))),
        state=draw(st.sampled_from([CandleState.CLOSED, CandleState.VERIFIED])),
        absences=tuple(absences),
        source=draw(st.sampled_from(["rest", "file"])),
        pause=draw(st.sampled_from([0, 1, 5000])),
    )


@dataclass
class Model:
    """What the store must hold, by minute."""

    #: Minute -> (version, state).
    stored: dict[int, tuple[int, CandleState]] = field(default_factory=dict)
    #: Minute -> (state, source, evidence, expires_at).
    ledger: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    quarantine: int = 0
    corrections: int = 0
    revision: int = 0

    def write(self, one: Write) -> Written:
        before = dict(self.ledger)
        inserted = corrected = unchanged = outranked = refused = 0
        first: dict[int, int] = {}
        for row in one.rows:
            if row.version == BAD:
                refused += 1
                continue
            if row.minute in first:
                refused += first[row.minute] != row.version
                continue
            first[row.minute] = row.version
            had = self.stored.get(row.minute)
            if had is None:
                inserted += 1
                self.stored[row.minute] = row.version, one.state
            elif had[0] == row.version:
                unchanged += 1
                self.stored[row.minute] = row.version, max(had[1], one.state)
            elif had[1] > one.state:
                outranked += 1
            else:
                corrected += 1
                self.stored[row.minute] = row.version, one.state
        for minute in first:
            if self.ledger.get(minute, (None,))[0] is not CoverageState.PRESENT:
                self.ledger[minute] = CoverageState.PRESENT, one.source, None, None
        self._absent(one)
        self.corrections += corrected
        if inserted or corrected or self.ledger != before:
            self.revision += 1
        return Written(
            inserted=inserted,
            corrected=corrected,
            unchanged=unchanged,
            outranked=outranked,
            refusals=(None,) * refused,  # type: ignore[arg-type]
        )

    def _absent(self, one: Write) -> None:
        claimed: dict[int, tuple[Any, ...]] = {}
        for gone in sorted(one.absences, key=lambda entry: entry.interval):
            for instant in range(gone.interval.start, gone.interval.end, MINUTE):
                said = gone.state, one.source, gone.evidence, gone.expires_at
                claimed.setdefault((instant - START) // MINUTE, said)
        for minute, said in claimed.items():
            if self.ledger.get(minute, (None,))[0] is not CoverageState.PRESENT:
                self.ledger[minute] = said

    def rows(self) -> list[tuple[object, ...]]:
        return sorted(
            (row for minute, (version, _) in self.stored.items() for row in rows(made([minute], version))),
            key=lambda row: row[0],  # type: ignore[arg-type, return-value]
        )


def to_batch(one: Write, series: Series) -> CandleBatch:
    """Its rows as a table; a bad row has a negative volume that no other row has."""
    tables = [made([row.minute], 0 if row.version == BAD else row.version) for row in one.rows]
    table = made([]) if not tables else tables[0].schema.empty_table()
    for row, part in zip(one.rows, tables, strict=True):
        if row.version == BAD:
            place = part.schema.get_field_index("volume")
            part = part.set_column(place, part.schema.field(place), [[-1.0]])
        table = type(part).from_batches([*table.to_batches(), *part.to_batches()], schema=part.schema)
    return CandleBatch(
        series=series, source=one.source, now_ms=NOW, table=table, state=one.state, absences=one.absences
    )


async def info_of(store: Any, series: Series) -> Any:
    """What the store says of one series."""
    (info,) = [one for one in await store.series() if one.series == series]
    return info


async def compare(
    store: Any, series: Series, model: Model, history: Sequence[tuple[int, list[tuple[object, ...]]]]
) -> None:
    """Every way of reading against the model, now and at each moment of the past."""
    expected = model.rows()
    table = await store.read(series, WHOLE.start, WHOLE.end)
    assert rows(table) == expected
    middle = at(2000)
    assert (
        rows(await store.read(series, at(1435), middle, limit=3))
        == [row for row in expected if _minute(row) in range(1435, 2000)][:3]
    )
    assert (
        rows(await store.read(series, WHOLE.start, middle, limit=3, newest=True))
        == [row for row in expected if _minute(row) < 2000][-3:]
    )
    for moment, then in history:
        assert rows(await store.read(series, WHOLE.start, WHOLE.end, as_of_ms=moment)) == then
    ledger: dict[int, tuple[Any, ...]] = {}
    for one in await store.coverage(series):
        for instant in range(one.interval.start, one.interval.end, MINUTE):
            ledger[(instant - START) // MINUTE] = one.state, one.source, one.evidence, one.expires_at
    assert ledger == model.ledger
    assert sum((one.digest for one in await store.chunks(series)), Digest()) == digest(by_open_time(table))
    info = await info_of(store, series)
    bounds = [int(one) for one in open_times_ms(table)[[0, -1]]] if expected else [None, None]
    assert (info.rows, info.first_open, info.last_open) == (len(expected), *bounds)
    assert (info.corrections, info.revision) == (model.corrections, model.revision)


def _minute(row: tuple[object, ...]) -> int:
    return (int(row[0].timestamp() * 1000) - START) // MINUTE  # type: ignore[attr-defined]


async def follow(store: Any, series: Series, clock: ManualClock, plan: Sequence[Write]) -> Model:
    """Write a plan to a new series of the store, which is held against the model all the way; the model."""
    model = Model()
    history: list[tuple[int, list[tuple[object, ...]]]] = []
    for one in plan:
        clock.advance(one.pause)
        before = model.revision
        written = await store.write(to_batch(one, series))
        expected = model.write(one)
        assert replace(written, refusals=()) == replace(expected, refusals=())
        assert len(written.refusals) == len(expected.refusals)
        info = await info_of(store, series)
        if model.revision > before:
            history.append((info.last_write, model.rows()))
            clock.time_ms = max(clock.time_ms, info.last_write)
        assert info.last_write == (history[-1][0] if history else None)
    await compare(store, series, model, history)
    # All of it again, in the state it is in: nothing new.
    seen = await store.read(series, WHOLE.start, WHOLE.end)
    again = CandleBatch(series=series, source="rest", now_ms=NOW, table=seen)
    assert await store.write(again) == Written(unchanged=seen.num_rows)
    await compare(store, series, model, history)
    return model


@pytest.mark.parametrize("kind", list(STORES))
def test_a_store_agrees_with_the_model(kind: str, clock: ManualClock, tmp_path: Path) -> None:
    """One store, opened once; each plan has a series of its own among those of the plans before."""
    numbers = itertools.count(1)
    stored = 0
    with asyncio.Runner() as runner:
        opened = STORES[kind](tmp_path, clock)
        store = runner.run(opened.__aenter__())

        @settings(max_examples=EXAMPLES.get(kind, 40))
        @given(plan=st.lists(writes(), min_size=1, max_size=8))
        def agrees(plan: list[Write]) -> None:
            nonlocal stored
            series = Series("binance", f"S{next(numbers)}/USDT", ONE_MINUTE)
            stored += len(runner.run(follow(store, series, clock, plan)).stored)

        try:
            agrees()
        finally:
            runner.run(opened.__aexit__(None, None, None))
    if kind == "sqlite":
        assert prove(tmp_path / DATABASE_NAME) == stored
