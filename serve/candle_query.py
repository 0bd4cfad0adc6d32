"""What a caller asked of candles, checked and with its defaults filled in."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from market.clock import Clock
from market.errors import BadInput
from market.instrument import Series, check_exchange, check_symbol
from market.timeframe import Timeframe
from serve.columns import chosen_columns
from serve.cursor import read_cursor
from serve.formats import Format
from serve.parameters import (
    AsOf,
    BatchLimit,
    ColumnNames,
    Cursor,
    End,
    Exchange,
    FormatName,
    IncludeForming,
    Limit,
    Start,
    Symbol,
    Symbols,
    TimeframeName,
    instant,
    whole_number,
    yes_or_no,
)
from serve.ranges import check_as_of, check_order, check_start

DEFAULT_LIMIT = 1_000
#: Most rows of one answer: text forms are made in memory at some hundred bytes a row, binary ones at ninety.
MOST_TEXT_ROWS = 50_000
MOST_BINARY_ROWS = 1_000_000
MOST_SYMBOLS = 100
#: Most rows per symbol in a batch; a hundred symbols then stay within half a million rows.
MOST_BATCH_ROWS = 5_000


@dataclass(frozen=True, kw_only=True)
class CandleQuery:
    """One question to the store. Times are epoch milliseconds; the range is ``[start_ms, end_ms)``."""

    series: tuple[Series, ...]
    #: None: the newest `limit` rows before the end.
    start_ms: int | None
    #: None: the last instant that is known of the series.
    end_ms: int | None
    limit: int
    as_of_ms: int | None
    include_forming: bool
    columns: tuple[str, ...]
    format: Format


async def candle_query(
    request: Request,
    exchange: Exchange,
    symbol: Symbol,
    timeframe: TimeframeName,
    start: Start = None,
    end: End = None,
    limit: Limit = None,
    cursor: Cursor = None,
    as_of: AsOf = None,
    include_forming: IncludeForming = None,
    columns: ColumnNames = None,
    format: FormatName = None,
) -> CandleQuery:
    """The question of ``/v1/candles``."""
    series = Series.parse(exchange, symbol, timeframe)
    chosen = Format.named(format)
    most = MOST_TEXT_ROWS if chosen in (Format.JSON, Format.CSV) else MOST_BINARY_ROWS
    forming = yes_or_no(include_forming, "include_forming")
    as_of_ms = _as_of(request, as_of)
    if cursor is None:
        start_ms, end_ms = await _range(request, series, start, end)
    else:
        if start is not None:
            raise BadInput("cursor", cursor, "either cursor or start, not both")
        place = read_cursor(cursor, series, as_of_ms, forming)
        if end is not None and instant(end, "end") != place.end_ms:
            raise BadInput("end", end, "the end of the cursor's own query, or no end")
        start_ms, end_ms = place.start_ms, place.end_ms
    return CandleQuery(
        series=(series,),
        start_ms=start_ms,
        end_ms=end_ms,
        limit=whole_number(limit, "limit", DEFAULT_LIMIT, 1, most),
        as_of_ms=as_of_ms,
        include_forming=forming,
        columns=chosen_columns(_comma_list(columns), forming),
        format=chosen,
    )


async def batch_query(
    request: Request,
    exchange: Exchange,
    symbols: Symbols,
    timeframe: TimeframeName,
    start: Start = None,
    end: End = None,
    limit: BatchLimit = None,
    as_of: AsOf = None,
    include_forming: IncludeForming = None,
    columns: ColumnNames = None,
) -> CandleQuery:
    """The question of ``/v1/candles/batch``."""
    exchange, length = check_exchange(exchange), Timeframe.parse(timeframe)
    series = tuple(Series(exchange, symbol, length) for symbol in _symbols(symbols))
    forming = yes_or_no(include_forming, "include_forming")
    start_ms, end_ms = await _range(request, series[0], start, end)
    return CandleQuery(
        series=series,
        start_ms=start_ms,
        end_ms=end_ms,
        limit=whole_number(limit, "limit", DEFAULT_LIMIT, 1, MOST_BATCH_ROWS),
        as_of_ms=_as_of(request, as_of),
        include_forming=forming,
        columns=chosen_columns(_comma_list(columns), forming),
        format=Format.JSON,
    )


def _as_of(request: Request, text: str | None) -> int | None:
    as_of_ms = instant(text, "as_of")
    if as_of_ms is not None:
        check_as_of(as_of_ms, request.app.state.clock)
    return as_of_ms


async def _range(
    request: Request, series: Series, start: str | None, end: str | None
) -> tuple[int | None, int | None]:
    clock: Clock = request.app.state.clock
    start_ms, end_ms = instant(start, "start"), instant(end, "end")
    if start_ms is not None and end_ms is not None:
        check_order(start_ms, end_ms)
    if start_ms is not None:
        await check_start(request.app.state.market_data, clock, series, start_ms)
    return start_ms, end_ms


def _comma_list(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",")]


def _symbols(values: list[str]) -> list[str]:
    names = [check_symbol(name.strip(), "symbols") for value in values for name in value.split(",")]
    if len(names) > MOST_SYMBOLS:
        raise BadInput("symbols", f"{len(names)} symbols", f"at most {MOST_SYMBOLS} in one call")
    for name in names:
        if names.count(name) > 1:
            raise BadInput("symbols", name, "each symbol once")
    return names
