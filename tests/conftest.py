"""Fixtures shared by all tests: recorded exchange data, a clock that only moves when told, private servers."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import settings

from market.candle import candles
from market.timeframe import TIMEFRAMES
from tests.support import servers
from tests.support.postgres_server import PrivatePostgres

# A busy machine is no failure: properties are judged by what they find, not by how long they take.
settings.register_profile("chandlery", deadline=None)
settings.load_profile("chandlery")

#: Recorded column -> candle column; the close time is turned into `early_close_time`.
RECORDED_COLUMNS = {
    "open": "open",
    "high": "high",
    "low": "low",
    "close": "close",
    "volume_base": "volume",
    "volume_quote": "quote_volume",
    "trades": "trades",
    "taker_buy_base": "taker_buy_volume",
    "taker_buy_quote": "taker_buy_quote_volume",
}

TESTS = Path(__file__).resolve().parent
#: The files that take longest, in the order in which a run begins with them: whichever was left for the end would
#: keep one process busy while the others have nothing to do. Those that mostly wait stand between those that work.
LONG = (
    "integration/test_postgres_plans.py",
    "acceptance/test_storm.py",
    "integration/test_postgres_recorded.py",
    "acceptance/test_silent_socket.py",
    "acceptance/test_recorded_streams.py",
    "contract/test_market_data.py",
    "crash/test_ingest_kill.py",
    "integration/test_retention.py",
    "acceptance/test_recorded_year.py",
    "acceptance/test_bad_messages.py",
    "contract/test_candle_store_model.py",
    "crash/test_database_kill.py",
    "integration/test_stores_in_lockstep.py",
    "acceptance/test_database_away.py",
    "integration/test_postgres_upgrades.py",
    "acceptance/test_ingest_command.py",
    "contract/test_candle_store_writes.py",
)


class ManualClock:
    """A clock that stands still until it is moved."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self.time_ms = now_ms

    def now_ms(self) -> int:
        return self.time_ms

    def advance(self, milliseconds: int) -> None:
        self.time_ms += milliseconds


@pytest.fixture
def clock() -> ManualClock:
    """A clock at 2023-11-14T22:13:20Z."""
    return ManualClock()


@pytest.fixture(scope="session")
def recorded() -> Path:
    """The folder of recorded exchange data; skips the test where it is absent."""
    default = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("CHANDLERY_TEST_DATA") or default)
    if not (folder / "candles").is_dir():
        pytest.skip(f"no recorded exchange data in {folder} (set CHANDLERY_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def recorded_candles(recorded: Path) -> Callable[[str, str], pa.Table]:
    """A function from (part of a recorded file's name, timeframe) to its candles in the candle schema.

    ``recorded_candles("binance_spot_BTCUSDT_1m_2023-01-01", "1m")``; each number is the float64 next to the
    recorded decimal text. Loaded files are kept for the test run.
    """
    loaded: dict[tuple[str, str], pa.Table] = {}

    def load(name: str, timeframe: str) -> pa.Table:
        if (name, timeframe) not in loaded:
            (path,) = (recorded / "candles").glob(f"{name}*.parquet")
            loaded[name, timeframe] = load_recorded(path, timeframe)
        return loaded[name, timeframe]

    return load


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[PrivatePostgres]:
    """A running PostgreSQL of this test run's own, for all its tests; skips, loudly, where there can be none."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    # It may have to be installed first, which takes a while and says so.
    with capture.global_and_fixture_disabled():
        server = servers.postgres()
    yield server
    server.close()


@pytest.fixture(scope="session")
def timescaledb(postgres: PrivatePostgres) -> PrivatePostgres:
    """The same server, where it offers the TimescaleDB extension; skips, loudly, where it does not."""
    return servers.timescaledb()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long files; within a file nothing changes its place."""
    places = {TESTS / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None, None, None]:
    """Say last of all which servers were missing, so that nobody takes a run without them for a whole one."""
    yield
    skipped = terminalreporter.stats.get("skipped", [])
    for line in servers.not_run(report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple)):
        terminalreporter.write_line(line, red=True, bold=True)


def load_recorded(path: Path, timeframe: str) -> pa.Table:
    """One recorded Parquet file as candles; of a file with several timeframes, the rows of `timeframe`."""
    raw = pq.read_table(path)
    if "interval" in raw.column_names:
        raw = raw.filter(pc.equal(raw.column("interval"), timeframe))
    times = raw.column("open_time_ms").to_numpy()
    columns: dict[str, object] = {"open_time": times}
    for source, target in RECORDED_COLUMNS.items():
        if source in raw.column_names:
            columns[target] = exact_floats(raw.column(source)) if target != "trades" else raw.column(source)
    if "close_time_ms" in raw.column_names:
        closes = raw.column("close_time_ms").to_numpy()
        whole = closes == TIMEFRAMES[timeframe].next_all(times) - 1
        columns["early_close_time"] = pa.array(closes, pa.int64(), mask=np.asarray(whole))
    return candles(columns)


def exact_floats(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Decimals by way of their text: Arrow's direct cast multiplies by a power of ten and may be one bit off."""
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.string())
    return column.cast(pa.float64())
