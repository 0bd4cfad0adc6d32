"""How candles are kept in a PostgreSQL database, as far as its operator decides that."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MaintenanceRules:
    """Of the hypertable on TimescaleDB; the age also counts where candles may be dropped on plain PostgreSQL."""

    #: Days in a chunk. Another value counts for new chunks only.
    chunk_days: int = 1
    #: Age in days at which candles are compressed; younger ones are never dropped.
    compress_after_days: int = 7
