"""How the live feed of one exchange fares, for people and programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ingest.book_rules import BookStatus
from ingest.built_candles import Agreement
from ingest.live import LiveStatus
from ingest.route import RouteStatus
from ingest.router import ConnectionStatus
from ingest.writer_status import WriterStatus
from market.instrument import Series
from market.timeframe import Timeframe


@dataclass(frozen=True, kw_only=True)
class FeedStatus:
    """Everything that is known of a feed at one moment. Times are epoch milliseconds of our clock."""

    exchange: str
    at: int
    #: Exchange time minus ours, milliseconds.
    clock_offset_ms: int
    series: Sequence[LiveStatus]
    routes: Sequence[RouteStatus]
    books: Sequence[tuple[str, BookStatus]]
    connections: Sequence[ConnectionStatus]
    writer: WriterStatus
    #: Candles built from trades against the exchange's own, by symbol.
    built: dict[str, Agreement] = field(default_factory=dict)
    #: Closed candles read again, and those that had changed; milliseconds until they settle, by timeframe.
    settle_checked: int = 0
    settle_drifted: int = 0
    settle_delays: dict[str, int] = field(default_factory=dict)
    #: The bus: messages published and dropped; None without one.
    bus: dict[str, Any] | None = None
    #: Request budgets.
    limits: Sequence[Any] = ()

    def as_json(self) -> dict[str, Any]:
        """The same in what JSON has."""
        return {
            "exchange": self.exchange,
            "at": self.at,
            "clock_offset_ms": self.clock_offset_ms,
            "paths": dict(sorted(Counter(str(one.path) for one in self.routes).items())),
            "series": [_plain(asdict(one)) for one in self.series],
            "routes": [_plain(asdict(one)) for one in self.routes],
            "order_books": [{"symbol": symbol, **_plain(asdict(one))} for symbol, one in self.books],
            "connections": [asdict(one) for one in self.connections],
            "writer": _plain(asdict(self.writer)),
            "built_candles": {symbol: asdict(one) for symbol, one in self.built.items()},
            "settle": {
                "checked": self.settle_checked,
                "drifted": self.settle_drifted,
                "delays_ms": self.settle_delays,
            },
            "bus": self.bus,
            "limits": [_plain(asdict(one)) for one in self.limits],
        }


def _plain(value: Any) -> Any:
    """A value with series, topics and timeframes as text."""
    if isinstance(value, dict):
        if set(value) == {"exchange", "symbol", "timeframe"}:
            return f"{value['exchange']} {value['symbol']} {_name(value['timeframe'])}"
        if set(value) == {"channel", "symbol", "timeframe"}:
            length = "" if value["timeframe"] is None else f" {_name(value['timeframe'])}"
            return f"{value['channel']} {value['symbol']}{length}"
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Series | Timeframe):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _name(timeframe: Any) -> str:
    return str(timeframe["name"]) if isinstance(timeframe, dict) else str(timeframe)
