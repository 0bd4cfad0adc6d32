"""The database is away under full load, and the disk fills up meanwhile: nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chandlery.settings import Settings
from chandlery.wiring import opened_store
from ingest.journal import Journal
from ingest.journal_record import decode
from ingest.writer_status import WriterState
from market.channel import Channel
from store.postgres.mode import Mode
from tests.acceptance.conftest import started
from tests.support import market_kept, storm
from tests.support.live_load import Account, Load, fed, reached
from tests.support.market_kept import BEGIN_MS, EXCHANGE, SYMBOLS, Told
from tests.support.places import mounted
from tests.support.postgres_server import MAINTENANCE, PrivatePostgres
from tests.support.server_process import children
from tests.support.simulated import simulated_exchange

pytestmark = pytest.mark.crash

#: Seconds for which the database is away.
AWAY = float(os.environ.get("CHANDLERY_TEST_AWAY_SECONDS", "6"))
NAME = "market"
#: Trades a second besides those of the simulated exchange, and of how many instruments. A machine whose cores are
#: shared may not bring a long journal to the database faster than that.
RATE, LOADED = int(os.environ.get("CHANDLERY_TEST_AWAY_RATE", "5000")), 20
#: Seconds from which on a run is a long one.
LONG = 60
SPEED = 20
#: Bytes by which the process may grow; and rows that may wait.
GROWTH, MOST_WAITING = 256 << 20, 200_000
#: Seconds after the journal was replayed in which the lag may still be high, seconds in which it is looked at after
#: that, and what it may be, milliseconds.
SETTLING, LOOKED_AT, NORMAL_MS = 1.0, 2.0, 1_000
log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def server(postgres: PrivatePostgres) -> Iterator[PrivatePostgres]:
    """A server to be stopped; after `postgres`, which skips where there can be none."""
    with PrivatePostgres() as server:
        yield server


@contextlib.contextmanager
def frozen(server: PrivatePostgres) -> Iterator[None]:
    """The server stands still, its connections open: the worst kind of away, because nobody says so."""
    pid = int((server.folder / server.PID_FILE).read_text().split()[0])
    os.kill(pid, signal.SIGSTOP)
    pids = [pid, *children(pid)]
    for one in pids[1:]:
        os.kill(one, signal.SIGSTOP)
    try:
        yield
    finally:
        for one in reversed(pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGCONT)


def settings_of(server: PrivatePostgres, home: Path, name: str) -> Settings:
    server.sql(MAINTENANCE, f"CREATE DATABASE {name}")
    return Settings(
        home=home,
        database_url=server.url(name),
        database_mode=Mode.PLAIN,
        # The usual five seconds would be most of a short test.
        database_timeout=5.0 if AWAY >= 30 else 1.0,
        channels=(Channel.CANDLES, Channel.TRADES),
        record_trades=True,
    )


async def test_a_database_away_under_full_load(server: PrivatePostgres, tmp_path: Path) -> None:
    settings = settings_of(server, tmp_path, NAME)
    account = Account()
    running = simulated_exchange(
        seed=market_kept.SEED, symbols=storm.SYMBOLS, now_ms=BEGIN_MS, speed=SPEED, weight_limit=6000 * SPEED
    )
    with running as url:
        async with fed(url, settings, storm.SYMBOLS, account) as (feed, watch):
            load = Load(feed, watch, RATE, LOADED)
            loading = asyncio.create_task(load.run())
            await reached(
                lambda: len(account.stored) == LOADED + len(storm.SYMBOLS), 300, "every series is written"
            )
            began, before = time.monotonic(), load.each
            watch.begin()
            with frozen(server):
                await reached(lambda: time.monotonic() >= began + AWAY, AWAY + 300, "the time is over")
                away = feed.writer.status()
            back, during = time.monotonic(), load.each - before
            assert away.state is WriterState.SPILLING
            await reached(lambda: watch.writer.state is WriterState.DIRECT, 2 * AWAY + 300, "it is replayed")
            direct = time.monotonic()
            end = direct + SETTLING + LOOKED_AT
            await reached(lambda: time.monotonic() >= end, SETTLING + LOOKED_AT + 300, "some time at rest")
            load.stop()
            await loading
            await feed.writer.durable()
            cut = await market_kept.exchange_time(url)
            async with opened_store(settings, read_only=True) as store:
                await market_kept.all_kept(store, storm.SYMBOLS, cut)
    async with opened_store(settings, read_only=True) as store:
        missing, doubled = await market_kept.check_told(store, account.told)
        rows = await market_kept.check_kept(store, storm.SYMBOLS, cut)
        runs = [await store.trade_runs(EXCHANGE, symbol) for symbol in load.symbols]
    lag = {name: account.p99(*span) for name, span in (
        ("before", (0, began)), ("away", (began, back)), ("replaying", (back, direct + SETTLING)),
        ("after", (direct + SETTLING, end)),
    )}  # fmt: skip
    pause = watch.longest_pause(began, back)
    log.info(
        "database away %g s: %d rows/s of load meanwhile; acknowledged %d rows, missing %d, doubled %d, equal to "
        "the exchange's %d; most rows waiting %d; journal %d records, %.1f MB at its longest, replayed %.1f s "
        "after the return; p99 of the lag in ms %s; memory grew by %.1f MB; longest pause of the streams %.2f s",
        AWAY, during * LOADED / (back - began), account.rows, missing, doubled, rows, watch.most_waiting,
        away.journal_records, watch.most_journal_bytes / 1e6, direct - back, lag,
        (watch.most_memory - watch.memory) / 1e6, pause,
    )  # fmt: skip
    assert (missing, doubled, account.overtaken, market_kept.journal_files(tmp_path)) == (0, 0, [], [])
    assert [[(one.first_id, one.last_id) for one in run] for run in runs] == [[(0, load.each - 1)]] * LOADED
    assert set(account.durable.values()) == {load.each}
    # The journal grew on the disk, and memory did not.
    assert away.journal_bytes > 10 * during * LOADED / AWAY
    assert watch.most_waiting < MOST_WAITING
    assert watch.crowded == 0
    assert watch.most_memory - watch.memory < GROWTH
    assert lag["after"] is not None
    # What takes how long is asserted of the long run alone, which has the machine to itself.
    if AWAY >= LONG:
        assert pause < 1.0
        assert lag["after"] < NORMAL_MS
        assert during * LOADED > RATE * AWAY / 4


def fill(folder: Path, left: int) -> Path:
    """Take all room but `left` bytes of the disk of a folder; the file that takes it."""
    ballast = folder / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 4096)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    os.truncate(ballast, ballast.stat().st_size - left)
    return ballast


def in_journal(folder: Path) -> Told:
    """Every row in a journal that nobody has open: on the disk, and so acknowledged."""
    told = Told()
    with Journal.opened(folder) as journal:
        for entry in journal.read(most=10**9, most_bytes=2**40):
            told.add(decode(entry.payload), "journal")
    return told


async def test_a_disk_that_fills_up_while_the_database_is_away(server: PrivatePostgres, tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=4m", "tmpfs") as home:
        settings = settings_of(server, home, "small")
        assert settings.database_url is not None
        running = simulated_exchange(
            seed=market_kept.SEED, symbols=SYMBOLS, now_ms=BEGIN_MS, speed=60, weight_limit=6000 * 60
        )
        with running as url:
            command = ["ingest", "--exchange", EXCHANGE, "--exchange-url", url, "--symbols", ",".join(SYMBOLS)]
            command += ["--channels", "candles,trades", "--record-trades", "--home", str(home)]
            env = {"CHANDLERY_DATABASE_URL": settings.database_url, "CHANDLERY_DATABASE_MODE": "plain"}
            with started(*command, ready="XRP/USDT 1m: current up to", env=env) as (process, _):
                ballast = await asyncio.to_thread(fill, home, 40 << 10)
                await asyncio.to_thread(server.stop)
                assert process.stdout is not None
                said = await asyncio.to_thread(process.stdout.read)
                assert await asyncio.to_thread(process.wait) == 1, said
            complaint = said.splitlines()[-1]
            assert f"the journal {home}/journal takes no more: No space left on device" in complaint, said
            assert "All earlier records are safe; make room and start again" in complaint
            assert "Traceback" not in said
            acknowledged = in_journal(home / "journal")
            assert acknowledged.rows > 100
            await asyncio.to_thread(server.start)
            ballast.unlink()
            with started(*command, ready="XRP/USDT 1m: current up to", env=env) as (process, _):
                cut = await market_kept.exchange_time(url)
                async with opened_store(settings, read_only=True) as store:
                    await market_kept.all_kept(store, SYMBOLS, cut)
                process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(process.wait) == 0
        async with opened_store(settings, read_only=True) as store:
            assert await market_kept.check_told(store, acknowledged) == (0, 0)
            rows = await market_kept.check_kept(store, SYMBOLS, cut)
        log.info(
            "disk full: %d acknowledged rows in the journal, all stored; %d rows equal to the exchange's: %s",
            acknowledged.rows, rows, complaint,
        )  # fmt: skip
        assert market_kept.journal_files(home) == []
