"""How long candles go on changing after they have closed, as seen by reading them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from market.timeframe import Timeframe


class SettleCount(NamedTuple):
    """What came of reading some candles again at one age."""

    #: Milliseconds after the candle's end. The caller chooses which ages there are.
    age_ms: int
    #: Candles that were read again.
    checked: int
    #: Of them, those that differed from what was stored.
    drifted: int
    #: The newest of those, epoch milliseconds.
    last_drift_open_time: int | None = None


@dataclass(frozen=True, kw_only=True)
class SettleCheck:
    """Everything that was ever read again of an exchange and timeframe at one age."""

    exchange: str
    timeframe: Timeframe
    age_ms: int
    checked: int
    drifted: int
    #: Epoch milliseconds; None where none has changed.
    last_drift_open_time: int | None
    #: When it was last added to, epoch milliseconds of our clock.
    updated_at: int


class SettleStore(Protocol):
    """Counts of candles that were read again."""

    async def record_settle(self, exchange: str, timeframe: Timeframe, counts: Sequence[SettleCount]) -> None:
        """Add to what is known of an exchange and timeframe; one transaction."""
        ...

    async def settle_checks(self, exchange: str | None = None) -> list[SettleCheck]:
        """What is known, by exchange, timeframe and age."""
        ...
