"""A process of its own that works on a store or an archive; the tests start it, stop it and kill it.

It says ``ready``, waits for a line on its input, does its work and says ``done``; after each committed batch it
says ``written N``. A failure of ours is said as ``failed KIND message``. A store is a file, or the URL of a
PostgreSQL database.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import structlog

from market.clock import SystemClock
from market.errors import ChandleryError
from market.instrument import Series
from store.archive.archive import Archive
from store.postgres.address import DatabaseUrl
from store.postgres.schema import Mode
from store.postgres.store import PostgresStore
from store.sqlite.store import SqliteStore
from tests.support.made_candles import BTC, DAY, START, absence, batch, made

CLOCK = SystemClock()


def opened(place: str) -> AbstractAsyncContextManager[Any]:
    if place.startswith("postgresql://"):
        return PostgresStore.opened(DatabaseUrl.parse(place), CLOCK)
    return SqliteStore.opened(Path(place), CLOCK)


async def write(place: str, symbol: str, first: int, last: int, step: int, version: int) -> None:
    """Minutes [first, last), `step` in a batch; every tenth batch also says that nothing is there for a while."""
    series = Series(BTC.exchange, symbol, BTC.timeframe)
    async with opened(place) as store:
        for count, start in enumerate(range(first, last, step)):
            absences = [absence(start + 10 * step, start + 10 * step + 5)] if count % 10 == 0 else []
            minutes = range(start, min(start + step, last))
            await store.write(batch(made(minutes, version), series=series, absences=absences))
            say(f"written {start}")


async def write_many(place: str, symbols: str, count: int) -> None:
    """`count` minutes of many series, all at the same time."""
    async with opened(place) as store:
        many = [Series(BTC.exchange, symbol, BTC.timeframe) for symbol in symbols.split(",")]
        await asyncio.gather(*(store.write(batch(made(range(count)), series=one)) for one in many))


async def rewrite(place: str, count: int, versions: int) -> None:
    """The same `count` minutes again and again, each time as another version, in one batch."""
    async with opened(place) as store:
        for version in range(1, versions):
            await store.write(batch(made(range(count), version)))
            say(f"written {version}")


async def open_it(place: str) -> None:
    """Open, and so make or upgrade the schema."""
    async with opened(place) as store:
        say(f"version {await store.schema_version()}")


async def upgrade(place: str, mode: str) -> None:
    """Make or upgrade the schema of a PostgreSQL database."""
    say(f"applied {await PostgresStore.upgraded(DatabaseUrl.parse(place), Mode(mode))}")


async def archive(place: str, root: Path) -> None:
    """Bring the archive up to the store."""
    async with opened(place) as store:
        report = await Archive(root).build(store, BTC)
        say(f"archived {report.files} {report.written} {report.removed} {report.fingerprint}")


async def instants(place: str) -> None:
    """What this process takes the stored open times for, as text with a zone."""
    async with opened(place) as store:
        table = await store.read(BTC, START, START + DAY)
    say(" ".join(one.isoformat() for one in table.column("open_time").to_pylist()))


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    action, place, *rest = sys.argv[1:]
    # What is said is heard line by line.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    say("ready")
    sys.stdin.readline()
    try:
        if action == "write":
            asyncio.run(write(place, rest[0], *(int(one) for one in rest[1:])))  # type: ignore[arg-type]
        elif action == "write_many":
            asyncio.run(write_many(place, rest[0], int(rest[1])))
        elif action == "rewrite":
            asyncio.run(rewrite(place, *(int(one) for one in rest)))
        elif action == "upgrade":
            asyncio.run(upgrade(place, rest[0]))
        elif action == "archive":
            asyncio.run(archive(place, Path(rest[0])))
        elif action == "instants":
            asyncio.run(instants(place))
        else:
            asyncio.run(open_it(place))
    except ChandleryError as error:
        say(f"failed {type(error).__name__} {error}")
    say("done")


if __name__ == "__main__":
    main()
