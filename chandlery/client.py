"""The Python client: candles and what is known of them as polars frames, from a service or from a home folder.

>>> with chandlery.connect("http://127.0.0.1:8000") as market:          # doctest: +SKIP
...     market.candles("BTC/USDT", "1h", start="2023-01-01", limit=24)

The same calls give the same frames over HTTP and over a home folder. Errors are those of :mod:`market.errors` in
both cases. Instants may be aware datetimes, dates (midnight UTC), ISO 8601 text with a zone, or epoch milliseconds;
ranges are ``[start, end)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import polars as pl
import pyarrow as pa

from chandlery.client_http import MOST_ROWS, HttpSource
from market.clock import to_ms
from market.errors import BadInput, NotFound, Terminal

Instant = datetime | date | str | int

_INSTANT = pl.Datetime("ms", "UTC")
_SERIES = {
    "exchange": pl.String,
    "symbol": pl.String,
    "timeframe": pl.String,
    "rows": pl.Int64,
    "first_open": _INSTANT,
    "last_open": _INSTANT,
    "last_write": _INSTANT,
    "revision": pl.Int64,
    "sources": pl.List(pl.String),
    "corrections": pl.Int64,
    "quarantined": pl.Int64,
    "missing": pl.Int64,
    "verified_empty": pl.Int64,
}
_COVERAGE = {
    "start": _INSTANT,
    "end": _INSTANT,
    "state": pl.String,
    "source": pl.String,
    "learned_at": _INSTANT,
    "expires_at": _INSTANT,
    "evidence": pl.String,
}
_GAPS = {"start": _INSTANT, "end": _INSTANT}
_INSTRUMENTS = {
    "exchange": pl.String,
    "symbol": pl.String,
    "exchange_symbol": pl.String,
    "base": pl.String,
    "quote": pl.String,
    "kind": pl.String,
    "tick_size": pl.String,
    "lot_size": pl.String,
    "min_notional": pl.String,
    "active": pl.Boolean,
    "listed": _INSTANT,
}


class Source(Protocol):
    """Where a client reads from: a service or a home folder."""

    def candles(self, question: Mapping[str, Any]) -> pa.Table:
        """Every row of a question in the words of ``/v1/candles``, times in epoch milliseconds."""
        ...

    def records(self, noun: str, question: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What ``/v1/<noun>`` gives under ``data``."""
        ...

    def close(self) -> None:
        """Let go of connections and files."""
        ...


def connect(target: str | Path) -> Client:
    """A client of the service at a URL, or of a store itself (read-only, no service needed).

    Nothing is sent to a service before the first question.

    :param target: ``http://host:port``, a folder (what ``--home`` names) with an SQLite file in it, or
        ``postgresql://user:password@host:5432/database``.
    :raises NotFound: the folder holds no database.
    :raises StoreUnavailable: the database server does not answer.
    :raises StoreUnusable: the database cannot be read, or is newer than this release.
    """
    text = str(target)
    if text.startswith(("http://", "https://")):
        return Client(HttpSource(text))
    postgres = text.startswith(("postgresql:", "postgres:", "postgresql+cloudsql:"))
    if "://" in text and not postgres:
        accepted = "an address that begins with http://, https:// or postgresql://, or a home folder"
        # What follows the scheme may be a password.
        raise BadInput("target", text.partition("://")[0] + "://...", accepted)
    # The store is needed for itself alone; a client of a service does without it.
    from chandlery.client_home import HomeSource  # noqa: PLC0415 - see above

    return Client(HomeSource.opened_database(text) if postgres else HomeSource.opened(Path(target)))


