"""The safety state of two stores: the primary's counts, the secondary follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from market.errors import StoreReadOnly, StoreUnavailable
from store.control import Control, OperatingState, SafetyState
from tests.support.failing_store import Pair, Switch, until
from tests.support.made_candles import BTC, START, at, batch, made

WHOLE = (START, at(100_000))


@pytest.fixture
def pair(tmp_path: Path, clock: Any) -> Pair:
    return Pair(tmp_path, clock, Switch(), Switch())


async def test_both_are_switched(pair: Pair) -> None:
    async with pair.opened() as store:
        await store.set_control(safety=SafetyState.FAIL, operating=OperatingState.DEFENSIVE, reason="slow")
    async with pair.each() as stores:
        for one in stores:
            found = await one.control()
            assert (found.safety, found.operating, found.reason) == (
                SafetyState.FAIL,
                OperatingState.DEFENSIVE,
                "slow",
            )


async def test_a_secondary_that_was_away_follows(pair: Pair) -> None:
    async with pair.opened() as store:
        await store.write(batch(made(range(10))))
        await until(lambda: store.status.current)
        pair.secondary.down()
        await store.write(batch(made(range(20))))
        await store.set_control(safety=SafetyState.FAIL, reason="look first")
        pair.secondary.up()
        with pytest.raises(StoreReadOnly, match="look first"):
            await store.catch_up()
        async with pair.each() as (_, second):
            assert (await second.control()).safety is SafetyState.FAIL
            # What it lacks is not brought to it while nothing may be written.
            assert await second.read(BTC, *WHOLE) == made(range(10))
        await store.set_control(safety=SafetyState.NORMAL)
        await until(lambda: store.status.current)
    await pair.assert_agree()


async def test_a_secondary_that_was_switched_alone_is_switched_back(pair: Pair) -> None:
    async with pair.opened() as store:
        await store.write(batch(made(range(10))))
        await until(lambda: store.status.current)
        async with pair.each() as (_, second):
            await second.set_control(safety=SafetyState.LOCKDOWN)
        # The primary's word counts: it is written there, and the secondary is behind.
        assert (await store.write(batch(made(range(20))))).inserted == 10
        assert list(store.status.behind) == [BTC]
        await until(lambda: store.status.current)
        assert await store.control() == Control()
    await pair.assert_agree()
    async with pair.each() as (_, second):
        assert (await second.control()).safety is SafetyState.NORMAL


async def test_while_the_primary_is_away(pair: Pair) -> None:
    async with pair.opened() as store:
        await store.write(batch(made(range(10))))
        await until(lambda: store.status.current)
        mark = store.change_mark()
        assert mark is not None
        pair.primary.down()
        # Revisions of the secondary say nothing of what was read from the primary.
        for question in (store.versions([BTC]), store.delta(BTC, since=-1, after_ms=0, limit=10)):
            with pytest.raises(StoreUnavailable):
                await question
        assert store.change_mark() is None
        # What is forbidden is known all the same; it is not switched where it would not count.
        assert (await store.control()).safety is SafetyState.NORMAL
        with pytest.raises(StoreUnavailable):
            await store.set_control(safety=SafetyState.FAIL)
        async with pair.each() as (_, second):
            assert (await second.control()).safety is SafetyState.NORMAL
        pair.primary.up()
        found, _ = await store.versions([BTC])
        assert found[BTC].revision == 1
        assert store.change_mark() is not None
