"""How a PostgreSQL database keeps its candles: with TimescaleDB, or without any extension."""

from __future__ import annotations

from enum import Enum


class Mode(Enum):
    """Chosen when the schema is made, and kept."""

    #: Monthly partitions; larger candles are made of minutes as they are read.
    PLAIN = "plain"
    #: Hypertables, compression, continuous aggregates.
    TIMESCALEDB = "timescaledb"
