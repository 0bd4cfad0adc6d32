"""The tests' own servers: what other tests rely on them for."""

from __future__ import annotations

import asyncpg
import pytest

from tests.support import servers
from tests.support.postgres_server import MAINTENANCE, TIME_ZONE, PrivatePostgres
from tests.support.server_process import ServerFailed


def make(statements: str, server: PrivatePostgres):
    """A maker of a template that runs statements in it."""
    return lambda url: server.sql(url.rpartition("/")[2], statements)


async def test_a_wrong_password_fails_and_the_right_one_connects(postgres: PrivatePostgres) -> None:
    connection = await asyncpg.connect(postgres.url(MAINTENANCE))
    assert await connection.fetchval("SHOW timezone") == TIME_ZONE
    await connection.close()
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(postgres.url(MAINTENANCE, password="wrong"))


def test_databases_are_empty_and_their_own(postgres: PrivatePostgres) -> None:
    one, other = postgres.create_database(), postgres.create_database()
    assert postgres.sql(one, "CREATE TABLE numbers AS SELECT 1 AS number; SELECT * FROM numbers") == "1"
    with pytest.raises(ServerFailed, match='relation "numbers" does not exist'):
        postgres.sql(other, "SELECT * FROM numbers")
    postgres.drop_database(one)
    postgres.drop_database(one)
    with pytest.raises(ServerFailed, match="does not exist"):
        postgres.sql(one, "SELECT 1")


def test_a_template_is_made_once_and_copied(postgres: PrivatePostgres) -> None:
    made: list[str] = []

    async def numbers(url: str) -> None:
        made.append(url)
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE TABLE numbers AS SELECT generate_series(1, 10) AS number")
        await connection.close()

    one, other = (servers.database_from("numbers", numbers) for _ in range(2))
    assert len(made) == 1
    postgres.sql(one, "DELETE FROM numbers")
    assert postgres.sql(other, "SELECT count(*) FROM numbers") == "10"


def test_a_template_with_timescaledb_is_copied(timescaledb: PrivatePostgres) -> None:
    statements = """
        CREATE EXTENSION timescaledb;
        CREATE TABLE hours (moment timestamptz NOT NULL, number int);
        SELECT create_hypertable('hours', 'moment');
        ALTER TABLE hours SET (timescaledb.compress);
        SELECT add_compression_policy('hours', interval '7 days');
        INSERT INTO hours
            SELECT '2023-01-01'::timestamptz + n * interval '1 hour', n FROM generate_series(1, 500) n;
        SELECT _timescaledb_functions.start_background_workers();
    """
    for _ in range(2):
        name = servers.database_from("hours", make(statements, timescaledb))
        assert timescaledb.sql(name, "SELECT count(*), sum(number) FROM hours") == "500|125250"
        compressed = "SELECT count(*) FROM (SELECT compress_chunk(one) FROM show_chunks('hours') one) AS done"
        assert int(timescaledb.sql(name, compressed)) > 1
        timescaledb.drop_database(name)
