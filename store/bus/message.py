"""What is on the bus: numbered messages of any kind, and among them batches of market messages.

A batch on the wire is MessagePack that explains itself; here as JSON::

    {"version": 1, "exchange": "binance", "symbol": "BTC/USDT", "channel": "trades", "timeframe": null,
     "run": 6755399441055744, "sequence": 17,
     "columns": ["id", "price", "quantity", "event_time", "taker_buys", "received_at", "trades"],
     "rows": [[3733498123, 57000.01, 0.5, 1723118400123, true, 1723118400171, 1], ...]}

Columns are the fields of the channel's message in ``market``. A reader takes the columns that it knows by name; one
that is missing has the default of its field. The symbol is ccxt's, times are epoch milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from market.book_message import BookSnapshot
from market.candle_update import CandleUpdate
from market.channel import Channel
from market.errors import BadInput
from market.ticker import Ticker
from market.timeframe import Timeframe
from market.trade import Trade
from store.bus.topic import market_topic

VERSION = 1

MarketMessage = Trade | CandleUpdate | Ticker | BookSnapshot


class Message(NamedTuple):
    """One message of a bus."""

    topic: str
    payload: bytes
    #: Which run of which publisher sent it.
    run: int
    #: Counts up by one on each topic within a run, from 1.
    sequence: int


@dataclass(frozen=True, kw_only=True)
class MarketBatch:
    """Messages of one channel of one instrument, in the order in which they came."""

    #: ccxt's id.
    exchange: str
    #: ccxt unified.
    symbol: str
    channel: Channel
    #: Of candles only.
    timeframe: Timeframe | None = None
    #: Of the channel's type; order books as snapshots of their best levels.
    messages: Sequence[MarketMessage]
    #: Which run of the publisher sent it; the number counts up by one on each topic within a run, from 1. They stay
    #: with the batch wherever it goes, so that a hole can be seen there as well.
    run: int
    sequence: int

    @property
    def topic(self) -> str:
        """Where it is published."""
        return market_topic(self.exchange, self.symbol)

    def packed(self) -> bytes:
        """As MessagePack."""
        return _ENCODER.encode(
            _Wire(
                exchange=self.exchange,
                symbol=self.symbol,
                channel=self.channel,
                timeframe=None if self.timeframe is None else self.timeframe.name,
                run=self.run,
                sequence=self.sequence,
                columns=_TYPES[self.channel]._fields,
                rows=self.messages,
            )
        )

    @staticmethod
    def unpacked(payload: bytes) -> MarketBatch:
        """The batch in the payload of a message.

        :raises BadInput: it is none, or of a newer version than this program knows.
        """
        try:
            wire = _DECODER.decode(payload)
            if wire.version != VERSION:
                raise BadInput("batch", f"version {wire.version}", f"a batch of version {VERSION}")
            channel = Channel.parse(wire.channel, "channel")
            return MarketBatch(
                exchange=wire.exchange,
                symbol=wire.symbol,
                channel=channel,
                timeframe=None if wire.timeframe is None else Timeframe.parse(wire.timeframe),
                messages=_messages(channel, wire.columns, wire.rows),
                run=wire.run,
                sequence=wire.sequence,
            )
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise BadInput("batch", payload[:60], f"a packed batch of market messages ({error})") from error


class NormalisedMessage(NamedTuple):
    """What messages of all channels have in common."""

    #: When it happened, by the exchange; epoch milliseconds. None where the exchange does not say.
    event_time: int | None
    #: ccxt unified.
    symbol: str
    #: Quote per base: of the trade, the last one of a ticker (else the middle of its best prices), the close of a
    #: candle, the middle of a book. None where there is none.
    price: float | None
    #: In base: of the trade, the candle, or the last 24 hours of a ticker. None for a book.
    volume: float | None
    #: The exchange that sent it, ccxt's id.
    source: str
    #: When we received it, epoch milliseconds of our clock.
    received_at: int


def normalised(batch: MarketBatch) -> list[NormalisedMessage]:
    """The messages of `batch`, all of one form, in their order."""
    price_and_volume = _PRICE_AND_VOLUME[batch.channel]
    return [
        NormalisedMessage(one.event_time, batch.symbol, *price_and_volume(one), batch.exchange, one.received_at)
        for one in batch.messages
    ]


def _of_ticker(ticker: Ticker) -> tuple[float | None, float | None]:
    price = ticker.last
    if price is None and ticker.bid is not None and ticker.ask is not None:
        price = (ticker.bid + ticker.ask) / 2
    return price, ticker.volume


def _of_book(book: BookSnapshot) -> tuple[float | None, float | None]:
    if not book.bids or not book.asks:
        return None, None
    return (book.bids[0][0] + book.asks[0][0]) / 2, None


_PRICE_AND_VOLUME: dict[Channel, Callable[[Any], tuple[float | None, float | None]]] = {
    Channel.TRADES: lambda trade: (trade.price, trade.quantity),
    Channel.CANDLES: lambda candle: (candle.close, candle.volume),
    Channel.TICKERS: _of_ticker,
    Channel.ORDER_BOOKS: _of_book,
}

_TYPES: dict[Channel, type[MarketMessage]] = {
    Channel.TRADES: Trade,
    Channel.CANDLES: CandleUpdate,
    Channel.TICKERS: Ticker,
    Channel.ORDER_BOOKS: BookSnapshot,
}


class _Wire(msgspec.Struct, kw_only=True):
    version: int = VERSION
    exchange: str
    symbol: str
    channel: str
    timeframe: str | None
    run: int
    sequence: int
    columns: tuple[str, ...]
    rows: Any


class _WireIn(_Wire, kw_only=True):
    #: Decoded when the channel is known.
    rows: msgspec.Raw


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_WireIn)
_ROWS: dict[Channel, msgspec.msgpack.Decoder[Any]] = {
    Channel.TRADES: msgspec.msgpack.Decoder(list[Trade]),
    Channel.CANDLES: msgspec.msgpack.Decoder(list[CandleUpdate]),
    Channel.TICKERS: msgspec.msgpack.Decoder(list[Ticker]),
    Channel.ORDER_BOOKS: msgspec.msgpack.Decoder(list[BookSnapshot]),
}
_ANY_ROWS = msgspec.msgpack.Decoder(list[list[Any]])


def _messages(channel: Channel, columns: tuple[str, ...], rows: msgspec.Raw) -> list[MarketMessage]:
    kind = _TYPES[channel]
    if columns == kind._fields:
        decoded: list[MarketMessage] = _ROWS[channel].decode(rows)
        return decoded
    # Written by another release: what it has and we know, by name.
    places = {name: columns.index(name) for name in kind._fields if name in columns}
    missing = [name for name in kind._fields if name not in places and name not in kind._field_defaults]
    if missing:
        raise BadInput(
            "batch", ", ".join(columns), f"the columns {', '.join(missing)} too, in a batch of {channel}"
        )
    found: list[MarketMessage] = []
    for row in _ANY_ROWS.decode(rows):
        if len(row) != len(columns):
            raise BadInput("batch", row, f"a value for each of the {len(columns)} columns")
        values = kind._field_defaults | {name: row[at] for name, at in places.items()}
        found.append(msgspec.convert([values[name] for name in kind._fields], kind))
    return found
