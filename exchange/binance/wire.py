"""Binance spot wire messages to candle and trade columns, and back. Pure functions: no socket, no clock.

Prices and quantities travel as decimal text with eight decimals. A float64 brings back the same text for every
value of up to 15 digits; longer ones (quote volumes of large candles) use the shortest text that gives the same
float, so encoding and parsing again never changes a number.

All times are epoch milliseconds. Malformed messages raise :class:`~market.errors.ExchangeUnavailable`: an answer
that is not what the exchange documents is as good as none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from market.candle import Float64s, candles, floats, no_candles, open_times_ms
from market.errors import ExchangeUnavailable
from market.instrument import Instrument
from market.timeframe import Timeframe

#: Fields of a kline row (see :func:`parse_klines`).
_KLINE_FIELDS = 12
#: Position in a kline row of each decimal column.
_DECIMAL_COLUMNS = {
    "open": 1, "high": 2, "low": 3, "close": 4, "volume": 5,
    "quote_volume": 7, "taker_buy_volume": 9, "taker_buy_quote_volume": 10,
}  # fmt: skip
#: From here on eight decimals are more than the 15 digits a float64 keeps.
_EXACT_TO = 9_000_000.0


@dataclass(frozen=True, kw_only=True)
class KlineEvent:
    """One message of a kline stream."""

    #: ``BTCUSDT``.
    exchange_symbol: str
    timeframe: Timeframe
    #: When the exchange sent it.
    event_time: int
    #: True for the last event of the bucket.
    closed: bool
    #: One row, candle schema.
    table: pa.Table
    #: Ids of the first and last trade in the bucket so far; -1 without trades.
    first_trade_id: int = -1
    last_trade_id: int = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Trade:
    """One public trade, or one aggregated trade (then it spans several trade ids)."""

    exchange_symbol: str
    #: Trade id, or aggregated trade id.
    id: int
    #: Quote per base, and base.
    price: float
    quantity: float
    #: When it was traded.
    time: int
    #: True if the buyer was the maker: the taker sold.
    buyer_is_maker: bool
    #: Ids of the first and last single trade in it; both are `id` for a single trade.
    first_trade_id: int
    last_trade_id: int


@dataclass(frozen=True, kw_only=True)
class OrderBook:
    """A snapshot of the book: price and quantity of each level, best first."""

    last_update_id: int
    bids: tuple[tuple[float, float], ...]
    asks: tuple[tuple[float, float], ...]


def decimals(values: Float64s | Sequence[float]) -> list[str]:
    """Each number as Binance writes it: fixed notation, eight decimals. NaN (null) becomes zero."""
    numbers = np.nan_to_num(np.asarray(values, np.float64))
    if not len(numbers):
        return []
    texts = ("%.8f " * len(numbers) % tuple(numbers.tolist())).split()
    for row in np.flatnonzero(np.abs(numbers) >= _EXACT_TO).tolist():
        texts[row] = _shortest(float(numbers[row]))
    return texts


def decimal(value: float) -> str:
    """One number as Binance writes it."""
    return f"{value:.8f}" if abs(value) < _EXACT_TO else _shortest(value)


def _shortest(value: float) -> str:
    text = repr(value)
    if "e" in text:
        return f"{value:.8f}"
    whole, _, fraction = text.partition(".")
    return f"{whole}.{fraction:0<8}"


def parse_klines(rows: Sequence[Sequence[Any]], timeframe: Timeframe) -> pa.Table:
    """Rows of ``GET /api/v3/klines`` as candles; ``early_close_time`` is set where the row ends before its bucket.

    ::

        [1679661540000, "27987.81000000", "27990.50000000", "27987.81000000", "27990.50000000", "0.50000000",
         1679661581646, "13994.57750000", 12, "0.25000000", "6997.28875000", "0"]

    open time, open, high, low, close, volume, close time, quote volume, trades, taker buy volume, taker buy quote
    volume, unused.

    :raises ExchangeUnavailable: if a row is not such a row.
    """
    if not rows:
        return no_candles()
    try:
        columns = list(zip(*rows, strict=True))
        if len(columns) < _KLINE_FIELDS - 1:
            raise ExchangeUnavailable(f"klines: a row has {len(columns)} fields, expected {_KLINE_FIELDS}")
        times = np.array(columns[0], np.int64)
        close_times = np.array(columns[6], np.int64)
        table: dict[str, Any] = {name: _floats(columns[at]) for name, at in _DECIMAL_COLUMNS.items()}
        table["trades"] = pa.array(columns[8], pa.int64())
    except (TypeError, ValueError, OverflowError, pa.ArrowException) as exc:
        raise ExchangeUnavailable(f"klines: the answer is not a list of kline rows ({exc})") from exc
    table["open_time"] = times
    full = close_times == timeframe.next_all(times) - 1
    table["early_close_time"] = pa.array(close_times, mask=full)
    return candles(table)


def _floats(texts: Sequence[Any]) -> pa.Array:
    return pa.array(texts, pa.string()).cast(pa.float64())


def encode_klines(table: pa.Table, timeframe: Timeframe) -> list[list[Any]]:
    """Candles as rows of ``GET /api/v3/klines`` (see :func:`parse_klines`). Null quantities become zero."""
    if not table.num_rows:
        return []
    text = {name: decimals(floats(table, name)) for name in _DECIMAL_COLUMNS}
    return [
        list(row)
        for row in zip(
            open_times_ms(table).tolist(),
            text["open"],
            text["high"],
            text["low"],
            text["close"],
            text["volume"],
            close_times_ms(table, timeframe),
            text["quote_volume"],
            pc.fill_null(table.column("trades"), 0).to_pylist(),
            text["taker_buy_volume"],
            text["taker_buy_quote_volume"],
            ("0",) * table.num_rows,
            strict=True,
        )
    ]


def close_times_ms(table: pa.Table, timeframe: Timeframe) -> list[int]:
    """The last millisecond of each candle: its bucket's, or the early one."""
    ends = timeframe.next_all(open_times_ms(table)) - 1
    early = table.column("early_close_time")
    if early.null_count == len(early):
        times: list[int] = ends.tolist()
    else:
        times = pc.coalesce(early.cast(pa.int64()), pa.array(ends)).to_pylist()
    return times


