"""How new knowledge changes the coverage ledger: pure functions over its entries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from market.coverage import CoverageState, Covered
from market.coverage import known as known_at
from market.interval import Interval, IntervalSet
from market.timeframe import Timeframe
from store.batch import Absence


def learn(
    known: Sequence[Covered], present: IntervalSet, absences: Iterable[Absence], source: str, learned_at: int
) -> list[Covered]:
    """The ledger after a batch.

    Present beats everything: a stored candle is there whatever the exchange says later. So does archived, which
    stays so when the same candles come again. A newer absence replaces an older one, unless it says the same, or
    has expired already (an old archive) while the older one holds: then the ledger stays as it is. Neighbours that
    say the same become one entry.

    :param known: disjoint entries, sorted; at least all that overlap or touch what is new.
    :param present: what the batch's candles cover.
    """
    stored = IntervalSet(one.interval for one in known if one.state.has_candles)
    fresh = [
        Covered(interval=one, state=CoverageState.PRESENT, source=source, learned_at=learned_at)
        for one in present - stored
    ]
    claimed = [
        Covered(
            interval=one.interval,
            state=one.state,
            source=source,
            learned_at=learned_at,
            expires_at=one.expires_at,
            evidence=one.evidence,
        )
        for one in absences
    ]
    claimed = _disjoint(claimed)
    expired = IntervalSet(
        one.interval for one in claimed if one.expires_at is not None and one.expires_at <= learned_at
    )
    if expired:
        claimed = outside(claimed, expired & known_at(known, learned_at))
    fresh += outside(claimed, present | stored | _repeated(claimed, known))
    kept = outside(known, IntervalSet(one.interval for one in fresh))
    return joined(sorted([*kept, *fresh], key=lambda one: one.interval))


def _disjoint(entries: list[Covered]) -> list[Covered]:
    """Sorted entries without overlaps; where two overlap, the one that starts first keeps the shared part."""
    found: list[Covered] = []
    for one in sorted(entries, key=lambda entry: entry.interval):
        start = max(one.interval.start, found[-1].interval.end) if found else one.interval.start
        if start < one.interval.end:
            found.append(replace(one, interval=Interval(start, one.interval.end)))
    return found


def _repeated(claimed: Sequence[Covered], known: Sequence[Covered]) -> IntervalSet:
    """Where disjoint, sorted claims say what is known already; one pass over both."""
    found: list[Interval] = []
    at = 0
    for one in claimed:
        while at < len(known) and known[at].interval.end <= one.interval.start:
            at += 1
        look = at
        while look < len(known) and known[look].interval.start < one.interval.end:
            if _same(known[look], one):
                shared = known[look].interval
                found.append(Interval(max(shared.start, one.interval.start), min(shared.end, one.interval.end)))
            look += 1
    return IntervalSet(found)


def outside(entries: Sequence[Covered], cuts: IntervalSet) -> list[Covered]:
    """The parts of sorted, disjoint entries that lie in none of `cuts`; one pass over both."""
    walls = list(cuts)
    found: list[Covered] = []
    at = 0
    for one in entries:
        start = one.interval.start
        while at < len(walls) and walls[at].end <= start:
            at += 1
        look = at
        while look < len(walls) and walls[look].start < one.interval.end:
            if walls[look].start > start:
                found.append(replace(one, interval=Interval(start, walls[look].start)))
            start = max(start, walls[look].end)
            look += 1
        if start < one.interval.end:
            found.append(
                one if start == one.interval.start else replace(one, interval=Interval(start, one.interval.end))
            )
    return found


def clip(entries: Iterable[Covered], interval: Interval) -> list[Covered]:
    """The parts of the entries inside `interval`."""
    return [
        replace(
            one, interval=Interval(max(one.interval.start, interval.start), min(one.interval.end, interval.end))
        )
        for one in entries
        if one.interval.start < interval.end and one.interval.end > interval.start
    ]


def counts(ledger: Sequence[Covered], timeframe: Timeframe, now_ms: int) -> tuple[int, int]:
    """Buckets between the first and the last known instant that nothing is known of, and that are known empty."""
    hull = IntervalSet(one.interval for one in ledger).hull
    missing = IntervalSet([hull] if hull else []) - known_at(ledger, now_ms)
    silent = [one.interval for one in ledger if one.state is CoverageState.EMPTY]
    return (
        sum(timeframe.count(one.start, one.end) for one in missing),
        sum(timeframe.count(one.start, one.end) for one in silent),
    )


def joined(entries: Iterable[Covered]) -> list[Covered]:
    """Sorted entries with neighbours that say the same made one."""
    found: list[Covered] = []
    for one in entries:
        before = found[-1] if found else None
        if before is not None and before.interval.end == one.interval.start and _same(before, one):
            found[-1] = replace(
                before,
                interval=Interval(before.interval.start, one.interval.end),
                learned_at=max(before.learned_at, one.learned_at),
            )
        else:
            found.append(one)
    return found


def _same(a: Covered, b: Covered) -> bool:
    return (a.state, a.source, a.expires_at, a.evidence) == (b.state, b.source, b.expires_at, b.evidence)
