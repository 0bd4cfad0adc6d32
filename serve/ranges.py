"""What may be asked in time: not the future, not backwards; and a series' own bounds where none is given."""

from __future__ import annotations

from market.clock import Clock, iso
from market.errors import BadInput
from market.instrument import Series
from market.interval import Interval
from store.market_data import MarketData


def check_order(start_ms: int, end_ms: int) -> None:
    """Refuse a range whose end is not after its start."""
    if start_ms >= end_ms:
        raise BadInput("end", iso(end_ms), f"an instant after start ({iso(start_ms)}); ranges are [start, end)")


def check_as_of(as_of_ms: int, clock: Clock) -> None:
    """Refuse knowledge of the future."""
    now = clock.now_ms()
    if as_of_ms > now:
        raise BadInput("as_of", iso(as_of_ms), f"an instant that is not in the future; it is {iso(now)} now")


async def check_start(market_data: MarketData, clock: Clock, series: Series, start_ms: int) -> None:
    """Refuse a range that starts after now.

    The exchange's clock may run ahead of ours (a simulated one): what is stored is not the future.
    """
    now = clock.now_ms()
    if start_ms <= now:
        return
    known, _ = await market_data.coverage(series)
    if start_ms >= known.end:
        raise BadInput("start", iso(start_ms), f"an instant that is not in the future; it is {iso(now)} now")


async def asked_interval(
    market_data: MarketData, clock: Clock, series: Series, start_ms: int | None, end_ms: int | None
) -> Interval | None:
    """The range of a question about coverage: a missing bound is the series' own; None where both are missing."""
    if start_ms is None and end_ms is None:
        return None
    if start_ms is not None and end_ms is not None:
        check_order(start_ms, end_ms)
        await check_start(market_data, clock, series, start_ms)
        return Interval(start_ms, end_ms)
    whole, _ = await market_data.coverage(series)
    if start_ms is not None:
        if start_ms >= whole.end:
            known = iso(whole.end)
            raise BadInput("start", iso(start_ms), f"an instant before {known}, the last known one, or also an end")
        return Interval(start_ms, whole.end)
    if end_ms is None or end_ms <= whole.start:
        known = iso(whole.start)
        raise BadInput("end", end_ms, f"an instant after {known}, the first known one, or also a start")
    return Interval(whole.start, end_ms)
