"""The Binance spot wire module against recorded messages and made-up ones."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange.binance.messages import read_agg_trade, read_candle, read_trade
from exchange.binance.wire import (
    KlineEvent,
    OrderBook,
    Trade,
    decimals,
    encode_agg_trade,
    encode_agg_trade_event,
    encode_depth,
    encode_error,
    encode_kline_event,
    encode_klines,
    encode_trade,
    encode_trade_event,
    parse_agg_trades,
    parse_depth,
    parse_error,
    parse_instrument,
    parse_klines,
)
from market.candle import CANDLE_SCHEMA, candles, no_candles
from market.errors import ExchangeUnavailable
from market.timeframe import ONE_MINUTE, Timeframe

EARLY = [
    *(1679661540000, "27987.81000000", "27990.50000000", "27987.81000000", "27990.50000000", "0.50000000"),
    *(1679661581646, "13994.57750000", 12, "0.25000000", "6997.28875000", "0"),
]
FULL = [
    *(1679666400000, "28079.99000000", "28079.99000000", "27901.06000000", "27925.59000000", "293.30587000"),
    *(1679666459999, "8212345.67890120", 7000, "123.45678000", "3456789.01234560", "0"),
]


def recorded_messages(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt") as lines:
        for line in lines:
            entry = json.loads(line)
            if entry["src"] == "ws":
                message = entry["msg"] if isinstance(entry["msg"], dict) else json.loads(entry["msg"])
                yield message.get("data", message)


def test_klines_there_and_back() -> None:
    table = parse_klines([EARLY, FULL], ONE_MINUTE)
    assert table.schema == CANDLE_SCHEMA
    assert [
        None if one is None else int(one.timestamp() * 1000) for one in table["early_close_time"].to_pylist()
    ] == [
        1679661581646,
        None,
    ]
    assert encode_klines(table, ONE_MINUTE) == [EARLY, FULL]


def test_the_last_millisecond_depends_on_the_timeframe() -> None:
    row = [*FULL]
    row[0], row[6] = 1677628800000, 1680307199999
    table = parse_klines([row], Timeframe.parse("1M"))
    assert table["early_close_time"].null_count == 1
    assert encode_klines(table, Timeframe.parse("1M")) == [row]


def test_no_klines() -> None:
    assert parse_klines([], ONE_MINUTE).num_rows == 0
    assert encode_klines(no_candles(), ONE_MINUTE) == []


@pytest.mark.parametrize(
    "rows",
    [
        [[1, 2, 3]],
        [["x", *FULL[1:]]],
        [[*FULL[:1], "not a number", *FULL[2:]]],
        [[*FULL[:8], "many", *FULL[9:]]],
        [FULL, FULL[:5]],
        ["abcdefghijkl"],
        [5],
        [[10**30, *FULL[1:]]],
    ],
)
def test_what_is_no_kline_is_refused(rows: list[list[object]]) -> None:
    with pytest.raises(ExchangeUnavailable, match="klines"):
        parse_klines(rows, ONE_MINUTE)


def test_unknown_quantities_are_sent_as_zero() -> None:
    table = candles({"open_time": [0], **{name: [1.5] for name in ("open", "high", "low", "close", "volume")}})
    assert encode_klines(table, ONE_MINUTE)[0][6:] == [59_999, "0.00000000", 0, "0.00000000", "0.00000000", "0"]


@given(
    st.lists(
        st.decimals(min_value=0, max_value=Decimal("999999.99999999"), places=8)
        | st.decimals(min_value=0, max_value=Decimal("99999999999.9999"), places=4)
    )
)
def test_every_decimal_of_fifteen_digits_keeps_its_text(values: list[Decimal]) -> None:
    assert decimals([float(value) for value in values]) == [f"{value:.8f}" for value in values]


@given(st.lists(st.floats(min_value=1e7, max_value=1e15)))
def test_longer_numbers_keep_their_value(values: list[float]) -> None:
    assert [float(text) for text in decimals(np.array(values))] == values


def kline_event(message: dict[str, Any]) -> KlineEvent:
    """A message of a kline stream as what it was encoded from."""
    timeframe = Timeframe.parse(message["k"]["i"])
    candle = read_candle(json.dumps(message).encode(), message["s"], 0, timeframe)
    return KlineEvent(
        exchange_symbol=message["s"],
        timeframe=timeframe,
        event_time=candle.event_time,
        closed=candle.closed,
        table=candle.table(),
        first_trade_id=message["k"]["f"],
        last_trade_id=message["k"]["L"],
    )


@pytest.mark.recorded
def test_recorded_kline_stream_there_and_back(recorded: Path) -> None:
    seen = 0
    for message in recorded_messages(recorded / "ws" / "binance_spot_4symbols_kline_2021-08-14.jsonl.gz"):
        if message.get("e") == "kline":
            event = kline_event(message)
            assert encode_kline_event(event) == message
            seen += 1
    assert seen == 17


@pytest.mark.recorded
def test_recorded_trade_stream_there_and_back(recorded: Path) -> None:
    seen = 0
    for message in recorded_messages(recorded / "ws" / "binance_spot_BTCUSDT_2024-08-08_2024-08-09.jsonl.gz"):
        if message.get("e") == "trade":
            read = read_trade(json.dumps(message).encode(), "BTCUSDT", 0)
            trade = Trade(
                exchange_symbol="BTCUSDT",
                id=int(read.id),
                price=read.price,
                quantity=read.quantity,
                time=read.event_time,
                buyer_is_maker=not read.taker_buys,
                first_trade_id=int(read.id),
                last_trade_id=int(read.id),
            )
            assert encode_trade_event(trade, int(str(message["E"]))) == message
            seen += 1
            if seen == 2000:
                return
    assert seen


@pytest.mark.recorded
def test_recorded_instruments(recorded: Path) -> None:
    with gzip.open(recorded / "instruments" / "binance_spot_exchangeInfo_2021-10-12.json.gz") as file:
        entries = json.load(file)["symbols"]
    instruments = {one.symbol: one for one in map(parse_instrument, entries)}
    bitcoin = instruments["BTC/USDT"]
    assert (bitcoin.tick_size, bitcoin.lot_size, bitcoin.min_notional) == (
        Decimal("0.01"),
        Decimal("0.00001"),
        Decimal(10),
    )
    assert bitcoin.active
    assert not all(one.active for one in instruments.values())


TRADE = Trade(
    exchange_symbol="BNBBTC",
    id=12345,
    price=0.001,
    quantity=100.0,
    time=1672515782136,
    buyer_is_maker=True,
    first_trade_id=100,
    last_trade_id=105,
)


def test_aggregated_trades_there_and_back() -> None:
    assert parse_agg_trades([encode_agg_trade(TRADE)], "BNBBTC") == [TRADE]
    event = encode_agg_trade_event(TRADE, 1672515782137)
    assert (event["e"], event["p"], event["E"]) == ("aggTrade", "0.00100000", 1672515782137)
    read = read_agg_trade(json.dumps(event).encode(), "BNBBTC", 7)
    assert read == (TRADE.id, TRADE.price, TRADE.quantity, TRADE.time, False, 7, 6)


def test_a_single_trade_of_the_rest_answer() -> None:
    assert encode_trade(TRADE) == {
        "id": 12345,
        "price": "0.00100000",
        "qty": "100.00000000",
        "quoteQty": "0.10000000",
        "time": 1672515782136,
        "isBuyerMaker": True,
        "isBestMatch": True,
    }


def test_order_book_there_and_back() -> None:
    book = OrderBook(last_update_id=160, bids=((0.0024, 10.0),), asks=((0.0026, 100.0), (0.0027, 1.0)))
    assert encode_depth(book)["bids"] == [["0.00240000", "10.00000000"]]
    assert parse_depth(encode_depth(book)) == book


def test_kline_event_without_trades_has_no_ids() -> None:
    event = KlineEvent(
        exchange_symbol="BTCUSDT",
        timeframe=ONE_MINUTE,
        event_time=1679666460000,
        closed=True,
        table=parse_klines([FULL], ONE_MINUTE),
    )
    assert kline_event(encode_kline_event(event)) == event


@pytest.mark.parametrize("parse", [parse_depth, parse_instrument])
@pytest.mark.parametrize(
    "message", [{}, {"k": {}}, {"e": "trade", "t": "x"}, {"lastUpdateId": 1, "bids": [1], "asks": []}]
)
def test_other_messages_are_refused(parse: object, message: dict[str, object]) -> None:
    with pytest.raises(ExchangeUnavailable):
        parse(message)  # type: ignore[operator]


def test_errors() -> None:
    assert parse_error(encode_error(-1121, "Invalid symbol.")) == (-1121, "Invalid symbol.")
    assert parse_error([]) is None
    assert parse_error({"code": "200"}) is None
