"""How the server carries out each named query on millions of candles: by its indexes, in few partitions.

The numbers are of what was done (EXPLAIN ANALYZE), not of what was planned: how many candles a statement looked
at, and how many partitions or chunks it opened. Statements with arguments are tried with a plan made for these
arguments and with one made for any: after a few runs the server chooses between them.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import sql
from market.clock import to_ms
from market.instrument import Series
from market.interval import Interval
from market.timeframe import ONE_MINUTE
from store.postgres.address import DatabaseUrl
from store.postgres.columns import Instant
from store.postgres.connection import Connection, PoolRules, connect
from store.postgres.mode import Mode
from store.postgres.rows import find_series, read_candles
from store.postgres.store import PostgresStore
from tests.support import filled_year, servers
from tests.support.filled_year import INSTRUMENTS
from tests.support.postgres_server import PrivatePostgres

QUERIES = sql.queries("postgres")
LIVE = sql.queries("postgres_live")
TIMESCALE = sql.queries("timescaledb")
#: What is large, or grows with the candles.
LARGE = re.compile(
    r"\b(candles|candle_corrections|candle_chunks|coverage|quarantine|aggregates_due|candles_(5m|15m|1h|4h|1d)|"
    r"trade_history|trade_ids|trade_runs|message_quarantine)\b"
)
#: Tables by the names that partitions and chunks have in a plan.
PARTITION = re.compile(r"(candles|trade_history)_(\d{4}_\d\d|default)|_hyper_\d+_\d+_chunk")
BESIDE = (
    "candle_corrections",
    "candle_chunks",
    "coverage",
    "quarantine",
    "aggregates_due",
    "trade_ids",
    "trade_runs",
    "message_quarantine",
)
DEFAULTS = {"candles_default", "trade_history_default"}
DAY = 1440
#: A batch of a compressed chunk: no fewer rows can be unpacked.
PACKED = 1000
#: Rows of a few pages.
SMALL = 1000


@dataclass(frozen=True)
class Case:
    """One way of asking a named query."""

    name: str
    #: As they stand in SQL.
    arguments: tuple[str, ...]
    #: Candles, or other large rows, looked at and used or thrown away.
    rows: int
    #: Partitions or chunks of candles, or of an aggregate, opened.
    opened: int = 0
    #: Those in the plan, opened or not; the server locks them all.
    planned: int | None = None
    before: tuple[str, ...] = ()
    label: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.label}".strip()


def instant(text: str) -> str:
    return Instant(to_ms(text)).literal


def span(start: str, end: str) -> tuple[str, str, str, str]:
    return "3", "60", instant(start), instant(end)


EVER = ("3", "60", "'-infinity'::timestamptz", "'infinity'::timestamptz")
NOW = instant("2024-02-01")
OLD_DAY, NEW_DAY = span("2023-05-10", "2023-05-11"), span("2023-11-10", "2023-11-11")
OLD_HOURS, NEW_HOURS = span("2023-05-10", "2023-05-10T06:00Z"), span("2023-11-10", "2023-11-10T06:00Z")


def staged(hours: tuple[str, ...]) -> tuple[str, ...]:
    where = f"instrument_id = 3 AND timeframe = 60 AND open_time >= {hours[2]} AND open_time < {hours[3]}"
    return QUERIES["make_staging"], f"INSERT INTO candle_staging SELECT * FROM candles WHERE {where}"


def reads(name: str, *more: str, beside: int = 0) -> list[Case]:
    """A day of the months that came one series after the other (compressed), and of those that came together."""
    return [
        Case(name, (*day, *more), DAY + beside, 1, 1, label=label)
        for day, label in ((OLD_DAY, "old"), (NEW_DAY, "new"))
    ]


def corrections(name: str, *more: str) -> list[Case]:
    return [
        Case(name, (*hours, *more), 360 + PACKED, 1, before=staged(hours), label=label)
        for hours, label in ((OLD_HOURS, "old"), (NEW_HOURS, "new"))
    ]


CASES = [
    *reads("read_candles", "NULL"),
    *reads("read_candles", "1000"),
    # Over an open range the store asks for a bound first. Without it reading stops by itself, though where a
    # default partition could hold any month, a look into each is needed.
    Case("read_candles", (*EVER, "1000"), DAY, 13, label="from the beginning"),
    Case("read_candles", (*span("2023-02-10", "2023-11-11"), "1000"), DAY, 2, label="many months"),
    *reads("read_newest_candles", "1000"),
    *reads("read_candles_as_of", "NULL", NOW, beside=12),
    *reads("read_newest_candles_as_of", "1000", NOW, beside=12),
    *reads("read_candles_with_states"),
    *corrections("keep_corrections", NOW, "'rest'"),
    *corrections("replace_candles"),
    Case("raise_state", (*OLD_DAY, "2::smallint"), 2 * PACKED, 1, label="old"),
    Case("raise_state", (*NEW_DAY, "2::smallint"), DAY, 1, label="new"),
    Case("newest_bound", ("3", "60", "'infinity'::timestamptz", "1000"), 365),
    Case("newest_bound", ("3", "60", instant("2023-05-10T12:00Z"), "10000"), 130, label="of many"),
    Case("oldest_bound", ("3", "60", instant("2023-05-10T12:00Z"), "10000"), 235),
    Case("first_open", ("3", "60"), 1),
    Case("read_chunks", span("2023-05-10", "2023-05-12"), 2),
    Case("read_chunks", EVER, 365, label="of a series"),
    Case("save_chunk", ("3", "60", instant("2023-05-10"), "1", "1", "''", "1"), 1),
    Case("read_coverage", span("2023-05-10", "2023-05-12"), 5),
    Case("read_coverage", EVER, 365, label="of a series"),
    Case("coverage_bounds", ("3", "60"), 2),
    Case("read_delta", ("'binance'", "'C3/USDT'", "60", "0"), 2 * 365),
    Case(
        "series_versions",
        (
            "ARRAY['binance', 'binance', 'none']",
            "ARRAY['C3/USDT', 'none', 'C1/USDT']",
            "ARRAY[60, 60, 60]",
        ),
        0,
    ),
    Case("delete_coverage", ("3", "60", instant("2023-05-10")), 1),
    Case("insert_coverage", (*span("2025-01-01", "2025-01-02"), "'present'", "'rest'", NOW, "NULL", "NULL"), 0),
    Case("insert_quarantine", ("3", "60", NOW, "'reason'", "'raw'", "'rest'", NOW), 0),
    Case("read_quarantine", ("1", "60", "100"), 100, label="of the worst series"),
    Case("read_quarantine", ("5", "60", "100"), 100),
    Case("read_quarantine", (str(INSTRUMENTS), "60", "100"), 0, label="of a sound series"),
]
#: On TimescaleDB a chunk of trades is an hour, and has 360 of two instruments each: a few pages.
LIVE_CASES = [
    Case("read_trades", ("1", instant("2023-05-10"), instant("2023-05-10T01:00Z"), "NULL"), SMALL, 1, 1),
    Case("read_trades", ("1", instant("2023-05-10"), instant("2023-06-20"), "100"), SMALL, 2, label="limited"),
    Case("read_trade", ("1", instant("2023-05-10"), "'77761'"), 1, 1),
    Case("read_newest_trade", ("1", instant("2023-06-29")), 4, 13),
    Case("insert_trades", (
        "ARRAY[1, 1]", f"ARRAY[{instant('2023-05-10')}, {instant('2023-05-11')}]", "ARRAY['77761', 'x']",
        "ARRAY[77761, NULL]::bigint[]", "ARRAY[1.0, 1]", "ARRAY[1.0, 1]", "ARRAY['buy', 'sell']",
        f"ARRAY[{NOW}, {NOW}]", "ARRAY[1, 1]",
    ), 2, 2),
    Case("have_trade_ids", ("ARRAY[1, 2, 3]",), 1),
    Case("known_trade_ids", ("ARRAY[2, 2, 3]", "ARRAY[md5('2023-05-10 00:00:00+00'), 'none', 'x']"), 1),
    Case("read_trade_runs", ("ARRAY[1, 3]", "ARRAY[1050, 400000]", "ARRAY[1300, 400500]"), 20),
    Case("read_trade_runs", ("ARRAY[1]", "ARRAY[(-2)::bigint ^ 62]::bigint[]", "ARRAY[2::bigint ^ 62]::bigint[]"),
         5001, label="of an instrument"),
    Case("newest_trade_run", ("1",), 1),
    Case("delete_trade_run", ("1", "100"), 1),
    Case("insert_trade_run", ("1", "91", "92", NOW, NOW, "'lost'", "'gone'"), 0),
    Case("keep_message", ("'exchange1'", "NULL", "NULL", "'no price'", "'message 1'", "md5('1')", NOW, "1"), 1),
    Case("delete_old_messages", ("'exchange1'", "9900"), 9900 + 1 + 2 * 100),
    Case("read_messages", ("'exchange1'", "100"), 100),
]  # fmt: skip
#: Query -> candles of five days.
AGGREGATED = {
    f"read_candles_{name}": 5 * count
    for name, count in (("5m", 288), ("15m", 96), ("1h", 24), ("4h", 6), ("1d", 1))
}
TIMESCALE_CASES = [
    *(
        # Reading five days of all in the order of times may be cheaper than of one instrument; so may a chunk of a
        # few pages.
        Case(name, ("3", instant("2023-11-10"), instant("2023-11-15")), max(count * INSTRUMENTS, SMALL), 2, 2)
        for query, count in AGGREGATED.items()
        for name in (query, query.replace("read_candles", "minutes_in"))
    ),
    Case("add_aggregate_due", ("3", NOW, NOW + " + INTERVAL '1 day'"), 0),
    Case("read_aggregates_due", ("3", instant("2023-05-10"), instant("2023-05-15")), 250),
    Case("delete_aggregates_due", ("ARRAY[1, 2, 3, 5000]",), 8),
]
#: Queries over large tables that have no case, and why.
EXCUSED = {
    "list_series": "all series at once: see the test of its own",
    "count_all": "one small row for a day of each series",
    "count_default_rows": "the default partition, which is empty as a rule",
    "make_staging": "makes a table",
    "drop_staging": "drops a table",
    "delete_trade_ids": "what is older than months, once a day",
    "drop_trade_chunks": "whole chunks",
    "drop_trade_partitions": "whole partitions",
    "list_aggregates_due": "everything that waits, a few rows as a rule",
    "refresh_aggregate": "what has changed of one aggregate",
    "erased_days": "what was dropped, a day at a time",
    "mark_in_compressed": "the corrections that were just made",
}


@dataclass
class Year:
    """A filled database and a connection to it, in UTC."""

    mode: Mode
    url: DatabaseUrl
    connection: Connection

    async def explained(self, case: Case, text: str, kind: str) -> dict[str, Any]:
        """What the server did; all of it is taken back."""
        by_copy = case.name.startswith("read_") and "open_time, lseg" in text
        transaction = self.connection.transaction()
        await transaction.start()
        try:
            await self.connection.execute(f"SET LOCAL timezone = 'UTC'; SET LOCAL plan_cache_mode = {kind}")
            if self.mode is Mode.TIMESCALEDB and case.name in (
                "replace_candles",
                "keep_corrections",
                "raise_state",
            ):
                await self.connection.execute(TIMESCALE["allow_decompression"])
            for statement in case.before:
                await self.connection.execute(statement)
            if by_copy:
                # Through COPY, with literals: as columns.read_table asks.
                asked = re.sub(r"\$(\d+)", lambda found: case.arguments[int(found[1]) - 1], text)
            else:
                await self.connection.execute(f"PREPARE asked AS {text}")
                asked = f"EXECUTE asked ({', '.join(case.arguments)})"
            (told,) = json.loads(
                await self.connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {asked}")
            )
        finally:
            await transaction.rollback()
            await self.connection.execute("DEALLOCATE ALL")
        plan: dict[str, Any] = told["Plan"]
        return plan


@pytest.fixture(scope="module")
def server() -> Iterator[PrivatePostgres]:
    """A server of its own, whose settings suit the filling."""
    servers.postgres()
    with PrivatePostgres(settings=filled_year.SETTINGS) as started:
        yield started


@pytest.fixture(scope="module")
def filled() -> dict[Mode, DatabaseUrl]:
    return {}


@pytest.fixture(params=list(Mode), ids=lambda mode: mode.value, scope="module")
def mode(request: pytest.FixtureRequest) -> Mode:
    if request.param is Mode.TIMESCALEDB:
        servers.timescaledb()
    found: Mode = request.param
    return found


@pytest.fixture
async def year(server: PrivatePostgres, filled: dict[Mode, DatabaseUrl], mode: Mode) -> AsyncIterator[Year]:
    if mode not in filled:
        name = server.create_database()
        filled[mode] = DatabaseUrl.parse(server.url(name))
        await PostgresStore.upgraded(filled[mode], mode)
        assert filled_year.fill(server, name, mode) == 365 * DAY * INSTRUMENTS
    connection = await connect(filled[mode], PoolRules(), cached=0, limited=False)
    try:
        yield Year(mode, filled[mode], connection)
    finally:
        await connection.close()


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


def is_scan(node: dict[str, Any]) -> bool:
    """A node that reads rows of a table by itself."""
    return "Scan" in node["Node Type"] and node["Node Type"] != "Bitmap Index Scan" and "Relation Name" in node


def large(name: str) -> bool:
    return name in BESIDE or PARTITION.fullmatch(name) is not None


def looked_at(plan: dict[str, Any]) -> int:
    """Rows of large tables that were read, used or thrown away."""
    return sum(read_rows(node) for node in nodes(plan) if is_scan(node) and large(node["Relation Name"]))


def read_rows(node: dict[str, Any]) -> int:
    """Rows a node has looked at, with those it threw away; the server gives averages of a run."""
    removed = ("Rows Removed by Filter", "Rows Removed by Index Recheck", "Rows Removed by Join Filter")
    return round((node["Actual Rows"] + sum(node.get(one, 0) for one in removed)) * node["Actual Loops"])


def partitions(plan: dict[str, Any], *, opened: bool) -> set[str]:
    return {
        node["Relation Name"]
        for node in nodes(plan)
        if is_scan(node) and PARTITION.fullmatch(node["Relation Name"]) and (node["Actual Loops"] or not opened)
    }


def read_whole(plan: dict[str, Any]) -> list[str]:
    """Large tables that are read to their end, but for chunks that were unpacked for this statement."""
    changing = plan["Node Type"] == "ModifyTable" or any(
        node.get("Custom Plan Provider") == "ModifyHypertable" for node in nodes(plan)
    )
    return [
        node["Relation Name"]
        for node in nodes(plan)
        if node["Node Type"] in ("Seq Scan", "Parallel Seq Scan")
        and node["Actual Loops"]
        and large(node["Relation Name"])
        and read_rows(node) > SMALL
        and not (changing and node["Relation Name"].startswith("_hyper"))
    ]


def assert_good(case: Case, plan: dict[str, Any], kind: str) -> None:
    shown = json.dumps(plan, indent=1)[:20_000]
    assert not read_whole(plan), shown
    assert looked_at(plan) <= case.rows, (looked_at(plan), shown)
    # Where the default partition could hold rows as well, it is looked into.
    there = partitions(plan, opened=True) - DEFAULTS
    assert len(there) <= case.opened, (there, shown)
    if case.planned is not None and kind == "force_custom_plan":
        assert len(partitions(plan, opened=False) - DEFAULTS) <= case.planned, shown


@pytest.mark.parametrize("kind", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("case", CASES, ids=str)
async def test_a_query_reads_what_it_must(year: Year, case: Case, kind: str) -> None:
    assert_good(case, await year.explained(case, QUERIES[case.name], kind), kind)


@pytest.mark.parametrize("kind", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("case", LIVE_CASES, ids=str)
async def test_a_query_of_live_data_reads_what_it_must(year: Year, case: Case, kind: str) -> None:
    assert_good(case, await year.explained(case, LIVE[case.name], kind), kind)


@pytest.mark.parametrize("kind", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("case", TIMESCALE_CASES, ids=str)
async def test_a_query_of_aggregates_reads_what_it_must(year: Year, case: Case, kind: str) -> None:
    if year.mode is Mode.PLAIN:
        pytest.skip("aggregates are kept by TimescaleDB")
    plan = await year.explained(case, TIMESCALE[case.name], kind)
    assert_good(case, plan, kind)
    if case.name.startswith("read_candles"):
        assert plan["Actual Rows"] == AGGREGATED[case.name]


@pytest.mark.parametrize("kind", ["force_custom_plan", "force_generic_plan"])
async def test_the_list_of_series_opens_no_candles(year: Year, kind: str) -> None:
    case = Case("list_series", (NOW,), 0)
    plan = await year.explained(case, QUERIES["list_series"], kind)
    assert plan["Actual Rows"] == INSTRUMENTS
    assert not partitions(plan, opened=False)
    # Each series' days of digests, and of the ledger twice, its corrections and its refusals; nothing in vain.
    assert looked_at(plan) <= INSTRUMENTS * 365 * 3 + (INSTRUMENTS - 1) * 4381 + 100_000 + INSTRUMENTS
    assert "instruments" in {node.get("Relation Name") for node in nodes(plan)}


BTC = Series("binance", "C3/USDT", ONE_MINUTE)


@pytest.mark.parametrize(
    ("start", "end", "newest", "as_of"),
    [
        ("2023-01-01", "2024-01-01", True, None),
        ("2023-01-01", "2023-05-10T12:00Z", True, None),
        ("2023-01-01", "2024-01-01", False, None),
        ("2023-05-10T12:00Z", "2024-01-01", False, None),
        ("2023-01-01", "2024-01-01", True, "2024-02-01"),
        ("2023-01-01", "2024-01-01", False, "2024-02-01"),
    ],
)
async def test_a_limited_read_locks_few_partitions(
    year: Year, start: str, end: str, newest: bool, as_of: str | None
) -> None:
    interval = Interval(to_ms(start), to_ms(end))
    as_of_ms = None if as_of is None else to_ms(as_of)
    async with year.connection.transaction(readonly=True):
        key = await find_series(year.connection, BTC)
        assert key is not None
        table = await read_candles(year.connection, key, interval, 1000, newest, as_of_ms)
        assert table.num_rows == 1000
        edge = table.column("open_time").to_pylist()[-1 if newest else 0]
        assert int(edge.timestamp() * 1000) == (interval.end - 60_000 if newest else interval.start)
        assert await locked(year.connection) <= 4


async def test_a_read_from_before_anything_was_known_ends(year: Year) -> None:
    async with year.connection.transaction(readonly=True):
        key = await find_series(year.connection, BTC)
        assert key is not None
        whole = Interval(to_ms(filled_year.START), to_ms(filled_year.END))
        for newest in (True, False):
            assert not (await read_candles(year.connection, key, whole, 10, newest, to_ms("2022-01-01"))).num_rows


async def test_the_bounds_of_a_series_lock_no_partition(year: Year) -> None:
    async with year.connection.transaction(readonly=True):
        await year.connection.fetch(QUERIES["list_series"], to_ms("2024-02-01"))
        await year.connection.fetch(QUERIES["first_open"], 3, 60)
        assert await locked(year.connection) == 0


async def locked(connection: Connection) -> int:
    """Partitions or chunks of candles that this transaction holds."""
    names = await connection.fetch(
        "SELECT relation::regclass::text AS name FROM pg_locks WHERE pid = pg_backend_pid() AND relation > 0"
    )
    found = {row["name"].rpartition(".")[2] for row in names} - DEFAULTS
    return len([name for name in found if PARTITION.fullmatch(name)])


@pytest.mark.parametrize(
    ("queries", "cases"),
    [(QUERIES, CASES), (LIVE, LIVE_CASES), (TIMESCALE, TIMESCALE_CASES)],
    ids=["postgres", "live", "timescaledb"],
)
def test_every_query_over_a_large_table_has_a_case(queries: dict[str, str], cases: list[Case]) -> None:
    over_large = {name for name, text in queries.items() if LARGE.search(text)}
    lacking = over_large - {one.name for one in cases} - set(EXCUSED)
    assert not lacking, "give these queries a case, or say why not"
    assert {one.name for one in cases} <= over_large
