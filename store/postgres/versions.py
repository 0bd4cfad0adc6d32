"""On PostgreSQL: what has changed, and what an operator has switched."""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from market.candle import no_candles
from market.clock import Clock
from market.errors import StoreBusy
from market.instrument import Series
from market.interval import Interval
from store.candle_store import SeriesDelta, SeriesFacts, SeriesVersion
from store.control import Control, OperatingState, SafetyState, checked_reason
from store.postgres.connection import Connection
from store.postgres.coverage import to_covered
from store.postgres.database import Database
from store.postgres.rows import QUERIES, read_candles, to_chunk
from store.series_key import SeriesKey

#: Longer than the server waits for the writers under way.
_PATIENCE_SECONDS = 65.0


class PostgresVersions:
    """The part of :class:`store.candle_store.CandleStore` that says what has changed.

    Reads may come from a replica: what it says may be older than what was read before, from the primary or from
    another replica, but it is of one moment.
    """

    _database: Database
    _clock: Clock

    def change_mark(self) -> int | None:
        """None: without asking the server nobody can tell."""
        return None

    def writes_here(self) -> int:
        """How many write transactions of this process have ended."""
        return self._database.writes_ended

    async def versions(self, series: Sequence[Series]) -> tuple[dict[Series, SeriesVersion], Control]:
        """What tells whether these series have changed, and the control state, as of one moment; one query."""
        names = (
            [one.exchange for one in series],
            [one.symbol for one in series],
            [one.timeframe.seconds for one in series],
        )
        rows = await self._database.read(lambda connection: connection.fetch(QUERIES["series_versions"], *names))
        found = {}
        for row in rows:
            if row["place"] is not None:
                one = series[row["place"] - 1]
                key = _key(one, row)
                found[one] = SeriesVersion(revision=key.revision, origin_ms=key.origin_ms)
        return found, _control(rows[0])

    async def delta(self, series: Series, *, since: int, after_ms: int, limit: int) -> SeriesDelta | None:
        """What has become of a series since a revision, from one snapshot; None where it is not stored.

        Two questions: one for what is known of it, one for its rows.
        """

        async def work(connection: Connection) -> SeriesDelta | None:
            row = await connection.fetchrow(
                QUERIES["read_delta"], series.exchange, series.symbol, series.timeframe.seconds, since
            )
            if row is None:
                return None
            key = _key(series, row)
            coverage = [to_covered(one) for one in row["coverage"]]
            known = Interval(coverage[0].interval.start, coverage[-1].interval.end) if coverage else None
            rows = no_candles()
            if known is not None and after_ms + 1 < known.end:
                # There is no candle that the ledger does not know. One more than asked for tells if there are more.
                rows = await read_candles(connection, key, Interval(after_ms + 1, known.end), limit + 1)
            return SeriesDelta(
                facts=SeriesFacts(revision=key.revision, origin_ms=key.origin_ms, known=known),
                coverage=coverage,
                chunks=[to_chunk(one) for one in row["chunks"]],
                rows=rows.slice(0, limit),
                more=rows.num_rows > limit,
            )

        return await self._database.read(work)

    async def control(self) -> Control:
        """What an operator has switched."""
        row = await self._database.read(lambda connection: connection.fetchrow(QUERIES["read_control"]))
        assert row is not None
        return _control(row)

    async def set_control(
        self, *, safety: SafetyState | None = None, operating: OperatingState | None = None, reason: str = ""
    ) -> Control:
        """Switch what is not None; what holds now.

        Whoever asks from now on whether he may write sees the new state. Where it forbids writing, those who have
        asked before are waited for.

        :raises BadInput: a reason that cannot be kept.
        :raises StoreBusy: one of them has not ended for a minute; the state is switched all the same.
        """
        asked = (safety, operating, checked_reason(reason), self._clock.now_ms())
        row = await self._database.write(lambda connection: connection.fetchrow(QUERIES["set_control"], *asked))
        assert row is not None
        control = _control(row)
        if not control.safety.writes:
            try:
                await self._database.write(_wait_for_writers)
            except StoreBusy as error:
                raise StoreBusy(
                    f"the safety state is {control.safety.value} now, but a write that began before has not ended "
                    "yet; set it again to wait for that"
                ) from error
        return control


async def _wait_for_writers(connection: Connection) -> None:
    await connection.execute(QUERIES["have_patience_for_writers"])
    await connection.execute(QUERIES["wait_for_writers"], timeout=_PATIENCE_SECONDS)


def _key(series: Series, row: asyncpg.Record) -> SeriesKey:
    return SeriesKey.of(
        series, row["instrument_id"], row["revision"], row["last_write"], row["listed_at"], row["first_open"]
    )


def _control(row: asyncpg.Record) -> Control:
    return Control(
        safety=SafetyState(row["safety"]),
        operating=OperatingState(row["operating"]),
        reason=row["reason"],
        changed_at=row["changed_at"],
    )
