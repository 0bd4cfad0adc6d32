"""What is known of a series over time: the states of the coverage ledger and the gaps between them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from market.interval import Interval, IntervalSet


class CoverageState(StrEnum):
    """What an interval of a series is known to be. An interval in no state is *unknown*: a gap."""

    #: Every bucket has a stored candle.
    PRESENT = "present"
    #: The exchange was asked twice and has no candle there (no trades, or before the listing).
    EMPTY = "verified_empty"
    #: The exchange was down: it has no candle there and traded nothing.
    EXCHANGE_OUTAGE = "exchange_outage"
    #: We were down and the exchange no longer serves the range.
    OWN_OUTAGE = "own_outage"
    #: Every bucket had a stored candle, which is now in the archive and no longer in the database.
    ARCHIVED = "archived"

    @property
    def has_candles(self) -> bool:
        """True where every bucket has a candle, in the database or in the archive."""
        return self in (CoverageState.PRESENT, CoverageState.ARCHIVED)


@dataclass(frozen=True, kw_only=True)
class Covered:
    """One entry of the coverage ledger."""

    interval: Interval
    state: CoverageState
    #: Where the knowledge came from: ``binance rest``, ``import btc.csv``.
    source: str
    #: When we learned it, epoch milliseconds of our clock.
    learned_at: int
    #: When it stops counting (only "nothing there" expires); None for never.
    expires_at: int | None = None
    #: What was seen, in words, for states other than present.
    evidence: str | None = None


def known(covered: Iterable[Covered], at_ms: int) -> IntervalSet:
    """What the entries say anything of at that time: all but those that have expired."""
    return IntervalSet(one.interval for one in covered if one.expires_at is None or one.expires_at > at_ms)


def archived(covered: Iterable[Covered]) -> IntervalSet:
    """Where the candles are in the archive and not in the database."""
    return IntervalSet(one.interval for one in covered if one.state is CoverageState.ARCHIVED)


def gaps(wanted: Interval, covered: Iterable[Covered], now_ms: int) -> IntervalSet:
    """The parts of `wanted` in no unexpired state: what a backfill has to fetch."""
    return IntervalSet([wanted]) - known(covered, now_ms)
