"""What PostgreSQL, its driver and the network say, in our words."""

from __future__ import annotations

import asyncpg
import pytest

from market.errors import BadInput, ChandleryError, StoreBusy, StoreUnavailable, StoreUnusable
from store.postgres.address import DatabaseUrl
from store.postgres.errors import connection_lost, translated

URL = DatabaseUrl.parse("postgresql://reader:hunter2@db/market")


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (asyncpg.DiskFullError("could not extend file"), StoreUnusable, "no space left on the server"),
        (asyncpg.PostgresIOError("could not write: No space left on device"), StoreUnusable, "no space left"),
        (asyncpg.ReadOnlySQLTransactionError("cannot execute INSERT"), StoreUnusable, "is read-only"),
        (asyncpg.InsufficientPrivilegeError("permission denied"), StoreUnusable, "the role reader lacks a right"),
        (asyncpg.UndefinedTableError("no such table"), StoreUnusable, "no such table"),
        (asyncpg.QueryCanceledError("statement timeout"), StoreBusy, "took too long"),
        (asyncpg.LockNotAvailableError("lock timeout"), StoreBusy, "holds a lock"),
        (asyncpg.SerializationError("conflict"), StoreBusy, "others wrote the same rows"),
        (asyncpg.DeadlockDetectedError("deadlock"), StoreBusy, "others wrote the same rows"),
        (asyncpg.TooManyConnectionsError("too many clients"), StoreBusy, "takes no more connections"),
        (asyncpg.AdminShutdownError("terminating"), StoreUnavailable, "does not answer"),
        (asyncpg.CannotConnectNowError("starting up"), StoreUnavailable, "starting up"),
        (asyncpg.ConnectionDoesNotExistError("closed in the middle"), StoreUnavailable, "does not answer"),
        (asyncpg.InterfaceError("connection is closed"), StoreUnavailable, "does not answer"),
        # What the driver says when a dying server speaks out of turn.
        (
            asyncpg.InternalClientError("unknown protocol state 3"),
            StoreUnavailable,
            "does not answer",
        ),
        (ConnectionResetError(104, "reset"), StoreUnavailable, "does not answer"),
        (TimeoutError(), StoreUnavailable, "does not answer in time"),
        (asyncpg.InterfaceError("another operation is in progress"), StoreUnusable, "another operation"),
    ],
)
def test_each_error_says_who_must_do_what(error: Exception, kind: type[ChandleryError], said: str) -> None:
    with pytest.raises(ChandleryError, match=said) as caught, translated(URL):
        raise error
    assert type(caught.value) is kind
    assert caught.value.__cause__ is error
    assert URL.shown in str(caught.value)
    assert connection_lost(error) == (kind is StoreUnavailable)


def test_more_lines_become_one() -> None:
    with pytest.raises(StoreUnusable) as caught, translated(URL):
        raise asyncpg.UndefinedTableError("first\n  second")
    assert str(caught.value) == f"{URL.shown}: first"


def test_the_url_is_at_fault_only_while_opening() -> None:
    error = asyncpg.InvalidPasswordError("password authentication failed")
    with pytest.raises(BadInput, match="expected the password of the role 'reader'"), translated(URL, opening=True):
        raise error
    with pytest.raises(StoreUnusable, match="refuses us: expected the password"), translated(URL):
        raise error
