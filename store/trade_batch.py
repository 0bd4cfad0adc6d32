"""Trades that go into a store in one transaction, and what is known of their completeness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from market.trade import Trade


@dataclass(frozen=True, kw_only=True)
class TradeBatch:
    """Trades of one instrument; written whole or not at all. A trade that is stored already stays as it is."""

    exchange: str
    #: ccxt unified.
    symbol: str
    #: In the order of the exchange.
    trades: Sequence[Trade]
    #: Ids count up by one, so that consecutive ones prove that nothing is missing between them.
    dense: bool


class RunState(StrEnum):
    """What is known of a run of trade ids. Ids in no run are unknown: a hole that can still be filled."""

    #: Every one is stored.
    PRESENT = "present"
    #: The exchange no longer serves them.
    LOST = "lost"


@dataclass(frozen=True, kw_only=True)
class TradeRun:
    """Consecutive trade ids of one instrument, all in the same state. Runs are disjoint and as long as can be."""

    #: Inclusive, both.
    first_id: int
    last_id: int
    #: Event times of the trades at its ends, epoch milliseconds; of a lost run, those of its neighbours.
    first_time: int
    last_time: int
    state: RunState = RunState.PRESENT
    #: Of a lost run: what the exchange said.
    evidence: str | None = None


@dataclass(frozen=True, kw_only=True)
class TradesWritten:
    """What writing trades changed."""

    inserted: int = 0
    #: Trades that were stored already.
    known: int = 0

    def __add__(self, other: TradesWritten) -> TradesWritten:
        return TradesWritten(inserted=self.inserted + other.inserted, known=self.known + other.known)
