"""Holes between stored trades: filled, or lost after two equal answers, or left alone; never anything else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exchange.trade_page import TradePage
from ingest.trade_holes import fill_holes
from market.errors import ExchangeUnavailable
from market.trade import Trade
from store.trade_batch import RunState, TradeBatch, TradeRun, TradesWritten
from store.trade_runs import unknown, with_lost, with_trades

EXCHANGE, SYMBOL = "binance", "BTC/USDT"
EPOCH = 1_700_000_000_000
PAGE = 5


def made(id_: int) -> Trade:
    return Trade(id_, 10.0, 1.0, EPOCH + id_, True, EPOCH + id_)


class Ledger:
    """The ledger of a store, and the trades in it."""

    def __init__(self, present: Sequence[int], lost: Sequence[int] = ()) -> None:
        self.runs = with_trades([], [made(id_) for id_ in present])
        self.stored = set(present)
        for id_ in lost:
            self._lose(id_, id_, EPOCH + id_, EPOCH + id_, "before")

    async def trade_runs(self, exchange: str, symbol: str) -> list[TradeRun]:
        assert (exchange, symbol) == (EXCHANGE, SYMBOL)
        return list(self.runs)

    async def write_trades(self, batches: Sequence[TradeBatch]) -> TradesWritten:
        written = TradesWritten()
        for batch in batches:
            assert batch.dense
            fresh = unknown(batch.trades, self.runs)
            self.stored |= {int(one.id) for one in fresh}
            self.runs = with_trades(self.runs, fresh)
            written += TradesWritten(inserted=len(fresh), known=len(batch.trades) - len(fresh))
        return written

    async def lose_trades(
        self,
        exchange: str,
        symbol: str,
        first_id: int,
        last_id: int,
        first_time: int,
        last_time: int,
        evidence: str,
    ) -> None:
        assert first_time <= last_time
        self._lose(first_id, last_id, first_time, last_time, evidence)

    def _lose(self, first_id: int, last_id: int, first_time: int, last_time: int, evidence: str) -> None:
        lost = TradeRun(
            first_id=first_id,
            last_id=last_id,
            first_time=first_time,
            last_time=last_time,
            state=RunState.LOST,
            evidence=evidence,
        )
        self.runs = with_lost(self.runs, lost)

    def ids(self, state: RunState) -> set[int]:
        return {id_ for run in self.runs if run.state is state for id_ in range(run.first_id, run.last_id + 1)}


class Exchange:
    """Serves some trades; `spoil` changes an answer, given which one it is."""

    def __init__(self, served: Sequence[int], spoil: Callable[[int, list[int]], list[int]] | None = None) -> None:
        self.served = sorted(served)
        self.spoil = spoil
        self.asked = 0

    async def trades_after(self, symbol: str, last: Trade | None, *, limit: int = 1000) -> TradePage:
        assert last is not None
        self.asked += 1
        ids = [id_ for id_ in self.served if id_ > int(last.id)][:PAGE]
        ids = ids if self.spoil is None else self.spoil(self.asked, ids)
        return TradePage(trades=[made(id_) for id_ in ids], complete=len(ids) < PAGE, missing=False)


async def filled(exchange: Exchange, ledger: Ledger, since: int = 0) -> tuple[int, int]:
    return await fill_holes(EXCHANGE, SYMBOL, exchange, ledger, since)


async def test_a_hole_is_filled_page_by_page() -> None:
    ledger = Ledger([*range(10), *range(30, 35)])
    exchange = Exchange(range(100))
    assert await filled(exchange, ledger) == (20, 0)
    assert ledger.ids(RunState.PRESENT) == set(range(35))
    assert exchange.asked == 4
    # Nothing beyond the last stored trade: that is the work of the route.
    assert max(ledger.stored) == 34


async def test_without_a_hole_nothing_is_asked() -> None:
    exchange = Exchange(range(100))
    for ledger in (Ledger([]), Ledger(range(10)), Ledger([*range(10), *range(15, 20)], lost=range(10, 15))):
        assert await filled(exchange, ledger) == (0, 0)
    assert exchange.asked == 0


async def test_what_two_answers_do_not_have_is_lost_with_evidence() -> None:
    ledger = Ledger([0, 1, 10, 11])
    exchange = Exchange([2, 3, 6, 7, 10, 11, 12])
    assert await filled(exchange, ledger) == (4, 4)
    assert ledger.ids(RunState.PRESENT) == {0, 1, 2, 3, 6, 7, 10, 11}
    lost = [one for one in ledger.runs if one.state is RunState.LOST]
    assert [(one.first_id, one.last_id) for one in lost] == [(4, 5), (8, 9)]
    assert lost[0].evidence == "asked twice for trades after 3, the exchange answered from 6 on"


async def test_holes_that_ended_long_ago_are_left_alone() -> None:
    ledger = Ledger([0, 10, 20])
    assert await filled(Exchange(range(100)), ledger, EPOCH + 15) == (9, 0)
    assert ledger.ids(RunState.PRESENT) == {0, *range(10, 21)}


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda number, ids: [], id="nothing"),
        pytest.param(lambda number, ids: ids[2:] if number == 1 else ids, id="better the second time"),
        pytest.param(lambda number, ids: ids[2:] if number == 1 else [], id="nothing the second time"),
        pytest.param(lambda number, ids: ids[3:] if number == 1 else ids[2:], id="another hole the second time"),
    ],
)
async def test_a_doubtful_answer_loses_nothing(spoil: Callable[[int, list[int]], list[int]]) -> None:
    ledger = Ledger([0, 1, 10])
    await filled(Exchange(range(100), spoil), ledger)
    assert ledger.ids(RunState.LOST) == set()
    assert await filled(Exchange(range(100)), ledger) is not None
    assert ledger.ids(RunState.PRESENT) == set(range(11))


async def test_an_exchange_that_is_away_is_the_callers_business() -> None:
    def away(number: int, ids: list[int]) -> list[int]:
        if number == 2:
            raise ExchangeUnavailable("away")
        return ids

    ledger = Ledger([0, 20])
    with pytest.raises(ExchangeUnavailable):
        await filled(Exchange(range(100), away), ledger)
    assert ledger.ids(RunState.PRESENT) == {*range(6), 20}
    assert await filled(Exchange(range(100)), ledger) == (14, 0)


IDS = st.integers(0, 60)


@settings(max_examples=300)
@given(
    present=st.sets(IDS, min_size=2),
    lost=st.sets(IDS),
    gone=st.sets(IDS),
    partial=st.lists(st.booleans(), max_size=40),
    blind=st.integers(0, 8),
)
def test_whatever_the_ledger_every_hole_is_decided_rightly(
    present: set[int], lost: set[int], gone: set[int], partial: list[bool], blind: int
) -> None:
    """Rows may lack at the end of any answer, and one answer may lack its beginning."""

    def spoil(number: int, ids: list[int]) -> list[int]:
        cut = ids[: len(ids) // 2 + 1] if number < len(partial) and partial[number] else ids
        return cut[1:] if number == blind else cut

    ledger = Ledger(sorted(present), sorted(lost - present))
    known = present | (lost - present)
    first, last = min(known), max(known)
    holes = {id_ for id_ in range(first, last + 1) if id_ not in known}
    served = [id_ for id_ in range(80) if id_ not in gone]
    found, missing = asyncio.run(filled(Exchange(served, spoil), ledger))
    lost_now = ledger.ids(RunState.LOST)
    # Never lost where the exchange has it, never stored where it has not, and nothing known has changed.
    assert lost_now & holes <= gone
    assert lost_now - holes == lost - present
    assert ledger.stored - present <= set(served) & holes
    assert (found, missing) == (len(ledger.stored - present), len(lost_now & holes))
    assert ledger.stored == ledger.ids(RunState.PRESENT)
    # Asked again with whole answers, no hole is left.
    asyncio.run(filled(Exchange(served), ledger))
    assert ledger.ids(RunState.PRESENT) == present | (holes - gone)
    assert ledger.ids(RunState.LOST) == (lost - present) | (holes & gone)
