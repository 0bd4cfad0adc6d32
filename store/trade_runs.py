"""How new trades change the ledger of trade ids: pure functions over its runs."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace

from market.clock import EARLIEST_MS, LATEST_MS
from market.errors import BadInput
from market.trade import Trade
from store.trade_batch import RunState, TradeBatch, TradeRun

_LARGEST = 2**63 - 1


def check_trades(batch: TradeBatch) -> None:
    """Refuse what no store can keep.

    :raises BadInput: an id that is empty, unprintable, or no number where the exchange counts them; a price or
        quantity that is not a number; a time of another century.
    """
    for one in batch.trades:
        if isinstance(one.id, int):
            if not -_LARGEST <= one.id <= _LARGEST:
                raise BadInput("id", one.id, "a number of a trade below 2^63, or text")
        elif batch.dense or not one.id or not one.id.isprintable():
            wanted = "a whole number: the exchange counts its trades" if batch.dense else "printable text"
            raise BadInput("id", one.id, wanted)
        if math.isnan(one.price) or math.isnan(one.quantity):
            raise BadInput("price, quantity", (one.price, one.quantity), "numbers")
        for time in (one.event_time, one.received_at):
            if not EARLIEST_MS <= time < LATEST_MS:
                raise BadInput("event_time, received_at", time, "epoch milliseconds of the years 2000 to 2099")


def span_of(trades: Iterable[Trade]) -> tuple[int, int] | None:
    """The lowest and the highest id that is a number; None where there is none."""
    numbers = [one.id for one in trades if isinstance(one.id, int)]
    return (min(numbers), max(numbers)) if numbers else None


def unknown(trades: Iterable[Trade], runs: Sequence[TradeRun]) -> list[Trade]:
    """The trades whose ids are in none of the runs whose trades are stored; of an id that comes twice, the first.

    :param runs: sorted; at least all that the ids lie in.
    """
    stored = [one for one in runs if one.state is RunState.PRESENT]
    starts = [one.first_id for one in stored]
    seen: set[str | int] = set()
    found = []
    for one in trades:
        if one.id in seen:
            continue
        seen.add(one.id)
        if stored and isinstance(one.id, int):
            place = bisect_right(starts, one.id) - 1
            if place >= 0 and one.id <= stored[place].last_id:
                continue
        found.append(one)
    return found


def with_trades(runs: Sequence[TradeRun], trades: Iterable[Trade]) -> list[TradeRun]:
    """The runs after trades were stored that were in none of the present ones. A stored trade is not lost.

    :param runs: sorted; at least all that overlap or touch the ids.
    :param trades: with whole numbers for ids, each once, in any order.
    """
    fresh = _runs_of(sorted((one.id, one.event_time) for one in trades if isinstance(one.id, int)))
    kept = [part for one in runs for part in ([one] if one.state is RunState.PRESENT else _outside(one, fresh))]
    return _joined([*kept, *fresh])


def _runs_of(ids: Sequence[tuple[int, int]]) -> list[TradeRun]:
    """The runs that sorted ids, each with its time, make."""
    found: list[TradeRun] = []
    start = 0
    for place in range(1, len(ids) + 1):
        if place == len(ids) or ids[place][0] != ids[place - 1][0] + 1:
            (first, first_time), (last, last_time) = ids[start], ids[place - 1]
            found.append(TradeRun(first_id=first, last_id=last, first_time=first_time, last_time=last_time))
            start = place
    return found


def with_lost(runs: Sequence[TradeRun], lost: TradeRun) -> list[TradeRun]:
    """The runs after the exchange said that it no longer has some ids. What is in a run already stays as it is.

    :param runs: sorted; at least all that overlap or touch the ids.
    """
    return _joined([*runs, *_outside(lost, runs)])


def _outside(one: TradeRun, walls: Sequence[TradeRun]) -> list[TradeRun]:
    """The parts of a run that lie in none of the walls; where it was cut, it has the wall's time."""
    found: list[TradeRun] = []
    rest: TradeRun | None = one
    for wall in walls:
        if rest is None or wall.last_id < rest.first_id:
            continue
        if wall.first_id > rest.last_id:
            break
        if wall.first_id > rest.first_id:
            found.append(replace(rest, last_id=wall.first_id - 1, last_time=wall.first_time))
        rest = (
            replace(rest, first_id=wall.last_id + 1, first_time=wall.last_time)
            if wall.last_id < rest.last_id
            else None
        )
    return found if rest is None else [*found, rest]


def _joined(runs: Iterable[TradeRun]) -> list[TradeRun]:
    """Sorted, and neighbours that say the same are one."""
    found: list[TradeRun] = []
    for one in sorted(runs, key=lambda run: run.first_id):
        before = found[-1] if found else None
        if (
            before is not None
            and before.last_id + 1 == one.first_id
            and (before.state, before.evidence) == (one.state, one.evidence)
        ):
            found[-1] = replace(before, last_id=one.last_id, last_time=one.last_time)
        else:
            found.append(one)
    return found
