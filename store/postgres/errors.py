"""PostgreSQL's errors in the words of :mod:`market.errors`: who must do what, without secrets."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator

import asyncpg

from market.errors import ChandleryError, StoreBusy, StoreUnavailable, StoreUnusable
from store.control import Control, SafetyState, read_only
from store.postgres.address import DatabaseUrl

#: Undone by the server because of what others did meanwhile; the same work may be done again.
CONFLICTS = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)

_NOTHING = "nothing was written"
#: What ``check_writable()`` fails with; class RO is none of PostgreSQL's.
_READ_ONLY = "RO001"


def connection_lost(error: BaseException) -> bool:
    """True where the server, or the way to it, is gone: another server may answer."""
    if isinstance(error, ssl.SSLError | socket.gaierror):
        return False
    if isinstance(error, OSError | asyncpg.PostgresConnectionError | asyncpg.OperatorInterventionError):
        return not isinstance(error, asyncpg.QueryCanceledError)
    if isinstance(error, asyncpg.InternalClientError):
        # The last words of a dying server reach the driver when it expects none.
        return True
    return isinstance(error, asyncpg.InterfaceError) and "clos" in str(error)


@contextlib.contextmanager
def translated(url: DatabaseUrl, *, opening: bool = False) -> Iterator[None]:
    """Errors of the driver, the network and the server in our words, naming the database.

    :param opening: nothing worked yet, so that what the URL says is at fault and becomes BadInput.
    """
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
        raise _in_our_words(error, url, opening) from error


def _in_our_words(error: Exception, url: DatabaseUrl, opening: bool) -> ChandleryError:
    if accepted := _wrong_in_url(error, url):
        return url.refused(accepted) if opening else StoreUnusable(f"{url.shown} refuses us: expected {accepted}")
    if isinstance(error, asyncpg.PostgresError):
        told = _told(error, url)
        if told is not None:
            return told
    if isinstance(error, TimeoutError):
        return StoreUnavailable(f"{url.shown} does not answer in time; check the server and the network, try again")
    if connection_lost(error):
        return StoreUnavailable(
            f"{url.shown} does not answer ({_said(error)}); check that the server runs, try again"
        )
    return StoreUnusable(f"{url.shown}: {_said(error)}")


def _wrong_in_url(error: Exception, url: DatabaseUrl) -> str | None:
    """What the setting should say instead; None where the setting is not at fault."""
    role = f"the role {url.user!r}" if url.user else "the role"
    # PgBouncer tells all of its refusals as a violation of the protocol.
    refused = str(error) if isinstance(error, asyncpg.ProtocolViolationError) else ""
    if isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN:
        return f"the name of a host that exists ({url.host!r} is not known)"
    if isinstance(error, ssl.SSLError):
        return f"an sslmode and sslrootcert that fit the server's certificate ({_said(error)})"
    if isinstance(error, ConnectionError) and "rejected SSL" in str(error):
        return "sslmode=prefer or disable, or a server with TLS (this one offers none)"
    if isinstance(error, asyncpg.InvalidPasswordError) or "authentication failed" in refused:
        return f"the password of {role} ({_said(error)})"
    if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
        return f"a role that the server lets in from here, with the TLS it asks for ({_said(error)})"
    if isinstance(error, asyncpg.InvalidCatalogNameError) or "does not exist" in refused:
        return f"the name of a database that exists; create {url.database!r} first ({_said(error)})"
    if isinstance(error, asyncpg.ClientConfigurationError):
        return f"a URL that the driver takes ({_said(error)})"
    return None


def _told(error: asyncpg.PostgresError, url: DatabaseUrl) -> ChandleryError | None:
    """What the server says of itself or of our statement; None for what is no special case."""
    said, state = _said(error), error.sqlstate or ""
    if state == _READ_ONLY:
        return read_only(Control(safety=SafetyState(error.message), reason=error.detail or ""))
    if isinstance(error, asyncpg.LockNotAvailableError):
        return StoreBusy(f"{url.shown}: another process holds a lock for too long; {_NOTHING}, try again")
    if isinstance(error, asyncpg.QueryCanceledError):
        return StoreBusy(
            f"{url.shown}: a statement took too long and was stopped ({said}); {_NOTHING}, "
            "try again, or raise database_timeout"
        )
    if isinstance(error, CONFLICTS):
        return StoreBusy(f"{url.shown}: others wrote the same rows again and again; {_NOTHING}, try again ({said})")
    if isinstance(error, asyncpg.TooManyConnectionsError):
        return StoreBusy(
            f"{url.shown} takes no more connections ({said}); raise the server's max_connections, "
            "lower pool_max, or put PgBouncer in front"
        )
    if isinstance(error, asyncpg.DiskFullError) or (state == "58030" and "No space left" in said):
        return StoreUnusable(f"no space left on the server of {url.shown} ({said}); {_NOTHING}")
    if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
        return StoreUnusable(
            f"{url.shown} is read-only, a standby or set so ({said}); {_NOTHING}; name the primary in {url.setting}"
        )
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return StoreUnusable(
            f"{url.shown}: the role {url.user or 'used'} lacks a right ({said}); {_NOTHING}; GRANT it to the role"
        )
    return None


def _said(error: Exception) -> str:
    """The first line of what a foreign error says."""
    text = str(error).strip() or type(error).__name__
    return " ".join(text.splitlines()[0].split())
