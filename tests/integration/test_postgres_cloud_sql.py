"""Google Cloud SQL through Google's own connector, against a stand-in that speaks its protocols."""

from __future__ import annotations

import datetime
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

import pytest
from google.auth.credentials import Credentials

from market.errors import BadInput, StoreUnavailable
from store.postgres.address import DatabaseUrl
from store.postgres.cloud_sql import CloudSql
from store.postgres.database import Database
from tests.support.cloud_sql_server import INSTANCE, PROJECT, REGION, CloudSqlServer
from tests.support.notes import RULES, TABLE, note, notes
from tests.support.postgres_server import PASSWORD, USER, PrivatePostgres

ACCOUNT = "ingest@project.iam"
SHOWN = f"postgresql+cloudsql://ingest%40project.iam@/market?instance={PROJECT}:{REGION}:{INSTANCE}"


class FakeCredentials(Credentials):
    """Of an account that Google has just given its token."""

    def refresh(self, request: object) -> None:
        del request
        self.token = CloudSqlServer.token
        self.expiry = datetime.datetime.now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(hours=1)


@pytest.fixture(scope="module")
def server(postgres: PrivatePostgres) -> Iterator[PrivatePostgres]:
    """A server that takes the account without a password, as Cloud SQL's does after a look at the certificate."""
    del postgres
    with PrivatePostgres() as server:
        rules = server.data / "pg_hba.conf"
        rules.write_text(f'host all "{ACCOUNT}" 127.0.0.1/32 trust\n{rules.read_text()}')
        server.restart()
        server.sql("postgres", f'CREATE ROLE "{ACCOUNT}" LOGIN; CREATE DATABASE market')
        server.sql("market", f'{TABLE}; GRANT ALL ON notes TO "{ACCOUNT}"')
        yield server


@pytest.fixture
async def google(server: PrivatePostgres, tmp_path: Path) -> AsyncIterator[CloudSqlServer]:
    server.sql("market", "TRUNCATE notes")
    async with CloudSqlServer.opened(server.port, tmp_path) as google:
        yield google


@pytest.fixture
def url() -> DatabaseUrl:
    return DatabaseUrl.parse(f"{SHOWN}&iam=true")


def connector(google: CloudSqlServer, url: DatabaseUrl) -> AbstractAsyncContextManager[CloudSql]:
    return CloudSql.opened(url, credentials=FakeCredentials(), admin_endpoint=google.endpoint)


async def test_with_iam_login(google: CloudSqlServer, url: DatabaseUrl) -> None:
    async with connector(google, url) as cloud_sql, Database.opened(url, RULES, cloud_sql=cloud_sql) as database:
        assert database.location == SHOWN
        await database.write(note("a"))
        assert await database.read(notes) == ["a"]
        assert await database.outside(lambda one: one.fetchval("SELECT current_user")) == ACCOUNT
    assert set(google.connected) == {"with IAM login"}
    # One certificate for all connections.
    assert sorted(google.asked) == ["connectSettings", f"{INSTANCE}:generateEphemeralCert"]


async def test_an_account_name_may_be_the_whole_address(google: CloudSqlServer, url: DatabaseUrl) -> None:
    whole = replace(url, user=f"{ACCOUNT}.gserviceaccount.com")
    async with (
        connector(google, whole) as cloud_sql,
        Database.opened(whole, RULES, cloud_sql=cloud_sql) as database,
    ):
        assert await database.read(lambda one: one.fetchval("SELECT current_user")) == ACCOUNT


async def test_with_a_password(google: CloudSqlServer, url: DatabaseUrl) -> None:
    plain = replace(url, iam=False, user=USER, password=PASSWORD)
    async with connector(google, plain) as cloud_sql:
        async with Database.opened(plain, RULES, cloud_sql=cloud_sql) as database:
            await database.write(note("a"))
            assert await database.read(notes) == ["a"]
        with pytest.raises(BadInput, match="expected the password of the role") as caught:
            async with Database.opened(replace(plain, password="wrong-secret"), RULES, cloud_sql=cloud_sql):
                pass
        assert "wrong-secret" not in str(caught.value)
    assert set(google.connected) == {"without login"}


@pytest.mark.parametrize(
    ("change", "fault", "kind", "said"),
    [
        ({}, (403, "missing permission cloudsql.instances.connect"), BadInput, "missing permission cloudsql"),
        ({}, (404, "The instance does not exist."), BadInput, "404: The instance does not exist"),
        (
            {"instance": f"{PROJECT}:us-east1:{INSTANCE}"},
            None,
            BadInput,
            "Provided region was mismatched",
        ),
        ({"ip": "private"}, None, BadInput, "does not have any IP addresses matching preference: PRIVATE"),
        ({"database": "nowhere"}, None, BadInput, "create 'nowhere' first"),
        ({"iam": False}, None, BadInput, "the password of the role|lets in"),
    ],
)
async def test_what_google_refuses_is_told(
    google: CloudSqlServer,
    url: DatabaseUrl,
    change: dict[str, object],
    fault: tuple[int, str] | None,
    kind: type[Exception],
    said: str,
) -> None:
    google.fault = fault
    wrong = replace(url, **change)  # type: ignore[arg-type]
    async with connector(google, wrong) as cloud_sql:
        if not wrong.iam:
            wrong = replace(wrong, user=USER, password="wrong")
        with pytest.raises(kind, match=said) as caught:
            async with Database.opened(wrong, RULES, cloud_sql=cloud_sql):
                pass
    assert "\n" not in str(caught.value)
    assert CloudSqlServer.token not in str(caught.value)


async def test_an_api_that_does_not_answer(google: CloudSqlServer, url: DatabaseUrl, unused_tcp_port: int) -> None:
    google.endpoint = f"http://127.0.0.1:{unused_tcp_port}"
    async with connector(google, url) as cloud_sql:
        with pytest.raises(StoreUnavailable, match="Google's API does not answer"):
            async with Database.opened(url, RULES, cloud_sql=cloud_sql):
                pass


async def test_without_credentials(url: DatabaseUrl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nowhere.json"))
    with pytest.raises(BadInput, match=r"database_url: .* run `gcloud auth application-default login`"):
        async with Database.opened(url, RULES):
            pass


async def test_without_the_extra(url: DatabaseUrl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.cloud.sql.connector", None)
    with pytest.raises(BadInput, match=r"database_url: .* pip install 'chandlery\[cloud-sql\]'"):
        async with Database.opened(url, RULES):
            pass
