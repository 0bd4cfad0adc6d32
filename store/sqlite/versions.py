"""On SQLite: what has changed, and what an operator has switched."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from market.clock import Clock
from market.fingerprint import Digest
from market.instrument import Series
from market.interval import Interval
from store.candle_store import Chunk, SeriesDelta, SeriesFacts, SeriesVersion
from store.control import Control, OperatingState, SafetyState, checked_reason
from store.series_key import SeriesKey
from store.sqlite.change_mark import ChangeMark
from store.sqlite.coverage import read_coverage
from store.sqlite.database import Database, transaction
from store.sqlite.rows import QUERIES, fetched, find_series, named
from store.sqlite.writing import read_control

_ALWAYS = 2**62


class SqliteVersions:
    """The part of :class:`store.candle_store.CandleStore` that says what has changed."""

    _database: Database
    _clock: Clock
    _mark: ChangeMark

    def change_mark(self) -> int | None:
        """A number that is another one once anybody has committed anything; None where it cannot be told."""
        return self._mark.now()

    def writes_here(self) -> int:
        """0: the mark shows the writes of this process too."""
        return 0

    async def versions(self, series: Sequence[Series]) -> tuple[dict[Series, SeriesVersion], Control]:
        """What tells whether these series have changed, and the control state, as of one moment."""
        asked = json.dumps([(one.exchange, one.symbol, one.timeframe.seconds) for one in series])

        def work(connection: sqlite3.Connection) -> tuple[dict[Series, SeriesVersion], Control]:
            found = {}
            for place, revision, *rest in connection.execute(QUERIES["series_versions"], {"series": asked}):
                one = series[place]
                found[one] = _version(one, revision, *rest)
            return found, read_control(connection)

        return await self._database.read(work)

    async def delta(self, series: Series, *, since: int, after_ms: int, limit: int) -> SeriesDelta | None:
        """What has become of a series since a revision, from one snapshot; None where it is not stored."""

        def work(connection: sqlite3.Connection) -> SeriesDelta | None:
            key = find_series(connection, series)
            if key is None:
                return None
            coverage = read_coverage(connection, key, 0, _ALWAYS)
            known = Interval(coverage[0].interval.start, coverage[-1].interval.end) if coverage else None
            chunks = connection.execute(QUERIES["read_changed_chunks"], named(key) | {"since": since})
            found = [Chunk(start=row[0], digest=Digest.of_hex(row[1], row[3]), revision=row[4]) for row in chunks]
            # One more than asked for tells whether there are more.
            asked = named(key) | {"start": after_ms + 1, "end": _ALWAYS, "limit": limit + 1}
            rows = fetched(connection.execute(QUERIES["read_candles"], asked))
            return SeriesDelta(
                facts=SeriesFacts(revision=key.revision, origin_ms=key.origin_ms, known=known),
                coverage=coverage,
                chunks=found,
                rows=rows.slice(0, limit),
                more=rows.num_rows > limit,
            )

        return await self._database.read(work)

    async def control(self) -> Control:
        """What an operator has switched."""
        return await self._database.read(read_control)

    async def set_control(
        self, *, safety: SafetyState | None = None, operating: OperatingState | None = None, reason: str = ""
    ) -> Control:
        """Switch what is not None; what holds now. The write lock orders it among the writes of all processes.

        :raises BadInput: a reason that cannot be kept.
        :raises StoreBusy: another process held the write lock for too long; nothing was switched.
        """
        asked = {
            "safety": safety,
            "operating": operating,
            "reason": checked_reason(reason),
            "now": self._clock.now_ms(),
        }

        def work(connection: sqlite3.Connection) -> Control:
            with transaction(connection):
                connection.execute(QUERIES["set_control"], asked)
                return read_control(connection)

        return await self._database.write(work)


def _version(
    series: Series, revision: int, last_write: int, instrument_id: int, listed_at: int | None, first: int | None
) -> SeriesVersion:
    key = SeriesKey.of(series, instrument_id, revision, last_write, listed_at, first)
    return SeriesVersion(revision=revision, origin_ms=key.origin_ms)
