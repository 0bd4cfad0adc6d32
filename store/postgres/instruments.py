"""Instruments on PostgreSQL: what exchanges say of them, and said."""

from __future__ import annotations

from collections.abc import Sequence

from market.clock import Clock
from market.instrument import Instrument
from store.postgres.connection import Connection
from store.postgres.database import Database
from store.postgres.rows import QUERIES, instrument_row, to_instrument


class PostgresInstruments:
    """The part of :class:`store.candle_store.CandleStore` that keeps instruments."""

    _database: Database
    _clock: Clock

    async def save_instruments(self, instruments: Sequence[Instrument], complete: bool = False) -> None:
        """Keep what an exchange says of its markets, and since when it says so.

        :param complete: these are all that their exchanges have; the others become inactive.
        """
        now_ms = self._clock.now_ms()
        # In one order, so that two who save the same do not wait for each other in a circle.
        ordered = sorted(instruments, key=lambda one: (one.exchange, one.symbol))
        rows = [instrument_row(one, now_ms) for one in ordered]
        symbols: dict[str, list[str]] = {}
        for one in ordered:
            symbols.setdefault(one.exchange, []).append(one.symbol)

        async def work(connection: Connection) -> None:
            for exchange in symbols:
                await connection.execute(QUERIES["hold_instruments"], exchange)
            await connection.executemany(QUERIES["save_instrument"], rows)
            for exchange, named in symbols.items():
                if complete:
                    await connection.execute(QUERIES["hide_instruments"], exchange, named)
                for step in ("correct", "close", "open"):
                    await connection.execute(QUERIES[f"{step}_instrument_history"], exchange, now_ms)

        if rows:
            await self._database.write_data(work)

    async def instruments(self, exchange: str | None = None, as_of_ms: int | None = None) -> list[Instrument]:
        """Known instruments, by exchange and symbol.

        :param as_of_ms: as they were known to be then; epoch milliseconds of our clock.
        """

        async def work(connection: Connection) -> list[Instrument]:
            if as_of_ms is None:
                rows = await connection.fetch(QUERIES["list_instruments"], exchange)
            else:
                rows = await connection.fetch(QUERIES["list_instruments_as_of"], exchange, as_of_ms)
            return [to_instrument(row) for row in rows]

        return await self._database.read(work)
