"""The version of the PostgreSQL schema and the mode it was made in: made, upgraded in order, refused when newer."""

from __future__ import annotations

from dataclasses import dataclass

import asyncpg
import structlog

import sql
from market.errors import SchemaTooNew, StoreUnusable
from store.postgres.connection import Connection
from store.postgres.database import Database
from store.postgres.mode import Mode

log = structlog.get_logger(__name__)

QUERIES = sql.queries("postgres_schema")
TIMESCALE_QUERIES = sql.queries("timescaledb")
LATEST = sql.migrations("postgres", "plain")[-1][0]
#: A migration may take this long, or wait this long for another process's.
_PATIENCE_SECONDS = 3600.0


_NAMES = {Mode.PLAIN: "plain PostgreSQL", Mode.TIMESCALEDB: "TimescaleDB"}


@dataclass(frozen=True)
class Schema:
    """What a database has."""

    #: 0 for a new database.
    version: int
    mode: Mode
    #: In words: which mode runs, and why.
    why: str


async def look(connection: Connection, location: str) -> Schema | None:
    """The schema of an open database; None where there is none yet.

    :raises SchemaTooNew: written by a newer release.
    :raises StoreUnusable: another program's database.
    """
    others = StoreUnusable(
        f"{location} has tables of another program under our names; name an empty database in database_url"
    )
    found = await connection.fetchrow(QUERIES["look_around"])
    assert found is not None
    if not found["versions"]:
        if found["tables"]:
            raise others
        return None
    row = await connection.fetchrow(QUERIES["read_version"])
    if row is None:
        return None
    if row["version"] > LATEST:
        raise SchemaTooNew(
            f"{location} has schema version {row['version']}, this release knows {LATEST}; "
            "use the release that wrote it, or a newer one"
        )
    if row["mode"] not in (one.value for one in Mode):
        raise others
    mode = Mode(row["mode"])
    return Schema(row["version"], mode, f"{_NAMES[mode]}, since its tables were made")


async def current(connection: Connection, location: str) -> Schema:
    """:func:`look` for those who cannot upgrade: the version has to be the latest.

    :raises StoreUnusable: older, or without any tables.
    """
    found = await look(connection, location)
    if found is None or found.version < LATEST:
        raise StoreUnusable(
            f"{location} has schema version {found.version if found else 0}, reading needs {LATEST}; "
            "run `chandlery db upgrade` first"
        )
    return found


async def upgrade(database: Database, wanted: Mode | None = None) -> tuple[Schema, list[int]]:
    """Bring the database to the latest version, each step in one transaction.

    Safe to run from several processes at once: each step looks at the version again under a lock.

    :param wanted: the mode of a new database; None for TimescaleDB where the server offers it.
    :return: the schema, and the versions this call applied.
    :raises StoreUnusable: another program's database, a right is lacking.
    """
    location = database.location
    found = await database.write(lambda connection: look(connection, location))
    if found is not None and found.version == LATEST:
        return found, []
    mode, why = (found.mode, found.why) if found else await _choose(database, wanted)
    applied: list[int] = []
    for version, name, text in sql.migrations("postgres", mode.value):

        async def step(connection: Connection, version: int = version, name: str = name, text: str = text) -> bool:
            await connection.execute(QUERIES["have_patience"])
            await connection.execute(QUERIES["lock_upgrade"], timeout=_PATIENCE_SECONDS)
            there = await look(connection, location)
            if there is not None and there.version >= version:
                return False
            if there is None:
                await connection.execute(QUERIES["make_versions"])
            await connection.execute(text, timeout=_PATIENCE_SECONDS)
            await connection.execute(QUERIES["save_version"], version, name, mode.value)
            return True

        if await database.write(step):
            applied.append(version)
    made = await database.write(lambda connection: current(connection, location))
    return Schema(made.version, made.mode, why if made.mode is mode else made.why), applied


async def _choose(database: Database, wanted: Mode | None) -> tuple[Mode, str]:
    """The mode of a new database, and why; the extension is there afterwards if it is TimescaleDB."""
    offer = await database.write(lambda connection: connection.fetchrow(QUERIES["offers_timescaledb"]))
    assert offer is not None
    if wanted is Mode.PLAIN:
        return Mode.PLAIN, f"{_NAMES[Mode.PLAIN]}, as asked for"
    if not offer["installed"]:
        lacking = ""
        if not offer["available"]:
            lacking = f"the server (PostgreSQL {offer['server']}) does not offer the extension timescaledb"
        elif not offer["loaded"]:
            lacking = "timescaledb is not in shared_preload_libraries of the server"
        if lacking and wanted is Mode.TIMESCALEDB:
            raise StoreUnusable(f"{database.location}: {lacking}")
        if lacking:
            return Mode.PLAIN, f"plain PostgreSQL, because {lacking}"
        try:
            await database.write(_create_timescaledb)
        except StoreUnusable as error:
            if not isinstance(error.__cause__, asyncpg.InsufficientPrivilegeError):
                raise
            said = str(error.__cause__).splitlines()[0]
            what = f"the role may not create the extension timescaledb ({said})"
            hint = f"have an administrator run CREATE EXTENSION timescaledb in {database.url.database}"
            if wanted is Mode.TIMESCALEDB:
                raise StoreUnusable(f"{database.location}: {what}; {hint}") from error
            return Mode.PLAIN, f"plain PostgreSQL, because {what}; {hint} before the schema is made to use it"
    version, licence = await database.write(_version)
    if licence != "timescale":
        if wanted is Mode.TIMESCALEDB:
            raise StoreUnusable(f"{database.location}: timescaledb has no continuous aggregates in this edition")
        return Mode.PLAIN, "plain PostgreSQL, because timescaledb runs there in an edition without aggregates"
    return Mode.TIMESCALEDB, f"TimescaleDB {version}"


async def _create_timescaledb(connection: Connection) -> None:
    # One at a time: of two who make an extension at once, one fails, whatever they say of its existence.
    await connection.execute(QUERIES["have_patience"])
    await connection.execute(QUERIES["lock_upgrade"], timeout=_PATIENCE_SECONDS)
    await connection.execute(QUERIES["create_timescaledb"], timeout=_PATIENCE_SECONDS)


async def _version(connection: Connection) -> tuple[str, str]:
    row = await connection.fetchrow(QUERIES["offers_timescaledb"])
    assert row is not None
    return row["installed"], row["licence"]
