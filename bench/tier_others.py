"""What the tiers stand beside: the same rows in a bare table, a mapped file, Redis and ArcticDB."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import arcticdb
import asyncpg
import pyarrow as pa
import redis

from market.candle import COLUMNS, INSTANT
from tests.support.postgres_server import PrivatePostgres
from tests.support.redis_server import PrivateRedis

_NAMES = "t, o, h, l, c, v, qv, n, tb, tq, e"
_RAW_SQLITE = """
CREATE TABLE c (s INTEGER, t INTEGER, o REAL, h REAL, l REAL, c REAL, v REAL, qv REAL, n INTEGER, tb REAL, tq REAL,
                e INTEGER, PRIMARY KEY (s, t)) WITHOUT ROWID
"""
_RAW_POSTGRES = """
CREATE TABLE raw (s int, t timestamptz, o float8, h float8, l float8, c float8, v float8, qv float8, n bigint,
                  tb float8, tq float8, e timestamptz, PRIMARY KEY (s, t))
"""


class RawSqlite:
    """A bare table, rows as tuples."""

    def __init__(self, path: Path, table: pa.Table) -> None:
        self._connection = sqlite3.connect(path)
        for pragma in ("journal_mode = WAL", "cache_size = -65536"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.execute(_RAW_SQLITE)
        rows = zip(*_plain(table), strict=True)
        marks = ", ".join("?" * len(COLUMNS))
        self._connection.executemany(f"INSERT INTO c VALUES (1, {marks})", rows)
        self._connection.commit()

    def rows(self, start: int, end: int) -> list[Any]:
        """Those that open in ``[start, end)``."""
        return self._connection.execute(
            f"SELECT {_NAMES} FROM c WHERE s = 1 AND t >= ? AND t < ? ORDER BY t", (start, end)
        ).fetchall()

    def close(self) -> None:
        self._connection.close()


class RawPostgres:
    """The same on a PostgreSQL server, over one connection of asyncpg."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, server: PrivatePostgres, table: pa.Table) -> AsyncIterator[RawPostgres]:
        """With the rows of `table`."""
        connection = await asyncpg.connect(server.url(server.create_database()))
        try:
            await connection.execute(_RAW_POSTGRES)
            columns = [
                [None if one is None else datetime.fromtimestamp(one / 1000, UTC) for one in column]
                if field.type == INSTANT
                else column
                for column, field in zip(_plain(table), table.schema, strict=True)
            ]
            rows = zip([1] * table.num_rows, *columns, strict=True)
            await connection.copy_records_to_table("raw", records=list(rows))
            await connection.execute("VACUUM ANALYZE raw")
            yield cls(connection)
        finally:
            await connection.close()

    async def rows(self, start: int, end: int) -> list[Any]:
        """Those that open in ``[start, end)``."""
        bounds = (datetime.fromtimestamp(one / 1000, UTC) for one in (start, end))
        found: list[Any] = await self._connection.fetch(
            f"SELECT {_NAMES} FROM raw WHERE s = 1 AND t >= $1 AND t < $2 ORDER BY t", *bounds
        )
        return found


class RawArrow:
    """A file of exactly the rows that are asked for, memory-mapped anew each time."""

    def __init__(self, path: Path, table: pa.Table) -> None:
        self._path = str(path)
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)

    def read(self) -> pa.Table:
        """Open and read."""
        with pa.memory_map(self._path) as source:
            return pa.ipc.open_file(source).read_all()

    def summed(self) -> float:
        """And sum one column."""
        return float(self.read().column("close").to_numpy().sum())


class RawRedis:
    """The rows as bytes under one key."""

    def __init__(self, server: PrivateRedis, name: str, table: pa.Table) -> None:
        self._client = redis.Redis.from_url(server.url)
        self._name = name
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        self._client.set(name, sink.getvalue().to_pybytes())

    def read(self) -> pa.Table:
        """Get and decode."""
        return pa.ipc.open_stream(self._client.get(self._name)).read_all()

    def close(self) -> None:
        self._client.close()


class ArcticFrames:
    """Frames in a library of ArcticDB on the local disk (LMDB), each of exactly the rows that are asked for."""

    NAME = f"ArcticDB {arcticdb.__version__}"

    def __init__(self, folder: Path) -> None:
        self._library = arcticdb.Arctic(f"lmdb://{folder}").create_library("bench")

    def write(self, name: str, table: pa.Table) -> None:
        """The open times are the index."""
        self._library.write(name, table.to_pandas().set_index("open_time"))

    def frame(self, name: str) -> Any:
        """As it gives it by default: pandas."""
        return self._library.read(name).data

    def arrow(self, name: str) -> pa.Table:
        """As Arrow."""
        return self._library.read(name, output_format=arcticdb.OutputFormat.PYARROW).data


def _plain(table: pa.Table) -> list[list[Any]]:
    return [(one.cast(pa.int64()) if one.type == INSTANT else one).to_pylist() for one in table.columns]
