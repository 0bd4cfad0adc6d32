"""Batches as bytes for the journal, and back: MessagePack, with the candles of a batch as Arrow IPC inside."""

from __future__ import annotations

from typing import TypeAlias

import msgspec
import pyarrow as pa

from market.candle import CANDLE_SCHEMA, CandleState, Refusal
from market.channel import Channel
from market.coverage import CoverageState
from market.errors import BadInput
from market.instrument import Series
from market.interval import Interval
from market.timeframe import Timeframe
from market.trade import Trade
from store.batch import Absence, CandleBatch
from store.message_quarantine import QuarantinedMessage
from store.trade_batch import TradeBatch

#: What a store takes and the journal keeps.
Batch: TypeAlias = CandleBatch | TradeBatch | QuarantinedMessage

#: Counts up when records change, so that another release never reads them wrongly.
VERSION = 1


class _Candles(msgspec.Struct, array_like=True, tag="candles", frozen=True):
    exchange: str
    symbol: str
    timeframe: str
    source: str
    now_ms: int
    state: int
    #: Arrow IPC stream.
    table: bytes
    #: start, end, state, evidence, expires_at
    absences: list[tuple[int, int, str, str, int | None]]
    #: row, open_time, reason, raw
    refusals: list[tuple[int, int | None, str, str]]


class _Trades(msgspec.Struct, array_like=True, tag="trades", frozen=True):
    exchange: str
    symbol: str
    dense: bool
    trades: list[Trade]


class _Refused(msgspec.Struct, array_like=True, tag="refused", frozen=True):
    exchange: str
    channel: str | None
    symbol: str | None
    reason: str
    raw: str
    received_at: int
    times: int


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Candles | _Trades | _Refused)


def encode(batch: Batch) -> bytes:
    """`batch` as bytes.

    :raises BadInput: it holds what no store could keep: an id of more than 64 bits, text that is no Unicode.
    """
    try:
        return _ENCODER.encode(_to_record(batch))
    except (OverflowError, UnicodeEncodeError) as error:
        raise BadInput("batch", batch, f"whole numbers of 64 bits and Unicode text ({error})") from error


def decode(payload: bytes) -> Batch:
    """The batch that was encoded, equal in every value.

    :raises BadInput: these bytes are no batch.
    """
    try:
        return _of_record(_DECODER.decode(payload))
    except (msgspec.MsgspecError, pa.ArrowException, ValueError, OSError) as error:
        raise BadInput("journal record", payload[:40], f"candles, trades or a refused message ({error})") from error


def _to_record(batch: Batch) -> _Candles | _Trades | _Refused:
    if isinstance(batch, CandleBatch):
        return _of_candles(batch)
    if isinstance(batch, TradeBatch):
        return _Trades(exchange=batch.exchange, symbol=batch.symbol, dense=batch.dense, trades=list(batch.trades))
    return _Refused(
        exchange=batch.exchange,
        channel=batch.channel,
        symbol=batch.symbol,
        reason=batch.reason,
        raw=batch.raw,
        received_at=batch.received_at,
        times=batch.times,
    )


def _of_record(record: _Candles | _Trades | _Refused) -> Batch:
    if isinstance(record, _Candles):
        return _to_candles(record)
    if isinstance(record, _Trades):
        return TradeBatch(
            exchange=record.exchange, symbol=record.symbol, trades=tuple(record.trades), dense=record.dense
        )
    return QuarantinedMessage(
        exchange=record.exchange,
        channel=None if record.channel is None else Channel(record.channel),
        symbol=record.symbol,
        reason=record.reason,
        raw=record.raw,
        received_at=record.received_at,
        times=record.times,
    )


def _of_candles(batch: CandleBatch) -> _Candles:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, CANDLE_SCHEMA) as stream:
        stream.write_table(batch.table)
    return _Candles(
        exchange=batch.series.exchange,
        symbol=batch.series.symbol,
        timeframe=batch.series.timeframe.name,
        source=batch.source,
        now_ms=batch.now_ms,
        state=int(batch.state),
        table=sink.getvalue().to_pybytes(),
        absences=[
            (one.interval.start, one.interval.end, one.state.value, one.evidence, one.expires_at)
            for one in batch.absences
        ],
        refusals=[(one.row, one.open_time, one.reason, one.raw) for one in batch.refusals],
    )


def _to_candles(record: _Candles) -> CandleBatch:
    with pa.ipc.open_stream(record.table) as stream:
        table = stream.read_all()
    if table.schema != CANDLE_SCHEMA:
        raise BadInput("journal record", table.schema.names, "candles")
    return CandleBatch(
        series=Series(record.exchange, record.symbol, Timeframe.parse(record.timeframe)),
        source=record.source,
        now_ms=record.now_ms,
        table=table,
        state=CandleState(record.state),
        absences=tuple(
            Absence(
                interval=Interval(start, end),
                state=CoverageState(state),
                evidence=evidence,
                expires_at=expires_at,
            )
            for start, end, state, evidence, expires_at in record.absences
        ),
        refusals=tuple(
            Refusal(row=row, open_time=open_time, reason=reason, raw=raw)
            for row, open_time, reason, raw in record.refusals
        ),
    )
