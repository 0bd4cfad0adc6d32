"""Trades and the ledger of their ids on SQLite."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from functools import partial
from typing import Any

from market.trade import Trade
from store.series_key import parts_of
from store.sqlite.database import Database
from store.sqlite.rows import QUERIES
from store.sqlite.writing import data_transaction
from store.trade_batch import RunState, TradeBatch, TradeRun, TradesWritten
from store.trade_runs import check_trades, span_of, unknown, with_lost, with_trades

#: Trades dropped in one transaction: writers wait for no more than that.
_DROPPED = 20_000
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1


class SqliteTrades:
    """The part of the store on SQLite that keeps trades; see :class:`store.trade_store.TradeStore`."""

    _database: Database

    async def write_trades(self, batches: Sequence[TradeBatch]) -> TradesWritten:
        """All batches in one transaction; a trade that is stored already stays as it is. Durable when it returns.

        :raises BadInput: an id or a number that cannot be stored; nothing was written.
        :raises StoreBusy: another process held the write lock for too long; nothing was written.
        """
        for batch in batches:
            check_trades(batch)

        def work(connection: sqlite3.Connection) -> TradesWritten:
            with data_transaction(connection):
                return sum((_write(connection, batch) for batch in batches), TradesWritten())

        return await self._database.write(work)

    async def trades(
        self, exchange: str, symbol: str, start_ms: int, end_ms: int, *, limit: int | None = None
    ) -> list[Trade]:
        """Trades with ``start_ms <= event_time < end_ms``, by event time, then by id."""

        def work(connection: sqlite3.Connection) -> list[Trade]:
            key = _find(connection, exchange, symbol)
            asked = {
                "instrument_id": key,
                "start": start_ms,
                "end": end_ms,
                "limit": -1 if limit is None else limit,
            }
            return [_to_trade(row) for row in connection.execute(QUERIES["read_trades"], asked)]

        return await self._database.read(work)

    async def trade_runs(self, exchange: str, symbol: str) -> list[TradeRun]:
        """The ledger of trade ids, by id."""

        def work(connection: sqlite3.Connection) -> list[TradeRun]:
            key = _find(connection, exchange, symbol)
            return [] if key is None else _read_runs(connection, key, _LOWEST, _HIGHEST)

        return await self._database.read(work)

    async def newest_trade(self, exchange: str, symbol: str) -> Trade | None:
        """The trade with the highest id, where the exchange counts them; else the latest."""

        def work(connection: sqlite3.Connection) -> Trade | None:
            asked = {"instrument_id": _find(connection, exchange, symbol)}
            run = connection.execute(QUERIES["newest_trade_run"], asked).fetchone()
            row = None
            if run is not None:
                counted = asked | {"trade_id": run[0], "event_time": run[1]}
                row = connection.execute(QUERIES["read_trade"], counted).fetchone()
            row = row or connection.execute(QUERIES["read_newest_trade"], asked).fetchone()
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
            evidence=evidence,
        )

        def work(connection: sqlite3.Connection) -> None:
            with data_transaction(connection):
                key = _named(connection, exchange, symbol)
                before = _read_runs(connection, key, first_id - 1, last_id + 1)
                _replace_runs(connection, key, before, with_lost(before, lost))

        await self._database.write(work)

    async def drop_trades(self, before_ms: int) -> None:
        """Drop the trades before an instant, some at a time: killed in between, some are dropped."""
        keys = await self._database.read(
            lambda connection: [row[0] for row in connection.execute(QUERIES["list_instrument_ids"])]
        )
        for key in keys:
            asked = {"instrument_id": key}
            while await self._database.write(partial(_drop_some, "trades", asked, before_ms)):
                pass
        while await self._database.write(partial(_drop_some, "trade_ids", {}, before_ms)):
            pass


def _write(connection: sqlite3.Connection, batch: TradeBatch) -> TradesWritten:
    if not batch.trades:
        return TradesWritten()
    key = _named(connection, batch.exchange, batch.symbol)
    span = span_of(batch.trades)
    runs = [] if span is None else _read_runs(connection, key, span[0] - 1, span[1] + 1)
    fresh = unknown(batch.trades, runs)
    if not batch.dense or connection.execute(QUERIES["has_trade_ids"], {"instrument_id": key}).fetchone()[0]:
        asked = {"instrument_id": key, "ids": json.dumps([str(one.id) for one in fresh])}
        known = {row[0] for row in connection.execute(QUERIES["known_trade_ids"], asked)}
        if known:
            fresh = [one for one in fresh if str(one.id) not in known]
    connection.executemany(
        QUERIES["insert_trade"],
        [
            (
                key,
                one.event_time,
                one.id,
                one.price,
                one.quantity,
                "buy" if one.taker_buys else "sell",
                one.received_at,
                one.trades,
            )
            for one in fresh
        ],
    )
    if batch.dense:
        _replace_runs(connection, key, runs, with_trades(runs, fresh))
    else:
        connection.executemany(QUERIES["insert_trade_id"], [(key, str(one.id), one.event_time) for one in fresh])
    return TradesWritten(inserted=len(fresh), known=len(batch.trades) - len(fresh))


def _drop_some(what: str, asked: dict[str, Any], before_ms: int, connection: sqlite3.Connection) -> bool:
    """Drop the oldest rows.

    :return: whether there may be more.
    """
    with data_transaction(connection):
        bounds = asked | {"before": before_ms, "count": _DROPPED}
        end = connection.execute(QUERIES[f"some_{what}_end"], bounds).fetchone()
        before = before_ms if end is None else end[0] + 1
        connection.execute(QUERIES[f"delete_{what}"], asked | {"before": before})
    return end is not None


def _find(connection: sqlite3.Connection, exchange: str, symbol: str) -> int | None:
    row = connection.execute(QUERIES["find_instrument"], {"exchange": exchange, "symbol": symbol}).fetchone()
    return None if row is None else int(row[0])


def _named(connection: sqlite3.Connection, exchange: str, symbol: str) -> int:
    """The key of an instrument, which is made known if it was not."""
    found = _find(connection, exchange, symbol)
    if found is None:
        base, quote, kind = parts_of(symbol)
        connection.execute(
            QUERIES["name_instrument"],
            {
                "exchange": exchange,
                "symbol": symbol,
                "exchange_symbol": symbol,
                "base": base,
                "quote": quote,
                "kind": kind,
            },
        )
        found = _find(connection, exchange, symbol)
        assert found is not None
    return found


def _read_runs(connection: sqlite3.Connection, key: int, first: int, last: int) -> list[TradeRun]:
    asked = {"instrument_id": key, "first": max(first, _LOWEST), "last": min(last, _HIGHEST)}
    return [
        TradeRun(
            first_id=row[0],
            last_id=row[1],
            first_time=row[2],
            last_time=row[3],
            state=RunState(row[4]),
            evidence=row[5],
        )
        for row in connection.execute(QUERIES["read_trade_runs"], asked)
    ]


def _replace_runs(
    connection: sqlite3.Connection, key: int, before: Sequence[TradeRun], after: Sequence[TradeRun]
) -> None:
    """Make the runs `before` into `after`; only rows that differ are written."""
    were, are = set(before), set(after)
    connection.executemany(QUERIES["delete_trade_run"], [(key, one.first_id) for one in before if one not in are])
    connection.executemany(
        QUERIES["insert_trade_run"],
        [
            (key, one.first_id, one.last_id, one.first_time, one.last_time, one.state.value, one.evidence)
            for one in after
            if one not in were
        ],
    )


def _to_trade(row: tuple[Any, ...]) -> Trade:
    return Trade(row[0], row[1], row[2], row[3], bool(row[4]), row[5], row[6])
