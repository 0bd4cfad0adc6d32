"""Every implementation of a candle store, by name; a new one joins all contract tests by being named here."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from store.sqlite.store import DATABASE_NAME, SqliteStore


def sqlite(folder: Path, clock: Any) -> AbstractAsyncContextManager[SqliteStore]:
    return SqliteStore.opened(folder / DATABASE_NAME, clock)


#: Name of an implementation -> how to open an empty one.
STORES: dict[str, Callable[[Path, Any], AbstractAsyncContextManager[Any]]] = {"sqlite": sqlite}
