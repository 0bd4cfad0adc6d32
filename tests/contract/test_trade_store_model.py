"""Random batches of trades, in random order and with repeats, against plain sets of ids."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.trade import Trade
from store.trade_batch import RunState, TradeBatch, TradesWritten
from tests.support.candle_stores import STORES
from tests.support.made_trades import EXCHANGE, time_of, trade

#: Few, so that they meet.
IDS = st.integers(0, 40)


@dataclass(frozen=True)
class Store:
    """Trades with these ids, another version of each where it is not the first."""

    ids: tuple[int, ...]
    version: int
    dense: bool = True


@dataclass(frozen=True)
class Lose:
    """The exchange no longer serves [first, last]."""

    first: int
    last: int
    evidence: str


def runs_of_ids() -> st.SearchStrategy[list[int]]:
    return st.tuples(IDS, st.integers(1, 6)).map(lambda pair: list(range(pair[0], pair[0] + pair[1])))


def stores() -> st.SearchStrategy[Store]:
    several = st.lists(runs_of_ids() | IDS.map(lambda one: [one]), min_size=1, max_size=4)
    ids = several.map(lambda parts: list(itertools.chain.from_iterable(parts))).flatmap(st.permutations)
    return st.builds(Store, ids.map(tuple), st.integers(0, 2))


def losses() -> st.SearchStrategy[Lose]:
    spans = st.tuples(IDS, st.integers(0, 12))
    return st.builds(
        lambda span, evidence: Lose(span[0], span[0] + span[1], evidence), spans, st.sampled_from(["gone", "404"])
    )


class Model:
    """Every id by itself."""

    def __init__(self) -> None:
        self.stored: dict[int, Trade] = {}
        self.lost: dict[int, str] = {}

    def write(self, trades: list[Trade]) -> TradesWritten:
        written = TradesWritten()
        for one in trades:
            assert isinstance(one.id, int)
            known = one.id in self.stored
            written += TradesWritten(known=1) if known else TradesWritten(inserted=1)
            self.stored.setdefault(one.id, one)
            self.lost.pop(one.id, None)
        return written

    def lose(self, first: int, last: int, evidence: str) -> None:
        for one in range(first, last + 1):
            if one not in self.stored:
                self.lost.setdefault(one, evidence)


async def compare(store: Any, symbol: str, model: Model) -> None:
    expected = sorted(model.stored.values(), key=lambda one: (one.event_time, one.id))
    assert await store.trades(EXCHANGE, symbol, 0, 2**52) == expected
    newest = await store.newest_trade(EXCHANGE, symbol)
    assert newest == (model.stored[max(model.stored)] if model.stored else None)
    states: dict[int, str] = {}
    before = None
    for run in await store.trade_runs(EXCHANGE, symbol):
        assert run.first_id <= run.last_id
        if before is not None:
            assert before.last_id < run.first_id
            touch = before.last_id + 1 == run.first_id
            assert not touch or (before.state, before.evidence) != (run.state, run.evidence), "as long as can be"
        before = run
        if run.state is RunState.PRESENT:
            ends = model.stored[run.first_id], model.stored[run.last_id]
            assert (run.first_time, run.last_time) == (ends[0].event_time, ends[1].event_time)
        for one in range(run.first_id, run.last_id + 1):
            states[one] = run.evidence or "stored"
    assert states == dict.fromkeys(model.stored, "stored") | model.lost


@pytest.mark.parametrize("kind", [one for one in STORES if one != "hybrid"])
def test_trades_and_runs_agree_with_the_model(kind: str, tmp_path: Path, clock: Any) -> None:
    symbols = (f"S{number}/USDT" for number in itertools.count())

    async def carry_out(store: Any, plan: list[list[Store] | Lose]) -> None:
        symbol, model = next(symbols), Model()
        for step in plan:
            if isinstance(step, Lose):
                times = time_of(step.first - 1), time_of(step.last + 1)
                await store.lose_trades(EXCHANGE, symbol, step.first, step.last, *times, step.evidence)
                model.lose(step.first, step.last, step.evidence)
                continue
            batches = [
                TradeBatch(
                    exchange=EXCHANGE,
                    symbol=symbol,
                    trades=[trade(number, version=one.version) for number in one.ids],
                    dense=True,
                )
                for one in step
            ]
            written = await store.write_trades(batches)
            assert written == sum((model.write(list(one.trades)) for one in batches), TradesWritten())
        await compare(store, symbol, model)

    with asyncio.Runner() as runner:
        opened = STORES[kind](tmp_path, clock)
        store = runner.run(opened.__aenter__())

        @settings(max_examples=150 if kind == "sqlite" else 60)
        @given(st.lists(st.lists(stores(), min_size=1, max_size=3) | losses(), min_size=1, max_size=6))
        def check(plan: list[list[Store] | Lose]) -> None:
            runner.run(carry_out(store, plan))

        try:
            check()
        finally:
            runner.run(opened.__aexit__(None, None, None))
