"""A file and a PostgreSQL as one store, either of them first, while the server is killed for real."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from market.errors import Retryable, StoreUnavailable
from store.batch import Written
from store.hybrid.catch_up import CatchUpRules
from store.hybrid.side import Place
from store.hybrid.store import HybridStore
from store.live_source import LocalMarket
from store.market_data import MarketData
from store.postgres.address import DatabaseUrl
from store.postgres.connection import PoolRules
from store.postgres.mode import Mode
from store.postgres.store import PostgresStore
from store.sqlite.store import SqliteStore
from tests.support.cutting_proxy import CuttingProxy
from tests.support.failing_store import QUICK, assert_agree, until
from tests.support.made_candles import BTC, ETH, START, absence, at, batch, made
from tests.support.postgres_server import PrivatePostgres

WHOLE = (START, at(100_000))
RULES = PoolRules(acquire_seconds=10.0, connect_seconds=10.0, command_seconds=4.0, away_seconds=0.1)


@pytest.fixture(scope="module")
def server(postgres: PrivatePostgres) -> Iterator[PrivatePostgres]:
    """A server to be killed; after `postgres`, which skips where there can be none."""
    with PrivatePostgres() as server:
        yield server


@dataclass
class Two:
    """A file and a database of the server."""

    path: Path
    url: DatabaseUrl
    clock: Any
    rules: CatchUpRules = QUICK

    def file(self) -> contextlib.AbstractAsyncContextManager[SqliteStore]:
        return SqliteStore.opened(self.path, self.clock)

    def database(self) -> contextlib.AbstractAsyncContextManager[PostgresStore]:
        return PostgresStore.opened(self.url, self.clock, rules=RULES, mode=Mode.PLAIN)

    def opened(self, *, database_first: bool) -> contextlib.AbstractAsyncContextManager[HybridStore]:
        file = Place(location="the file", open=self.file)
        database = Place(location=self.url.shown, open=self.database)
        first, second = (database, file) if database_first else (file, database)
        return HybridStore.opened(first, second, self.clock, rules=self.rules)

    async def assert_agree(self) -> None:
        async with self.file() as file, self.database() as database:
            await assert_agree(file, database)
            await assert_agree(database, file)


@pytest.fixture
def two(server: PrivatePostgres, tmp_path: Path, clock: Any) -> Two:
    server.start()
    url = DatabaseUrl.parse(server.url(server.create_database()), "secondary_url")
    return Two(tmp_path / "first.sqlite3", url, clock)


@pytest.fixture
async def filled(two: Two) -> Two:
    """With candles in the file alone."""
    async with two.file() as file:
        gone = [absence(one, one + 5, evidence=f"look {one}") for one in range(6000, 9000, 50)]
        await file.write(batch(made(range(6000)), absences=gone))
        await file.write(batch(made(range(100, 200), version=1), source="another"))
        await file.write(batch(made([1, 2]), series=ETH))
    return two


async def test_a_killed_secondary_is_brought_up(filled: Two, server: PrivatePostgres) -> None:
    two = filled
    with capture_logs() as logs:
        async with two.opened(database_first=False) as store:
            await store.catch_up()
            server.kill()
            for minute in range(9000, 9010):
                assert await store.write(batch(made([minute]))) == Written(inserted=1)
            assert await store.write(batch(made(range(50), version=2))) == Written(corrected=50)
            await store.write(batch(series=ETH, absences=[absence(5, 9)]))
            status = store.status
            assert set(status.behind) == {BTC, ETH}
            assert status.secondary_outage is not None
            assert "does not answer" in status.secondary_outage.error
            assert "s3cret" not in str(status) + str(logs) + store.location
            server.start()
            await until(lambda: store.status.current)
            await store.write(batch(made([9010])))
            assert not store.status.behind
    await two.assert_agree()
    said = [one["event"] for one in logs if one["event"].startswith("the secondary")]
    assert said.count("the secondary store is behind; it will catch up by itself") == 1


async def test_a_secondary_that_is_killed_again_and_again_while_it_is_brought_up(
    filled: Two, server: PrivatePostgres
) -> None:
    two = filled
    two.rules = replace(QUICK, rows_at_once=1440)
    async with two.opened(database_first=False) as store:
        for _ in range(3):
            await until(lambda: store.status.secondary_outage is None)
            server.kill()
            await until(lambda: store.status.secondary_outage is not None)
            server.start()
        await until(lambda: store.status.current)
    await two.assert_agree()


async def test_a_secondary_that_falls_silent_holds_a_write_up_once(filled: Two) -> None:
    """No answer at all is worse than a refusal: each wait for it is a long one."""
    two = filled
    async with CuttingProxy.opened(two.url.port) as proxy:
        two.url = replace(two.url, port=proxy.port)
        async with two.opened(database_first=False) as store:
            await store.catch_up()
            proxy.vanish()
            started = time.monotonic()
            for minute in range(9000, 9020):
                assert await store.write(batch(made([minute]))) == Written(inserted=1)
            for minute in range(20):
                assert await store.write(batch(made([minute]), series=ETH))
            # Forty waits would be 160 seconds.
            assert time.monotonic() - started < 80
            assert set(store.status.behind) == {BTC, ETH}
            proxy.come_back()
            await until(lambda: store.status.current)
        await two.assert_agree()


async def test_a_server_that_is_down_at_the_start_is_used_later(filled: Two, server: PrivatePostgres) -> None:
    two = filled
    server.kill()
    async with two.opened(database_first=False) as store:
        await store.write(batch(made([9000])))
        assert list(store.status.behind) == [BTC]
        server.start()
        await until(lambda: store.status.current)
    await two.assert_agree()


async def test_while_a_killed_primary_is_away_the_file_answers(two: Two, server: PrivatePostgres) -> None:
    async with two.opened(database_first=True) as store:
        data = MarketData(store, LocalMarket.empty(two.clock), two.clock)
        await store.write(batch(made(range(3000)), absences=[absence(3000, 3010)]))
        await store.catch_up()
        before = await data.candles(BTC)
        server.kill()
        two.clock.advance(3000)
        away = await data.candles(BTC)
        assert (away.tier, away.age_ms) == ("secondary", 3000)
        assert (away.table, away.fingerprint) == (before.table, before.fingerprint)
        with pytest.raises(StoreUnavailable):
            await store.write(batch(made([3020])))
        async with two.file() as file:
            assert await file.read(BTC, *WHOLE) == made(range(3000))
        server.start()

        async def written() -> bool:
            with contextlib.suppress(Retryable):
                return bool((await store.write(batch(made([3020])))).inserted)
            return False

        await until(written)
        assert (await data.candles(BTC)).tier == "database"
        await store.catch_up()
    await two.assert_agree()


async def test_from_a_database_to_a_new_file(two: Two) -> None:
    async with two.database() as database:
        await database.write(
            batch(made(range(4000)), absences=[absence(4000, 4100, expires_at=two.clock.now_ms() + 9)])
        )
        await database.write(batch(made(range(0, 4000, 3), version=1)))
    async with two.opened(database_first=True) as store:
        await until(lambda: store.status.current)
    await two.assert_agree()
