"""Where a subscription's candles come from in the archive, and which of them are missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from market.clock import iso
from market.coverage import CoverageState
from market.errors import BadInput, NotFound
from market.instrument import Series
from market.interval import Interval, IntervalSet
from market.timeframe import ONE_MINUTE, Timeframe
from store.archive.manifest import ArchiveFile, Manifest, read_manifest, read_manifests
from trading.strategy import Subscription

#: What can be done about missing candles.
MISSING_POLICIES = ("refuse", "mask")

#: States of the ledger in which the archive has all there is: candles, or the proof that there were none.
_KNOWN = (CoverageState.PRESENT, CoverageState.EMPTY)


class MissingCandles(BadInput):
    """The archive does not hold all of the range, and was told to refuse that."""

    def __init__(self, source: Source, interval: Interval, missing: IntervalSet) -> None:
        ranges = [str(one) for one in missing]
        shown = ", ".join(ranges[:5]) + (f" and {len(ranges) - 5} more" if len(ranges) > 5 else "")
        super().__init__(
            "range",
            str(interval),
            f"a range without missing candles; {source.series} misses {shown}. {source.holds}. "
            "Run `chandlery backfill` and `chandlery archive` to get them, or choose missing=mask to skip them",
        )
        #: The series' missing ranges inside the interval, sorted.
        self.missing = missing


@dataclass(frozen=True, kw_only=True)
class Source:
    """The archived candles behind one subscription."""

    #: What the strategy sees.
    series: Series
    #: Earlier candles wanted for indicators.
    warm_up: int
    #: The archived series: `series` itself, or its one-minute candles where larger ones are rolled up.
    manifest: Manifest

    @property
    def derived(self) -> bool:
        """True where candles are rolled up from smaller ones."""
        return self.manifest.series != self.series

    @property
    def known(self) -> IntervalSet:
        """Where the ledger says present or verified empty. Outages and the unknown are not in it.

        Expiry is left out on purpose: a run must not depend on the day it is made.
        """
        return IntervalSet(one.interval for one in self.manifest.coverage if one.state in _KNOWN)

    @property
    def holds(self) -> str:
        """What the archive holds, as a sentence."""
        hull = self.known.hull
        if hull is None:
            return f"The archive holds no candles of {self.manifest.series}"
        return f"The archive holds {self.manifest.series} from {iso(hull.start)} to {iso(hull.end)}"

    def buckets(self, interval: Interval) -> Interval | None:
        """The part of `interval` made of whole buckets: a candle that ends later is not available in it."""
        timeframe = self.series.timeframe
        start, end = timeframe.ceil(interval.start), timeframe.floor(interval.end)
        return Interval(start, end) if start < end else None

    def missing(self, interval: Interval) -> IntervalSet:
        """The buckets of `interval` that are not wholly known."""
        whole = self.buckets(interval)
        if whole is None:
            return IntervalSet()
        timeframe = self.series.timeframe
        holes = IntervalSet([whole]) - self.known
        return IntervalSet(Interval(timeframe.floor(one.start), timeframe.ceil(one.end)) for one in holes)

    def segments(self, interval: Interval) -> list[Interval]:
        """Runs without a hole, oldest first; the first is led in by up to `warm_up` earlier buckets."""
        whole = self.buckets(interval)
        if whole is None:
            return []
        runs = list(IntervalSet([whole]) - self.missing(interval))
        if runs and runs[0].start == whole.start and self.warm_up:
            wanted = Interval(self.series.timeframe.next(whole.start, -self.warm_up), whole.start)
            lead = list(IntervalSet([wanted]) - self.missing(wanted))
            if lead and lead[-1].end == whole.start:
                runs[0] = Interval(lead[-1].start, runs[0].end)
        return runs

    def slices(self, segment: Interval, rows: int) -> Iterator[tuple[Interval, list[ArchiveFile]]]:
        """`segment` in steps of about `rows` archived rows at most, each with the files that hold them.

        Steps are made from the manifest's row counts and end between buckets of the series.
        """
        timeframe = self.series.timeframe
        start, held = segment.start, 0
        for file in self.manifest.files_in(segment):
            if held and held + file.rows > rows:
                cut = timeframe.floor(file.first_open)
                if cut > start:
                    yield from self._split(Interval(start, cut), held, rows)
                    start, held = cut, 0
            held += file.rows
        if held:
            yield from self._split(Interval(start, segment.end), held, rows)

    def _split(self, span: Interval, held: int, rows: int) -> Iterator[tuple[Interval, list[ArchiveFile]]]:
        """`span` in equal parts where its files hold more than `rows`."""
        parts = -(-held // rows)
        timeframe = self.series.timeframe
        cuts = {timeframe.floor(span.start + span.duration * part // parts) for part in range(1, parts)}
        bounds = [span.start, *sorted(cut for cut in cuts if span.start < cut < span.end), span.end]
        for start, end in pairwise(bounds):
            part = Interval(start, end)
            yield part, self.manifest.files_in(part)


def find_source(root: Path, exchange: str, wanted: Subscription, interval: Interval | None) -> Source:
    """The archived series for a subscription: its own timeframe, or one-minute candles to roll up.

    Where both are archived, the one that misses nothing of `interval`; its own first.

    :raises NotFound: nothing suitable is archived; lists what is.
    """
    series = Series(exchange, wanted.symbol, wanted.timeframe)
    candidates = [series]
    if wanted.timeframe.derives_from(ONE_MINUTE):
        candidates.append(series.at(ONE_MINUTE))
    found = [
        Source(series=series, warm_up=wanted.warm_up, manifest=manifest)
        for one in candidates
        if (manifest := read_manifest(root, one)) is not None
    ]
    if not found:
        known = ", ".join(str(one.series) for one in read_manifests(root)) or "nothing"
        raise NotFound(
            "series",
            str(series),
            hint=f"a series of the archive, which holds {known}; "
            "run `chandlery backfill` and `chandlery archive` to add one",
        )
    if interval is not None:
        for source in found:
            if not source.missing(interval):
                return source
    return found[0]


def find_sources(
    root: Path,
    exchange: str,
    wanted: Sequence[Subscription],
    interval: Interval | None,
    missing: str,
    start_ms: int | None = None,
    end_ms: int | None = None,
) -> tuple[Interval, list[Source]]:
    """The sources of all subscriptions and the interval to run over.

    :param interval: None for all that the archive holds of every series.
    :param start_ms: another start than the archive's, where there is no `interval`; `end_ms` likewise.
    :param missing: ``refuse`` or ``mask``.
    :raises BadInput: naming what is wrong; :class:`MissingCandles` where candles are missing and refused.
    """
    if missing not in MISSING_POLICIES:
        raise BadInput("missing", missing, "one of " + ", ".join(MISSING_POLICIES))
    sources = [find_source(root, exchange, one, interval) for one in wanted]
    chosen = interval or _common(sources, start_ms, end_ms)
    for source in sources:
        holes = source.missing(chosen)
        whole = source.buckets(chosen)
        if whole is None:
            length = source.series.timeframe
            raise BadInput("range", str(chosen), f"a range that holds a whole candle of {length}")
        if holes == IntervalSet([whole]) or (holes and missing == "refuse"):
            raise MissingCandles(source, chosen, holes)
    return chosen, sources


def _common(sources: Sequence[Source], start_ms: int | None, end_ms: int | None) -> Interval:
    """What the archive holds of every source, with the ends that were asked for in place of its own."""
    hulls = [source.known.hull for source in sources]
    for source, hull in zip(sources, hulls, strict=True):
        if hull is None:
            raise BadInput("series", str(source.series), f"a series with candles. {source.holds}")
    start = max(one.start for one in hulls if one)
    end = min(one.end for one in hulls if one)
    if start >= end:
        raise BadInput(
            "symbols",
            ", ".join(str(one.series) for one in sources),
            "series that overlap in time. " + ". ".join(one.holds for one in sources),
        )
    asked_start, asked_end = start if start_ms is None else start_ms, end if end_ms is None else end_ms
    if asked_start >= asked_end:
        raise BadInput(
            "range",
            f"[{iso(asked_start)}, {iso(asked_end)})",
            "a range in which there are candles. " + ". ".join(one.holds for one in sources),
        )
    return Interval(asked_start, asked_end)


def finest(sources: Sequence[Source]) -> dict[str, Timeframe]:
    """The shortest timeframe of each symbol: the one whose opens fill orders and whose closes value holdings."""
    shortest: dict[str, Timeframe] = {}
    for source in sources:
        symbol, timeframe = source.series.symbol, source.series.timeframe
        shortest[symbol] = min(shortest.get(symbol, timeframe), timeframe)
    return shortest
