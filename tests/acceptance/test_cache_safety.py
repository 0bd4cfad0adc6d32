"""FAIL and LOCKDOWN on a home of three processes: one that fetches, one that serves, the command that switches."""

from __future__ import annotations

import itertools
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from chandlery.status_file import STATUS_NAME, read_note
from market.clock import SystemClock, to_ms
from store.redis.live_keys import live_key
from store.sqlite.store import DATABASE_NAME
from tests.acceptance.conftest import Command, started
from tests.support.made_candles import MINUTE
from tests.support.market_kept import EXCHANGE, SEED, market_of
from tests.support.redis_server import PrivateRedis
from tests.support.served_home import COLUMNS, Row, Service, arrow_files, rows_at, serving, waited, write_csv
from tests.support.simulated import simulated_exchange

pytestmark = pytest.mark.crash

BTC = "BTC/USDT"
BEGIN = to_ms("2024-06-01")
#: How many times faster the exchange's time goes: a minute takes two seconds.
SPEED = 30
#: Minutes of a month that is over, imported before: [start, end).
MONTH = to_ms("2024-05-20"), to_ms("2024-05-22")
#: Where answers may come from in a lockdown.
UNCACHED = {"database", "archive"}


@dataclass(frozen=True)
class Processes:
    """What runs on one home."""

    home: Path
    exchange: str
    service: Service
    ingest: subprocess.Popen[str]
    redis: PrivateRedis
    chandlery: Command
    #: Each question is another one, so that no answer is one that was kept as it was sent.
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(100))

    def switch(self, state: str) -> None:
        done = self.chandlery("safety", "set", state, "--reason", "a test", "--home", self.home, "--json")
        assert done.code == 0, done.err
        assert done.json["safety"] == state

    def writer(self) -> Any:
        """How the writer of ingest fares."""
        note = read_note(self.home / STATUS_NAME, SystemClock().now_ms())
        assert note is not None
        return note.body["writer"]

    def stored(self) -> tuple[int, int]:
        """Candles and trades in the database."""
        with self._database() as connection:
            ((candles,),) = connection.execute("SELECT count(*) FROM candles").fetchall()
            ((trades,),) = connection.execute("SELECT count(*) FROM trade_history").fetchall()
        return candles, trades

    def trade_runs(self) -> list[tuple[int, int, str]]:
        with self._database() as connection:
            return connection.execute("SELECT first_id, last_id, state FROM trade_runs").fetchall()

    def keys(self) -> list[str]:
        """The names of our values in Redis."""
        return self.redis_cli("--scan", "--pattern", "chandlery:*").decode().split()

    def ticker(self) -> bytes:
        """The newest ticker in Redis, as it stands there."""
        return self.redis_cli("GET", live_key(EXCHANGE, BTC, "ticker"))

    def newest(self) -> tuple[list[Row], str]:
        return self.service.rows(BTC, limit=next(self.numbers))

    def month(self) -> tuple[list[Row], str]:
        """A part of the month that is over, and not among the newest rows."""
        return self.service.rows(BTC, start=MONTH[0], end=MONTH[0] + next(self.numbers) * MINUTE)

    def hours(self) -> tuple[list[Row], str]:
        """Larger candles."""
        end = MONTH[1] - next(self.numbers) * MINUTE
        return self.service.rows(BTC, timeframe="1h", start=MONTH[0], end=end, limit=100)

    def forming(self) -> tuple[list[Row], str]:
        return self.service.rows(BTC, limit=next(self.numbers), include_forming="true")

    @property
    def questions(self) -> list[Callable[[], tuple[list[Row], str]]]:
        return [self.newest, self.month, self.hours, self.forming, self.newest]

    def journal_grows(self, more: int = 1) -> None:
        """What comes is written to the journal."""
        waited(lambda: self.writer()["state"] == "spilling", "the database is left alone")
        records = self.writer()["journal_records"]
        waited(lambda: self.writer()["journal_records"] >= records + more, "the journal grows")

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(f"file:{self.home / DATABASE_NAME}?mode=ro", uri=True)) as connection:
            yield connection

    def redis_cli(self, *words: str) -> bytes:
        command = ["redis-cli", "-p", str(self.redis.port), *words]
        return subprocess.run(command, capture_output=True, check=True).stdout.strip()


@contextmanager
def running(home: Path, chandlery: Command) -> Iterator[Processes]:
    """All three; the exchange's own process and Redis are the tests'."""
    file = write_csv(home.parent / "month.csv", rows_at(list(range(*MONTH, MINUTE))))
    done = chandlery("import", file, "--exchange", EXCHANGE, "--symbol", BTC, "--home", home)
    assert done.code == 0, done.err
    exchange = simulated_exchange(
        seed=SEED, symbols=[BTC], now_ms=BEGIN + MINUTE // 2, speed=SPEED, weight_limit=6000 * SPEED
    )
    with exchange as url, PrivateRedis() as redis:
        env = {"CHANDLERY_REDIS_URL": redis.url}
        command = ["ingest", "--exchange", EXCHANGE, "--exchange-url", url, "--symbols", BTC, "--home", str(home)]
        command += ["--channels", "candles,trades,tickers,order_books", "--record-trades"]
        ready = f"{BTC} 1m: current up to"
        with started(*command, ready=ready, deadline=300.0, env=env) as (ingest, _), serving(home, env) as service:
            yield Processes(home, url, service, ingest, redis, chandlery)


