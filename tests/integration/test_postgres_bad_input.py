"""Bad URLs, passwords and rights: one line that says which part is wrong and what to do, and no password."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from market.errors import BadInput, ChandleryError, StoreUnavailable, StoreUnusable
from store.postgres.address import DatabaseUrl
from store.postgres.connection import PoolRules
from store.postgres.database import Database
from tests.support.certificates import Authority
from tests.support.postgres_server import PASSWORD, PrivatePostgres
from tests.support.server_process import free_port

#: Impatient, so that nothing here takes long.
SHORT = PoolRules(acquire_seconds=1.0, connect_seconds=2.0)


@pytest.fixture(scope="module")
def name(postgres: PrivatePostgres) -> Iterator[str]:
    """A database with a table of somebody else's."""
    made = postgres.create_database()
    postgres.sql(made, "CREATE TABLE notes (note text)")
    yield made
    postgres.drop_database(made)


@pytest.fixture
def url(postgres: PrivatePostgres, name: str) -> DatabaseUrl:
    return DatabaseUrl.parse(postgres.url(name))


@pytest.fixture(autouse=True)
def nothing_secret_is_said(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    out, err = capfd.readouterr()
    for secret in (PASSWORD, "wrong-secret"):
        assert secret not in caplog.text + out + err


async def refused(url: DatabaseUrl, kind: type[ChandleryError], said: str, **options: object) -> None:
    with pytest.raises(kind, match=said) as caught:
        async with Database.opened(url, SHORT, **options):  # type: ignore[arg-type]
            pass
    told = str(caught.value)
    assert "\n" not in told
    assert PASSWORD not in told
    assert "wrong-secret" not in told
    assert url.host in told
    if isinstance(caught.value, BadInput):
        assert caught.value.field == "database_url"


async def test_an_unknown_host(url: DatabaseUrl) -> None:
    unknown = replace(url, host="no-such-host.invalid")
    await refused(unknown, BadInput, "a host that exists .'no-such-host.invalid' is not known")


async def test_a_port_where_nobody_listens(url: DatabaseUrl) -> None:
    await refused(replace(url, port=free_port()), StoreUnavailable, "does not answer .*check that the server")


async def test_a_socket_that_is_not_there(url: DatabaseUrl) -> None:
    await refused(replace(url, host="/nowhere"), StoreUnavailable, "does not answer")


async def test_a_wrong_password(url: DatabaseUrl) -> None:
    await refused(replace(url, password="wrong-secret"), BadInput, "expected the password of the role 'chandlery'")


async def test_an_unknown_role(url: DatabaseUrl) -> None:
    # The server does not tell strangers which roles there are.
    await refused(replace(url, user="nobody"), BadInput, "the password of the role 'nobody'")


async def test_a_role_that_may_not_log_in(url: DatabaseUrl) -> None:
    await refused(replace(url, user="pg_monitor"), BadInput, "role 'pg_monitor'|a role that the server lets in")


async def test_a_database_that_does_not_exist(url: DatabaseUrl) -> None:
    await refused(replace(url, database="nowhere"), BadInput, "a database that exists; create 'nowhere' first")


async def test_tls_where_the_server_has_none(url: DatabaseUrl) -> None:
    await refused(replace(url, sslmode="require"), BadInput, "or a server with TLS .this one offers none")


@pytest.fixture(scope="module")
def tls_only(postgres: PrivatePostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a server that lets nobody in without TLS, and the file of its authority."""
    del postgres
    authority, folder = Authority(), tmp_path_factory.mktemp("authority")
    (folder / "ca.pem").write_text(authority.certificate)
    (folder / "other.pem").write_text(Authority().certificate)
    with PrivatePostgres() as server:
        pair = authority.server("127.0.0.1")
        for name, text in (("server.crt", pair.certificate), ("server.key", pair.key)):
            path = server.data / name
            path.write_text(text)
            path.chmod(0o600)
            shutil.chown(path, server.data.owner(), server.data.group())
        (server.data / "pg_hba.conf").write_text("local all all trust\nhostssl all all all scram-sha-256\n")
        server.reload("ssl", "on")
        yield server.url("postgres"), folder


async def test_tls_where_the_server_demands_it(tls_only: tuple[str, Path]) -> None:
    text, folder = tls_only
    encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    for mode in ("", "?sslmode=require", f"?sslmode=verify-full&sslrootcert={folder}/ca.pem"):
        async with Database.opened(DatabaseUrl.parse(text + mode), SHORT) as database:
            assert await database.read(lambda one: one.fetchval(encrypted))
    url = DatabaseUrl.parse(f"{text}?sslmode=disable")
    await refused(url, BadInput, "with the TLS it asks for .*no encryption")
    url = DatabaseUrl.parse(f"{text}?sslmode=verify-ca&sslrootcert={folder}/other.pem")
    await refused(url, BadInput, "an sslmode and sslrootcert that fit the server's certificate .*verify failed")
    named = text.replace("127.0.0.1", "localhost")
    url = DatabaseUrl.parse(f"{named}?sslmode=verify-full&sslrootcert={folder}/ca.pem")
    await refused(url, BadInput, "that fit the server's certificate .*Hostname mismatch")


async def test_a_certificate_that_is_not_there(url: DatabaseUrl) -> None:
    wrong = replace(url, sslmode="verify-full", sslrootcert="/nowhere/ca.pem")
    await refused(wrong, BadInput, "/nowhere/ca.pem")


async def test_no_right_to_connect(url: DatabaseUrl, postgres: PrivatePostgres) -> None:
    other = postgres.create_database()
    postgres.sql(
        other,
        f"REVOKE CONNECT ON DATABASE {other} FROM public; CREATE ROLE stranger LOGIN PASSWORD 'wrong-secret'",
    )
    stranger = replace(url, user="stranger", password="wrong-secret", database=other)
    await refused(stranger, StoreUnusable, r"the role stranger lacks a right .*GRANT it")
    async with Database.opened(replace(stranger, database=url.database)) as database:
        for statement in ("CREATE TABLE mine ()", "CREATE EXTENSION plpython3u", "SELECT * FROM notes"):
            with pytest.raises(StoreUnusable, match=r"lacks a right|not available") as caught:
                await database.write(lambda one, statement=statement: one.execute(statement))  # type: ignore[misc]
            assert "wrong-secret" not in str(caught.value)
    postgres.drop_database(other)
    postgres.sql(url.database, "DROP ROLE stranger")


async def test_a_bad_replica_is_named(url: DatabaseUrl) -> None:
    wrong = replace(url, password="wrong-secret", setting="replica_urls")
    with pytest.raises(BadInput, match=r"replica_urls: .* the password of the role"):
        async with Database.opened(url, replicas=[wrong]):
            pass


async def test_a_rotated_password_is_no_fault_of_the_caller(url: DatabaseUrl, postgres: PrivatePostgres) -> None:
    postgres.sql(url.database, "CREATE ROLE changing LOGIN PASSWORD 'wrong-secret'")
    async with Database.opened(replace(url, user="changing", password="wrong-secret"), SHORT) as database:
        postgres.sql(url.database, "ALTER ROLE changing PASSWORD 'other'")
        database.primary.pool.drop_idle()
        with pytest.raises(StoreUnusable, match="refuses us: expected the password of the role 'changing'"):
            await database.read(lambda one: one.fetchval("SELECT 1"))
    postgres.sql(url.database, "DROP ROLE changing")
