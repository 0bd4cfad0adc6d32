"""Batches of market messages and their form on the wire."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.book_message import BookSnapshot
from market.candle_update import CandleUpdate
from market.channel import Channel
from market.errors import BadInput
from market.ticker import Ticker
from market.timeframe import TIMEFRAMES
from market.trade import Trade
from store.bus.message import MarketBatch, NormalisedMessage, normalised

numbers = st.floats(allow_nan=False)
perhaps = st.none() | numbers
times = st.integers(0, 2**53)
levels = st.lists(st.tuples(numbers, numbers), max_size=4)
texts = st.none() | st.lists(st.tuples(st.text(), st.text()), max_size=3)
MESSAGES = {
    Channel.TRADES: st.builds(
        Trade,
        id=st.integers(-(2**63), 2**64 - 1) | st.text(),
        price=numbers,
        quantity=numbers,
        event_time=times,
        taker_buys=st.booleans(),
        received_at=times,
        trades=st.integers(1, 1000),
    ),
    Channel.CANDLES: st.builds(
        CandleUpdate,
        open_time=times,
        open=numbers,
        high=numbers,
        low=numbers,
        close=numbers,
        volume=numbers,
        quote_volume=perhaps,
        trades=st.none() | times,
        taker_buy_volume=perhaps,
        taker_buy_quote_volume=perhaps,
        early_close_time=st.none() | times,
        closed=st.booleans(),
        event_time=times,
        received_at=times,
    ),
    Channel.TICKERS: st.builds(
        Ticker,
        **dict.fromkeys(Ticker._fields, perhaps)
        | {"received_at": times, "event_time": st.none() | times, "trades": st.none() | times},
    ),
    Channel.ORDER_BOOKS: st.builds(
        BookSnapshot,
        last_id=times,
        bids=levels,
        asks=levels,
        event_time=st.none() | times,
        received_at=times,
        checksum=st.none() | st.integers(-(2**31), 2**32),
        bid_texts=texts,
        ask_texts=texts,
    ),
}


@st.composite
def batches(draw: st.DrawFn) -> MarketBatch:
    channel = draw(st.sampled_from(list(Channel)))
    timeframe = draw(st.sampled_from(list(TIMEFRAMES.values()))) if channel is Channel.CANDLES else None
    return MarketBatch(
        exchange=draw(st.text()),
        symbol=draw(st.text()),
        channel=channel,
        timeframe=timeframe,
        messages=draw(st.lists(MESSAGES[channel], max_size=5)),
        run=draw(st.integers(0, 2**53)),
        sequence=draw(st.integers(1, 2**63)),
    )


@given(batches())
def test_a_batch_comes_back_as_it_was(batch: MarketBatch) -> None:
    back = MarketBatch.unpacked(batch.packed())
    assert back == batch
    assert [type(one) for one in back.messages] == [type(one) for one in batch.messages]
    # Its numbers too: a float is no whole number.
    assert repr(back) == repr(batch)


def batch_of(channel: Channel, *messages: Any) -> MarketBatch:
    return MarketBatch(exchange="binance", symbol="BTC/USDT", channel=channel, messages=messages, run=7, sequence=9)


TRADE = Trade(1, 10.5, 2.0, 1000, True, 1001)


def changed(**fields: Any) -> bytes:
    """A packed batch of TRADE in which some fields are others."""
    wire = msgspec.msgpack.decode(batch_of(Channel.TRADES, TRADE).packed())
    return msgspec.msgpack.encode(wire | fields)


def test_the_form_explains_itself() -> None:
    assert msgspec.msgpack.decode(batch_of(Channel.TRADES, TRADE).packed()) == {
        "version": 1,
        "exchange": "binance",
        "symbol": "BTC/USDT",
        "channel": "trades",
        "timeframe": None,
        "run": 7,
        "sequence": 9,
        "columns": ["id", "price", "quantity", "event_time", "taker_buys", "received_at", "trades"],
        "rows": [[1, 10.5, 2.0, 1000, True, 1001, 1]],
    }
    assert batch_of(Channel.TRADES).topic == "market_data.binance.BTC/USDT"


def test_columns_of_another_release_are_read_by_name() -> None:
    payload = changed(
        columns=["price", "id", "mood", "quantity", "event_time", "taker_buys", "received_at"],
        rows=[[10.5, 1, "calm", 2.0, 1000, True, 1001]],
        later="unknown",
    )
    assert MarketBatch.unpacked(payload).messages == [TRADE]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"text",
        msgspec.msgpack.encode([1, 2]),
        changed(version=2),
        changed(channel="weather"),
        changed(timeframe="7m"),
        changed(columns=["id"], rows=[[1]]),
        changed(rows=[[1]]),
        changed(rows=[["1", "10.5", 2.0, 1000, True, 1001, 1]]),
        changed(columns=["price", *TRADE._fields[:1], *TRADE._fields[2:]], rows=[[1]]),
        changed(symbol=None),
        batch_of(Channel.TRADES, TRADE).packed()[:-3],
    ],
)
def test_what_is_no_batch_is_refused(payload: bytes) -> None:
    with pytest.raises(BadInput):
        MarketBatch.unpacked(payload)


@pytest.mark.parametrize(
    "channel, message, expected",
    [
        (Channel.TRADES, TRADE, (1000, 10.5, 2.0, 1001)),
        (Channel.TICKERS, Ticker(5, 4, bid=1.0, ask=2.0, last=1.75, volume=9.0), (4, 1.75, 9.0, 5)),
        (Channel.TICKERS, Ticker(5, None, bid=1.0, ask=2.0), (None, 1.5, None, 5)),
        (Channel.TICKERS, Ticker(5, bid=1.0), (None, None, None, 5)),
        (
            Channel.CANDLES,
            CandleUpdate(0, 1.0, 4.0, 0.5, 3.0, 7.0, None, None, None, None, None, True, 60_000, 60_010),
            (60_000, 3.0, 7.0, 60_010),
        ),
        (Channel.ORDER_BOOKS, BookSnapshot(1, [(1.0, 5.0)], [(2.0, 5.0)], 8, 9), (8, 1.5, None, 9)),
        (Channel.ORDER_BOOKS, BookSnapshot(1, [(1.0, 5.0)], [], None, 9), (None, None, None, 9)),
    ],
)
def test_messages_of_all_channels_in_one_form(channel: Channel, message: Any, expected: tuple[Any, ...]) -> None:
    event_time, price, volume, received_at = expected
    assert normalised(batch_of(channel, message)) == [
        NormalisedMessage(
            event_time=event_time,
            symbol="BTC/USDT",
            price=price,
            volume=volume,
            source="binance",
            received_at=received_at,
        )
    ]
