"""Connections to Google Cloud SQL through Google's connector: its certificates, and login as a Google account.

The URL is ``postgresql+cloudsql://user@/database?instance=project:region:name``; see :class:`DatabaseUrl`. With
``iam=true`` the user is a Google account that is a user of the instance (a service account without its ending
``.gserviceaccount.com``); we run as it by Google's Application Default Credentials. Needs the extra ``cloud-sql``.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import ssl
from collections.abc import AsyncIterator, Iterator
from types import ModuleType
from typing import Any

import asyncpg

from store.postgres.address import DatabaseUrl
from store.postgres.connection import Connection, PoolRules, prepare

#: Answers of Google's API that do not change by asking again.
_REFUSALS = (400, 401, 403, 404)
#: The API is asked for certificates before the first connection, and again each hour.
_API_SECONDS = 15.0


class CloudSql:
    """An open connector, for every instance that the credentials may use. Open with :meth:`opened`."""

    def __init__(self, connector: Any, google: _Google) -> None:
        self._connector = connector
        self._google = google

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(
        cls, url: DatabaseUrl, *, credentials: Any = None, admin_endpoint: str | None = None
    ) -> AsyncIterator[CloudSql]:
        """Find the credentials and make a connector; nothing is asked of Google yet.

        :param url: whom an error is about.
        :param credentials: of google.auth, in place of the Application Default Credentials.
        :param admin_endpoint: in place of Google's Cloud SQL Admin API.
        :raises BadInput: the extra is not installed, or there are no credentials.
        """
        google = _Google(url)
        if credentials is None:
            try:
                # Looks for files, and for a metadata server on the network.
                credentials, _ = await asyncio.to_thread(google.auth.default, scopes=[google.SCOPE])
            except google.errors.GoogleAuthError as error:
                raise url.refused(
                    "Google credentials to use it with; run `gcloud auth application-default login`, "
                    "or set GOOGLE_APPLICATION_CREDENTIALS"
                ) from error
        # Lazily: certificates are renewed when a connection needs them, not by a task of its own that fails aloud.
        connector = google.connector.Connector(
            loop=asyncio.get_running_loop(),
            credentials=credentials,
            sqladmin_api_endpoint=admin_endpoint,
            refresh_strategy="LAZY",
        )
        async with connector:
            yield cls(connector, google)

    async def connect(self, url: DatabaseUrl, rules: PoolRules, cached: int, limited: bool) -> Connection:
        """A connection to the instance of `url`, like :func:`store.postgres.connection.connect`."""
        with self._google.in_the_drivers_words():
            async with asyncio.timeout(_API_SECONDS + rules.connect_seconds):
                connection: Connection = await self._connector.connect_async(
                    url.instance,
                    "asyncpg",
                    user=url.user,
                    password=url.password,
                    database=url.database,
                    enable_iam_auth=url.iam,
                    ip_type=url.ip,
                    timeout=rules.connect_seconds,
                    command_timeout=rules.answer_seconds if limited else None,
                    statement_cache_size=cached,
                    server_settings={"application_name": url.application_name},
                )
        try:
            await prepare(connection)
        except BaseException:
            connection.terminate()
            raise
        return connection


class _Google:
    """Google's packages. They take half a second to import, so only who has such a URL imports them."""

    SCOPE = "https://www.googleapis.com/auth/sqlservice.admin"

    def __init__(self, url: DatabaseUrl) -> None:
        try:
            self.connector = _module("google.cloud.sql.connector")
            self._refused = _module("google.cloud.sql.connector.exceptions")
            self.auth = _module("google.auth")
            self.errors = _module("google.auth.exceptions")
            self._http = _module("aiohttp")
        except ImportError as error:
            raise url.refused(
                "a database that needs no extra, or the extra installed: pip install 'chandlery[cloud-sql]'"
            ) from error

    @contextlib.contextmanager
    def in_the_drivers_words(self) -> Iterator[None]:
        """Google's errors as those that the driver raises for a server of its own."""
        try:
            yield
        except self._http.ClientResponseError as error:
            said = f"Google's API answers {error.status}: {error.message}"
            if error.status in _REFUSALS:
                raise asyncpg.ClientConfigurationError(said) from error
            raise ConnectionError(said) from error
        except self._http.ClientError as error:
            raise ConnectionError(f"Google's API does not answer: {error}") from error
        except self.errors.TransportError as error:
            raise ConnectionError(f"Google's accounts do not answer: {error}") from error
        except self.errors.GoogleAuthError as error:
            raise asyncpg.ClientConfigurationError(f"Google does not take the credentials: {error}") from error
        except ssl.SSLError as error:
            # The connector asks for new certificates after this.
            raise ConnectionError(f"the instance and we do not take each other's certificates: {error}") from error
        except (
            self._refused.CloudSQLIPTypeError,
            self._refused.AutoIAMAuthNotSupported,
            self._refused.IncompatibleDriverError,
            self._refused.CloudSQLConnectionError,
            self._refused.TLSVersionError,
        ) as error:
            raise asyncpg.ClientConfigurationError(str(error)) from error
        except ValueError as error:
            if isinstance(error, asyncpg.InterfaceError):
                raise
            # A region that is not the instance's.
            raise asyncpg.ClientConfigurationError(str(error)) from error


def _module(name: str) -> ModuleType:
    return importlib.import_module(name)
