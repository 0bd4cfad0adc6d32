"""Two stores as one: who decides, who answers, and what is said of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from market.errors import BadInput, ChandleryError, NotFound, StoreBusy, StoreUnavailable, StoreUnusable
from market.timeframe import TIMEFRAMES
from store.batch import Written
from store.live_source import LocalMarket
from store.market_data import MarketData
from store.sqlite.store import SqliteStore
from tests.support.failing_store import Pair, Switch, until
from tests.support.made_candles import BTC, ETH, START, absence, at, batch, made

WHOLE = (START, at(100_000))
OUTAGES = [StoreUnavailable("the server is down"), StoreBusy("locked"), StoreUnusable("the disk is full")]


@pytest.fixture
def pair(tmp_path: Path, clock: Any) -> Pair:
    return Pair(tmp_path, clock, Switch(), Switch())


def events(logs: list[Any]) -> list[str]:
    """What was said that a person should see."""
    return [one["event"] for one in logs if one["log_level"] in ("warning", "error")]


BEHIND = "the secondary store is behind; it will catch up by itself"
CURRENT = "the secondary store is current again"
FALLEN_BACK = "the primary store is away; the secondary answers"
BACK = "the primary store answers again"


async def test_a_write_reaches_both_and_the_primary_says_what_it_did(pair: Pair) -> None:
    with capture_logs() as logs:
        async with pair.opened() as store:
            assert await store.write(batch(made(range(10)), absences=[absence(10, 12)])) == Written(inserted=10)
            assert pair.secondary.calls.count("write") == 1
            assert await store.write(batch(made([3], version=1))) == Written(corrected=1)
            await store.catch_up()
            assert store.status.current
            assert store.location == "first.sqlite3 (secondary: second.sqlite3)"
    await pair.assert_agree()
    # Written along, and not copied afterwards.
    assert pair.secondary.calls.count("write") == 2
    assert events(logs) == []


@pytest.mark.parametrize("error", OUTAGES, ids=lambda one: type(one).__name__)
async def test_a_secondary_that_fails_never_fails_a_write_and_catches_up(pair: Pair, error: ChandleryError) -> None:
    with capture_logs() as logs:
        async with pair.opened() as store:
            await store.write(batch(made(range(3000))))
            await store.catch_up()
            pair.secondary.down(error)
            for minute in range(3000, 3010):
                pair.clock.advance(1000)
                await store.write(batch(made([minute])))
            await store.write(batch(made([5], version=1), absences=[absence(3010, 3020)]))
            await store.write(batch(series=ETH, absences=[absence(0, 5)]))
            status = store.status
            assert set(status.behind) == {BTC, ETH}
            assert not status.current
            assert status.secondary_outage is not None
            assert status.secondary_outage.error == str(error)
            assert events(logs) == [BEHIND]
            pair.secondary.up()
            await until(lambda: events(logs) == [BEHIND, CURRENT])
            assert store.status.current
    await pair.assert_agree()


async def test_a_secondary_that_is_away_at_the_start_is_opened_later(pair: Pair) -> None:
    pair.secondary.down()
    with capture_logs() as logs:
        async with pair.opened() as store:
            await store.write(batch(made(range(50))))
            assert list(store.status.behind) == [BTC]
            pair.secondary.up()
            await until(lambda: events(logs) == [BEHIND, CURRENT])
            assert store.status.current
            await store.write(batch(made(range(50, 60))))
            assert not store.status.behind
    assert events(logs) == [BEHIND, CURRENT]
    await pair.assert_agree()


async def test_a_new_secondary_gets_everything(pair: Pair) -> None:
    async with SqliteStore.opened(pair.paths[0], pair.clock) as first:
        await first.write(batch(made(range(40_000)), absences=[absence(40_000, 90_000)]))
        await first.write(batch(made([1, 2]), series=ETH, source="elsewhere"))
    async with pair.opened() as store:
        await until(lambda: store.status.current)
    await pair.assert_agree()
    async with pair.each() as (first, second):
        assert [one.sources for one in await second.series()] == [one.sources for one in await first.series()]


async def test_a_write_that_was_committed_though_it_failed_is_no_harm(pair: Pair) -> None:
    async with pair.opened() as store:
        pair.secondary.after_commit = StoreUnavailable("the connection was lost")
        assert await store.write(batch(made(range(10)))) == Written(inserted=10)
        assert list(store.status.behind) == [BTC]
        await until(lambda: not store.status.behind)
    await pair.assert_agree()


@pytest.mark.parametrize("error", [*OUTAGES, BadInput("rows", 1, "2")], ids=lambda one: type(one).__name__)
async def test_what_the_primary_refuses_reaches_nobody(pair: Pair, error: ChandleryError) -> None:
    async with pair.opened() as store:
        pair.primary.down(error)
        with pytest.raises(type(error)):
            await store.write(batch(made(range(10))))
        with pytest.raises(type(error)):
            await store.save_instruments([])
        assert "write" not in pair.secondary.calls


async def test_a_primary_that_committed_though_it_failed_is_followed(pair: Pair) -> None:
    async with pair.opened() as store:
        pair.primary.after_commit = StoreUnavailable("the connection was lost")
        with pytest.raises(StoreUnavailable):
            await store.write(batch(made(range(10))))
        await store.catch_up()
    await pair.assert_agree()
    async with pair.each() as (_, second):
        assert await second.read(BTC, *WHOLE) == made(range(10))


async def test_a_mistake_of_the_secondary_is_not_swallowed_and_loses_nothing(pair: Pair) -> None:
    async with pair.opened() as store:
        await store.catch_up()
        pair.secondary.down(ZeroDivisionError("a mistake"))
        pair.secondary.only = "write"
        with pytest.raises(ZeroDivisionError):
            await store.write(batch(made(range(10))))
        assert list(store.status.behind) == [BTC]
        pair.secondary.up()
        await until(lambda: not store.status.behind)
    await pair.assert_agree()


async def test_a_mistake_in_catching_up_is_said_at_once_and_at_the_end(pair: Pair) -> None:
    async def run() -> None:
        pair.secondary.only = "series"
        pair.secondary.down(ZeroDivisionError("a mistake"))
        async with pair.opened() as store:
            await until(lambda: "the secondary store is no longer kept up" in events(logs))
            assert await store.write(batch(made([11]))) == Written(inserted=1)

    with capture_logs() as logs, pytest.raises(ZeroDivisionError):
        await run()


async def test_a_wrong_password_is_said_at_the_start_and_waited_for_later(pair: Pair) -> None:
    pair.secondary.down(BadInput("secondary_url", "postgresql://x", "another password"))
    with pytest.raises(BadInput, match="secondary_url"):
        async with pair.opened():
            pass
    pair.secondary.down()
    async with pair.opened() as store:
        pair.secondary.down(BadInput("secondary_url", "postgresql://x", "another password"))
        await until(lambda: "another password" in str(store.status.secondary_outage))
        pair.secondary.up()
        await until(lambda: store.status.current)


async def test_while_the_primary_is_away_the_secondary_answers_and_says_so(pair: Pair) -> None:
    with capture_logs() as logs:
        async with pair.opened() as store:
            data = MarketData(store, LocalMarket.empty(pair.clock), pair.clock)
            await store.write(batch(made(range(100))))
            await store.write(batch(made([1]), series=ETH))
            answer = await data.candles(BTC)
            assert (answer.tier, answer.age_ms) == ("database", 0)
            await store.catch_up()
            pair.clock.advance(5000)
            pair.primary.down()
            away = await data.candles(BTC)
            assert away.table == answer.table
            assert away.fingerprint == answer.fingerprint
            assert away.coverage == answer.coverage
            assert (away.tier, away.age_ms) == ("secondary", 5000)
            hourly = await data.candles(BTC.at(TIMEFRAMES["1h"]), limit=1)
            assert (hourly.tier, hourly.age_ms) == ("secondary", 5000)
            assert [one.series for one in await store.series()] == [BTC, ETH]
            assert await store.count() == (2, 101)
            with pytest.raises(StoreUnavailable):
                await store.write(batch(made([200])))
            assert events(logs) == [FALLEN_BACK]
            pair.primary.up()
            assert (await data.candles(BTC)).tier == "database"
            assert events(logs) == [FALLEN_BACK, BACK]


async def test_an_answer_of_a_secondary_that_lacks_something_says_so(pair: Pair) -> None:
    async with pair.opened() as store:
        data = MarketData(store, LocalMarket.empty(pair.clock), pair.clock)
        await store.write(batch(made(range(100))))
        await store.catch_up()
        pair.clock.advance(1000)
        pair.secondary.down()
        await store.write(batch(made(range(100, 110))))
        pair.primary.down(StoreBusy("every connection is in use"))
        pair.secondary.up()
        behind = await data.candles(BTC)
        assert (behind.tier, behind.age_ms, behind.table.num_rows) == ("secondary_behind", 1000, 100)
        pair.primary.up()
        await until(lambda: store.status.current)
        pair.primary.down()
        assert (await data.candles(BTC)).tier == "secondary"
    # A process that only reads has not compared anything.
    pair.primary.up()
    async with pair.opened(read_only=True) as reader:
        pair.primary.down()
        data = MarketData(reader, LocalMarket.empty(pair.clock), pair.clock)
        assert (await data.candles(BTC)).tier == "secondary_unproven"


async def test_where_both_are_away_the_primary_speaks(pair: Pair) -> None:
    async with pair.opened() as store:
        await store.write(batch(made(range(10))))
        pair.primary.down(StoreUnavailable("the first one"))
        pair.secondary.down(StoreUnavailable("the second one"))
        with pytest.raises(StoreUnavailable, match="the first one"):
            await store.read(BTC, *WHOLE)
    with pytest.raises(StoreUnavailable, match="the first one"):
        async with pair.opened():
            pass


async def test_other_errors_of_the_primary_are_answers(pair: Pair) -> None:
    async with pair.opened() as store:
        pair.primary.down(StoreUnusable("damaged"))
        with pytest.raises(StoreUnusable, match="damaged"):
            await store.read(BTC, *WHOLE)


async def test_a_primary_that_is_away_at_the_start_is_opened_later(pair: Pair) -> None:
    async with pair.opened() as store:
        await store.write(batch(made(range(10))))
        await store.catch_up()
    pair.primary.down()
    async with pair.opened() as store:
        assert await store.read(BTC, *WHOLE) == made(range(10))
        with pytest.raises(StoreUnavailable):
            await store.write(batch(made([10])))
        assert await store.integrity() == ["primary (first.sqlite3): does not answer: the server is down"]
        pair.primary.up()
        assert await store.write(batch(made([10]))) == Written(inserted=1)
        await store.catch_up()
    await pair.assert_agree()


async def test_for_reading_alone_nothing_is_copied_and_a_missing_secondary_is_an_outage(pair: Pair) -> None:
    with pytest.raises(NotFound):
        async with pair.opened(read_only=True):
            pass
    async with SqliteStore.opened(pair.paths[0], pair.clock) as first:
        await first.write(batch(made(range(10))))
    async with pair.opened(read_only=True) as store:
        assert await store.read(BTC, *WHOLE) == made(range(10))
        (line,) = await store.integrity()
        assert line.startswith("secondary (second.sqlite3): does not answer: ")
        with pytest.raises(StoreUnusable, match="reading only"):
            await store.write(batch(made([10])))
    assert not pair.paths[1].exists()


async def test_a_cancelled_write_is_found_again(pair: Pair) -> None:
    reached = asyncio.Event()

    async def hang(_: Any) -> None:
        reached.set()
        await asyncio.Event().wait()

    async with pair.opened() as store:
        await store.catch_up()
        pair.secondary.before_write = hang
        writing = asyncio.create_task(store.write(batch(made(range(10)))))
        await reached.wait()
        pair.secondary.before_write = None
        writing.cancel()
        await asyncio.wait([writing])
        assert writing.cancelled()
        await until(lambda: not store.status.behind)
    await pair.assert_agree()
