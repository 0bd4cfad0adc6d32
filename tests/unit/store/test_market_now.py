"""What is live now: each trade once, in order, from whichever place has it; and errors that say what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.book_message import BookSnapshot
from market.errors import BadInput, NotFound, StoreUnavailable
from market.ticker import Ticker
from market.trade import Trade
from store.cache.shared_values import SharedAway
from store.live_books import LiveBook
from store.live_source import LiveValue
from store.market_now import MarketNow, TickerAnswer
from tests.conftest import ManualClock

BTC = ("binance", "BTC/USDT")
NOW = 1_700_000_000_000


class Held:
    """A live source that holds what the test says."""

    def __init__(self) -> None:
        self.said: dict[tuple[str, str], LiveValue[Ticker]] = {}
        self.book: LiveBook | None = None
        self.recent: list[Trade] = []
        self.away = False
        self.asked: list[int] = []

    def _answer(self) -> None:
        if self.away:
            raise SharedAway("redis://127.0.0.1:6379/0 does not answer")

    async def ticker(self, exchange: str, symbol: str) -> LiveValue[Ticker] | None:
        self._answer()
        return self.said.get((exchange, symbol))

    async def tickers(self, exchange: str) -> dict[str, LiveValue[Ticker]]:
        self._answer()
        return {symbol: one for (name, symbol), one in self.said.items() if name == exchange}

    async def order_book(self, exchange: str, symbol: str, levels: int) -> LiveBook | None:
        self._answer()
        return self.book

    async def why_no_book(self, exchange: str, symbol: str) -> str:
        return "stale (refill): a hole"

    async def trades(self, exchange: str, symbol: str, limit: int) -> LiveValue[list[Trade]]:
        self._answer()
        self.asked.append(limit)
        return LiveValue(self.recent[-limit:], 3, "memory")

    async def forming(self, series: Any) -> None:
        return None

    def fresh_forming(self, series: Any) -> tuple[bool, None]:
        return True, None


class Recorded:
    """A store of trades that counts what it is asked."""

    def __init__(self, trades: Sequence[Trade]) -> None:
        self.kept = sorted(trades, key=lambda one: (one.event_time, one.id))
        self.reads = 0

    async def trades(
        self, exchange: str, symbol: str, start_ms: int, end_ms: int, *, limit: int | None = None
    ) -> list[Trade]:
        self.reads += 1
        return [one for one in self.kept if start_ms <= one.event_time < end_ms][:limit]

    async def newest_trade(self, exchange: str, symbol: str) -> Trade | None:
        return self.kept[-1] if self.kept else None


def trade(id_: int | str, event_time: int) -> Trade:
    return Trade(id_, 1.0, 1.0, event_time, True, max(event_time, NOW - 1000))


def ids(answer: Any) -> list[int | str]:
    return [one.id for one in answer.trades]


def market(live: Held, recorded: Recorded | None = None, clock: ManualClock | None = None) -> MarketNow:
    return MarketNow(live, recorded, clock or ManualClock(NOW))  # type: ignore[arg-type]


async def test_answers_say_tier_and_age() -> None:
    live = Held()
    live.said[BTC] = LiveValue(Ticker(NOW - 40, last=7.0), 40, "memory")
    live.book = LiveBook(BookSnapshot(7, [(1.0, 2.0)], [(2.0, 3.0)], None, NOW - 5), 5, "router")
    live.recent = [trade(one, NOW - 100 + one) for one in range(5)]
    now = market(live)
    assert await now.ticker(*BTC) == TickerAnswer(
        exchange="binance", symbol="BTC/USDT", ticker=Ticker(NOW - 40, last=7.0), tier="memory", age_ms=40
    )
    assert {symbol: one.age_ms for symbol, one in (await now.tickers("binance")).items()} == {"BTC/USDT": 40}
    book = await now.order_book(*BTC)
    assert (book.book, book.tier, book.age_ms) == (live.book.book, "router", 5)
    answer = await now.trades(*BTC, limit=3)
    assert (ids(answer), answer.more, answer.tier, answer.age_ms) == ([2, 3, 4], True, "memory", 3)
    answer = await now.trades(*BTC)
    assert (ids(answer), answer.more) == ([0, 1, 2, 3, 4], False)


@pytest.mark.parametrize("what, channel", [
    (lambda now: now.ticker(*BTC), "tickers"), (lambda now: now.order_book(*BTC), "order_books"),
    (lambda now: now.trades(*BTC), "trades"),
])  # fmt: skip
async def test_what_is_not_there_says_what_to_switch_on(what: Any, channel: str) -> None:
    with pytest.raises(NotFound, match=f"symbol: 'BTC/USDT'.*binance.*run with {channel} among its channels"):
        await what(market(Held()))


async def test_an_exchange_without_tickers_is_named() -> None:
    with pytest.raises(NotFound, match=r"exchange: 'kraken'.*run with tickers among"):
        await market(Held()).tickers("kraken")


async def test_a_book_that_may_not_be_shown_says_why() -> None:
    with pytest.raises(NotFound, match=r"now: stale \(refill\): a hole"):
        await market(Held()).order_book(*BTC, 5)


@pytest.mark.parametrize("what, field", [
    (lambda now: now.order_book(*BTC, 0), "levels"), (lambda now: now.order_book(*BTC, 1001), "levels"),
    (lambda now: now.order_book(*BTC, True), "levels"), (lambda now: now.trades(*BTC, limit=0), "limit"),
    (lambda now: now.trades(*BTC, limit=5001), "limit"), (lambda now: now.trades(*BTC, NOW, NOW), "end"),
    (lambda now: now.ticker("Binance!", "BTC/USDT"), "exchange"),
    (lambda now: now.ticker("binance", "BTC"), "symbol"),
    (lambda now: now.tickers(""), "exchange"), (lambda now: now.trades("binance", "", NOW), "symbol"),
])  # fmt: skip
async def test_bad_input_is_named(what: Any, field: str) -> None:
    live = Held()
    live.away = True
    with pytest.raises(BadInput) as refused:
        await what(market(live))
    assert refused.value.field == field


@pytest.mark.parametrize("what", [
    lambda now: now.ticker(*BTC), lambda now: now.tickers("binance"), lambda now: now.order_book(*BTC),
    lambda now: now.trades(*BTC),
])  # fmt: skip
async def test_router_memory_that_is_away_is_said_so(what: Any) -> None:
    live = Held()
    live.away = True
    with pytest.raises(StoreUnavailable, match="router memory does not answer"):
        await what(market(live, Recorded([trade(1, NOW)])))


async def test_the_database_is_asked_only_for_what_is_not_live() -> None:
    live, store = Held(), Recorded([trade(one, NOW - 1000 + one) for one in range(100)])
    live.recent = store.kept[50:]
    now = market(live, store)
    answer = await now.trades(*BTC, limit=20)
    assert (ids(answer), answer.more, answer.tier, store.reads) == ([*range(80, 100)], True, "memory", 0)
    answer = await now.trades(*BTC, NOW - 940, limit=20)
    assert (ids(answer), answer.more, answer.tier, store.reads) == ([*range(60, 80)], True, "memory", 0)
    # The first live one may have others of its millisecond before it.
    answer = await now.trades(*BTC, NOW - 950, NOW - 945)
    assert (ids(answer), answer.tier, store.reads) == ([*range(50, 55)], "database", 1)
    answer = await now.trades(*BTC, limit=60)
    assert (ids(answer), answer.more, answer.tier) == ([*range(40, 100)], True, "database")


async def test_old_ranges_come_from_the_database_alone() -> None:
    live, store = Held(), Recorded([trade(one, NOW - 86_400_000 + one * 60_000) for one in range(100)])
    live.away = True
    now = market(live, store)
    answer = await now.trades(*BTC, NOW - 86_400_000, NOW - 3_600_000, limit=10)
    assert (ids(answer), answer.more, answer.tier) == ([*range(10)], True, "database")
    answer = await now.trades(*BTC, end_ms=NOW - 3_600_000, limit=100)
    assert (ids(answer), answer.more) == ([*range(100)], False)
    # Nothing in the range, but the market is known.
    assert ids(await now.trades(*BTC, NOW - 3_700_000, NOW - 3_600_000)) == []


instants = st.integers(NOW - 400_000, NOW).map(lambda at: at // 1000 * 1000)


@settings(max_examples=150, deadline=None)
@given(
    times=st.lists(instants, min_size=1, max_size=60),
    stored=st.integers(0, 60),
    live_from=st.integers(0, 60),
    start=st.none() | instants,
    end=st.none() | instants,
    limit=st.integers(1, 70),
)
async def test_each_trade_comes_once_in_order(
    times: list[int], stored: int, live_from: int, start: int | None, end: int | None, limit: int
) -> None:
    every = [trade(id_, at) for id_, at in enumerate(sorted(times))]
    # Recorded up to somewhere, live from somewhere before that on: together everything.
    live = Held()
    live.recent = every[min(live_from, stored) :]
    if start is not None and end is not None and start >= end:
        start, end = None, end
    answer = await market(live, Recorded(every[:stored])).trades(*BTC, start, end, limit)
    inside = [one for one in every if (start or 0) <= one.event_time < (end or NOW + 1)]
    assert list(answer.trades) == (inside[-limit:] if start is None else inside[:limit])
    assert answer.more == (len(inside) > limit)


async def test_trades_without_numbers_stay_in_the_order_of_the_exchange() -> None:
    store = Recorded([trade("b", NOW - 500), trade("c", NOW - 400)])
    live = Held()
    live.recent = [trade("c", NOW - 400), trade("a", NOW - 400), trade("x", NOW - 300)]
    answer = await market(live, store).trades(*BTC, NOW - 1000)
    assert ids(answer) == ["b", "c", "a", "x"]
