"""Candles from each tier beside ArcticDB, memory-mapped Arrow, raw sqlite3, raw asyncpg and raw Redis.

python -m bench.tiers [--json] [--candles N] [--rounds N]

Each question is answered by all in turn, in one process: 50 and 99 of 100 answers came within so many milliseconds.
The others answer with nothing but rows, and their frames, files and values hold exactly those that are asked for;
ours say besides what is known of gaps, as of the newest revision. A tenth of `--candles` rows in a range. The mix
of reads is in `bench.tier_mix`, Redis as its server sees it in `bench.tier_redis`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import structlog
import uvloop

from bench.market import START, walk
from bench.paired import Result, run
from bench.tier_others import ArcticFrames, RawArrow, RawPostgres, RawRedis, RawSqlite
from bench.tier_places import (
    CLOCK,
    SERIES,
    Tiers,
    fill,
    opened_tiers,
    untiered,
)
from bench.turns import Contender, beside, in_turn, table
from market.candle import open_times_ms
from market.clock import to_ms
from market.errors import Mismatch
from market.timeframe import TIMEFRAMES
from store.answer import CandleAnswer
from store.market_data import MarketData
from store.postgres.address import DatabaseUrl
from store.postgres.mode import Mode
from store.postgres.store import PostgresStore
from store.sqlite.store import SqliteStore
from tests.support.postgres_server import PrivatePostgres
from tests.support.redis_server import PrivateRedis

#: A warm range takes at most half of ArcticDB's time.
BUDGET = 2.0
_LATEST = 1_000
#: Minutes before the range, which begins with the second month, and after it: it ends before the newest month,
#: which is in no sealed chunk.
_SKIPPED, _AFTER = (to_ms("2022-02-01") - START) // 60_000, 45_000
_SLOW = 4

_Ask = Callable[[MarketData], Awaitable[CandleAnswer]]


def _expired() -> None:
    """Wait until a version that was asked for has to be asked for again."""
    time.sleep(0.12)


@dataclass(frozen=True)
class Question:
    """What is asked of everybody."""

    name: str
    ask: _Ask
    #: The right rows.
    rows: pa.Table

    @property
    def bounds(self) -> tuple[int, int]:
        """``[start, end)`` that holds exactly these rows."""
        times = open_times_ms(self.rows)
        return int(times[0]), int(times[-1]) + 1


@dataclass(frozen=True)
class Ours:
    """Our stores, with and without tiers."""

    folder: Path
    sqlite: SqliteStore
    postgres: PostgresStore
    warm: Tiers
    #: A memory that is forgotten before each read.
    cold: Tiers
    over_postgres: Tiers
    mode: str


def questions(stored: pa.Table, size: int) -> list[Question]:
    """The latest rows, and a range of `size` rows."""
    rows = stored.slice(_SKIPPED, size)
    start, end = int(open_times_ms(rows)[0]), int(open_times_ms(rows)[-1]) + 60_000
    latest = min(_LATEST, stored.num_rows)
    return [
        Question(
            f"latest {latest:,}",
            lambda market_data: market_data.candles(SERIES, limit=latest),
            stored.slice(stored.num_rows - latest),
        ),
        Question(
            f"range of {size:,}",
            lambda market_data: market_data.candles(SERIES, start_ms=start, end_ms=end),
            rows,
        ),
    ]


def _checked(question: Question, market_data: MarketData, tiers: frozenset[str]) -> Callable[[], Awaitable[object]]:
    """Ask, and make sure of which tier answered."""

    async def answer() -> CandleAnswer:
        found = await question.ask(market_data)
        if found.table.num_rows != question.rows.num_rows or found.tier not in tiers:
            raise Mismatch(
                f"{question.name}: {found.table.num_rows} rows from {found.tier}, not {', '.join(tiers)}"
            )
        return found

    return answer


def ours(question: Question, our: Ours) -> dict[str, Contender]:
    """Our tiers, by short names."""
    memory, database = frozenset({"memory"}), frozenset({"database"})
    # The newest rows are in no sealed chunk, so they are on no disk.
    disk = database if question.name.startswith("latest") else frozenset({"disk"})
    warm = _checked(question, our.warm.market_data, memory)
    cold = our.cold.views

    async def fingerprinted() -> str:
        return (await question.ask(our.warm.market_data)).fingerprint

    def forget_all() -> None:
        cold.forget()
        # What this process knows of files that it has opened before.
        if our.cold.disk is not None:
            our.cold.disk._checked.clear()

    over = _checked(question, our.over_postgres.market_data, memory)
    what = "disk" if disk != database else "nothing held"
    return {
        "memory": Contender("memory", warm, warm),
        "fingerprint": Contender("memory, with its fingerprint", fingerprinted, warm),
        "opened": Contender(
            f"{what}, files never opened", _checked(question, our.cold.market_data, disk), forget_all
        ),
        "disk": Contender(
            f"{what}, files opened before", _checked(question, our.cold.market_data, disk), cold.forget
        ),
        "sqlite": Contender("database, SQLite", _checked(question, untiered(our.sqlite), database), every=_SLOW),
        "postgres": Contender(
            f"database, {our.mode}", _checked(question, untiered(our.postgres), database), every=_SLOW
        ),
        "asked": Contender(f"memory over {our.mode}, version asked for", over, _expired),
        "known": Contender(f"memory over {our.mode}, within 100 ms", over, over),
    }


@contextlib.contextmanager
def others(
    question: Question, our: Ours, arctic: ArcticFrames, redis: PrivateRedis, raw: RawPostgres, table: pa.Table
) -> Iterator[dict[str, Contender]]:
    """Those that ours stand beside, by short names."""
    key = question.name
    start, end = question.bounds
    mapped = RawArrow(our.folder / f"{start}-{end}.arrow", question.rows)
    arctic.write(key, question.rows)
    sqlite = RawSqlite(our.folder / f"{start}-{end}.sqlite3", table)
    shared = RawRedis(redis, key, question.rows)
    try:
        found = {
            "arctic": Contender(f"{arctic.NAME}, pandas", lambda: arctic.frame(key)),
            "arctic arrow": Contender(f"{arctic.NAME}, Arrow", lambda: arctic.arrow(key)),
            "mapped": Contender("mapped Arrow", mapped.read),
            "summed": Contender("mapped Arrow, one column summed", mapped.summed),
            "redis": Contender("Redis GET and decode", shared.read),
            "sqlite3": Contender("sqlite3 rows", lambda: sqlite.rows(start, end), every=_SLOW),
            "asyncpg": Contender("asyncpg fetch", lambda: raw.rows(start, end), every=_SLOW),
        }
        for one in found.values():
            # Warm, as our memory is.
            if one.every == 1:
                one.before = one.work
        yield found
    finally:
        sqlite.close()
        shared.close()


#: Which of ours stands beside which of the others.
_PAIRS = (
    ("memory", "arctic", BUDGET),
    ("memory", "arctic arrow", BUDGET),
    ("memory", "mapped", None),
    ("memory", "summed", None),
    ("memory", "redis", None),
    ("memory", "sqlite3", None),
    ("memory", "sqlite", None),
    ("fingerprint", "arctic", None),
    ("opened", "arctic", None),
    ("disk", "arctic", None),
    ("disk", "sqlite3", None),
    ("sqlite", "sqlite3", None),
    ("postgres", "asyncpg", None),
    ("asked", "asyncpg", None),
    ("known", "asyncpg", None),
    ("asked", "postgres", None),
)


async def _answered(question: Question, our: Ours, everybody: dict[str, Contender], rounds: int) -> list[Result]:
    await _until_from("memory", question, our.warm.market_data)
    await _until_from("memory", question, our.over_postgres.market_data)
    if question.name.startswith("range"):
        # Files are written soon after they were read.
        await _until_from("disk", question, our.cold.market_data, our.cold.views.forget)
    for one in everybody.values():
        _same(question, one.name, await one.turn())
    await in_turn(list(everybody.values()), rounds)
    is_range = question.name.startswith("range")
    pairs = [
        beside(
            question.name, question.rows.num_rows, everybody[mine], everybody[theirs], budget if is_range else None
        )
        for mine, theirs, budget in _PAIRS
    ]
    return [*table(question.name, list(everybody.values())), *pairs]


async def _until_from(
    tier: str, question: Question, market_data: MarketData, before: Callable[[], None] = lambda: None
) -> None:
    """Ask until the answer comes from there."""
    for _ in range(500):
        before()
        if (await question.ask(market_data)).tier == tier:
            return
        await asyncio.sleep(0.01)
    raise Mismatch(f"{question.name} never came from {tier}")


def _same(question: Question, name: str, found: object) -> None:
    """Everybody answers with the same rows."""
    if isinstance(found, str | float):
        return
    if isinstance(found, CandleAnswer):
        found = found.table
    rows = question.rows
    count = found.num_rows if isinstance(found, pa.Table) else len(found) if isinstance(found, Sequence) else -1
    closes = found.column("close").to_numpy() if isinstance(found, pa.Table) else None
    if hasattr(found, "index"):
        count = len(found)
    if count != rows.num_rows or (closes is not None and (closes != rows.column("close").to_numpy()).any()):
        raise Mismatch(f"{question.name}: {name} has other rows")


async def derived(our: Ours, stored: pa.Table, rounds: int) -> list[Result]:
    """The latest hours, kept or made of minutes each time."""
    hours = SERIES.at(TIMEFRAMES["1h"])
    count = min(_LATEST, stored.num_rows // 60 - 1)
    question = Question(
        f"latest {count:,} hours of minutes",
        lambda market_data: market_data.candles(hours, limit=count),
        stored.slice(0, count),
    )
    await _until_from("memory", question, our.warm.market_data)
    warm = _checked(question, our.warm.market_data, frozenset({"memory"}))
    kept = Contender("memory", warm, warm)
    made = Contender(
        "rolled up from SQLite", _checked(question, untiered(our.sqlite), frozenset({"database"})), every=_SLOW
    )
    await in_turn([kept, made], rounds)
    return [*table(question.name, [kept, made]), beside(question.name, count, kept, made)]


async def _measure(count: int, rounds: int, folder: Path) -> list[Result]:
    size = max(count // 10, 100)
    stored = walk(_SKIPPED + size + _AFTER)
    found: list[Result] = []
    async with contextlib.AsyncExitStack() as stack:
        server = stack.enter_context(PrivatePostgres(settings={"shared_buffers": "512MB"}))
        redis = stack.enter_context(PrivateRedis())
        mode = Mode.TIMESCALEDB if server.offers_timescaledb else Mode.PLAIN
        url = server.url(server.create_database())
        await PostgresStore.upgraded(DatabaseUrl.parse(url), mode)
        postgres = await stack.enter_async_context(
            PostgresStore.opened(DatabaseUrl.parse(url), CLOCK, refresh=False)
        )
        sqlite = await stack.enter_async_context(SqliteStore.opened(folder / "market_data.sqlite3", CLOCK))
        for store in (sqlite, postgres):
            await fill(store, stored)
        our = Ours(
            folder,
            sqlite,
            postgres,
            stack.enter_context(opened_tiers(sqlite, None)),
            stack.enter_context(opened_tiers(sqlite, folder / "cache")),
            stack.enter_context(opened_tiers(postgres, None)),
            mode.value,
        )
        raw = await stack.enter_async_context(RawPostgres.opened(server, stored))
        arctic = ArcticFrames(folder / "arctic")
        for question, turns in zip(questions(stored, size), (40 * rounds, 20 * rounds), strict=True):
            with others(question, our, arctic, redis, raw, stored) as them:
                found += await _answered(question, our, ours(question, our) | them, turns)
        found += await derived(our, stored, 20 * rounds)
    return found


def measure(count: int, rounds: int) -> list[Result]:
    """Both questions to everybody, and hours."""
    # What is said belongs to the results alone.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    # As our commands run.
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(count, rounds, Path(folder)))


if __name__ == "__main__":
    run(measure, __doc__)