class Client:
    """Reads candles. A context manager; close it when done. Not for use by several threads at once."""

    def __init__(self, source: Source) -> None:
        self._source: Source | None = source

    def candles(
        self,
        symbol: str,
        timeframe: str,
        *,
        exchange: str | None = None,
        start: Instant | None = None,
        end: Instant | None = None,
        limit: int | None = None,
        as_of: Instant | None = None,
        include_forming: bool = False,
        columns: Sequence[str] | None = None,
    ) -> pl.DataFrame:
        """Candles with ``start <= open_time < end``, oldest first; everything that is stored by default.

        :param exchange: may be left out where one exchange alone has the symbol.
        :param limit: with a start the first rows, without one the newest (then at most 1,000,000).
        :param as_of: the candles as they were known then.
        :param include_forming: also the candle that has not closed, marked in a column ``closed``; a home folder
            has none, as forming candles live in the memory of the process that follows the exchange.
        :param columns: which columns, ``open_time`` always first; all by default.
        :return: ``open_time`` as ``Datetime("ms", "UTC")``, numbers as float64.
        :raises NotFound: naming ``exchange``, ``symbol`` or ``timeframe``.
        :raises BadInput: naming the argument.
        """
        if limit is not None and (isinstance(limit, bool) or limit < 1):
            raise BadInput("limit", limit, "a whole number above 0")
        if limit is not None and start is None and limit > MOST_ROWS:
            raise BadInput("limit", limit, f"at most {MOST_ROWS} without a start")
        if isinstance(columns, str) or any("," in name for name in columns or ()):
            raise BadInput("columns", columns, "a list of names")
        question = {
            **self._range(symbol, timeframe, exchange, start, end),
            "limit": limit,
            "as_of": _ms(as_of, "as_of"),
            "include_forming": include_forming,
            "columns": None if columns is None else list(columns),
        }
        return pl.DataFrame(pl.from_arrow(self._open().candles(question)))

    def series(self) -> pl.DataFrame:
        """Every stored series: rows, first and last open time, revision, sources, missing minutes."""
        return _frame(self._open().records("series", {}), _SERIES)

    def coverage(
        self,
        symbol: str,
        timeframe: str,
        *,
        exchange: str | None = None,
        start: Instant | None = None,
        end: Instant | None = None,
    ) -> pl.DataFrame:
        """The coverage ledger inside a range; what is in no row is unknown. Default: all that is known."""
        question = self._range(symbol, timeframe, exchange, start, end)
        return _frame(self._open().records("coverage", question), _COVERAGE)

    def gaps(
        self,
        symbol: str,
        timeframe: str,
        *,
        exchange: str | None = None,
        start: Instant | None = None,
        end: Instant | None = None,
    ) -> pl.DataFrame:
        """The unknown parts of a range, as ``start`` and ``end``; no rows where nothing is missing."""
        question = self._range(symbol, timeframe, exchange, start, end)
        pairs = self._open().records("gaps", question)
        return _frame([{"start": first, "end": last} for first, last in pairs], _GAPS)

    def instruments(self, exchange: str | None = None) -> pl.DataFrame:
        """Known instruments; tick, lot and smallest order as exact decimal text."""
        question = {} if exchange is None else {"exchange": exchange}
        return _frame(self._open().records("instruments", question), _INSTRUMENTS)

    def close(self) -> None:
        """Let go of connections and files; safe to call twice."""
        source, self._source = self._source, None
        if source is not None:
            source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> Source:
        if self._source is None:
            raise Terminal("this client is closed; connect again")
        return self._source

    def _range(
        self, symbol: str, timeframe: str, exchange: str | None, start: Instant | None, end: Instant | None
    ) -> dict[str, Any]:
        bounds = {"start": _ms(start, "start"), "end": _ms(end, "end")}
        return {
            "exchange": self._only_exchange(symbol) if exchange is None else exchange,
            "symbol": symbol,
            "timeframe": timeframe,
            **bounds,
        }

    def _only_exchange(self, symbol: str) -> str:
        stored = self._open().records("series", {})
        found = sorted({one["exchange"] for one in stored if one["symbol"] == symbol})
        if not found:
            raise NotFound("symbol", symbol, sorted({one["symbol"] for one in stored}))
        if len(found) > 1:
            raise BadInput("exchange", None, f"one of {', '.join(found)}: more than one has {symbol}")
        return str(found[0])


def _ms(value: Instant | None, field: str) -> int | None:
    return None if value is None else to_ms(value, field)


def _frame(records: list[dict[str, Any]], columns: Mapping[str, Any]) -> pl.DataFrame:
    plain = {name: pl.Int64 if kind == _INSTANT else kind for name, kind in columns.items()}
    frame = pl.DataFrame(records, schema=plain, orient="row")
    return frame.with_columns(pl.col(name).cast(kind) for name, kind in columns.items() if kind == _INSTANT)