def encode_kline_event(event: KlineEvent) -> dict[str, Any]:
    """The message :func:`exchange.binance.messages.read_candle` reads."""
    row = encode_klines(event.table, event.timeframe)[0]
    kline = {
        "t": row[0], "T": row[6], "s": event.exchange_symbol, "i": event.timeframe.name,
        "f": event.first_trade_id, "L": event.last_trade_id,
        "o": row[1], "c": row[4], "h": row[2], "l": row[3], "v": row[5], "n": row[8], "x": event.closed,
        "q": row[7], "V": row[9], "Q": row[10], "B": "0",
    }  # fmt: skip
    return {"e": "kline", "E": event.event_time, "s": event.exchange_symbol, "k": kline}


def encode_trade_event(trade: Trade, event_time: int) -> dict[str, Any]:
    """The message :func:`exchange.binance.messages.read_trade` reads."""
    return {
        "e": "trade", "E": event_time, "s": trade.exchange_symbol, "t": trade.id, "p": decimal(trade.price),
        "q": decimal(trade.quantity), "T": trade.time, "m": trade.buyer_is_maker, "M": True,
    }  # fmt: skip


def encode_agg_trade_event(trade: Trade, event_time: int) -> dict[str, Any]:
    """The message :func:`exchange.binance.messages.read_agg_trade` reads."""
    return {"e": "aggTrade", "E": event_time, "s": trade.exchange_symbol, **encode_agg_trade(trade)}


def parse_agg_trades(rows: Sequence[Mapping[str, Any]], exchange_symbol: str) -> list[Trade]:
    """The answer of ``GET /api/v3/aggTrades``, which does not name its symbol.

    ::

        [{"a": 26129, "p": "0.01633102", "q": "4.70443515", "f": 27781, "l": 27781, "T": 1498793709153,
          "m": true, "M": true}]

    :raises ExchangeUnavailable: if a row is not such a row.
    """
    return [_trade(row, exchange_symbol, id_="a", first="f", last="l") for row in rows]


def encode_agg_trade(trade: Trade) -> dict[str, Any]:
    """One row of ``GET /api/v3/aggTrades``."""
    return {
        "a": trade.id,
        "p": decimal(trade.price),
        "q": decimal(trade.quantity),
        "f": trade.first_trade_id,
        "l": trade.last_trade_id,
        "T": trade.time,
        "m": trade.buyer_is_maker,
        "M": True,
    }


