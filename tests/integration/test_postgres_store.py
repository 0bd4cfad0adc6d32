"""The whole store where servers are pooled, followed, killed or full."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from market.candle import CandleState
from market.errors import StoreUnavailable, StoreUnusable
from market.instrument import Series
from market.interval import Interval
from market.timeframe import TIMEFRAMES
from store.batch import Written
from store.integrity import check_series
from store.live_source import LocalMarket
from store.market_data import MarketData
from store.postgres.address import DatabaseUrl
from store.postgres.mode import Mode
from store.postgres.store import PostgresStore
from tests.support.made_candles import BTC, START, absence, at, batch, made
from tests.support.notes import QUICK, RULES, eventually
from tests.support.pgbouncer_server import PgBouncer
from tests.support.postgres_server import PrivatePostgres, StreamingReplica
from tests.support.small_disk import SmallDiskPostgres

WHOLE = (START, at(100_000))
HOUR = TIMEFRAMES["1h"]


@pytest.fixture(scope="module")
def pooler(postgres: PrivatePostgres) -> Iterator[PgBouncer]:
    """Three sessions of the server for everybody."""
    few = {"default_pool_size": 3, "min_pool_size": 0, "reserve_pool_size": 0}
    with PgBouncer(postgres, settings=few) as running:
        yield running


@pytest.mark.parametrize("mode", list(Mode))
async def test_everything_works_through_pgbouncer(
    request: pytest.FixtureRequest, postgres: PrivatePostgres, pooler: PgBouncer, mode: Mode, clock: Any
) -> None:
    if mode is Mode.TIMESCALEDB:
        request.getfixturevalue("timescaledb")
    name = postgres.create_database()
    others = [Series("binance", f"C{number}/USDT", BTC.timeframe) for number in range(20)]
    try:
        async with PostgresStore.opened(DatabaseUrl.parse(pooler.url(name)), clock, mode=mode) as store:
            written = await asyncio.gather(
                *(
                    store.write(batch(made(range(3000)), series=one, absences=[absence(3000, 3010)]))
                    for one in others
                )
            )
            assert written == [Written(inserted=3000)] * 20
            then = clock.now_ms()
            clock.advance(60_000)
            corrected = await asyncio.gather(
                *(store.write(batch(made([5, 2000], version=1), series=one)) for one in others)
            )
            assert corrected == [Written(corrected=2)] * 20
            if store.aggregates is not None:
                await store.aggregates.refresh()
            market_data = MarketData(store, LocalMarket.empty(clock), clock)
            for one in others:
                assert await store.read(one, *WHOLE, as_of_ms=then) == made(range(3000))
                assert await check_series(store, one, clock) == []
            answers = await asyncio.gather(*(market_data.candles(one.at(HOUR)) for one in others for _ in range(3)))
            assert {one.table.num_rows for one in answers} == {50}
            assert len({one.table.slice(0, 1).to_pylist()[0]["high"] for one in answers}) == 1
    finally:
        postgres.drop_database(name)


async def test_reads_go_on_whoever_dies(postgres: PrivatePostgres, clock: Any) -> None:
    with PrivatePostgres(settings=QUICK) as primary:
        name = primary.create_database()
        url = DatabaseUrl.parse(primary.url(name))
        await PostgresStore.upgraded(url, Mode.PLAIN)
        with StreamingReplica(primary, QUICK) as one, StreamingReplica(primary, QUICK) as other:
            urls = [DatabaseUrl.parse(replica.url(name), "replica_urls") for replica in (one, other)]
            async with PostgresStore.opened(
                url, clock, rules=replace(RULES, command_seconds=10.0), replicas=urls
            ) as store:
                for number in range(20):
                    await store.write(batch(made([number])))
                    # What was written just now is read, whoever answers.
                    assert await store.read(BTC, *WHOLE) == made(range(number + 1))
                one.kill()
                assert await store.read(BTC, *WHOLE) == made(range(20))
                other.kill()
                assert await store.read(BTC, *WHOLE) == made(range(20))
                await store.write(batch(made([20])))
                for replica in (one, other):
                    replica.start()
                    replica.caught_up()

                primary.kill()
                with pytest.raises(StoreUnavailable, match="does not answer") as told:
                    await store.write(batch(made([21])))
                assert "\n" not in str(told.value)
                assert await store.read(BTC, *WHOLE) == made(range(21))
                assert (await store.page(BTC, Interval(*WHOLE))).table.num_rows == 21
                assert (await store.series())[0].rows == 21
                primary.start()

                async def back() -> bool:
                    try:
                        return await store.write(batch(made([21]))) in (Written(inserted=1), Written(unchanged=1))
                    except StoreUnavailable:
                        return False

                await eventually(back, "writes after the primary is back")
                assert await store.read(BTC, *WHOLE) == made(range(22))
                assert await check_series(store, BTC, clock) == []


async def test_a_full_disk_refuses_the_batch_whole(postgres: PrivatePostgres, clock: Any) -> None:
    with SmallDiskPostgres() as server:
        name = server.create_database()
        async with PostgresStore.opened(DatabaseUrl.parse(server.url(name)), clock, mode=Mode.PLAIN) as store:
            first = made(range(50_000))
            await store.write(batch(first, absences=[absence(150_000, 150_010)]))
            before = await store.series(), await store.chunks(BTC), await store.coverage(BTC)
            server.fill()
            more = batch(made(range(50_000, 150_000)), state=CandleState.VERIFIED)
            with pytest.raises(StoreUnusable, match=r"no space left on the server.*nothing was written") as told:
                await store.write(more)
            assert "\n" not in str(told.value)
            assert (await store.series(), await store.chunks(BTC), await store.coverage(BTC)) == before
            assert await store.read(BTC, START, at(200_000)) == first
            server.clear()
            assert await store.write(more) == Written(inserted=100_000)
            assert await check_series(store, BTC, clock) == []
        server.drop_database(name)
