"""Instruments on SQLite: what exchanges say of them, and said."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from market.clock import Clock
from market.instrument import Instrument
from store.sqlite.database import Database
from store.sqlite.rows import QUERIES, to_instrument
from store.sqlite.writing import data_transaction


class SqliteInstruments:
    """The part of :class:`store.candle_store.CandleStore` that keeps instruments."""

    _database: Database
    _clock: Clock

    async def save_instruments(self, instruments: Sequence[Instrument], complete: bool = False) -> None:
        """Keep what an exchange says of its markets, and since when it says so.

        :param complete: these are all that their exchanges have; the others become inactive.
        """

        def work(connection: sqlite3.Connection) -> None:
            now_ms = self._clock.now_ms()
            with data_transaction(connection):
                connection.executemany(QUERIES["save_instrument"], [_row(one, now_ms) for one in instruments])
                for exchange in sorted({one.exchange for one in instruments}):
                    if complete:
                        symbols = json.dumps([one.symbol for one in instruments if one.exchange == exchange])
                        connection.execute(QUERIES["hide_instruments"], {"exchange": exchange, "symbols": symbols})
                    asked = {"exchange": exchange, "now": now_ms}
                    for step in ("correct", "close", "open"):
                        connection.execute(QUERIES[f"{step}_instrument_history"], asked)

        await self._database.write(work)

    async def instruments(self, exchange: str | None = None, as_of_ms: int | None = None) -> list[Instrument]:
        """Known instruments, by exchange and symbol.

        :param as_of_ms: as they were known to be then; epoch milliseconds of our clock.
        """
        name, asked = "list_instruments", {"exchange": exchange, "as_of": as_of_ms}
        if as_of_ms is not None:
            name += "_as_of"

        def work(connection: sqlite3.Connection) -> list[Instrument]:
            return [to_instrument(row) for row in connection.execute(QUERIES[name], asked)]

        return await self._database.read(work)


def _row(instrument: Instrument, now_ms: int) -> dict[str, object]:
    def text(value: object) -> str | None:
        return None if value is None else str(value)

    return {
        "exchange": instrument.exchange,
        "symbol": instrument.symbol,
        "exchange_symbol": instrument.exchange_symbol,
        "base": instrument.base,
        "quote": instrument.quote,
        "kind": instrument.kind,
        "tick_size": text(instrument.tick_size),
        "lot_size": text(instrument.lot_size),
        "min_notional": text(instrument.min_notional),
        "active": int(instrument.active),
        "listed_at": instrument.listed_ms,
        "seen_at": now_ms,
    }
