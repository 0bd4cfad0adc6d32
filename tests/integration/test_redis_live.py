"""The live market between processes, over a real Redis: what ingest holds is what readers see, or nothing."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chandlery.live_feed import FeedPlan, opened_feed
from chandlery.settings import Settings
from chandlery.status_file import STATUS_NAME
from chandlery.wiring import CLOCK, opened_store
from market.book_message import BookChain, BookChange, BookSnapshot, BookStart
from market.candle_update import CandleUpdate
from market.channel import Channel
from market.clock import SystemClock
from market.instrument import Series
from market.order_book import BookState, OrderBook
from market.ticker import Ticker
from market.timeframe import ONE_MINUTE
from market.trade import Trade
from store.cache.breaker import CircuitBreaker
from store.cache.shared_values import SharedAway
from store.live_books import BookEdition
from store.live_market import LiveMarket
from store.redis.address import RedisUrl
from store.redis.command import Command, command
from store.redis.connection import RedisConnection
from store.redis.live_keys import live_key, symbols_key
from store.redis.live_reader import RedisMarket
from store.redis.live_rules import LiveWriterRules
from store.redis.live_writer import RedisLiveWriter
from store.redis.node import RedisRules
from tests.support import servers
from tests.support.notes import eventually
from tests.support.redis_cluster import PrivateCluster
from tests.support.redis_server import PrivateRedis
from tests.support.watched_feed import BTC, ETH, exchange, true_book, truth

EXCHANGE = "binance"
PATIENT = RedisRules(answer_seconds=10, connect_seconds=10)
#: Everything is looked after at once, so that tests need not wait for it.
RULES = LiveWriterRules(refresh_ms=1, away_ms=1)
_NAMES = itertools.count()


class KeptBook:
    """A book as ingest keeps it, fed by the test."""

    def __init__(self, market: LiveMarket, symbol: str) -> None:
        self.symbol = symbol
        changes = market.followed()
        self.book = OrderBook(BookChain.COUNTED, BookStart.STREAM, taken=changes.book_sink(EXCHANGE, symbol))
        changes.follow(EXCHANGE, symbol, self)

    def top(self, levels: int) -> BookSnapshot | None:
        return self.book.top(levels) if self.book.state is BookState.LIVE else None

    def edition(self) -> BookEdition | None:
        live = self.book.state is BookState.LIVE
        return BookEdition(self.book.bases, True, *self.book.bounds) if live else None

    def why(self) -> str:
        return f"{self.book.state}: {self.book.reason}"

    def begin(self, last_id: int, bids: dict[float, float], asks: dict[float, float]) -> None:
        now = CLOCK.now_ms()
        assert self.book.snapshot(
            BookSnapshot(last_id, sorted(bids.items(), reverse=True), sorted(asks.items()), now, now)
        )

    def change(self, bids: dict[float, float], asks: dict[float, float]) -> None:
        now, next_id = CLOCK.now_ms(), self.book.last_id + 1
        assert self.book.apply(BookChange(next_id, next_id, None, [*bids.items()], [*asks.items()], now, now))


@dataclass
class Pair:
    """An ingest that writes, and a reader in what might be another process."""

    url: str
    market: LiveMarket
    writer: RedisLiveWriter
    connection: RedisConnection
    reader: RedisMarket
    now: list[float]

    def tomorrow(self) -> None:
        """What the reader holds is old."""
        self.now[0] += 86_400_000

    async def book(self, symbol: str, levels: int = 1000) -> BookSnapshot | None:
        self.tomorrow()
        found = await self.reader.order_book(EXCHANGE, symbol, levels)
        return None if found is None else found.book


@asynccontextmanager
async def connected(url: str, rules: RedisRules = PATIENT) -> AsyncIterator[RedisConnection]:
    breaker = CircuitBreaker("redis", SystemClock(), lambda event: None, failures=1000)
    async with RedisConnection.opened(RedisUrl.parse(url), rules, breaker) as connection:
        yield connection


@asynccontextmanager
async def paired(
    url: str, rules: LiveWriterRules = RULES, redis_rules: RedisRules = PATIENT
) -> AsyncIterator[Pair]:
    """A writer that flushes when the test says so."""
    async with connected(url, redis_rules) as writes, connected(url, redis_rules) as reads:
        market, now = LiveMarket(CLOCK), [0.0]
        writer = RedisLiveWriter(writes, market, CLOCK, rules)
        reader = RedisMarket(reads, CLOCK, monotonic_ms=lambda: now[0])
        yield Pair(url, market, writer, reads, reader, now)


@pytest.fixture(params=["one", "cluster"])
def url(request: pytest.FixtureRequest) -> str:
    return servers.redis().url if request.param == "one" else servers.redis_cluster().url


def new_symbol() -> str:
    return f"L{next(_NAMES)}X{os.getpid()}/USDT"


def ticker(last: float, **more: Any) -> Ticker:
    return Ticker(CLOCK.now_ms(), CLOCK.now_ms() - 3, last=last, **more)


def trade(id_: int | str) -> Trade:
    return Trade(id_, 100.5, 0.1, CLOCK.now_ms() - 5, True, CLOCK.now_ms())


def forming(close: float) -> CandleUpdate:
    now = CLOCK.now_ms()
    return CandleUpdate(
        now // 60_000 * 60_000, 1.0, 9.0, 0.5, close, 3.0, None, 5, 1.0, None, None, False, now, now
    )


async def test_what_ingest_holds_is_what_another_process_reads(url: str) -> None:
    symbol = new_symbol()
    series = Series(EXCHANGE, symbol, ONE_MINUTE)
    async with paired(url) as pair:
        market, changes = pair.market, pair.market.followed()
        for sink in (market.tickers.sink(EXCHANGE, symbol), changes.ticker_sink(EXCHANGE, symbol)):
            sink(ticker(7.5, bid=7.25))
        trades = [trade(one) for one in range(700)]
        for one in trades:
            market.trades.sink(EXCHANGE, symbol)(one)
            changes.trade_sink(EXCHANGE, symbol)(one)
        market.candles.heard(series, forming(2.5))
        book = KeptBook(market, symbol)
        book.begin(5, {1.0: 2.0, 0.1: 3.5}, {1.5: 1e-9})
        await pair.writer.flush()

        found = await pair.reader.ticker(EXCHANGE, symbol)
        assert found is not None
        assert (found.value, found.tier) == (market.tickers.get(EXCHANGE, symbol), "router")
        assert await pair.book(symbol) == book.top(1000)._replace(  # type: ignore[union-attr]
            bids=((1.0, 2.0), (0.1, 3.5)), asks=((1.5, 1e-9),)
        )
        assert (await pair.reader.trades(EXCHANGE, symbol, 10)).value == trades[-10:]
        pair.tomorrow()
        assert (await pair.reader.trades(EXCHANGE, symbol, 10_000)).value == trades
        held = await pair.reader.forming(series)
        assert held == market.candles.get(series)
        assert pair.reader.fresh_forming(series) == (True, held)
        pair.tomorrow()
        assert pair.reader.fresh_forming(series) == (False, None)
        everything = await pair.reader.tickers(EXCHANGE)
        assert everything[symbol].value == found.value
        assert pair.writer.status.failures == pair.writer.status.refused == 0


async def test_nothing_is_there_of_what_nobody_feeds(url: str) -> None:
    symbol = new_symbol()
    async with paired(url) as pair:
        assert await pair.reader.ticker(EXCHANGE, symbol) is None
        assert await pair.reader.tickers("nowhere") == {}
        assert await pair.book(symbol) is None
        assert "no order book of" in await pair.reader.why_no_book(EXCHANGE, symbol)
        assert (await pair.reader.trades(EXCHANGE, symbol, 10)).value == []
        assert await pair.reader.forming(Series(EXCHANGE, symbol, ONE_MINUTE)) is None


async def test_changes_go_as_changes_and_a_book_that_is_not_live_goes_at_once(url: str) -> None:
    symbol = new_symbol()
    async with paired(url, LiveWriterRules()) as pair:
        book = KeptBook(pair.market, symbol)
        await pair.writer.flush()
        assert await pair.reader.why_no_book(EXCHANGE, symbol) == "syncing: no snapshot yet"
        book.begin(5, {1.0: 2.0, 0.5: 1.0}, {1.5: 3.0})
        await pair.writer.flush()
        for step in range(20):
            book.change({1.0: step % 3, 0.9: step}, {1.5: 0.0, 1.6 + step / 100: 1.0})
            if step % 2:
                await pair.writer.flush()
                found = await pair.book(symbol)
                assert found is not None
                assert (found.last_id, [*found.bids], [*found.asks]) == (
                    book.book.last_id, [*book.book.top(99).bids], [*book.book.top(99).asks],
                )  # fmt: skip
        assert pair.writer.status.books_replaced == 1
        assert pair.writer.status.books_changed == 10
        book.book.lose("a hole", CLOCK.now_ms())
        await pair.writer.flush()
        assert await pair.book(symbol) is None
        assert await pair.reader.why_no_book(EXCHANGE, symbol) == "stale: a hole"
        # A snapshot comes while changes wait, and more after it: all in one go.
        book.begin(50, {2.0: 1.0}, {3.0: 1.0})
        book.change({2.5: 1.0}, {})
        await pair.writer.flush()
        found = await pair.book(symbol)
        assert found is not None
        assert (found.last_id, found.bids) == (51, ((2.5, 1.0), (2.0, 1.0)))


async def test_only_the_depth_that_may_be_asked_for_is_sent_and_it_is_renewed(url: str) -> None:
    symbol = new_symbol()
    rules = LiveWriterRules(most_levels=10)
    async with paired(url, rules) as pair:
        book = KeptBook(pair.market, symbol)
        book.begin(
            1, {float(price): 1.0 for price in range(1, 100)}, {float(price): 1.0 for price in range(100, 200)}
        )
        await pair.writer.flush()
        for gone in range(99, 60, -1):
            # The market falls: the levels that Redis has run out.
            book.change({float(gone): 0.0, 5.0: float(gone)}, {gone + 0.5: 1.0})
            await pair.writer.flush()
            found = await pair.book(symbol, 3)
            assert found is not None
            assert [*found.bids] == [*book.book.top(3).bids]
            assert [*found.asks] == [*book.book.top(3).asks]
        assert pair.writer.status.books_replaced > 3
        assert pair.writer.status.books_changed > 20


@pytest.mark.parametrize("loss", ["flush", "evict"])
async def test_a_redis_that_has_forgotten_gets_everything_again(url: str, loss: str) -> None:
    symbol, quiet = new_symbol(), new_symbol()
    async with paired(url) as pair:
        market, changes = pair.market, pair.market.followed()
        for name in (symbol, quiet):
            for sink in (market.tickers.sink(EXCHANGE, name), changes.ticker_sink(EXCHANGE, name)):
                sink(ticker(7.5))
            for sink in (market.trades.sink(EXCHANGE, name), changes.trade_sink(EXCHANGE, name)):
                sink(trade(1))
        books = [KeptBook(market, name) for name in (symbol, quiet)]
        for book in books:
            book.begin(5, {1.0: 2.0}, {1.5: 3.0})
        await pair.writer.flush()
        await _forget(pair, loss, (symbol, quiet))
        assert await pair.book(symbol) is None
        books[0].change({1.1: 1.0}, {})
        for sink in (market.trades.sink(EXCHANGE, symbol), changes.trade_sink(EXCHANGE, symbol)):
            sink(trade(2))

        async def back() -> bool:
            await pair.writer.flush()
            found = [await pair.book(name) for name in (symbol, quiet)]
            heard = [await pair.reader.ticker(EXCHANGE, name) for name in (symbol, quiet)]
            traded = [(await pair.reader.trades(EXCHANGE, name, 5)).value for name in (symbol, quiet)]
            return None not in found and None not in heard and [len(one) for one in traded] == [2, 1]

        await eventually(back, "everything is in Redis again")
        found = await pair.book(symbol)
        assert found is not None
        assert found.bids == ((1.1, 1.0), (1.0, 2.0))
        assert pair.writer.status.refused >= 2


async def _forget(pair: Pair, loss: str, symbols: tuple[str, ...]) -> None:
    if loss == "flush":
        for node in await pair.connection.primaries():
            await pair.connection.execute_on(node, "FLUSHALL")
        return
    for symbol in symbols:
        # Redis evicts key by key, and what is left must not pass for a book.
        keys = [live_key(EXCHANGE, symbol, *parts) for parts in
                (("order_book", "bid_prices"), ("ticker",), ("trades", "batches"))]  # fmt: skip
        await pair.connection.pipeline([command("DEL", key) for key in keys])


async def test_two_writers_of_one_market_do_not_mix(url: str) -> None:
    symbol = new_symbol()
    rules = LiveWriterRules(lease_ms=60_000)
    async with paired(url, rules) as first, paired(url, rules) as second:
        books = [KeptBook(one.market, symbol) for one in (first, second)]
        for pair, book in zip((first, second), books, strict=True):
            book.begin(5, {1.0: 2.0}, {1.5: 3.0})
            for sink in (
                pair.market.trades.sink(EXCHANGE, symbol), pair.market.followed().trade_sink(EXCHANGE, symbol)
            ):  # fmt: skip
                sink(trade(1))
            await pair.writer.flush()
        books[1].change({0.9: 1.0}, {})
        await second.writer.flush()
        found = await first.book(symbol)
        assert found is not None
        assert found.last_id == 5
        assert [one.id for one in (await first.reader.trades(EXCHANGE, symbol, 9)).value] == [1]
        assert second.writer.status.kept_by_another >= 2
        # It has noted that, and leaves the place alone for the lease.
        assert second.writer.status.pipelines == 1
        # The first one ends: the next look of the second finds the place free.
        await first.writer._take_leave()
        assert await first.book(symbol) is None


async def test_garbage_and_other_versions_are_nothing(url: str) -> None:
    symbol = new_symbol()
    series = Series(EXCHANGE, symbol, ONE_MINUTE)
    async with paired(url) as pair:
        # Of another version of the format: other names.
        other = live_key(EXCHANGE, symbol, "ticker").replace("chandlery:1:", "chandlery:2:")
        garbage: list[Command] = [command("SET", other, b"\x90")]
        for parts in (("ticker",), ("forming_candle", "1m")):
            garbage.append(command("SET", live_key(EXCHANGE, symbol, *parts), b"\xc1garbage"))
        garbage.append(command("HSET", live_key(EXCHANGE, symbol, "order_book", "record"), "state", "live"))
        garbage.append(command("SET", live_key(EXCHANGE, symbol, "order_book", "bid_prices"), "text"))
        garbage.append(command("RPUSH", live_key(EXCHANGE, symbol, "trades", "batches"), "x", "y" * 40))
        await pair.connection.pipeline(garbage)

        async def nothing() -> None:
            pair.tomorrow()
            assert await pair.reader.ticker(EXCHANGE, symbol) is None
            assert await pair.reader.forming(series) is None
            assert await pair.book(symbol) is None
            assert (await pair.reader.trades(EXCHANGE, symbol, 10)).value == []

        await nothing()
        # And of other types altogether.
        lists = [live_key(EXCHANGE, symbol, *parts) for parts in
                 (("ticker",), ("forming_candle", "1m"), ("order_book", "record"))]  # fmt: skip
        for key in (*lists, live_key(EXCHANGE, symbol, "trades", "record")):
            await pair.connection.pipeline([command("DEL", key), command("RPUSH", key, "x")])
        await pair.connection.pipeline([command("ZADD", symbols_key(EXCHANGE), 1, symbol)])
        await nothing()
        assert symbol not in await pair.reader.tickers(EXCHANGE)
        # What is written takes the place of it.
        changes = pair.market.followed()
        for sink in (pair.market.tickers.sink(EXCHANGE, symbol), changes.ticker_sink(EXCHANGE, symbol)):
            sink(ticker(7.5))
        for sink in (pair.market.trades.sink(EXCHANGE, symbol), changes.trade_sink(EXCHANGE, symbol)):
            sink(trade(1))
        pair.market.candles.heard(series, forming(2.5))
        book = KeptBook(pair.market, symbol)
        book.begin(5, {1.0: 2.0}, {1.5: 3.0})
        await pair.writer.flush()
        assert (await pair.book(symbol)) is not None
        assert (await pair.reader.ticker(EXCHANGE, symbol)) is not None
        assert (await pair.reader.forming(series)) is not None
        assert len((await pair.reader.trades(EXCHANGE, symbol, 10)).value) == 1
        assert pair.writer.status.error is None


async def test_everything_ends_by_itself() -> None:
    symbol = new_symbol()
    # Half as long as the server's own look for keys whose time is over would be too much to hope for.
    rules = LiveWriterRules(ticker_ms=400, forming_ms=400, trades_ms=400, book_ms=400, refresh_ms=600_000)
    async with paired(servers.redis().url, rules) as pair:
        changes = pair.market.followed()
        for sink in (pair.market.tickers.sink(EXCHANGE, symbol), changes.ticker_sink(EXCHANGE, symbol)):
            sink(ticker(7.5))
        for sink in (pair.market.trades.sink(EXCHANGE, symbol), changes.trade_sink(EXCHANGE, symbol)):
            sink(trade(1))
        pair.market.candles.heard(Series(EXCHANGE, symbol, ONE_MINUTE), forming(1.0))
        book = KeptBook(pair.market, symbol)
        book.begin(5, {1.0: 2.0}, {1.5: 3.0})
        await pair.writer.flush()
        pattern = live_key(EXCHANGE, symbol, "x").removesuffix("x").replace("{", "[{]") + "*"

        async def gone() -> bool:
            return not await pair.connection.execute("KEYS", pattern)

        assert not await gone()
        await eventually(gone, "what nobody renews is gone")
        assert await pair.book(symbol) is None
        # The next change finds it gone, and the whole book is sent.
        book.change({1.1: 1.0}, {})
        for _ in range(2):
            await pair.writer.flush()
        found = await pair.book(symbol)
        assert found is not None
        assert found.bids == ((1.1, 1.0), (1.0, 2.0))


async def test_many_markets_go_in_few_round_trips() -> None:
    symbols = [new_symbol() for _ in range(100)]
    async with paired(servers.redis().url, LiveWriterRules()) as pair:
        changes = pair.market.followed()
        books = [KeptBook(pair.market, symbol) for symbol in symbols]
        tickers = [(pair.market.tickers.sink(EXCHANGE, one), changes.ticker_sink(EXCHANGE, one)) for one in symbols]
        for book in books:
            book.begin(5, {1.0: 2.0}, {1.5: 3.0})
        await pair.writer.flush()
        before = pair.writer.status.pipelines
        for book, sinks in zip(books, tickers, strict=True):
            for step in range(50):
                book.change({1.0: 1.0 + step}, {})
                for sink in sinks:
                    sink(ticker(step))
        sent: list[int] = []
        pipeline = pair.writer._connection.pipeline

        async def counted(commands: Any) -> Any:
            sent.append(len(commands))
            return await pipeline(commands)

        pair.writer._connection.pipeline = counted  # type: ignore[method-assign]
        await pair.writer.flush()
        # 5,000 changes and 5,000 tickers are 100 of each, some looked after as well; 200 commands go together.
        assert pair.writer.status.pipelines - before == len(sent) <= 4
        assert max(sent) <= 200
        assert pair.writer.status.books_changed == 100
        for symbol in symbols[:3]:
            found = await pair.book(symbol)
            assert found is not None
            assert found.bids == ((1.0, 50.0),)


async def test_a_market_may_begin_while_others_are_being_sent() -> None:
    first, second = new_symbol(), new_symbol()
    async with paired(servers.redis().url, LiveWriterRules(commands_together=1)) as pair:
        changes = pair.market.followed()
        pipeline = pair.writer._connection.pipeline

        def traded(symbol: str) -> None:
            for sink in (pair.market.trades.sink(EXCHANGE, symbol), changes.trade_sink(EXCHANGE, symbol)):
                sink(trade(1))

        async def meanwhile(commands: Any) -> Any:
            traded(second)
            return await pipeline(commands)

        KeptBook(pair.market, first).begin(5, {1.0: 2.0}, {1.5: 3.0})
        traded(first)
        pair.writer._connection.pipeline = meanwhile  # type: ignore[method-assign]
        await pair.writer.flush()
        pair.writer._connection.pipeline = pipeline  # type: ignore[method-assign]
        await pair.writer.flush()
        for symbol in (first, second):
            assert (await pair.reader.trades(EXCHANGE, symbol, 5)).value


async def test_while_redis_is_away_nothing_is_kept_for_it_and_then_everything_comes() -> None:
    symbol = new_symbol()
    impatient = RedisRules(answer_seconds=2, connect_seconds=2)
    with PrivateRedis() as server:
        async with paired(server.url, RULES, impatient) as pair:
            market, changes = pair.market, pair.market.followed()
            sinks: list[Callable[[Any], None]] = [
                market.trades.sink(EXCHANGE, symbol), changes.trade_sink(EXCHANGE, symbol)
            ]  # fmt: skip
            heard = market.tickers.sink(EXCHANGE, symbol), changes.ticker_sink(EXCHANGE, symbol)
            book = KeptBook(market, symbol)
            book.begin(5, {1.0: 2.0}, {1.5: 3.0})
            for sink in sinks:
                sink(trade(1))
            for tell in heard:
                tell(ticker(1.0))
            await pair.writer.flush()
            server.kill()
            with pytest.raises(SharedAway):
                await pair.book(symbol)
            for step in range(2, 30):
                book.change({1.0: float(step)}, {})
                for sink in sinks:
                    sink(trade(step))
                await pair.writer.flush()
            assert pair.writer.status.failures >= 2
            assert pair.writer.status.away
            assert pair.writer.status.dropped > 20
            assert not changes.traded()
            server.start()

            async def back() -> bool:
                await pair.writer.flush()
                return await pair.book(symbol) is not None

            await eventually(back, "the writer has found its server again")
            found = await pair.book(symbol)
            assert found is not None
            assert found.bids == ((1.0, 29.0),)
            assert [one.id for one in (await pair.reader.trades(EXCHANGE, symbol, 99)).value] == [*range(1, 30)]
            found_ticker = await pair.reader.ticker(EXCHANGE, symbol)
            assert found_ticker is not None
            assert found_ticker.value.last == 1.0


async def test_what_is_urgent_does_not_wait_for_the_next_flush() -> None:
    symbol = new_symbol()
    url = servers.redis().url
    async with connected(url) as writes, connected(url) as reads:
        market, now = LiveMarket(CLOCK), [0.0]
        reader = RedisMarket(reads, CLOCK, monotonic_ms=lambda: now[0])
        book = KeptBook(market, symbol)
        changes = market.followed()

        async def shown() -> bool:
            now[0] += 1000
            return await reader.order_book(EXCHANGE, symbol, 5) is not None

        async def hidden() -> bool:
            return not await shown()

        # An hour between two flushes.
        async with RedisLiveWriter.opened(
            writes, market, CLOCK, rules=LiveWriterRules(flush_ms=3_600_000)
        ) as writer:
            await eventually(lambda: _flushed(writer), "the first flush")
            book.begin(5, {1.0: 2.0}, {1.5: 3.0})
            changes.urgent.set()
            await eventually(shown, "the book is there")
            book.book.doubt("no change for too long", CLOCK.now_ms())
            changes.urgent.set()
            await eventually(hidden, "the book is gone")
            book.book.confirm(CLOCK.now_ms())
            changes.urgent.set()
            await eventually(shown, "the book is there again")
        assert await hidden()
        assert await reader.why_no_book(EXCHANGE, symbol) == "its ingest has ended"


async def _flushed(writer: RedisLiveWriter) -> bool:
    return writer.status.flushes > 0


async def test_one_server_of_a_cluster_gone() -> None:
    symbols = [new_symbol() for _ in range(12)]
    rules = RedisRules(answer_seconds=2, connect_seconds=2)
    with PrivateCluster() as cluster:
        async with paired(cluster.url, RULES, rules) as pair:
            books = [KeptBook(pair.market, symbol) for symbol in symbols]
            for book in books:
                book.begin(5, {1.0: 2.0}, {1.5: 3.0})
            await pair.writer.flush()
            assert None not in [await pair.book(symbol) for symbol in symbols]
            cluster.primary_of(live_key(EXCHANGE, symbols[0], "ticker")).kill()
            for book in books:
                book.change({1.25: 7.0}, {})

            async def back() -> bool:
                await pair.writer.flush()
                try:
                    found = [await pair.book(symbol) for symbol in symbols]
                except SharedAway:
                    return False
                # Never a book that is not: the old one, or the new one.
                assert {one.bids for one in found if one is not None} <= {
                    ((1.0, 2.0),), ((1.25, 7.0), (1.0, 2.0))
                }  # fmt: skip
                return all(one is not None and one.last_id == 6 for one in found)

            await eventually(back, "its replica has taken over, and every book is there")


async def test_readers_share_one_question_and_hold_its_answer_for_its_time() -> None:
    symbol = new_symbol()
    asked: list[str] = []
    async with paired(servers.redis().url) as pair:
        pipeline = pair.connection.pipeline

        async def counted(commands: Any) -> Any:
            asked.extend(one.name for one in commands)
            return await pipeline(commands)

        pair.connection.pipeline = counted  # type: ignore[method-assign]
        book = KeptBook(pair.market, symbol)
        book.begin(5, {1.0: 2.0}, {1.5: 3.0})
        await pair.writer.flush()
        await asyncio.gather(*(pair.reader.order_book(EXCHANGE, symbol, 1 + one % 20) for one in range(100)))
        assert len(asked) == 1
        pair.now[0] += 49
        held = await pair.reader.order_book(EXCHANGE, symbol, 20)
        assert held is not None
        assert (len(asked), held.tier) == (1, "memory")
        pair.now[0] += 1
        again = await pair.reader.order_book(EXCHANGE, symbol, 1000)
        assert again is not None
        assert (len(asked), again.tier) == (2, "router")
        # Fewer levels come out of what is held.
        assert (await pair.reader.order_book(EXCHANGE, symbol, 5)) is not None
        assert len(asked) == 2
        # That there is none is an answer, too, for 100 ms.
        for _ in range(10):
            assert await pair.reader.ticker(EXCHANGE, symbol) is None
        assert len(asked) == 3
        pair.now[0] += 100
        assert await pair.reader.ticker(EXCHANGE, symbol) is None
        assert len(asked) == 4


async def test_a_simulated_exchange_is_seen_by_another_process(tmp_path: Path) -> None:
    url = servers.redis().url
    with exchange(tmp_path, []) as (address, begin):
        settings = Settings(home=tmp_path, channels=tuple(Channel), silence=5.0, settle_ms=2000)
        plan = FeedPlan(exchange=EXCHANGE, url=address, symbols=[BTC, ETH], timeframe=ONE_MINUTE, since_ms=begin)
        market = LiveMarket(CLOCK)
        async with connected(url) as writes, connected(url) as reads:
            await writes.execute("DEL", symbols_key(EXCHANGE))
            reader = RedisMarket(reads, CLOCK)
            async with (
                opened_store(settings) as store,
                opened_feed(plan, settings, store, market, connection=writes) as feed,
            ):
                running = asyncio.create_task(feed.run(tmp_path / STATUS_NAME))
                try:
                    books = await _seen(reader, market)
                finally:
                    running.cancel()
                    await asyncio.gather(running, return_exceptions=True)
                assert feed.live_writer is not None
                status = feed.live_writer.status
            # Nobody keeps them right any more.
            await eventually(lambda: _no_book(reader), "the books are gone with their ingest")
            assert await reader.why_no_book(EXCHANGE, BTC) == "its ingest has ended"
        assert status.books_changed > status.books_replaced
        assert status.failures == 0
        end = CLOCK.now_ms() + 3_600_000
        for (symbol, last_id), book in list(books.items())[::3]:
            true = true_book(truth(symbol), last_id, begin - 60_000, end)
            assert (last_id, tuple(book.bids), tuple(book.asks)) == (true.last_update_id, true.bids, true.asks)


async def _no_book(reader: RedisMarket) -> bool:
    return await reader.order_book(EXCHANGE, BTC, 5) is None


async def _seen(reader: RedisMarket, market: LiveMarket) -> dict[tuple[str, int], BookSnapshot]:
    """Everything is seen through Redis, and many books are."""
    books: dict[tuple[str, int], BookSnapshot] = {}

    async def enough() -> bool:
        for symbol in (BTC, ETH):
            if (found := await reader.order_book(EXCHANGE, symbol, 20)) is not None:
                books[symbol, found.book.last_id] = found.book
        return len(books) > 12

    await eventually(enough, "many order books are seen")
    series = Series(EXCHANGE, BTC, ONE_MINUTE)

    async def rest() -> bool:
        tickers = await reader.tickers(EXCHANGE)
        traded = (await reader.trades(EXCHANGE, BTC, 1000)).value
        forming = await reader.forming(series)
        return {BTC, ETH} <= tickers.keys() and len(traded) > 10 and forming is not None

    await eventually(rest, "tickers, trades and forming candles are seen")
    traded = (await reader.trades(EXCHANGE, BTC, 1000)).value
    ours = market.trades.get(EXCHANGE, BTC, 20_000)
    assert [one for one in ours if one.id in {trade.id for trade in traded}] == traded
    ids = [int(one.id) for one in traded]
    assert ids == [*range(ids[0], ids[-1] + 1)]
    return books
