"""What a database says of its own schema, so that two of them can be compared exactly."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import AsyncIterator
from typing import Any

import asyncpg

from store.postgres.address import DatabaseUrl

Catalog = dict[str, list[tuple[Any, ...]]]

#: Objects that are ours and not an extension's, by their number.
_OURS = "NOT EXISTS (SELECT FROM pg_depend e WHERE e.objid = {0} AND e.deptype = 'e')"

POSTGRES = {
    "relations": f"""
        SELECT relname, relkind, relpersistence, reloptions::text, relreplident, relrowsecurity, relispartition,
               pg_get_partkeydef(oid), pg_get_expr(relpartbound, oid), relacl::text, obj_description(oid)
        FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND {_OURS.format("oid")}""",
    "columns": f"""
        SELECT relname, rank() OVER (PARTITION BY relname ORDER BY attnum), attname,
               format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated,
               attcollation::regcollation::text, attstorage, attcompression, attstattarget, attoptions::text,
               pg_get_expr(adbin, adrelid)
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE relnamespace = current_schema()::regnamespace AND attnum > 0 AND NOT attisdropped
          AND {_OURS.format("c.oid")}""",
    "constraints": f"""
        SELECT conrelid::regclass::text, conname, contype, pg_get_constraintdef(oid), convalidated
        FROM pg_constraint WHERE connamespace = current_schema()::regnamespace AND {_OURS.format("oid")}""",
    "indexes": """
        SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid), indisprimary, indisunique, indisvalid,
               indisclustered, EXISTS (SELECT FROM pg_inherits WHERE inhrelid = indexrelid)
        FROM pg_index i JOIN pg_class c ON c.oid = indexrelid
        WHERE relnamespace = current_schema()::regnamespace""",
    "functions": f"""
        SELECT proname, pg_get_function_identity_arguments(oid), pg_get_functiondef(oid), proacl::text
        FROM pg_proc WHERE pronamespace = current_schema()::regnamespace AND prokind IN ('f', 'p')
          AND {_OURS.format("oid")}""",
    "views": """
        SELECT relname, pg_get_viewdef(oid) FROM pg_class
        WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('v', 'm')
          AND pg_get_viewdef(oid) NOT LIKE '%_materialized_hypertable_%'""",
    "triggers": """
        SELECT tgrelid::regclass::text, tgname, pg_get_triggerdef(t.oid), tgenabled FROM pg_trigger t
        JOIN pg_class c ON c.oid = tgrelid
        WHERE relnamespace = current_schema()::regnamespace AND NOT tgisinternal""",
    "sequences": """
        SELECT sequencename, data_type::text, start_value, min_value, max_value, increment_by, cycle, cache_size
        FROM pg_sequences WHERE schemaname = current_schema()""",
    "types": f"""
        SELECT typname, typtype FROM pg_type
        WHERE typnamespace = current_schema()::regnamespace AND typtype IN ('d', 'e', 'r')
          AND {_OURS.format("oid")}""",
    "extensions": "SELECT extname, extversion FROM pg_extension",
    "schemas": f"SELECT nspname FROM pg_namespace WHERE {_OURS.format('oid')} AND nspname !~ '^pg_(toast_)?temp'",
}
#: Where TimescaleDB keeps an aggregate is numbered; the name of the aggregate stands in its place.
TIMESCALEDB = {
    "hypertables": """
        SELECT hypertable_name, num_dimensions, compression_enabled, tablespaces
        FROM timescaledb_information.hypertables WHERE hypertable_schema = current_schema()""",
    "dimensions": """
        SELECT coalesce(view_name, d.hypertable_name), dimension_number, column_name, column_type::text,
               dimension_type, time_interval::text, integer_interval, num_partitions
        FROM timescaledb_information.dimensions d
        LEFT JOIN timescaledb_information.continuous_aggregates
               ON materialization_hypertable_name = d.hypertable_name""",
    "compression": """
        SELECT hypertable::text, segmentby, orderby, compress_interval_length::text
        FROM timescaledb_information.hypertable_compression_settings
        WHERE hypertable::text !~ '_materialized_hypertable_'""",
    "aggregates": """
        SELECT a.view_name, coalesce(b.view_name, a.hypertable_name), a.materialized_only, a.compression_enabled,
               a.view_definition
        FROM timescaledb_information.continuous_aggregates a
        LEFT JOIN timescaledb_information.continuous_aggregates b
               ON b.materialization_hypertable_name = a.hypertable_name""",
    "aggregate indexes": """
        SELECT view_name, regexp_replace(indexdef, '_materialized_hypertable_[0-9]+', 'N', 'g')
        FROM pg_indexes
        JOIN timescaledb_information.continuous_aggregates
          ON schemaname = materialization_hypertable_schema AND tablename = materialization_hypertable_name""",
    "jobs": """
        SELECT proc_schema, proc_name, coalesce(view_name, j.hypertable_name), schedule_interval::text,
               max_runtime::text, max_retries, retry_period::text, scheduled, fixed_schedule,
               (config - 'hypertable_id' - 'mat_hypertable_id')::text
        FROM timescaledb_information.jobs j
        LEFT JOIN timescaledb_information.continuous_aggregates
               ON materialization_hypertable_name = j.hypertable_name""",
}


async def postgres_catalog(connection: asyncpg.Connection) -> Catalog:
    """Everything that a migration makes, by kind; in an order that does not depend on when it was made."""
    queries = dict(POSTGRES)
    if await connection.fetchval("SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'"):
        queries |= TIMESCALEDB
    found = {kind: [tuple(row) for row in await connection.fetch(text)] for kind, text in queries.items()}
    return {kind: sorted(rows, key=repr) for kind, rows in found.items()}


def sqlite_catalog(connection: sqlite3.Connection) -> Catalog:
    """The same of an SQLite file; of the statements it keeps, what they mean and not how they are laid out."""
    found: Catalog = {
        "marks": [connection.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")],
        "statements": [
            (kind, name, table, _plain(text))
            for kind, name, table, text in connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema")
        ],
        "tables": connection.execute("PRAGMA table_list").fetchall(),
    }
    for kind, _, table, _ in found["statements"]:
        if kind == "table":
            for what in ("table_xinfo", "foreign_key_list"):
                rows = connection.execute(f"PRAGMA {what}({table})").fetchall()
                found.setdefault(what, []).extend((table, *row) for row in rows)
    return {kind: sorted(rows, key=repr) for kind, rows in found.items()}


def _plain(text: str | None) -> str | None:
    """A statement without its comments and its layout."""
    if text is None:
        return None
    return re.sub(r"\s*([(),])\s*|\s+", lambda found: found[1] or " ", re.sub(r"--.*", "", text)).strip()


@contextlib.asynccontextmanager
async def connected(url: DatabaseUrl) -> AsyncIterator[asyncpg.Connection]:
    """A plain connection: what the schema says must not depend on ours."""
    connection = await asyncpg.connect(
        host=url.host, port=url.port, user=url.user, password=url.password, database=url.database
    )
    try:
        yield connection
    finally:
        await connection.close()


async def catalog_of(url: DatabaseUrl) -> Catalog:
    """The catalog of a database."""
    async with connected(url) as connection:
        return await postgres_catalog(connection)


def differences(one: Catalog, other: Catalog) -> list[tuple[Any, ...]]:
    """What only one of two has."""
    return [
        (kind, row) for kind in one.keys() | other.keys() for row in {*one.get(kind, ())} ^ {*other.get(kind, ())}
    ]
