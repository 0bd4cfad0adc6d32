"""The aggregated trades of one minute, made to agree with its candle.

A candle does not say which trades it was made of, so they are made up: the first at the open, one at the high, one
at the low, the last at the close, and the rest wherever they must be for base volume, quote volume and both taker
volumes to add up to the candle's exactly. Everything is counted in ticks and lots (integers), so "exactly" is meant
literally. Quote volumes can only be met where the candle has trades enough to place (nearly all real ones do).
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

#: Most aggregated trades in a minute of recorded data; further trades share an aggregated one.
MOST_PRINTS = 50


@dataclass(frozen=True, kw_only=True)
class Minute:
    """What the trades of one minute must add up to."""

    #: Prices in ticks.
    open: int
    high: int
    low: int
    close: int
    #: Base volumes in lots.
    volume: int
    buy_volume: int
    #: Quote volumes in tick-lots.
    quote_volume: int
    buy_quote_volume: int
    #: Single trades, and aggregated trades among which they are spread (fewer or as many).
    trades: int
    prints: int
    #: Milliseconds from the open in which trading happens.
    span_ms: int
    #: Equal seeds give equal trades.
    seed: int


@dataclass(slots=True)
class Print:
    """One aggregated trade."""

    price: int
    lots: int
    #: True if the taker bought.
    bought: bool
    #: Milliseconds after the minute's open.
    offset_ms: int = 0
    #: How many single trades it stands for.
    trades: int = 1


def prints_of(minute: Minute) -> list[Print]:
    """The aggregated trades of `minute`, in order of time; as many as it says, if its volume has that many lots."""
    if not minute.prints:
        return []
    rng = random.Random(minute.seed)
    path = _turning_points(minute, rng)
    turning, bulk = _with_volumes(minute, path, rng)
    middle = turning[1:-1] + bulk
    ends = turning[:1] + turning[1:][-1:]
    _spread(minute, ends, middle, rng)
    rng.shuffle(middle)
    prints = [turning[0], *middle, *ends[1:]]
    offsets = sorted(rng.randrange(minute.span_ms) for _ in prints)
    for one, offset in zip(prints, offsets, strict=True):
        one.offset_ms = offset
    _share_trades(minute, prints)
    return prints


def _turning_points(minute: Minute, rng: random.Random) -> list[int]:
    """The prices that must be printed: open, the extremes where they lie beyond open and close, close."""
    if minute.prints == 1:
        return [minute.close]
    extremes = []
    if minute.high > max(minute.open, minute.close):
        extremes.append(minute.high)
    if minute.low < min(minute.open, minute.close):
        extremes.append(minute.low)
    rng.shuffle(extremes)
    return [minute.open, *extremes[: minute.prints - 2], minute.close]


def _with_volumes(minute: Minute, path: list[int], rng: random.Random) -> tuple[list[Print], list[Print]]:
    """Taker sides and lots for the prices of `path`, and the further prints that make the volumes add up.

    Tries each way of giving the sides to the turning points and takes the first that meets both quote volumes, or
    else the one that misses them least.
    """
    ways = list(itertools.product((True, False), repeat=len(path)))
    rng.shuffle(ways)
    spare = minute.prints - len(path)
    best: tuple[int, list[Print], list[Print]] | None = None
    for sides in ways:
        turning = [Print(price, 1, bought) for price, bought in zip(path, sides, strict=True)]
        buys = [one for one in turning if one.bought]
        sells = [one for one in turning if not one.bought]
        bought = _fill(minute, buys, minute.buy_volume, minute.buy_quote_volume, spare, bought=True)
        if bought is None:
            continue
        sold = _fill(
            minute,
            sells,
            minute.volume - minute.buy_volume,
            minute.quote_volume - minute.buy_quote_volume,
            spare - len(bought[1]),
            bought=False,
        )
        if sold is None:
            continue
        missed = bought[0] + sold[0]
        if best is None or missed < best[0]:
            best = (missed, turning, bought[1] + sold[1])
        if not missed:
            break
    if best is None:
        # Taker volumes that cannot belong to these prices: only the base volume is kept.
        turning = [Print(price, 1, True) for price in path]
        turning[-1].lots += max(0, minute.volume - len(path))
        return turning, []
    return best[1], best[2]


def _fill(
    minute: Minute, turning: list[Print], lots: int, quote: int, spare: int, *, bought: bool
) -> tuple[int, list[Print]] | None:
    """Make one taker side add up to `lots` and `quote` by new prints or by growing its turning points.

    :return: by how much the quote volume is missed, and the new prints (at most `spare`); None if it cannot be.
    """
    rest = lots - len(turning)
    if rest < 0:
        return None
    rest_quote = quote - sum(one.price for one in turning)
    if rest == 0:
        return abs(rest_quote), []
    price, above = divmod(rest_quote, rest)
    if minute.low <= price and price + bool(above) <= minute.high and spare >= 1 + bool(above):
        # Two neighbouring prices meet any average between them exactly.
        new = [Print(price, rest - above, bought)]
        return 0, new + ([Print(price + 1, above, bought)] if above else [])
    if turning:
        cheap = min(turning, key=lambda one: one.price)
        dear = max(turning, key=lambda one: one.price)
        step = dear.price - cheap.price
        at_dear = min(max(round((rest_quote - cheap.price * rest) / step), 0), rest) if step else 0
        cheap.lots += rest - at_dear
        dear.lots += at_dear
        return abs(rest_quote - cheap.price * (rest - at_dear) - dear.price * at_dear), []
    if spare < 1:
        return None
    price = min(max(round(rest_quote / rest), minute.low), minute.high)
    return abs(rest_quote - price * rest), [Print(price, rest, bought)]


def _spread(minute: Minute, ends: list[Print], middle: list[Print], rng: random.Random) -> None:
    """Split large prints until there are as many as wanted, without changing any sum.

    Equal quantities moved as far up as down leave the quote volume as it is.
    """
    prints = ends + middle
    while len(prints) < minute.prints:
        largest = max(prints, key=lambda one: one.lots)
        if largest.lots < 2:
            return
        room = min(largest.price - minute.low, minute.high - largest.price)
        if minute.prints - len(prints) >= 2 and largest.lots >= 3 and room > 0:
            lots = 1 + rng.randrange((largest.lots - 1) // 2)
            away = 1 + rng.randrange(room)
            new = [Print(largest.price + move, lots, largest.bought) for move in (away, -away)]
        else:
            new = [Print(largest.price, 1 + rng.randrange(largest.lots - 1), largest.bought)]
        largest.lots -= sum(one.lots for one in new)
        middle.extend(new)
        prints.extend(new)


def _share_trades(minute: Minute, prints: list[Print]) -> None:
    """Spread the single trades over the prints: at least one each, and never more than it has lots."""
    extra = minute.trades - len(prints)
    room = sum(one.lots - 1 for one in prints)
    if extra <= 0 or not room:
        return
    given = seen = 0
    for one in prints:
        seen += one.lots - 1
        upto = min(extra, room) * seen // room
        one.trades = 1 + upto - given
        given = upto