def test_fail_and_lockdown_and_back(chandlery: Command, tmp_path: Path) -> None:
    with running(tmp_path / "home", chandlery) as processes:
        as_usual(processes)
        fail(processes)
        as_usual(processes)
        lockdown(processes)
        as_usual(processes)
        complete(processes)
        the_end_in_a_lockdown(processes)


def as_usual(one: Processes) -> None:
    """Everything is written, and every tier used."""
    waited(lambda: one.writer()["state"] == "direct" and not one.writer()["journal_records"], "all is stored")
    candles, trades = one.stored()
    waited(lambda: one.stored()[0] > candles and one.stored()[1] > trades, "more is stored")
    waited(lambda: one.newest()[1] == "memory", "the newest candles come from memory")
    waited(lambda: one.month()[1] == "memory", "the month comes from memory")
    waited(lambda: arrow_files(one.home / "cache") != [], "the month is on disk")
    waited(lambda: one.forming()[0][-1][0] > one.newest()[0][-1][0], "the forming candle is shown")
    ticker = one.ticker()
    waited(lambda: one.ticker() not in (b"", ticker), "tickers come through Redis")
    status = one.service.cache()
    assert status["safety"] == "normal"
    assert status["memory_bytes"] > 0


def fail(one: Processes) -> None:
    """What is there is served; nothing is added, changed or taken away, anywhere."""
    kept = [(file, file.stat().st_mtime_ns) for file in arrow_files(one.home / "cache")]
    month = one.month()
    one.switch("fail")
    stored = one.stored()
    one.journal_grows()
    # Once ingest has looked, Redis stands still as well.
    waited(lambda: one.ticker() == stands_still(one), "no ticker is written")
    memory = one.service.cache()["memory_bytes"]
    for _ in range(2):
        newest, tier = one.newest()
        assert tier == "memory"
        assert len(newest) > 100
        found, tier = one.month()
        assert (found[:100], tier) == (month[0][:100], "memory")
        for ask in one.questions:
            ask()
    status = one.service.cache()
    assert (status["safety"], status["memory_bytes"]) == ("fail", memory)
    assert [(file, file.stat().st_mtime_ns) for file in arrow_files(one.home / "cache")] == kept
    assert one.stored() == stored
    one.switch("normal")


def stands_still(one: Processes) -> bytes:
    """The ticker, when the exchange has gone on by a minute: it says another one for each of its seconds."""
    before = one.ticker()
    one.journal_grows(5)
    return before


def lockdown(one: Processes) -> None:
    """Everything comes from the database, from the very next answer on; nothing is kept anywhere."""
    one.switch("lockdown")
    stored = one.stored()
    assert {tier for _, tier in [ask() for ask in one.questions]} <= UNCACHED
    assert arrow_files(one.home / "cache") == []
    status = one.service.cache()
    assert (status["safety"], status["memory_bytes"]) == ("lockdown", 0)
    waited(lambda: one.keys() == [], "Redis has nothing of ours")
    one.journal_grows()
    for _ in range(2):
        answers = [ask() for ask in one.questions]
        assert {tier for _, tier in answers} <= UNCACHED
        # What has not closed was in Redis alone.
        assert answers[3][0][-1] == answers[0][0][-1]
    assert one.service.cache()["memory_bytes"] == 0
    assert hits(one) == hits_of(status)
    assert arrow_files(one.home / "cache") == []
    assert one.keys() == []
    assert one.stored() == stored
    one.switch("normal")


def hits(one: Processes) -> int:
    return hits_of(one.service.cache())


def hits_of(status: Any) -> int:
    return sum(count["hits"] for count in status["counts"])


def complete(one: Processes) -> None:
    """Nothing that the exchange has traded meanwhile is missing, doubled or wrong."""
    now = int(httpx.get(f"{one.exchange}/simulator/clock").json()["now_ms"])
    end = now // MINUTE * MINUTE - 2 * MINUTE
    wanted = (end - BEGIN - MINUTE) // MINUTE

    def served() -> list[Row]:
        return one.service.rows(BTC, start=BEGIN + MINUTE, end=end, limit=5000)[0]

    assert wanted >= 5
    waited(lambda: len(served()) >= wanted, "all candles are there")
    true = market_of(BTC).minutes(now, BEGIN + MINUTE, end)
    columns = [true.column(name).to_pylist() for name in COLUMNS[1:]]
    times = [int(time.timestamp() * 1000) for time in true.column("open_time").to_pylist()]
    assert served() == [list(row) for row in zip(times, *columns, strict=True)]
    runs = one.trade_runs()
    assert [state for _, _, state in runs] == ["present"]


def the_end_in_a_lockdown(one: Processes) -> None:
    """Whoever ends leaves nothing behind in Redis, either."""
    one.switch("lockdown")
    waited(lambda: one.keys() == [], "Redis has nothing of ours")
    one.ingest.send_signal(signal.SIGTERM)
    assert one.ingest.stdout is not None
    said = one.ingest.stdout.read()
    assert one.ingest.wait() == 0, said
    assert "Traceback" not in said
    assert one.keys() == []
    # What a killed process left, whoever reads takes away; what is somebody else's stays.
    one.switch("normal")
    waited(lambda: one.service.cache()["safety"] == "normal", "it is over")
    left, foreign = live_key(EXCHANGE, BTC, "ticker"), "another:1:{binance|BTC/USDT}:live:ticker"
    for name in (left, foreign):
        one.redis_cli("SET", name, "value")
    one.switch("lockdown")
    waited(lambda: one.keys() == [], "Redis has nothing of ours")
    assert one.redis_cli("GET", foreign) == b"value"
    assert "Traceback" not in one.service.ended()