def encode_trade(trade: Trade) -> dict[str, Any]:
    """One row of ``GET /api/v3/trades`` and ``/api/v3/historicalTrades``.

    ::

        {"id": 28457, "price": "4.00000100", "qty": "12.00000000", "quoteQty": "48.00001200",
         "time": 1499865549590, "isBuyerMaker": true, "isBestMatch": true}
    """
    price, quantity = decimal(trade.price), decimal(trade.quantity)
    return {
        "id": trade.id,
        "price": price,
        "qty": quantity,
        "quoteQty": f"{Decimal(price) * Decimal(quantity):.8f}",
        "time": trade.time,
        "isBuyerMaker": trade.buyer_is_maker,
        "isBestMatch": True,
    }


def _trade(message: Mapping[str, Any], exchange_symbol: str, *, id_: str, first: str, last: str) -> Trade:
    try:
        return Trade(
            exchange_symbol=exchange_symbol,
            id=int(message[id_]),
            price=float(message["p"]),
            quantity=float(message["q"]),
            time=int(message["T"]),
            buyer_is_maker=message["m"] is True,
            first_trade_id=int(message[first]),
            last_trade_id=int(message[last]),
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise ExchangeUnavailable(f"trades: not a trade message ({exc!r})") from exc


def parse_depth(answer: Mapping[str, Any]) -> OrderBook:
    """The answer of ``GET /api/v3/depth``.

    ::

        {"lastUpdateId": 1027024, "bids": [["4.00000000", "431.00000000"]], "asks": [["4.00000200", "12.00000000"]]}

    :raises ExchangeUnavailable: if it is not such an answer.
    """
    try:
        return OrderBook(
            last_update_id=int(answer["lastUpdateId"]),
            bids=tuple((float(price), float(quantity)) for price, quantity in answer["bids"]),
            asks=tuple((float(price), float(quantity)) for price, quantity in answer["asks"]),
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise ExchangeUnavailable(f"depth: not an order book ({exc!r})") from exc


def encode_depth(book: OrderBook) -> dict[str, Any]:
    """The answer :func:`parse_depth` reads."""
    return {
        "lastUpdateId": book.last_update_id,
        "bids": [[decimal(price), decimal(quantity)] for price, quantity in book.bids],
        "asks": [[decimal(price), decimal(quantity)] for price, quantity in book.asks],
    }


def parse_instrument(entry: Mapping[str, Any], exchange: str = "binance") -> Instrument:
    """One entry of ``symbols`` in ``GET /api/v3/exchangeInfo``. Binance does not say when it was listed.

    ::

        {"symbol": "BTCUSDT", "status": "TRADING", "baseAsset": "BTC", "quoteAsset": "USDT", "filters": [
            {"filterType": "PRICE_FILTER", "minPrice": "0.01", "maxPrice": "1000000.00", "tickSize": "0.01"},
            {"filterType": "LOT_SIZE", "minQty": "0.00001", "maxQty": "9000.00", "stepSize": "0.00001"},
            {"filterType": "NOTIONAL", "minNotional": "5.00", ...}, ...], ...}

    :raises ExchangeUnavailable: if it is not such an entry.
    """
    try:
        filters = {one["filterType"]: one for one in entry["filters"]}
        notional = filters.get("NOTIONAL") or filters.get("MIN_NOTIONAL")
        return Instrument(
            exchange=exchange,
            symbol=f"{entry['baseAsset']}/{entry['quoteAsset']}",
            exchange_symbol=entry["symbol"],
            base=entry["baseAsset"],
            quote=entry["quoteAsset"],
            tick_size=_step(filters.get("PRICE_FILTER"), "tickSize"),
            lot_size=_step(filters.get("LOT_SIZE"), "stepSize"),
            min_notional=_step(notional, "minNotional"),
            active=entry["status"] == "TRADING",
        )
    except (KeyError, TypeError, InvalidOperation) as exc:
        raise ExchangeUnavailable(f"exchangeInfo: not an entry of symbols ({exc!r})") from exc


def _step(filter_: Mapping[str, Any] | None, key: str) -> Decimal | None:
    if filter_ is None:
        return None
    step = Decimal(filter_[key]).normalize()
    return step if step > 0 else None


def encode_error(code: int, message: str) -> dict[str, Any]:
    """An error body: ``{"code": -1121, "msg": "Invalid symbol."}``."""
    return {"code": code, "msg": message}


def parse_error(body: Any) -> tuple[int, str] | None:
    """The code and message of an error body, or None if `body` is not one."""
    if isinstance(body, Mapping) and isinstance(body.get("code"), int) and isinstance(body.get("msg"), str):
        return body["code"], body["msg"]
    return None
