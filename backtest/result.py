"""What a backtest found: numbers to read, rows to compare, and a hash that proves two runs equal."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from functools import cached_property
from hashlib import sha256
from importlib.metadata import version
from typing import Any

from backtest.round_trip import RoundTrip, round_trips
from market.clock import iso
from market.instrument import Series
from market.interval import Interval, IntervalSet
from trading.portfolio import Fill, RefusedOrder

_LIBRARIES = ("chandlery", "duckdb", "numpy", "polars", "pyarrow")


@dataclass(frozen=True, kw_only=True)
class SeriesUsed:
    """One series that a strategy was shown."""

    series: Series
    #: The archived series it was rolled up from; None where it is archived itself.
    derived_from: Series | None
    #: Holes that were masked: unknown, or an outage. Candles there were not shown, nor filled in.
    missing: IntervalSet
    #: Verified at the exchange to hold no candles. Not a hole.
    empty: IntervalSet


@dataclass(frozen=True, kw_only=True)
class Leak:
    """A look into the future that the tripwire caught."""

    #: Everything that became available after this instant was scrambled.
    cut_ms: int
    #: What changed although it was settled before the cut, in one sentence.
    what: str

    def __str__(self) -> str:
        return self.what


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run of a strategy over archived candles."""

    #: What was run: strategy, parameters, source hash, exchange, symbols, costs ... as plain JSON values.
    settings: Mapping[str, Any]
    interval: Interval
    series: Sequence[SeriesUsed]
    #: Over exactly the archived rows used.
    fingerprint: str
    #: Candles shown, warm-up included, and the wall time of reading, deciding and filling.
    candles: int
    seconds: float
    fills: Sequence[Fill]
    refused: Sequence[RefusedOrder]
    #: Quote units before the first and after the last candle, holdings at their last close.
    cash: float
    final_equity: float
    #: ``(instant in epoch milliseconds, equity in quote)``, oldest first.
    equity: Sequence[tuple[int, float]]
    #: Deepest fall from an earlier high, percent, never negative.
    max_drawdown_percent: float
    #: Share of instants with something held, percent.
    exposure_percent: float
    #: Yearly, from daily returns; None where there are too few. See :attr:`EquityRecorder.sharpe`.
    sharpe: float | None
    #: Cut points tried by the tripwire; None where it did not run.
    tripwire_cuts: Sequence[int] | None = None
    leaks: Sequence[Leak] = ()
    #: Why the run ended early, with the strategy's line: the rest is a partial result. None for a whole run.
    failure: str | None = None

    @cached_property
    def round_trips(self) -> list[RoundTrip]:
        """Closed round trips in the order of their exits."""
        return round_trips(self.fills)

    @property
    def ok(self) -> bool:
        """False for a partial result and for a strategy that looks into the future."""
        return self.failure is None and not self.leaks

    @property
    def candles_per_second(self) -> float:
        """Candles shown per second of wall time, reading included."""
        return self.candles / self.seconds if self.seconds > 0 else 0.0

    @property
    def return_percent(self) -> float:
        """Change of the equity over the run."""
        return 100 * (self.final_equity / self.cash - 1)

    @property
    def win_rate_percent(self) -> float | None:
        """Share of round trips with a profit after fees; None without any."""
        trips = self.round_trips
        return 100 * sum(one.profit > 0 for one in trips) / len(trips) if trips else None

    @property
    def fees(self) -> float:
        """Quote units paid in fees."""
        return sum((one.fee for one in self.fills), 0.0)

    @property
    def result_hash(self) -> str:
        """SHA-256 (hex) of fills, refused orders and equity: equal for equal results, whatever the machine."""
        rows = [
            list(self.fills),
            [[one.decided_at, one.refused_at, astuple(one.order), one.reason] for one in self.refused],
            list(self.equity),
            self.final_equity,
        ]
        # json writes a float in the shortest form that brings back the same bits.
        return sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; instants as ISO text, the equity curve in epoch milliseconds."""
        return {
            "settings": dict(self.settings),
            "start": iso(self.interval.start),
            "end": iso(self.interval.end),
            "complete": self.failure is None,
            "failure": self.failure,
            "candles": self.candles,
            "seconds": self.seconds,
            "candles_per_second": self.candles_per_second,
            "fingerprint": self.fingerprint,
            "result_hash": self.result_hash,
            "cash": self.cash,
            "final_equity": self.final_equity,
            "return_percent": self.return_percent,
            "max_drawdown_percent": self.max_drawdown_percent,
            "exposure_percent": self.exposure_percent,
            "sharpe": self.sharpe,
            "round_trips": len(self.round_trips),
            "win_rate_percent": self.win_rate_percent,
            "fees": self.fees,
            "trades": [
                asdict(one) | {"entered_at": iso(one.entered_at), "exited_at": iso(one.exited_at)}
                for one in self.round_trips
            ],
            "fills": [
                one._asdict() | {"decided_at": iso(one.decided_at), "filled_at": iso(one.filled_at)}
                for one in self.fills
            ],
            "refused": [
                {
                    "decided_at": iso(one.decided_at),
                    "refused_at": iso(one.refused_at),
                    "reason": one.reason,
                    "order": asdict(one.order),
                }
                for one in self.refused
            ],
            "equity": [list(point) for point in self.equity],
            "series": [
                {
                    "exchange": one.series.exchange,
                    "symbol": one.series.symbol,
                    "timeframe": one.series.timeframe.name,
                    "derived_from": None if one.derived_from is None else one.derived_from.timeframe.name,
                    "missing": _ranges(one.missing),
                    "verified_empty": _ranges(one.empty),
                }
                for one in self.series
            ],
            "tripwire": None
            if self.tripwire_cuts is None
            else {
                "cuts": [iso(one) for one in self.tripwire_cuts],
                "leaks": [{"cut": iso(one.cut_ms), "what": one.what} for one in self.leaks],
            },
            "versions": {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES},
        }

    def summary(self) -> list[tuple[str, str]]:
        """The main numbers as rows of a table: name and text."""
        trips = self.round_trips
        rows = [
            ("strategy", str(self.settings.get("strategy", ""))),
            ("range", f"{iso(self.interval.start)} to {iso(self.interval.end)}"),
            ("candles", f"{self.candles:,}"),
            ("speed", f"{self.candles_per_second:,.0f} candles/s"),
            ("final equity", f"{self.final_equity:,.2f} of {self.cash:,.2f}"),
            ("return", f"{self.return_percent:+.2f} %"),
            ("max drawdown", f"{self.max_drawdown_percent:.2f} %"),
            ("round trips", f"{len(trips):,}"),
            ("win rate", "-" if not trips else f"{self.win_rate_percent:.1f} %"),
            ("exposure", f"{self.exposure_percent:.1f} %"),
            ("sharpe", "-" if self.sharpe is None else f"{self.sharpe:.2f}"),
            ("fees", f"{self.fees:,.2f}"),
            ("refused orders", f"{len(self.refused):,}"),
            ("masked", _shown(self.series)),
            ("fingerprint", self.fingerprint),
            ("result hash", self.result_hash),
        ]
        if self.tripwire_cuts is not None:
            found = "; ".join(one.what for one in self.leaks[:3]) or "no look-ahead found"
            rows.append(("tripwire", f"{len(self.tripwire_cuts)} cuts: {found}"))
        if self.failure is not None:
            rows.insert(0, ("PARTIAL RESULT", self.failure))
        return rows


def _ranges(found: IntervalSet) -> list[list[str]]:
    return [[iso(one.start), iso(one.end)] for one in found]


def _shown(series: Sequence[SeriesUsed]) -> str:
    ranges = [f"{one.series.symbol} {one.series.timeframe} {hole}" for one in series for hole in one.missing]
    return ", ".join(ranges[:3]) + (f" and {len(ranges) - 3} more" if len(ranges) > 3 else "") or "nothing"
