"""Processes that share a disk tier; the tests start them and kill them.

What a chunk holds follows from its name, so that a wrong table is seen at once. It says ``ready``, waits for a line
on its input, does its work and says what it did as one line of JSON.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import structlog

from market.clock import SystemClock
from market.fingerprint import Digest, digest
from market.instrument import Series
from store.cache.statistics import TierStatistics
from store.tiers.disk import ChunkName, DiskTier
from tests.support.made_candles import BTC, made

#: Periods that are worked on: months of 2023.
MONTHS = 4
SYMBOLS = tuple(f"{base}/USDT" for base in ("BTC", "ETH", "XRP", "LTC"))
#: Rows of a chunk, so that it takes about 45 kB.
ROWS = 500
MONTH_MINUTES = (0, 31 * 1440, 59 * 1440, 90 * 1440)

CLOCK = SystemClock()


@functools.cache
def chunk(symbol: str, month: int, revision: int) -> tuple[ChunkName, pa.Table]:
    """A chunk and what it holds: rows and numbers differ with the name."""
    series = Series("binance", symbol, BTC.timeframe)
    first = MONTH_MINUTES[month]
    rows = ROWS + 7 * SYMBOLS.index(symbol) + revision % 5
    table = made(range(first + 3, first + 3 + rows), revision)
    # The exchange has no say in the numbers; the symbol has.
    of = digest(table) + Digest(0, SYMBOLS.index(symbol), 0)
    start = made([first]).column("open_time")[0].value
    return ChunkName(series, "stored", start, revision, of), table


def tier(folder: Path, limit: int) -> DiskTier:
    return DiskTier(folder, limit, TierStatistics(CLOCK.now_ms), CLOCK, keep_free_bytes=0)


def mix(folder: Path, limit: int, seed: int, rounds: int) -> dict[str, Any]:
    """Put, get, sweep and drop at random; keep some tables for long after their files are gone."""
    disk, chance = tier(folder, limit), random.Random(seed)
    counts: Counter[str] = Counter()
    kept: list[tuple[pa.Table, pa.Table]] = []
    largest = 0
    for number in range(rounds):
        name, table = chunk(chance.choice(SYMBOLS), chance.randrange(MONTHS), number // 20 + chance.randrange(2))
        what = chance.random()
        if what < 0.55:
            found = disk.get(name)
            counts["got" if found is not None else "missed"] += 1
            if found is not None:
                counts["wrong"] += not found.equals(table)
                kept.append((found, table))
        elif what < 0.96:
            counts["put" if disk.put(name, table) else "refused"] += 1
        elif what < 0.98:
            largest = max(largest, disk.sweep().bytes)
        elif what < 0.99:
            counts["dropped"] += disk.drop(name.series)
        else:
            counts["dropped"] += disk.drop()
        if len(kept) > 30:
            counts["wrong"] += not kept[0][0].equals(kept[0][1])
            kept = kept[1:]
    counts["wrong"] += sum(not found.equals(table) for found, table in kept)
    counts["evicted"] = sum(one.evictions for one in disk._statistics.snapshot())
    return {**counts, "damaged": disk.counts.damaged, "largest": largest}


def put_for_ever(folder: Path, first: int, told: int) -> None:
    """New revisions of all chunks, one after the other; says when the first are there."""
    disk = tier(folder, 1 << 30)
    for revision in itertools.count(first):
        for symbol in SYMBOLS:
            disk.put(*chunk(symbol, revision % MONTHS, revision))
        if revision == first:
            os.write(told, b"!")


def killed(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Children that put, each killed at some moment."""
    chance = random.Random(seed)
    children = 0
    for number in range(kills):
        readable, writable = os.pipe()
        child = os.fork()
        if not child:
            put_for_ever(folder, number * 1000, writable)
        os.close(writable)
        os.read(readable, 1)
        os.close(readable)
        _wait_busily(chance.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        children += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    return {"killed": children}


def killed_at(folder: Path) -> dict[str, Any]:
    """Children that put a chunk and its next revision, each killed just before another change to the disk by that.

    Each has a folder of its own, named by the step.
    """
    for step in range(1, 100):
        own = folder / str(step)
        child = os.fork()
        if not child:
            disk = tier(own, 1 << 30)
            disk.put(*chunk(SYMBOLS[0], 0, 1))
            _die_at(step)
            disk.put(*chunk(SYMBOLS[0], 0, 2))
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            return {"steps": step}
    raise AssertionError("it never ended")


def _die_at(step: int) -> None:
    left = step

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*arguments, **named)

        return changed

    for name in ("mkdir", "open", "write", "utime", "rename", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    fcntl.flock = counted(fcntl.flock)


def _wait_busily(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def main() -> None:
    action, folder, *rest = sys.argv[1:]
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    actions: dict[str, Callable[..., dict[str, Any]]] = {"mix": mix, "killed": killed, "killed_at": killed_at}
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(actions[action](Path(folder), *(int(one) for one in rest))) + "\n")


if __name__ == "__main__":
    main()
