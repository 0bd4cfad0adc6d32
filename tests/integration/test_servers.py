"""The tests' own servers: what other tests rely on them for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

from tests.support import servers
from tests.support.pgbouncer_server import CONSOLE, PgBouncer
from tests.support.postgres_programs import CHOSEN, postgres_programs
from tests.support.postgres_server import MAINTENANCE, TIME_ZONE, USER, PrivatePostgres, StreamingReplica
from tests.support.server_process import DEADLINE, ServerFailed, is_alive, until
from tests.support.small_disk import SmallDiskPostgres

ROOT = Path(__file__).resolve().parents[2]
#: Writes to the write-ahead log only.
FILL_THE_LOG = "SELECT pg_logical_emit_message(true, 'made', repeat('a', 1000000)) FROM generate_series(1, 50)"


def make(statements: str, server: PrivatePostgres) -> Callable[[str], str]:
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


@pytest.mark.parametrize("durable", [False, True])
def test_what_was_committed_survives_a_kill(durable: bool) -> None:
    with PrivatePostgres(durable=durable) as server:
        name = server.create_database()
        server.sql(name, "CREATE TABLE numbers AS SELECT generate_series(1, 1000) AS number")
        pids = [int(pid) for pid in server.sql(name, "SELECT pid FROM pg_stat_activity").splitlines()]
        folder = server.folder
        server.kill()
        assert not any(is_alive(pid) for pid in pids)
        with pytest.raises(ServerFailed, match="Connection refused"):
            server.sql(name, "SELECT 1")
        server.start()
        assert "was not properly shut down" in server.log_tail()
        assert server.sql(name, "SELECT count(*) FROM numbers") == "1000"
        server.reload("statement_timeout", "7s")
        assert server.sql(name, "SHOW statement_timeout") == "7s"
        server.restart()
        server.reload("statement_timeout", None)
        assert server.sql(name, "SHOW statement_timeout; SHOW fsync") == "0\n" + ("on" if durable else "off")
        server.kill()
    assert not folder.exists()


def test_a_replica_follows_stands_still_and_comes_back() -> None:
    with PrivatePostgres() as primary, StreamingReplica(primary) as replica:
        name = primary.create_database()
        primary.sql(name, "CREATE TABLE numbers AS SELECT 1 AS number")
        replica.caught_up()
        count = "SELECT count(*) FROM numbers"
        assert replica.sql(name, count) == "1"
        with pytest.raises(ServerFailed, match="read-only transaction"):
            replica.sql(name, "INSERT INTO numbers VALUES (2)")
        replica.pause_replay()
        primary.sql(name, "INSERT INTO numbers VALUES (2)")
        with pytest.raises(ServerFailed, match="not within"):
            replica.caught_up(seconds=0.2)
        assert replica.sql(name, count) == "1"
        replica.resume_replay()
        replica.caught_up()
        assert replica.sql(name, count) == "2"
        replica.kill()
        primary.sql(name, "INSERT INTO numbers VALUES (3)")
        primary.kill()
        replica.start()
        assert replica.sql(name, count) in {"2", "3"}
        primary.start()
        primary.sql(name, "INSERT INTO numbers VALUES (4)")
        replica.caught_up()
        assert replica.sql(name, count) == "4"


async def test_pgbouncer_shares_connections_between_transactions(postgres: PrivatePostgres) -> None:
    with PgBouncer(
        postgres, settings={"default_pool_size": 1, "min_pool_size": 0, "reserve_pool_size": 0}
    ) as pooler:
        name = postgres.create_database()
        clients = [await asyncpg.connect(pooler.url(name), statement_cache_size=0) for _ in range(5)]
        pids = {await client.fetchval("SELECT pg_backend_pid()") for client in clients}
        assert len(pids) == 1
        for client in clients:
            await client.close()
        with pytest.raises(asyncpg.PostgresError, match="authentication failed"):
            await asyncpg.connect(pooler.url(name, password="wrong"))
        assert "transaction" in pooler.sql(CONSOLE, "SHOW POOLS")
        pooler.restart()
        assert pooler.sql(name, "SELECT current_user") == USER
        postgres.drop_database(name)


def test_a_full_disk_fails_the_statement_and_is_cleared() -> None:
    with SmallDiskPostgres() as server:
        name = server.create_database()
        server.sql(name, "CREATE TABLE texts (content text)")
        server.fill(left=1_000_000)
        insert = "INSERT INTO texts SELECT repeat('a', 1000 + 0 * generate_series(1, 50000))"
        with pytest.raises(ServerFailed, match="No space left on device"):
            server.sql(name, insert)
        assert server.sql(name, "SELECT count(*) FROM texts") == "0"
        server.clear()
        server.sql(name, insert)
        assert server.sql(name, "SELECT count(*) FROM texts") == "50000"


def test_a_full_disk_with_the_log_inside_stops_the_server() -> None:
    with SmallDiskPostgres(log_inside=True) as server:
        name = server.create_database()
        server.sql(name, "CREATE TABLE numbers AS SELECT 1 AS number")
        server.fill()
        with pytest.raises(ServerFailed, match="server closed the connection"):
            server.sql(name, FILL_THE_LOG)
        assert "No space left on device" in server.log_tail()
        server.clear()
        # Not stopped in order: asked to while it recovers by itself, PostgreSQL has been seen to wait for ever.
        server.kill()
        server.start()
        assert server.sql(name, "SELECT count(*) FROM numbers") == "1"


@pytest.mark.crash
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_run_that_was_interrupted(signal_number: signal.Signals) -> None:
    program = """
import sys
from tests.support import servers
server = servers.postgres()
print(server.folder, server.sql("postgres", "SELECT pid FROM pg_stat_activity LIMIT 1"), flush=True)
sys.stdin.read()
"""
    run = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with run:
        assert run.stdout is not None
        folder, pid = run.stdout.readline().split()
        assert Path(folder).exists()
        run.send_signal(signal_number)
        run.wait(DEADLINE)
    until(lambda: not Path(folder).exists(), "the folder is removed")
    assert not is_alive(int(pid))


@pytest.mark.parametrize("missing, count", [("PostgreSQL", 2), ("TimescaleDB", 1)])
def test_a_run_without_a_server_says_so_at_its_end(missing: str, count: int) -> None:
    # Not pytest's folder, which the server's user may not enter.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        if missing == "TimescaleDB":
            # The same programs, but the one that knows where extensions lie.
            for program in postgres_programs().folder.iterdir():
                if program.name != "pg_config":
                    (Path(folder) / program.name).symlink_to(program)
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "test_a_template"],
            cwd=ROOT,
            env=os.environ | {CHOSEN: folder},
            capture_output=True,
            text=True,
            check=False,
        )
    last = ran.stdout.splitlines()[-2:]
    assert last[0].startswith(f"{missing} tests were not run: "), ran.stdout
    assert last[0].endswith(f"(tests: {count})")
