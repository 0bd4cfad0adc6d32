"""Every candle store, opened empty: one body of tests runs over all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from store.live import LiveCandles
from store.market_data import MarketData
from tests.support.candle_stores import STORES


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
def live(clock: Any) -> LiveCandles:
    """Router memory, empty."""
    return LiveCandles(clock)


@pytest.fixture
def market_data(store: Any, live: LiveCandles, clock: Any) -> MarketData:
    """The read interface over the store."""
    return MarketData(store, live, clock)
