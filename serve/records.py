"""What is known beside the candles, as plain JSON values: one dictionary per thing, the same for every reader.

Instants are epoch milliseconds, exact decimals are text. Nothing here needs the web framework, so the Python client
reads a home folder through the same functions.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from market.coverage import Covered
from market.instrument import Instrument, Series
from market.interval import Interval, IntervalSet
from store.answer import SeriesInfo
from store.archive.manifest import Manifest


def series_names(series: Series) -> dict[str, str]:
    """The three names of a series."""
    return {"exchange": series.exchange, "symbol": series.symbol, "timeframe": series.timeframe.name}


def series_record(info: SeriesInfo) -> dict[str, Any]:
    """Metadata of one stored series."""
    return {
        **series_names(info.series),
        "rows": info.rows,
        "first_open": info.first_open,
        "last_open": info.last_open,
        "last_write": info.last_write,
        "revision": info.revision,
        "sources": list(info.sources),
        "corrections": info.corrections,
        "quarantined": info.quarantined,
        "missing": info.missing,
        "verified_empty": info.verified_empty,
    }


def covered_record(covered: Covered) -> dict[str, Any]:
    """One entry of the coverage ledger."""
    return {
        "start": covered.interval.start,
        "end": covered.interval.end,
        "state": covered.state.value,
        "source": covered.source,
        "learned_at": covered.learned_at,
        "expires_at": covered.expires_at,
        "evidence": covered.evidence,
    }


def instrument_record(instrument: Instrument) -> dict[str, Any]:
    """One market of an exchange."""
    return {
        "exchange": instrument.exchange,
        "symbol": instrument.symbol,
        "exchange_symbol": instrument.exchange_symbol,
        "base": instrument.base,
        "quote": instrument.quote,
        "kind": instrument.kind,
        "tick_size": _text(instrument.tick_size),
        "lot_size": _text(instrument.lot_size),
        "min_notional": _text(instrument.min_notional),
        "active": instrument.active,
        "listed": instrument.listed_ms,
    }


def manifest_record(manifest: Manifest) -> dict[str, Any]:
    """What the archive holds of one series."""
    return {
        **series_names(manifest.series),
        "rows": manifest.digest.rows,
        "first_open": manifest.files[0].first_open if manifest.files else None,
        "last_open": manifest.files[-1].last_open if manifest.files else None,
        "files": len(manifest.files),
        "size_bytes": sum(one.size for one in manifest.files),
        "fingerprint": manifest.fingerprint,
    }


def compact(coverage: Iterable[Covered]) -> list[list[Any]]:
    """``[start, end, state]`` of a sorted ledger, neighbours in one state joined.

    Sources and times of learning are left out: they may change while what is known stays the same.
    """
    joined: list[list[Any]] = []
    for one in coverage:
        if joined and joined[-1][1] == one.interval.start and joined[-1][2] == one.state.value:
            joined[-1][1] = one.interval.end
        else:
            joined.append([one.interval.start, one.interval.end, one.state.value])
    return joined


def pairs(intervals: IntervalSet | Iterable[Interval]) -> list[list[int]]:
    """``[start, end]`` of each interval."""
    return [[one.start, one.end] for one in intervals]


def _text(value: Decimal | None) -> str | None:
    return None if value is None else format(value, "f")
