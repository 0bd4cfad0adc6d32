"""Transactions that change data: none while the safety state forbids it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

from store.control import Control, OperatingState, SafetyState
from store.sqlite.database import transaction
from store.sqlite.rows import QUERIES


def read_control(connection: sqlite3.Connection) -> Control:
    """What an operator has switched."""
    safety, operating, reason, changed_at = connection.execute(QUERIES["read_control"]).fetchone()
    return Control(
        safety=SafetyState(safety), operating=OperatingState(operating), reason=reason, changed_at=changed_at
    )


@contextlib.contextmanager
def data_transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """One write transaction of data: all of it or none.

    The write lock orders it against a change of the state, so the state that is seen here holds until COMMIT.

    :raises StoreReadOnly: the safety state forbids it.
    """
    with transaction(connection):
        read_control(connection).check_writable()
        yield
