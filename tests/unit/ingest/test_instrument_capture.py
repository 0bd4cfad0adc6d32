"""The exchange's markets, captured after each midnight; changes are valid from when they were seen."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import ccxt.async_support as ccxt
import pytest

from exchange.binance.history import BINANCE_SETTINGS, BinanceHistory
from ingest.instrument_capture import capture_daily
from market.errors import ExchangeRefused, ExchangeUnavailable, StoreUnavailable, StoreUnusable
from market.instrument import Instrument
from market.timeframe import DAY_MS
from store.sqlite.store import SqliteStore
from tests.conftest import ManualClock
from tests.unit.exchange.test_ccxt_client import SYMBOL, scripted

#: 2023-11-14T00:00:00Z.
MIDNIGHT = 1_699_920_000_000
BTC = Instrument(
    exchange="binance",
    symbol="BTC/USDT",
    exchange_symbol="BTCUSDT",
    base="BTC",
    quote="USDT",
    tick_size=Decimal("0.01"),
)
ETH = replace(BTC, symbol="ETH/USDT", exchange_symbol="ETHUSDT", base="ETH")


class Exchange:
    """Its markets change from one day to the next; an error comes once."""

    def __init__(self, *answers: list[Instrument] | Exception) -> None:
        self.answers = list(answers)
        self.asked_at: list[int] = []
        self.clock = ManualClock(MIDNIGHT)

    async def instruments(self) -> list[Instrument]:
        self.asked_at.append(self.clock.now_ms())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Kept:
    """A store that notes what is saved, or fails."""

    def __init__(self, *errors: Exception) -> None:
        self.saved: list[tuple[list[Instrument], bool]] = []
        self.errors = list(errors)

    async def save_instruments(self, instruments: Any, complete: bool = False) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.saved.append((list(instruments), complete))


async def capture(markets: Any, store: Any, clock: ManualClock, days: float) -> list[list[Instrument]]:
    """So many days of it; what was told."""
    told: list[list[Instrument]] = []
    end = clock.now_ms() + days * DAY_MS

    async def sleep(seconds: float) -> None:
        assert seconds > 0
        clock.advance(round(seconds * 1000))
        if clock.now_ms() >= end:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await capture_daily(markets, store, clock, told.append, sleep)
    return told


async def test_markets_are_captured_once_a_day_soon_after_midnight() -> None:
    exchange, store = Exchange([BTC, ETH]), Kept()
    exchange.clock.advance(5 * 3_600_000)
    told = await capture(exchange, store, exchange.clock, 4)
    assert len(exchange.asked_at) == 4
    assert all(0 <= at % DAY_MS <= 1_800_000 for at in exchange.asked_at)
    assert [at // DAY_MS for at in exchange.asked_at] == [MIDNIGHT // DAY_MS + day for day in (1, 2, 3, 4)]
    assert store.saved == [([BTC, ETH], True)] * 4
    assert told == [[BTC, ETH]] * 4


async def test_an_exchange_or_a_store_that_fails_is_asked_again_after_minutes() -> None:
    exchange = Exchange(ExchangeUnavailable("away"), ExchangeRefused("not now"), [BTC])
    store = Kept(StoreUnavailable("away"))
    told = await capture(exchange, store, exchange.clock, 1.9)
    assert [later - sooner for sooner, later in zip(exchange.asked_at, exchange.asked_at[1:], strict=False)] == [
        300_000
    ] * 3
    assert store.saved == [([BTC], True)]
    assert told == [[BTC]]


async def test_a_store_that_cannot_be_used_ends_it() -> None:
    exchange = Exchange([BTC])
    with pytest.raises(StoreUnusable):
        await capture(exchange, Kept(StoreUnusable("read-only")), exchange.clock, 3)


async def test_a_change_is_valid_from_the_capture_that_saw_it(tmp_path: Path) -> None:
    coarse = replace(BTC, tick_size=Decimal("0.1"))
    exchange = Exchange([BTC, ETH], [coarse, ETH], [coarse])
    async with SqliteStore.opened(tmp_path / "store.sqlite3", exchange.clock) as store:
        await capture(exchange, store, exchange.clock, 3.5)
        first, second, third = exchange.asked_at
        inactive = replace(ETH, active=False)
        for at, known in [
            (first - 1, []),
            (first, [BTC, ETH]),
            (second - 1, [BTC, ETH]),
            (second, [coarse, ETH]),
            (third - 1, [coarse, ETH]),
            (third, [coarse, inactive]),
        ]:
            assert await store.instruments("binance", at) == known
        assert await store.instruments("binance") == [coarse, inactive]


async def test_ccxt_is_asked_for_the_markets_of_today() -> None:
    """ccxt keeps the markets that it has loaded for as long as it lives."""
    ticks = iter(["0.01", "0.10", "1.00"])
    asked = 0

    def answer(path: str, query: dict[str, str]) -> Any:
        nonlocal asked
        asked += 1
        price, *others = SYMBOL["filters"]  # type: ignore[misc]
        return {"symbols": [SYMBOL | {"filters": [price | {"tickSize": next(ticks)}, *others]}]}

    clock = ManualClock(MIDNIGHT)
    settings = {**BINANCE_SETTINGS, "options": {"fetchMarkets": {"types": ["spot"]}}}
    history = BinanceHistory(scripted(ccxt.binance, answer, settings), clock=clock)
    try:
        found = []
        for minutes in (0, 9, 2, 9, 2):
            clock.advance(minutes * 60_000)
            (one,) = await history.instruments()
            found.append(one.tick_size)
    finally:
        await history.close()
    assert found == [Decimal("0.01"), Decimal("0.01"), Decimal("0.1"), Decimal("0.1"), Decimal(1)]
    assert asked == 3
