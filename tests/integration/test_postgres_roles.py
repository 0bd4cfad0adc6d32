"""What a PostgreSQL role without this or that right can still do, and what it is told."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from market.errors import StoreUnusable
from store.batch import Written
from store.postgres.address import DatabaseUrl
from store.postgres.mode import Mode
from store.postgres.store import LATEST, PostgresStore
from tests.support.made_candles import BTC, START, at, batch, made
from tests.support.postgres_server import PrivatePostgres

WHOLE = (START, at(100_000))
_NUMBERS = itertools.count()


@pytest.fixture
def name(postgres: PrivatePostgres) -> Iterator[str]:
    """An empty database."""
    name = postgres.create_database()
    yield name
    postgres.drop_database(name)


@pytest.fixture
def role(postgres: PrivatePostgres, name: str) -> Iterator[Callable[..., DatabaseUrl]]:
    """Makes a role with the rights that some statements give it, ``ROLE`` standing for its name."""
    made: list[str] = []

    def make(*grants: str) -> DatabaseUrl:
        role = f"limited_{next(_NUMBERS)}"
        made.append(role)
        postgres.sql(name, f"CREATE ROLE {role} LOGIN PASSWORD 'its secret'")
        for grant in grants:
            postgres.sql(name, grant.replace("ROLE", role))
        return DatabaseUrl.parse(postgres.url(name, user=role, password="its secret"))

    yield make
    for one in made:
        postgres.sql(name, f"DROP OWNED BY {one}")
        postgres.sql(name, f"DROP ROLE {one}")


async def make_tables(postgres: PrivatePostgres, name: str, mode: Mode) -> None:
    await PostgresStore.upgraded(DatabaseUrl.parse(postgres.url(name)), mode)


async def test_without_the_right_to_make_tables(role: Any) -> None:
    url = role()
    with pytest.raises(
        StoreUnusable, match=r"lacks a right \(permission denied for schema public\).*GRANT"
    ) as told:
        await PostgresStore.upgraded(url, Mode.PLAIN)
    assert "its secret" not in str(told.value)
    assert "\n" not in str(told.value)


async def test_without_the_right_to_create_the_extension(
    timescaledb: PrivatePostgres, name: str, role: Any, clock: Any
) -> None:
    url = role("GRANT CREATE ON SCHEMA public TO ROLE")
    expected = "CREATE EXTENSION timescaledb"
    with pytest.raises(StoreUnusable, match=expected) as told:
        await PostgresStore.upgraded(url, Mode.TIMESCALEDB)
    assert "\n" not in str(told.value)
    # Not asked for, it is done without, and said.
    async with PostgresStore.opened(url, clock) as store:
        assert store.schema.mode is Mode.PLAIN
        assert expected in store.schema.why
        assert await store.write(batch(made([0]))) == Written(inserted=1)


async def test_an_extension_that_is_there_is_used(
    timescaledb: PrivatePostgres, name: str, role: Any, clock: Any
) -> None:
    timescaledb.sql(name, "CREATE EXTENSION timescaledb")
    async with PostgresStore.opened(role("GRANT CREATE ON SCHEMA public TO ROLE"), clock) as store:
        assert store.schema.mode is Mode.TIMESCALEDB
        assert await store.write(batch(made(range(3000)))) == Written(inserted=3000)


@pytest.mark.parametrize("mode", list(Mode))
async def test_a_role_that_may_only_write_rows_writes(
    request: pytest.FixtureRequest, postgres: PrivatePostgres, name: str, role: Any, clock: Any, mode: Mode
) -> None:
    if mode is Mode.TIMESCALEDB:
        request.getfixturevalue("timescaledb")
    await make_tables(postgres, name, mode)
    url = role(
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO ROLE",
        "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO ROLE",
    )
    async with PostgresStore.opened(url, clock) as store:
        assert await store.write(batch(made(range(3000)))) == Written(inserted=3000)
        assert await store.write(batch(made([5], version=1))) == Written(corrected=1)
        assert (await store.read(BTC, *WHOLE)).num_rows == 3000
        if mode is Mode.PLAIN:
            assert await store.integrity() == [
                "3,000 candles wait in the default partition; run `chandlery db maintain`"
            ]
    # One who may make tables brings them into their partition on the way.
    async with PostgresStore.opened(DatabaseUrl.parse(postgres.url(name)), clock) as store:
        assert await store.write(batch(made([3000]))) == Written(inserted=1)
        assert await store.integrity() == []
        assert (await store.read(BTC, *WHOLE)).num_rows == 3001


@pytest.mark.parametrize("mode", list(Mode))
async def test_a_role_that_may_only_read_reads(
    request: pytest.FixtureRequest, postgres: PrivatePostgres, name: str, role: Any, clock: Any, mode: Mode
) -> None:
    if mode is Mode.TIMESCALEDB:
        request.getfixturevalue("timescaledb")
    await make_tables(postgres, name, mode)
    async with PostgresStore.opened(DatabaseUrl.parse(postgres.url(name)), clock) as store:
        await store.write(batch(made(range(100))))
    url = role("GRANT SELECT ON ALL TABLES IN SCHEMA public TO ROLE")
    async with PostgresStore.opened(url, clock, read_only=True) as store:
        assert await store.read(BTC, *WHOLE) == made(range(100))
        assert (await store.series())[0].rows == 100
        with pytest.raises(StoreUnusable, match="opened for reading only"):
            await store.write(batch(made([1])))
    async with PostgresStore.opened(url, clock) as store:
        with pytest.raises(StoreUnusable, match=r"lacks a right .*GRANT"):
            await store.write(batch(made([1])))


async def test_four_who_open_a_new_database_at_once(postgres: PrivatePostgres, name: str, clock: Any) -> None:
    url = DatabaseUrl.parse(postgres.url(name))
    applied = await asyncio.gather(*(PostgresStore.upgraded(url, Mode.PLAIN) for _ in range(4)))
    # Each version by one of them.
    assert sorted(itertools.chain(*applied)) == list(range(1, LATEST + 1))
