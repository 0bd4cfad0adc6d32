"""What goes into a candle store in one transaction, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from market.candle import CandleState, Refusal, no_candles
from market.coverage import CoverageState
from market.errors import BadInput
from market.instrument import Series
from market.interval import Interval


@dataclass(frozen=True, kw_only=True)
class Absence:
    """An interval in which the exchange has no candle, and how we know."""

    interval: Interval
    #: EMPTY, EXCHANGE_OUTAGE or OWN_OUTAGE.
    state: CoverageState
    #: What was seen, in words: ``two reads of /klines agree``.
    evidence: str
    #: Epoch milliseconds after which it counts as unknown again; None for never.
    expires_at: int | None = None

    def __post_init__(self) -> None:
        if self.state.has_candles:
            raise BadInput(
                "state", self.state.value, "a state of absence; only a stored candle makes a range present"
            )


@dataclass(frozen=True, kw_only=True)
class CandleBatch:
    """Candles of one series and what was learned beside them; written whole or not at all."""

    series: Series
    #: Where it came from, for the ledger: ``binance rest``, ``import btc.csv``.
    source: str
    #: Exchange time in epoch milliseconds; a row whose bucket ends later is not closed and is refused.
    now_ms: int
    #: Candle schema, any order.
    table: pa.Table = field(default_factory=no_candles)
    state: CandleState = CandleState.CLOSED
    absences: tuple[Absence, ...] = ()
    #: Rows that could not even be read as candles; they go to quarantine with the ones that break a rule.
    refusals: tuple[Refusal, ...] = ()

    def __post_init__(self) -> None:
        if self.state is CandleState.FORMING:
            raise BadInput("state", self.state.name.lower(), "closed or verified; a forming candle is never stored")


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a batch changed."""

    #: Rows that were not there before.
    inserted: int = 0
    #: Rows whose values were replaced; the old ones are kept in `candle_corrections`.
    corrected: int = 0
    #: Rows that were already there with the same values: no write.
    unchanged: int = 0
    #: Rows older or less final than what is stored: no write.
    outranked: int = 0
    #: Rows refused into quarantine, with reasons.
    refusals: tuple[Refusal, ...] = ()

    @property
    def written(self) -> int:
        """Rows that a reader would now see differently."""
        return self.inserted + self.corrected

    def __add__(self, other: Written) -> Written:
        return Written(
            inserted=self.inserted + other.inserted,
            corrected=self.corrected + other.corrected,
            unchanged=self.unchanged + other.unchanged,
            outranked=self.outranked + other.outranked,
            refusals=self.refusals + other.refusals,
        )
