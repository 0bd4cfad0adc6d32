"""A small home with candles, corrections and gaps, and the HTTP service over it, in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
from fastapi import FastAPI

from market.candle import candles
from market.clock import Clock
from market.coverage import CoverageState
from market.instrument import Instrument, Series
from market.interval import Interval
from market.timeframe import MINUTE_MS
from serve.app import create_app
from store.archive.archive import Archive
from store.batch import Absence, CandleBatch
from store.live import LiveCandles
from store.live_market import LiveMarket
from store.live_source import LocalMarket
from store.market_data import MarketData
from store.sqlite.store import DATABASE_NAME, SqliteStore

#: 2023-11-01T00:00:00Z.
START = 1_698_796_800_000
ROWS = 3_000
BTC = Series.parse("binance", "BTC/USDT", "1m")
ETH = Series.parse("binance", "ETH/USDT", "1m")
#: Minutes (counted from START) of BTC/USDT: verified empty, and never fetched.
EMPTY, GAP = (100, 180), (500, 510)
END = START + ROWS * MINUTE_MS
QUERY = {"exchange": "binance", "symbol": "BTC/USDT", "timeframe": "1m"}


def minute(count: int) -> int:
    """Epoch milliseconds of a minute counted from START."""
    return START + count * MINUTE_MS


def made(first: int, last: int, seed: int = 7) -> pa.Table:
    """Candles of minutes ``[first, last)`` with decimals as an exchange writes them."""
    rng = np.random.default_rng(seed)
    size = last - first
    cents = rng.integers(2_500_000, 2_600_000, (size, 4))
    volume = np.array([float(Decimal(int(one)).scaleb(-8)) for one in rng.integers(0, 10**10, size)])
    quotes = [None if at % 7 == 0 else float(at) + 0.25 for at in range(size)]
    return candles(
        {
            "open_time": np.arange(minute(first), minute(last), MINUTE_MS, dtype=np.int64),
            "open": cents[:, 0] / 100,
            "high": cents.max(axis=1) / 100,
            "low": cents.min(axis=1) / 100,
            "close": cents[:, 3] / 100,
            "volume": volume,
            "quote_volume": quotes,
            "trades": [None if at % 5 == 0 else at for at in range(size)],
        }
    )


def without(table: pa.Table, *ranges: tuple[int, int]) -> pa.Table:
    """`table` (from START) without the minutes of `ranges`."""
    keep = np.ones(table.num_rows, np.bool_)
    for first, last in ranges:
        keep[first:last] = False
    return table.filter(pa.array(keep))


def batch(series: Series, table: pa.Table, **more: object) -> CandleBatch:
    return CandleBatch(series=series, source="test", now_ms=END, table=table, **more)  # type: ignore[arg-type]


async def fill(store: SqliteStore) -> None:
    """BTC with an empty stretch and a gap, ETH whole, and both instruments."""
    absence = Absence(
        interval=Interval(minute(EMPTY[0]), minute(EMPTY[1])), state=CoverageState.EMPTY, evidence="two reads agree"
    )
    await store.write(batch(BTC, without(made(0, ROWS), EMPTY, GAP), absences=(absence,)))
    await store.write(batch(ETH, made(0, ROWS, seed=8)))
    await store.save_instruments(
        [
            Instrument(
                exchange="binance",
                symbol=one.symbol,
                exchange_symbol=one.symbol.replace("/", ""),
                base=one.symbol[:3],
                quote="USDT",
                tick_size=Decimal("0.01"),
                lot_size=Decimal("0.00001000"),
            )
            for one in (BTC, ETH)
        ]
    )


@dataclass(frozen=True)
class Service:
    """The service and the store under it."""

    app: FastAPI
    store: SqliteStore
    live: LiveCandles
    archive: Archive
    http: httpx.AsyncClient

    async def get(self, path: str, **parameters: object) -> httpx.Response:
        """A GET with the BTC 1m query's parameters left to the caller; None leaves one out."""
        return await self.http.get(path, params={k: v for k, v in parameters.items() if v is not None})

    async def candles(self, **changes: object) -> httpx.Response:
        """``/v1/candles`` of BTC 1m with changes."""
        return await self.get("/v1/candles", **{**QUERY, **changes})


@asynccontextmanager
async def service(home: Path, clock: Clock) -> AsyncIterator[Service]:
    """A filled home under `home`, served in this process."""
    async with SqliteStore.opened(home / DATABASE_NAME, clock) as store:
        await fill(store)
        live = LiveMarket(clock)
        archive = Archive(home / "archive")

        @asynccontextmanager
        async def open_market_data() -> AsyncIterator[MarketData]:
            yield MarketData(store, LocalMarket(live, clock), clock)

        app = create_app(open_market_data, archive, clock)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as http,
        ):
            yield Service(app, store, live.candles, archive, http)
