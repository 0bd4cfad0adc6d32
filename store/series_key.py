"""The key that stands for a series in the tables of a database."""

from __future__ import annotations

from dataclasses import dataclass

from market.instrument import Series
from market.timeframe import DAY_MS, DEFAULT_ORIGIN_MS


@dataclass(frozen=True)
class SeriesKey:
    """The small integers that stand for a series, and what the writer must know of it."""

    instrument_id: int
    #: Seconds.
    timeframe: int
    revision: int
    #: Epoch milliseconds; strictly increasing from write to write.
    last_write: int
    #: Where three-day buckets count from: the listing day, or where nobody told it, the first stored candle.
    origin_ms: int
    #: False while neither is known and `origin_ms` is the usual one.
    anchored: bool = True

    @classmethod
    def of(
        cls,
        series: Series,
        instrument_id: int,
        revision: int,
        last_write: int,
        listed_at: int | None,
        first_open: int | None,
    ) -> SeriesKey:
        """The key from what the tables say.

        :param listed_at: when the exchange listed the instrument; None where nobody told.
        :param first_open: open time of the first stored candle; looked at for three-day candles only.
        """
        origin, anchored = DEFAULT_ORIGIN_MS, False
        if listed_at is not None:
            origin, anchored = listed_at // DAY_MS * DAY_MS, True
        elif series.timeframe.name == "3d" and first_open is not None:
            origin, anchored = first_open, True
        return cls(instrument_id, series.timeframe.seconds, revision, last_write, origin, anchored)


def parts_of(symbol: str) -> tuple[str, str, str]:
    """Base, quote and kind, as a unified symbol names them: ``BTC/USDT``, ``BTC/USDT:USDT``."""
    pair, _, settle = symbol.partition(":")
    base, _, quote = pair.partition("/")
    kind = ("future" if "-" in settle else "swap") if settle else "spot"
    return base, quote, kind
