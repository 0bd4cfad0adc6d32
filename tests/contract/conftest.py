"""Every candle store, opened empty: one body of tests runs over all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from store.live import LiveCandles
from store.live_market import LiveMarket
from store.live_source import LocalMarket
from store.market_data import MarketData
from tests.support.candle_stores import STORES
from tests.support.tiered import tiered


@pytest.fixture(params=list(STORES))
async def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Any) -> AsyncIterator[Any]:
    """An empty candle store."""
    async with STORES[request.param](tmp_path, clock) as opened:
        yield opened


@pytest.fixture
async def second_store(
    store: Any, request: pytest.FixtureRequest, tmp_path: Path, clock: Any
) -> AsyncIterator[Any]:
    """Another empty store of the same kind."""
    name = request.node.callspec.params["store"]
    (tmp_path / "second").mkdir()
    async with STORES[name](tmp_path / "second", clock) as opened:
        yield opened


@pytest.fixture
def live_market(clock: Any) -> LiveMarket:
    """Router memory, empty."""
    return LiveMarket(clock)


@pytest.fixture
def live(live_market: LiveMarket) -> LiveCandles:
    """The forming candles in it."""
    return live_market.candles


@pytest.fixture(params=["straight", "tiers"])
def market_data(
    store: Any, live_market: LiveMarket, clock: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[MarketData]:
    """The read interface over the store, without and with tiers between."""
    live = LocalMarket(live_market, clock)
    if request.param == "straight":
        yield MarketData(store, live, clock)
        return
    views = tiered(store, None, clock, tmp_path / "cache")
    yield MarketData(store, live, clock, views=views)
    views.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Through tiers over one store of each kind: the stores themselves are held to the same answers without."""
    left_out = [
        one for one in items if "-tiers" in one.name and ("[postgresql" in one.name or "[hybrid" in one.name)
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [one for one in items if one not in left_out]
