"""Trades and the ledger of their ids on PostgreSQL."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import asyncpg
import numpy as np

import sql
from market.clock import Clock
from market.errors import StoreUnusable
from market.timeframe import DAY_MS
from market.trade import Trade
from store.postgres.connection import Connection
from store.postgres.database import Database
from store.postgres.mode import Mode
from store.postgres.partitions import Partitions
from store.postgres.patience import patiently
from store.postgres.rows import QUERIES as CANDLE_QUERIES
from store.postgres.rows import storable
from store.postgres.schema import TIMESCALE_QUERIES, Schema
from store.series_key import parts_of
from store.trade_batch import RunState, TradeBatch, TradeRun, TradesWritten
from store.trade_runs import check_trades, span_of, unknown, with_lost, with_trades

QUERIES = sql.queries("postgres_live")
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
#: Trades in one statement at most.
_STATEMENT = 10_000
_COLUMNS = (
    "instrument_id",
    "event_time",
    "trade_id",
    "trade_number",
    "price",
    "quantity",
    "taker_side",
    "received_at",
    "trades",
)


class PostgresTrades:
    """The part of the store on PostgreSQL that keeps trades; see :class:`store.trade_store.TradeStore`."""

    schema: Schema
    _database: Database
    _clock: Clock
    _partitions: Partitions | None

    async def write_trades(self, batches: Sequence[TradeBatch]) -> TradesWritten:
        """All batches in one transaction; a trade that is stored already stays as it is. Durable when it returns.

        :raises BadInput: an id or a number that cannot be stored; nothing was written.
        :raises StoreBusy: somebody else held an instrument for too long; nothing was written.
        :raises StoreUnavailable: the server is away; the message says whether the outcome is known.
        """
        for batch in batches:
            check_trades(batch)
        some = [batch for batch in batches if batch.trades]
        if not some:
            return TradesWritten()
        if self._partitions is not None:
            times = np.array([one.event_time for batch in some for one in batch.trades], np.int64)
            await self._partitions.make_for(times, "trade_history")

        async def work(connection: Connection, careful: bool = False) -> TradesWritten:
            return await _write(connection, self.schema.mode, some, careful)

        try:
            return await self._database.write_data(work)
        except StoreUnusable as error:
            if not isinstance(error.__cause__, asyncpg.UniqueViolationError):
                raise
        # Somebody stored a trade and told no ledger; three times slower, no such row is met twice.
        return await self._database.write_data(partial(work, careful=True))

    async def trades(
        self, exchange: str, symbol: str, start_ms: int, end_ms: int, *, limit: int | None = None
    ) -> list[Trade]:
        """Trades with ``start_ms <= event_time < end_ms``, by event time, then by id."""

        async def work(connection: Connection) -> list[Trade]:
            key = await _find(connection, exchange, symbol)
            rows = await connection.fetch(QUERIES["read_trades"], key, start_ms, end_ms, limit)
            return [_to_trade(row) for row in rows]

        return await self._database.read(work)

    async def trade_runs(self, exchange: str, symbol: str) -> list[TradeRun]:
        """The ledger of trade ids, by id."""

        async def work(connection: Connection) -> list[TradeRun]:
            key = await _find(connection, exchange, symbol)
            return [] if key is None else (await _read_runs(connection, {key: (_LOWEST, _HIGHEST)}))[key]

        return await self._database.read(work)

    async def newest_trade(self, exchange: str, symbol: str) -> Trade | None:
        """The trade with the highest id, where the exchange counts them; else the latest."""

        async def work(connection: Connection) -> Trade | None:
            key = await _find(connection, exchange, symbol)
            if key is None:
                return None
            run = await connection.fetchrow(QUERIES["newest_trade_run"], key)
            row = None
            if run is not None:
                row = await connection.fetchrow(QUERIES["read_trade"], key, run["last_time"], str(run["last_id"]))
            # Of a day first: a look into all partitions locks them all.
            for since in (self._clock.now_ms() - DAY_MS, _LOWEST):
                row = row or await connection.fetchrow(QUERIES["read_newest_trade"], key, since)
            return None if row is None else _to_trade(row)

        return await self._database.read(work)

    async def lose_trades(
        self,
        exchange: str,
        symbol: str,
        first_id: int,
        last_id: int,
        first_time: int,
        last_time: int,
        evidence: str,
    ) -> None:
        """Say in the ledger that the exchange no longer serves some trades; both ids are inclusive."""
        lost = TradeRun(
            first_id=first_id,
            last_id=last_id,
            first_time=first_time,
            last_time=last_time,
            state=RunState.LOST,
            evidence=storable(evidence),
        )

        async def work(connection: Connection) -> None:
            (key,) = (await _held(connection, [(exchange, symbol)])).values()
            before = (await _read_runs(connection, {key: (first_id - 1, last_id + 1)}))[key]
            await _replace_runs(connection, {key: before}, {key: with_lost(before, lost)})

        await self._database.write_data(work)

    async def drop_trades(self, before_ms: int) -> None:
        """Drop the chunks or monthly partitions of trades that lie wholly before an instant.

        Policies of TimescaleDB, and ``chandlery db maintain``, do so by themselves.
        """
        name = "drop_trade_chunks" if self.schema.mode is Mode.TIMESCALEDB else "drop_trade_partitions"

        async def work(connection: Connection) -> None:
            await connection.execute(QUERIES[name], before_ms)
            await connection.execute(QUERIES["delete_trade_ids"], before_ms)

        await patiently(self._database, work, data=True)


@dataclass
class _Instrument:
    """What a write knows of the trades of one instrument, and what it adds."""

    #: All runs that its ids lie in or touch, as they were, and as they are now.
    before: list[TradeRun] = field(default_factory=list)
    after: list[TradeRun] = field(default_factory=list)
    #: Ids of stored trades that are in no run, as far as they were asked for.
    known: set[str] = field(default_factory=set)

    def take(self, batch: TradeBatch) -> list[Trade]:
        """The trades of a batch that are not stored yet; from now on they are."""
        fresh = unknown(batch.trades, self.after)
        if self.known:
            fresh = [one for one in fresh if str(one.id) not in self.known]
        if batch.dense:
            self.after = with_trades(self.after, fresh)
        else:
            self.known.update(str(one.id) for one in fresh)
        return fresh


async def _write(connection: Connection, mode: Mode, batches: Sequence[TradeBatch], careful: bool) -> TradesWritten:
    """Write the batches.

    :param careful: the table may have trades that are in no ledger.
    """
    keys = await _held(connection, [(one.exchange, one.symbol) for one in batches])
    keyed = [(keys[one.exchange, one.symbol], one) for one in batches]
    state = await _look(connection, keyed)
    rows: list[tuple[int, Trade]] = []
    ids: list[tuple[int, Trade]] = []
    for key, batch in keyed:
        fresh = [(key, one) for one in state[key].take(batch)]
        rows += fresh
        if not batch.dense:
            ids += fresh
    if rows and mode is Mode.TIMESCALEDB:
        # A hole may be filled long after its chunk was compressed.
        await connection.execute(TIMESCALE_QUERIES["allow_decompression"])
    inserted = await _insert(connection, rows, careful)
    if ids:
        await connection.copy_records_to_table(
            "trade_ids",
            records=[(key, str(one.id), one.event_time) for key, one in ids],
            columns=("instrument_id", "trade_id", "event_time"),
        )
    await _replace_runs(
        connection,
        {key: one.before for key, one in state.items()},
        {key: one.after for key, one in state.items()},
    )
    return TradesWritten(inserted=inserted, known=sum(len(one.trades) for one in batches) - inserted)


async def _look(connection: Connection, keyed: Sequence[tuple[int, TradeBatch]]) -> dict[int, _Instrument]:
    """What is stored already of what the batches have."""
    state = {key: _Instrument() for key, _ in keyed}
    trades: dict[int, list[Trade]] = defaultdict(list)
    for key, batch in keyed:
        trades[key] += batch.trades
    spans = {key: span for key, some in trades.items() if (span := span_of(some)) is not None}
    if spans:
        touched = {key: (first - 1, last + 1) for key, (first, last) in spans.items()}
        for key, runs in (await _read_runs(connection, touched)).items():
            state[key].before = state[key].after = runs
    listed = {key for key, batch in keyed if not batch.dense}
    if counted := sorted(set(state) - listed):
        listed |= {row[0] for row in await connection.fetch(QUERIES["have_trade_ids"], counted)}
    if listed:
        asked = [(key, str(one.id)) for key in sorted(listed) for one in trades[key]]
        for row in await connection.fetch(QUERIES["known_trade_ids"], *zip(*asked, strict=True)):
            state[row[0]].known.add(row[1])
    return state


async def _insert(connection: Connection, trades: Sequence[tuple[int, Trade]], careful: bool) -> int:
    """Insert trades, some in a statement, which has not for ever; how many."""
    inserted = 0
    for start in range(0, len(trades), _STATEMENT):
        rows = [
            (
                key,
                one.event_time,
                str(one.id),
                one.id if isinstance(one.id, int) else None,
                one.price,
                one.quantity,
                "buy" if one.taker_buys else "sell",
                one.received_at,
                one.trades,
            )
            for key, one in trades[start : start + _STATEMENT]
        ]
        if careful:
            told = await connection.execute(QUERIES["insert_trades"], *zip(*rows, strict=True))
        else:
            told = await connection.copy_records_to_table("trade_history", records=rows, columns=_COLUMNS)
        inserted += int(told.split()[-1])
    return inserted


async def _find(connection: Connection, exchange: str, symbol: str) -> int | None:
    key: int | None = await connection.fetchval(QUERIES["find_instrument"], exchange, symbol)
    return key


async def _held(connection: Connection, instruments: Sequence[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """The keys of instruments, made known if they were not, and held: no one else writes their trades meanwhile."""
    # In one order, so that two who write the same do not wait for each other in a circle.
    asked = sorted(set(instruments))
    found = await _find_all(connection, asked)
    if missing := [one for one in asked if one not in found]:
        rows = [(exchange, symbol, symbol, *parts_of(symbol)) for exchange, symbol in missing]
        await connection.executemany(CANDLE_QUERIES["name_instrument"], rows)
        found = await _find_all(connection, asked)
    await connection.execute(QUERIES["hold_trades"], sorted(found.values()))
    return found


async def _find_all(connection: Connection, asked: Sequence[tuple[str, str]]) -> dict[tuple[str, str], int]:
    rows = await connection.fetch(QUERIES["find_instruments"], *zip(*asked, strict=True))
    return {(row[0], row[1]): row[2] for row in rows}


async def _read_runs(connection: Connection, spans: dict[int, tuple[int, int]]) -> dict[int, list[TradeRun]]:
    """By instrument, the runs that overlap or touch its span of ids."""
    found: dict[int, list[TradeRun]] = {key: [] for key in spans}
    asked = [(key, max(first, _LOWEST), min(last, _HIGHEST)) for key, (first, last) in spans.items()]
    for row in await connection.fetch(QUERIES["read_trade_runs"], *zip(*asked, strict=True)):
        run = TradeRun(
            first_id=row[1],
            last_id=row[2],
            first_time=row[3],
            last_time=row[4],
            state=RunState(row[5]),
            evidence=row[6],
        )
        found[row[0]].append(run)
    return found


async def _replace_runs(
    connection: Connection, before: dict[int, list[TradeRun]], after: dict[int, list[TradeRun]]
) -> None:
    """Make the runs `before` into `after`; only rows that differ are written."""
    gone: list[tuple[int, int]] = []
    new: list[tuple[Any, ...]] = []
    for key, runs in after.items():
        were, are = set(before[key]), set(runs)
        gone += [(key, one.first_id) for one in before[key] if one not in are]
        new += [
            (key, one.first_id, one.last_id, one.first_time, one.last_time, one.state.value, one.evidence)
            for one in runs
            if one not in were
        ]
    if gone:
        await connection.executemany(QUERIES["delete_trade_run"], gone)
    if new:
        await connection.executemany(QUERIES["insert_trade_run"], new)


def _to_trade(row: asyncpg.Record) -> Trade:
    number = row["trade_number"]
    return Trade(
        row["trade_id"] if number is None else number,
        row["price"],
        row["quantity"],
        row["event_time"],
        row["taker_side"] == "buy",
        row["received_at"],
        row["trades"],
    )
