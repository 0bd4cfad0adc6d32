"""Candle stores that fail when told to, alone and as the two sides of a hybrid one."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from market.errors import StoreUnavailable
from market.instrument import Series
from store.batch import CandleBatch
from store.candle_store import CandleStore
from store.consistency import differences
from store.difference import instrument_differences
from store.hybrid.catch_up import CatchUpRules
from store.hybrid.side import Place
from store.hybrid.store import HybridStore
from store.sqlite.store import SqliteStore

#: Nothing waits long, and nothing is compared but when a test asks for it.
QUICK = CatchUpRules(share=0.99, first_pause_s=0.01, longest_pause_s=0.02)
#: Seconds after which a test gives up waiting.
DEADLINE = 90.0


class Switch:
    """What happens to a store: set :attr:`error` to make every call fail."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        #: Raised once by the next write, after it was committed.
        self.after_commit: Exception | None = None
        #: Only these calls fail; None for all.
        self.only: str | None = None
        #: Names of the calls that reached the store.
        self.calls: list[str] = []
        #: Called before and after each write, for example to let something else happen first.
        self.before_write: Callable[[CandleBatch], Any] | None = None
        self.after_write: Callable[[CandleBatch], Any] | None = None

    def down(self, error: Exception | None = None) -> None:
        self.error = error or StoreUnavailable("the server is down")

    def up(self) -> None:
        self.error = None


class FailingStore:
    """A store behind a switch."""

    def __init__(self, store: CandleStore, switch: Switch) -> None:
        self._store = store
        self._switch = switch

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not inspect.iscoroutinefunction(found):
            return found

        async def call(*arguments: Any, **named: Any) -> Any:
            switch = self._switch
            # As a server that is asked, and not a function that is called: others run meanwhile.
            await asyncio.sleep(0)
            if switch.error is not None and switch.only in (None, name):
                raise switch.error
            switch.calls.append(name)
            if name == "write" and switch.before_write is not None:
                await switch.before_write(arguments[0])
            answer = await found(*arguments, **named)
            if name == "write" and switch.after_write is not None:
                await switch.after_write(arguments[0])
            if name == "write" and switch.after_commit is not None:
                error, switch.after_commit = switch.after_commit, None
                raise error
            return answer

        return call


def place(path: Path, clock: Any, switch: Switch, read_only: bool = False) -> Place:
    """An SQLite file that is away while its switch is off."""

    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[CandleStore]:
        if switch.error is not None and switch.only is None:
            raise switch.error
        async with SqliteStore.opened(path, clock, read_only) as store:
            yield FailingStore(store, switch)  # type: ignore[misc]

    return Place(location=path.name, open=opened)


@dataclass
class Pair:
    """Two files, their switches, and how to open them as one."""

    folder: Path
    clock: Any
    primary: Switch
    secondary: Switch
    rules: CatchUpRules = QUICK

    @property
    def paths(self) -> tuple[Path, Path]:
        return self.folder / "first.sqlite3", self.folder / "second.sqlite3"

    def opened(self, read_only: bool = False) -> contextlib.AbstractAsyncContextManager[HybridStore]:
        first, second = self.paths
        return HybridStore.opened(
            place(first, self.clock, self.primary, read_only),
            place(second, self.clock, self.secondary, read_only),
            self.clock,
            read_only=read_only,
            rules=self.rules,
        )

    async def assert_agree(self) -> None:
        async with self.each() as (first, second):
            await assert_agree(first, second)

    @contextlib.asynccontextmanager
    async def each(self) -> AsyncIterator[tuple[SqliteStore, SqliteStore]]:
        """The two stores themselves."""
        first, second = self.paths
        async with SqliteStore.opened(first, self.clock) as a, SqliteStore.opened(second, self.clock) as b:
            yield a, b


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Return as soon as the condition holds; other tasks run meanwhile."""
    end = time.monotonic() + DEADLINE
    while True:
        holds = condition()
        if holds if isinstance(holds, bool) else await holds:
            return
        assert time.monotonic() < end, "it did not come true in time"
        await asyncio.sleep(0.001)


async def assert_agree(primary: CandleStore, secondary: CandleStore) -> None:
    """Both answer alike: the same series, rows, digests, ledgers and instruments."""
    series = [one.series for one in await primary.series()]
    assert [one.series for one in await secondary.series()] == series
    for one in series:
        assert [found async for found in differences(primary, secondary, one)] == []
        ours = [(chunk.start, chunk.digest) for chunk in await primary.chunks(one)]
        assert [(chunk.start, chunk.digest) for chunk in await secondary.chunks(one)] == ours
        assert await ledger(secondary, one) == await ledger(primary, one)
    assert instrument_differences(await primary.instruments(), await secondary.instruments()) == []


async def ledger(store: CandleStore, series: Series) -> list[tuple[Any, ...]]:
    """What a ledger says, apart from when it was learned and who brought the present candles."""
    found: list[tuple[Any, ...]] = []
    for one in await store.coverage(series):
        said = (one.state,) if one.evidence is None else (one.state, one.source, one.evidence, one.expires_at)
        if found and found[-1][1] == one.interval.start and found[-1][2:] == said:
            found[-1] = (found[-1][0], one.interval.end, *said)
        else:
            found.append((one.interval.start, one.interval.end, *said))
    return found
