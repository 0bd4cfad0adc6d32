"""Trades, books and tickers of the simulated exchange over a real socket, each request at its documented weight."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import ccxt.async_support as ccxt
import pytest

from exchange.budget import CUT, MOST, Purpose
from exchange.ccxt_client import CcxtHistory
from exchange.errors import WAIT_UNSAID
from exchange.history import open_history
from exchange.request_limits import PlainTariff, RequestLimits
from exchange.simulator.server import SimulatorConfig, running_simulator
from exchange.trade_page import TradePage
from market.errors import ExchangeUnavailable, RateLimited
from market.timeframe import ONE_MINUTE
from market.trade import Trade
from tests.unit.exchange.test_ccxt_client import Plain

BTC = "BTC/USDT"
#: A window that no test outlasts.
HOUR = 3600
NOW = 1_700_000_000_000


@asynccontextmanager
async def opened(folder: Path, **options: Any) -> AsyncIterator[Any]:
    config = {"seed": 1, "port": 0, "weight_seconds": HOUR} | options
    async with running_simulator(SimulatorConfig(**config)) as url:
        history = open_history("binance", url, limits=folder / "limits", purpose=Purpose.LIVE)
        try:
            yield history
        finally:
            await history.close()


async def test_every_request_counts_what_the_exchange_counts(tmp_path: Path) -> None:
    async with opened(tmp_path) as history:
        last = (await history.trades_after(BTC, None)).trades[-500]
        requests: list[tuple[float, Callable[[], Awaitable[Any]]]] = [
            (25, lambda: history.trades_after(BTC, last, limit=10)),
            (2, lambda: history.ticker(BTC)),
            (5, lambda: history.order_book(BTC, 100)),
            (25, lambda: history.order_book(BTC, 101)),
            (50, lambda: history.order_book(BTC)),
            (250, lambda: history.order_book(BTC, 5000)),
            (1, history.server_time),
            (2, lambda: history.candles(BTC, ONE_MINUTE, NOW, NOW + 600_000)),
        ]
        for weight, ask in requests:
            (before,) = history.budgets()
            await ask()
            (after,) = history.budgets()
            counted = float(history._ccxt.last_response_headers["x-mbx-used-weight-1m"])
            assert after.used - before.used == pytest.approx(weight)
            assert after.used == pytest.approx(counted)
        assert (after.limit, after.window_ms, after.share) == (6000, HOUR * 1000, MOST)


async def test_pages_of_trades_follow_each_other_to_the_newest(tmp_path: Path) -> None:
    async with opened(tmp_path, now_ms=NOW, speed=0.001) as history:
        newest: TradePage = await history.trades_after(BTC, None)
        assert (newest.complete, newest.missing, len(newest.trades)) == (True, False, 1000)
        last: Trade = newest.trades[99]
        found: list[Trade] = []
        while True:
            page: TradePage = await history.trades_after(BTC, last, limit=250)
            assert not page.missing
            found += page.trades
            last = found[-1]
            if page.complete:
                break
        assert [one.id for one in found] == list(range(found[0].id, found[0].id + len(found)))
        assert [one._replace(received_at=0) for one in found[:900]] == [
            one._replace(received_at=0) for one in newest.trades[100:]
        ]
        assert all(one.received_at > one.event_time for one in found)
        book = await history.order_book(BTC, 10)
        ticker = await history.ticker(BTC)
        assert book.bids[0][0] < book.asks[0][0]
        assert (len(book.bids), len(book.asks)) == (10, 10)
        assert ticker.last == found[-1].price
        assert ticker.bid is not None
        assert ticker.ask is not None
        assert ticker.bid < ticker.ask


async def test_what_the_exchange_says_of_limits_reaches_the_budget(tmp_path: Path) -> None:
    """429 with and without a time, and a half answer, which says nothing of limits."""
    faults = tmp_path / "faults.json"
    faults.write_text(
        '[{"path": "/api/v3/ticker", "from": 1, "count": 1, "do": "half_body"},'
        ' {"path": "/api/v3/ticker", "from": 2, "count": 1, "do": "status", "status": 429, "retry_after": 400}]'
    )
    async with opened(tmp_path, faults=faults) as history:
        with pytest.raises(ExchangeUnavailable):
            await history.ticker(BTC)
        assert history.budgets()[0].held_until is None
        with pytest.raises(RateLimited) as refusal:
            await history.ticker(BTC)
        assert refusal.value.retry_after == 400
        (status,) = history.budgets()
        assert status.held_until is not None
        assert (status.banned_until, status.share) == (None, pytest.approx(MOST * CUT))
        # Nothing is sent any more: the exchange would answer.
        with pytest.raises(RateLimited, match="asked to slow down") as held:
            await history.order_book(BTC)
        assert 390 < held.value.retry_after <= 400


class Coded(Plain):
    """An exchange that says in the body of a good answer that too much was asked."""

    async def fetch_ticker(self, symbol: str, params: Any = None) -> Any:
        await self.throttle(2.5)
        raise ccxt.RateLimitExceeded("plain 200 OK {'code': '50011'}")


async def test_a_refusal_without_a_status_reaches_the_budget_too(tmp_path: Path) -> None:
    client = Coded({"urls": {"api": {"public": "https://plain.example"}}})
    limits = RequestLimits(client, PlainTariff(client), tmp_path, Purpose.LIVE, longest_wait=1.0)
    history = CcxtHistory(client, limits)
    with pytest.raises(RateLimited, match="asks to slow down"):
        await history.ticker("B/U")
    (status,) = history.budgets()
    assert (status.name, status.used) == ("plain.example", 2.5)
    assert status.held_until is not None
    with pytest.raises(RateLimited, match=r"plain\.example: it asked to slow down") as held:
        await history.ticker("B/U")
    assert held.value.retry_after == pytest.approx(WAIT_UNSAID, abs=2)
    (still,) = history.budgets()
    # Our own refusal is no refusal of the exchange: it prolongs nothing.
    assert still.held_until == status.held_until
