"""Batches of many series on two stores at once, and what is kept in the primary alone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from market.errors import StoreUnavailable
from market.timeframe import ONE_MINUTE
from store.batch import Written
from store.settling import SettleCount
from tests.support.failing_store import Pair, Switch, until
from tests.support.made_candles import BTC, ETH, batch, made
from tests.support.made_trades import EXCHANGE, SYMBOL, counted

BOTH = [batch(made(range(10)), series=BTC), batch(made(range(5)), series=ETH)]


@pytest.fixture
def pair(tmp_path: Path, clock: Any) -> Pair:
    return Pair(tmp_path, clock, Switch(), Switch())


async def test_both_stores_get_all_in_one_write_each(pair: Pair) -> None:
    async with pair.opened() as store:
        await store.catch_up()
        assert await store.write_all(BOTH) == [Written(inserted=10), Written(inserted=5)]
        assert store.status.behind == {}
    for switch in (pair.primary, pair.secondary):
        assert switch.calls.count("write_all") == 1
        assert "write" not in switch.calls
    await pair.assert_agree()


async def test_what_the_primary_refuses_reaches_no_one(pair: Pair) -> None:
    async with pair.opened() as store:
        await store.catch_up()
        pair.primary.down()
        with pytest.raises(StoreUnavailable):
            await store.write_all(BOTH)
        pair.primary.up()
        assert await store.count() == (0, 0)
    async with pair.each() as each:
        assert [await one.count() for one in each] == [(0, 0), (0, 0)]


async def test_a_secondary_that_fails_is_brought_up_afterwards(pair: Pair) -> None:
    async with pair.opened() as store:
        await store.catch_up()
        pair.secondary.down()
        assert await store.write_all(BOTH) == [Written(inserted=10), Written(inserted=5)]
        assert set(store.status.behind) == {BTC, ETH}
        # One series more, while others are behind and one is not.
        pair.secondary.up()
        await until(lambda: store.status.behind == {})
    await pair.assert_agree()


async def test_only_what_is_current_is_mirrored(pair: Pair) -> None:
    async with pair.opened() as store:
        await store.catch_up()
        pair.secondary.only = "write"
        pair.secondary.down()
        await store.write(batch(made(range(3)), series=ETH))
        assert set(store.status.behind) == {ETH}
        assert await store.write_all(BOTH) == [Written(inserted=10), Written(inserted=2, unchanged=3)]
        pair.secondary.up()
        await until(lambda: store.status.behind == {})
    await pair.assert_agree()


async def test_a_secondary_that_differs_is_noticed_by_series(pair: Pair, clock: Any) -> None:
    async with pair.each() as (_, second):
        await second.write(batch(made([3], version=1), series=BTC))
    async with pair.opened() as store:
        await store.write_all(BOTH)
        await until(lambda: store.status.current)
    await pair.assert_agree()


async def test_writers_at_once_do_not_wait_in_a_circle(pair: Pair) -> None:
    async with pair.opened() as store:
        await asyncio.gather(*(store.write_all(BOTH[:: 1 if turn % 2 else -1]) for turn in range(10)))
    await pair.assert_agree()


async def test_live_data_is_kept_in_the_primary_alone(pair: Pair) -> None:
    async with pair.opened() as store:
        await store.write_trades([counted(range(10))])
        await store.record_settle(EXCHANGE, ONE_MINUTE, [SettleCount(500, 1, 0)])
        pair.primary.down()
        # A secondary that has none must not say that there are none.
        with pytest.raises(StoreUnavailable):
            await store.trades(EXCHANGE, SYMBOL, 0, 2**52)
        with pytest.raises(StoreUnavailable):
            await store.write_trades([counted(range(20))])
        pair.primary.up()
        assert len(await store.trade_runs(EXCHANGE, SYMBOL)) == 1
    async with pair.each() as (first, second):
        assert len(await first.trades(EXCHANGE, SYMBOL, 0, 2**52)) == 10
        assert await second.trades(EXCHANGE, SYMBOL, 0, 2**52) == []
        assert await second.settle_checks() == []
