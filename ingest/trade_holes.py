"""Filling the holes between stored trades that an earlier run left, as far as the exchange still serves them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

import structlog

from ingest.trade_route import TradeHistory
from market.trade import Trade
from store.trade_batch import TradeBatch, TradeRun, TradesWritten

log = structlog.get_logger(__name__)


class TradeLedger(Protocol):
    """Stored trades and what is known of their ids."""

    async def write_trades(self, batches: Sequence[TradeBatch]) -> TradesWritten:
        """Write batches in one transaction."""
        ...

    async def trade_runs(self, exchange: str, symbol: str) -> list[TradeRun]:
        """The ledger of trade ids, by id."""
        ...

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
        """Say that the exchange no longer serves some trades."""
        ...


async def fill_holes(
    exchange: str, symbol: str, history: TradeHistory, ledger: TradeLedger, since_ms: int
) -> tuple[int, int]:
    """Fill the holes in the ledger of one instrument that end after `since_ms`.

    What the exchange does not have, two answers agreeing, is lost. Where they do not, the hole stays as it is.

    :return: trades found, and trades lost.
    """
    found = lost = 0
    for before, after in itertools.pairwise(await ledger.trade_runs(exchange, symbol)):
        if after.last_time < since_ms or before.last_id + 1 == after.first_id:
            continue
        last, end = before.last_id, after.first_id
        log.info("trades are missing", exchange=exchange, symbol=symbol, first=last + 1, last=end - 1)
        while last + 1 < end:
            page = await history.trades_after(symbol, _known(last, before))
            inside = [one for one in page.trades if isinstance(one.id, int) and last < one.id < end]
            following = min(
                (one.id for one in page.trades if isinstance(one.id, int) and one.id > last), default=end
            )
            if inside:
                batch = TradeBatch(exchange=exchange, symbol=symbol, trades=inside, dense=True)
                found += (await ledger.write_trades([batch])).inserted
            if following > last + 1:
                again = await history.trades_after(symbol, _known(last, before))
                ids = [one.id for one in again.trades if isinstance(one.id, int) and one.id > last]
                if not ids or min(ids) < following:
                    # No answer, or another one: the hole stays unknown until the next start.
                    break
                evidence = f"asked twice for trades after {last}, the exchange answered from {following} on"
                gone = min(following, end) - 1
                await ledger.lose_trades(
                    exchange, symbol, last + 1, gone, before.last_time, after.first_time, evidence
                )
                lost += gone - last
                last = gone
            # An answer may have holes itself: go on at the first one.
            there = {one.id for one in inside}
            while last + 1 in there:
                last += 1
    return found, lost


def _known(id_: int, run: TradeRun) -> Trade:
    """A trade of which nothing but the id and about the time is known, to ask for those after it."""
    return Trade(id_, 0.0, 0.0, run.last_time, True, run.last_time)
