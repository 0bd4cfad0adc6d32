"""The writer on real files: an SQLite store that another process locks, and a disk that is full."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.journal import Journal
from ingest.waiting import WaitingRules
from ingest.writer import Writer, WriterRules
from ingest.writer_status import WriterState
from market.clock import SystemClock
from market.errors import StoreUnavailable, StoreUnusable
from store.sqlite import database
from store.sqlite.store import DATABASE_NAME, SqliteStore
from tests.support.failing_store import until
from tests.support.made_candles import BTC, START, at, batch, made
from tests.support.places import mounted
from tests.support.scripted_writes import ScriptedWrites, trade
from tests.support.stored_trades import ALWAYS, LONG_AGO, put_trades

CLOCK = SystemClock()
RULES = WriterRules(waiting=WaitingRules(trades_every=0.01), first_pause=0.01, longest_pause=0.05)


@contextlib.contextmanager
def write_lock(path: Path) -> Iterator[None]:
    """Another process that writes, and takes its time."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


async def test_while_another_process_locks_the_file_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 50)
    path = tmp_path / DATABASE_NAME
    async with (
        SqliteStore.opened(path, CLOCK) as store,
        Writer.opened(store, tmp_path / "journal", CLOCK, rules=RULES) as writer,
    ):
        number = 0
        for turn in range(3):
            number = await put_trades(writer, number, 300)
            writer.candles(batch(made([1], turn * 2)), CLOCK.now_ms())
            await writer.durable()
            with write_lock(path):
                for _ in range(5):
                    number = await put_trades(writer, number, 300)
                    writer.candles(batch(made([1], turn * 2 + 1)), CLOCK.now_ms())
                    await writer.durable()
                assert writer.status().state is not WriterState.DIRECT
            await until(lambda: writer.status().state is WriterState.DIRECT)
        status = writer.status()
        assert status.spilled_rows >= 3 * 1500
        assert status.journal_records == 0
        trades = await store.trades("binance", "BTC/USDT", LONG_AGO, ALWAYS)
        assert trades == [trade(one, trades[one].received_at) for one in range(number)]
        assert await store.read(BTC, START, at(10)) == made([1], 5)


async def test_a_full_disk_is_a_loud_stop_and_harms_nothing(tmp_path: Path) -> None:
    """A real file system without room: what was acknowledged is there, and with room again it goes on."""
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=256k", "tmpfs") as folder:
        store = ScriptedWrites()
        store.error = StoreUnavailable("the server is down")
        safe = 0

        async def spill_until_full() -> None:
            nonlocal safe
            async with Writer.opened(store, folder, CLOCK, rules=RULES) as writer:
                for number in range(0, 10**6, 100):
                    sink = writer.trade_sink("binance", "BTC/USDT", True)
                    for one in range(number, number + 100):
                        sink(trade(one))
                    await writer.durable()
                    safe = number + 100

        with pytest.raises(
            StoreUnusable, match=rf"journal {folder} takes no more: No space left .* it needs [\d,]+ b"
        ):
            await spill_until_full()
        assert safe > 1000
        # While there is no room it says so again, and still harms nothing.
        with Journal.opened(folder) as journal:
            records = journal.records
            assert records * 100 == safe
            with pytest.raises(StoreUnusable, match="All earlier records are safe; make room"):
                journal.append([os.urandom(100_000)])
            assert journal.records == records
        store.error = None
        async with Writer.opened(store, folder, CLOCK, rules=RULES) as writer:
            sink = writer.trade_sink("binance", "BTC/USDT", True)
            for one in range(safe, safe + 1000):
                sink(trade(one))
            # More than there is room for: it waits until the store has taken what is in the journal.
            await writer.durable()
            await until(lambda: writer.status().state is WriterState.DIRECT)
        assert store.trades == {"BTC/USDT": list(range(safe + 1000))}
        assert list(folder.glob("*.journal")) == []


async def test_room_that_is_made_meanwhile_is_used(tmp_path: Path) -> None:
    """The same journal goes on once somebody has deleted something."""
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=256k", "tmpfs") as folder:
        ballast = folder / "ballast"
        with Journal.opened(folder) as journal:
            journal.append([b"before" * 100])
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(b"\0" * 4096)
            with pytest.raises(StoreUnusable, match="No space left on device"):
                await asyncio.to_thread(journal.append, [os.urandom(20_000)])
            ballast.unlink()
            journal.append([b"after"])
        with Journal.opened(folder) as journal:
            assert [entry.payload for entry in journal.read()] == [b"before" * 100, b"after"]
