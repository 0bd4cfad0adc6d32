"""A home with candles of two symbols in two months, served by a process of its own, and what it must answer."""

from __future__ import annotations

import asyncio
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from chandlery.settings import Settings
from chandlery.wiring import opened_store
from market.instrument import Series
from market.timeframe import ONE_MINUTE
from tests.acceptance.conftest import started
from tests.support.made_candles import HOUR, MINUTE, at, batch, made_at

SYMBOLS = ("BTC/USDT", "ETH/USDT")
#: Minutes, counted from START (2023-01-01): six days of a month that is over for them, and a day after it.
FIRST, SEALED, LAST = 25 * 1440, 31 * 1440, 32 * 1440
COLUMNS = ("open_time", "open", "high", "low", "close", "volume")
#: Seconds for what must happen by itself, and between looks: each look is a question to a process.
DEADLINE, LOOK = 60.0, 0.1

#: The values of COLUMNS.
Row = list[Any]


def rows_at(open_times: list[int], version: int = 0) -> list[Row]:
    """Candles as they stand in an answer."""
    table = made_at(open_times, version)
    numbers = [table.column(name).to_pylist() for name in COLUMNS[1:]]
    return [[time, *rest] for time, *rest in zip(open_times, *numbers, strict=True)]


def minutes(first: int, last: int) -> list[int]:
    """Open times of the minutes ``[first, last)`` from START."""
    return list(range(at(first), at(last), MINUTE))


@dataclass
class Truth:
    """Every candle there is, by symbol and open time."""

    rows: dict[str, dict[int, Row]] = field(default_factory=dict)

    def put(self, symbol: str, rows: list[Row]) -> None:
        self.rows.setdefault(symbol, {}).update({row[0]: row for row in rows})

    def range(self, symbol: str, start: int, end: int) -> list[Row]:
        """Those with ``start <= open_time < end``."""
        mine = self.rows[symbol]
        return [mine[time] for time in range(start, end, MINUTE)]

    def newest(self, symbol: str, limit: int) -> list[Row]:
        return self.range(symbol, at(LAST - limit), at(LAST))

    def hours(self, symbol: str, start: int, end: int) -> list[Row]:
        """Open time, open, high, low and close of hourly candles."""
        found = []
        for hour in range(start, end, HOUR):
            part = self.range(symbol, hour, hour + HOUR)
            high, low = max(row[2] for row in part), min(row[3] for row in part)
            found.append([hour, part[0][1], high, low, part[-1][4]])
        return found


def fill(settings: Settings) -> Truth:
    """Write the candles to an empty store."""
    truth = Truth()

    async def write() -> None:
        async with opened_store(settings) as store:
            for version, symbol in enumerate(SYMBOLS):
                times = minutes(FIRST, LAST)
                await store.write(batch(made_at(times, version), series=Series("binance", symbol, ONE_MINUTE)))
                truth.put(symbol, rows_at(times, version))

    asyncio.run(write())
    return truth


def write_csv(path: Path, rows: list[Row]) -> Path:
    """A file for ``chandlery import``."""
    lines = [",".join(map(str, row)) for row in rows]
    path.write_text("\n".join(["timestamp,open,high,low,close,volume", *lines, ""]))
    return path


@dataclass(frozen=True)
class Service:
    """A running ``chandlery serve``."""

    url: str
    process: subprocess.Popen[str]
    http: httpx.Client

    def get(self, path: str = "/v1/candles", **parameters: object) -> httpx.Response:
        """An answer that is no error."""
        answer = self.http.get(path, params={name: str(value) for name, value in parameters.items()})
        assert answer.status_code == 200, answer.text
        return answer

    def rows(self, symbol: str = SYMBOLS[0], **parameters: object) -> tuple[list[Row], str]:
        """Candles, and the tier that gave them."""
        asked: dict[str, object] = {"exchange": "binance", "timeframe": "1m", "columns": ",".join(COLUMNS)}
        answer = self.get(**{**asked, "symbol": symbol, **parameters})
        return answer.json()["data"], answer.headers["X-Chandlery-Tier"]

    def cache(self) -> Any:
        """What ``/v1/health`` says of the cache."""
        return self.get("/v1/health").json()["cache"]

    def counted(self, tier: str, kind: str, what: str) -> int:
        """One number of the statistics."""
        return sum(one[what] for one in self.cache()["counts"] if (one["tier"], one["kind"]) == (tier, kind))

    def ended(self) -> str:
        """Stop it as Ctrl-C does; everything it said."""
        self.process.send_signal(2)
        assert self.process.stdout is not None
        said = self.process.stdout.read()
        assert self.process.wait() == 0, said
        return said


@contextmanager
def serving(home: Path, env: Mapping[str, str] | None = None) -> Iterator[Service]:
    """The service over a home."""
    command = ("serve", "--home", home, "--port", 0)
    with started(*command, ready="serving on", deadline=300.0, env=dict(env or {})) as (process, line):
        found = re.search(r"http://\S+", line)
        assert found is not None, line
        with httpx.Client(base_url=found[0], timeout=DEADLINE) as http:
            yield Service(found[0], process, http)


def waited(condition: Callable[[], bool], what: str) -> None:
    """Return as soon as `condition` holds; the test fails, naming `what`, after DEADLINE."""
    end = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"not within {DEADLINE:g} s: {what}")
        time.sleep(LOOK)


def arrow_files(folder: Path) -> list[Path]:
    """The files of a disk cache."""
    return sorted(folder.rglob("*.arrow"))
