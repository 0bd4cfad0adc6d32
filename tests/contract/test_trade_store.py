"""What every store does with trades, the ledger of their ids, refused messages and settle checks."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from market.channel import Channel
from market.errors import BadInput
from market.timeframe import DAY_MS, ONE_MINUTE, TIMEFRAMES
from store import message_quarantine
from store.message_quarantine import QuarantinedMessage
from store.settling import SettleCheck, SettleCount
from store.trade_batch import RunState, TradeBatch, TradeRun, TradesWritten
from tests.support.made_trades import EXCHANGE, SYMBOL, counted, time_of, trade, uncounted

EVER = (0, 2**52)


def run(first: int, last: int) -> TradeRun:
    return TradeRun(first_id=first, last_id=last, first_time=time_of(first), last_time=time_of(last))


def lost(first: int, last: int, evidence: str = "gone", times: tuple[int, int] | None = None) -> TradeRun:
    start, end = times or (time_of(first - 1), time_of(last + 1))
    return TradeRun(
        first_id=first,
        last_id=last,
        first_time=start,
        last_time=end,
        state=RunState.LOST,
        evidence=evidence,
    )


async def test_trades_come_back_as_they_were(store: Any) -> None:
    made = counted(range(100, 200))
    assert await store.write_trades([made]) == TradesWritten(inserted=100)
    assert await store.trades(EXCHANGE, SYMBOL, *EVER) == list(made.trades)
    assert await store.newest_trade(EXCHANGE, SYMBOL) == trade(199)
    assert await store.trade_runs(EXCHANGE, SYMBOL) == [run(100, 199)]


async def test_text_ids_come_back_as_text_and_make_no_runs(store: Any) -> None:
    made = uncounted(range(50))
    assert await store.write_trades([made]) == TradesWritten(inserted=50)
    found = await store.trades("bybit", SYMBOL, *EVER)
    assert found == sorted(made.trades, key=lambda one: (one.event_time, one.id))
    assert await store.trade_runs("bybit", SYMBOL) == []
    newest = await store.newest_trade("bybit", SYMBOL)
    assert newest == max(made.trades, key=lambda one: (one.event_time, one.id))


async def test_numbers_are_ordered_as_numbers(store: Any) -> None:
    """Where 10 comes after 9 though not as text, and ids count nothing."""
    made = [trade(9, id=number) for number in (11, 9, 100, 10)]
    batch = TradeBatch(exchange="kraken", symbol=SYMBOL, trades=made, dense=False)
    await store.write_trades([batch])
    assert [one.id for one in await store.trades("kraken", SYMBOL, *EVER)] == [9, 10, 11, 100]
    assert (await store.newest_trade("kraken", SYMBOL)).id == 100
    assert await store.trade_runs("kraken", SYMBOL) == []


async def test_a_range_is_half_open_and_a_limit_gives_the_first(store: Any) -> None:
    await store.write_trades([counted(range(90))])
    start, end = time_of(30), time_of(60)
    found = await store.trades(EXCHANGE, SYMBOL, start, end)
    assert [one.id for one in found] == list(range(30, 60))
    assert await store.trades(EXCHANGE, SYMBOL, start, end, limit=7) == found[:7]
    assert await store.trades(EXCHANGE, SYMBOL, start, start) == []


async def test_nothing_is_known_of_an_instrument_that_was_never_named(store: Any) -> None:
    assert await store.trades("okx", SYMBOL, *EVER) == []
    assert await store.trade_runs("okx", SYMBOL) == []
    assert await store.newest_trade("okx", SYMBOL) is None
    assert await store.write_trades([]) == TradesWritten()
    assert await store.write_trades([counted([])]) == TradesWritten()


@pytest.mark.parametrize("kind", [counted, uncounted])
async def test_the_first_of_an_id_stays_whatever_comes_again(store: Any, kind: Any) -> None:
    first = kind(range(10))
    await store.write_trades([first])
    # Other times, prices, sides: another row anywhere would be found.
    again = await store.write_trades([kind(range(5, 15), version=1)])
    assert again == TradesWritten(inserted=5, known=5)
    found = await store.trades(first.exchange, SYMBOL, *EVER)
    expected = [*first.trades, *kind(range(10, 15), version=1).trades]
    assert sorted(found, key=str) == sorted(expected, key=str)


@pytest.mark.parametrize("kind", [counted, uncounted])
async def test_an_id_twice_in_a_batch_is_stored_once(store: Any, kind: Any) -> None:
    made, other = kind([1, 2]), kind([2, 3], version=1)
    both = replace(made, trades=[*made.trades, *other.trades])
    assert await store.write_trades([both, made]) == TradesWritten(inserted=3, known=3)
    found = await store.trades(made.exchange, SYMBOL, *EVER)
    assert set(found) == {*made.trades, other.trades[1]}


async def test_an_instrument_that_was_not_counted_once_is_not_stored_again(store: Any) -> None:
    made = counted(range(10))
    await store.write_trades([replace(made, dense=False, trades=made.trades[:6])])
    assert await store.trade_runs(EXCHANGE, SYMBOL) == []
    assert await store.write_trades([made]) == TradesWritten(inserted=4, known=6)
    assert await store.trade_runs(EXCHANGE, SYMBOL) == [run(6, 9)]
    assert await store.write_trades([replace(made, dense=False)]) == TradesWritten(known=10)
    assert len(await store.trades(EXCHANGE, SYMBOL, *EVER)) == 10


async def test_batches_of_many_instruments_are_one_write(store: Any) -> None:
    batches = [counted(range(5)), uncounted(range(3)), counted([5, 6]), counted([9], symbol="ETH/USDT")]
    assert await store.write_trades(batches) == TradesWritten(inserted=11)
    assert await store.trade_runs(EXCHANGE, SYMBOL) == [run(0, 6)]
    assert await store.trade_runs(EXCHANGE, "ETH/USDT") == [run(9, 9)]


async def test_holes_stay_open_until_they_are_filled(store: Any) -> None:
    await store.write_trades([counted([1, 2, 3, 7, 8, 12])])
    assert await store.trade_runs(EXCHANGE, SYMBOL) == [run(1, 3), run(7, 8), run(12, 12)]
    await store.write_trades([counted([6, 4, 5])])
    assert await store.trade_runs(EXCHANGE, SYMBOL) == [run(1, 8), run(12, 12)]
    await store.write_trades([counted(range(13))])
    assert await store.trade_runs(EXCHANGE, SYMBOL) == [run(0, 12)]


async def test_lost_trades_never_cover_stored_ones(store: Any) -> None:
    await store.write_trades([counted([10, 11, 20, 21])])
    await store.lose_trades(EXCHANGE, SYMBOL, 5, 25, time_of(1), time_of(30), "gone")
    assert await store.trade_runs(EXCHANGE, SYMBOL) == [
        lost(5, 9, times=(time_of(1), time_of(10))),
        run(10, 11),
        lost(12, 19, times=(time_of(11), time_of(20))),
        run(20, 21),
        lost(22, 25, times=(time_of(21), time_of(30))),
    ]
    before = await store.trade_runs(EXCHANGE, SYMBOL)
    await store.lose_trades(EXCHANGE, SYMBOL, 10, 22, time_of(9), time_of(23), "asked again")
    assert await store.trade_runs(EXCHANGE, SYMBOL) == before
    assert (await store.newest_trade(EXCHANGE, SYMBOL)).id == 21


async def test_lost_trades_that_turn_up_are_stored(store: Any) -> None:
    await store.write_trades([counted([10, 20])])
    await store.lose_trades(EXCHANGE, SYMBOL, 11, 19, time_of(10), time_of(20), "gone")
    assert await store.write_trades([counted([14, 15])]) == TradesWritten(inserted=2)
    assert await store.trade_runs(EXCHANGE, SYMBOL) == [
        run(10, 10),
        lost(11, 13, times=(time_of(10), time_of(14))),
        run(14, 15),
        lost(16, 19, times=(time_of(15), time_of(20))),
        run(20, 20),
    ]
    await store.write_trades([counted(range(10, 21))])
    assert await store.trade_runs(EXCHANGE, SYMBOL) == [run(10, 20)]


async def test_a_lost_run_may_be_all_that_is_known(store: Any) -> None:
    await store.lose_trades("okx", "SOL/USDT", 1, 4, 10, 20, "never served")
    await store.lose_trades("okx", "SOL/USDT", 5, 6, 20, 30, "never served")
    (found,) = await store.trade_runs("okx", "SOL/USDT")
    assert found == lost(1, 6, "never served", (10, 30))
    assert await store.newest_trade("okx", "SOL/USDT") is None


#: A trade that cannot be stored, whether the exchange counts, and what the error names.
WRONG = [
    (trade(1, id=2**63), True, "id"),
    (trade(1, id="1"), True, "id"),
    (trade(1, id=""), False, "id"),
    (trade(1, id="a\0b"), False, "id"),
    (trade(1, id="\ud800"), False, "id"),
    (trade(1)._replace(price=float("nan")), True, "price"),
    (trade(1)._replace(quantity=float("nan")), False, "quantity"),
    (trade(1)._replace(event_time=1_700_000_000), True, "event_time"),
    (trade(1)._replace(received_at=2**60), True, "received_at"),
]


async def test_what_cannot_be_stored_is_refused_with_everything_beside_it(store: Any) -> None:
    for wrong, dense, named in WRONG:
        batch = TradeBatch(exchange="okx", symbol=SYMBOL, trades=[trade(0), wrong], dense=dense)
        with pytest.raises(BadInput) as caught:
            await store.write_trades([counted([1]), batch])
        assert named in caught.value.field
    assert await store.trades(EXCHANGE, SYMBOL, *EVER) == []


async def test_writers_at_once_store_each_trade_once(store: Any) -> None:
    def overlapping(start: int) -> list[TradeBatch]:
        batches = [counted(range(start, start + 40)), uncounted(range(start, start + 40))]
        eth = counted(range(start, start + 40), symbol="ETH/USDT")
        # Not all in one order: nobody may wait for each other in a circle.
        return [eth, *batches] if start % 20 else [*batches, eth]

    written = await asyncio.gather(*(store.write_trades(overlapping(start)) for start in range(0, 200, 10)))
    assert sum(written, TradesWritten()) == TradesWritten(inserted=3 * 230, known=3 * (20 * 40 - 230))
    for symbol in (SYMBOL, "ETH/USDT"):
        assert await store.trade_runs(EXCHANGE, symbol) == [run(0, 229)]
        assert [one.id for one in await store.trades(EXCHANGE, symbol, *EVER)] == list(range(230))
    assert len(await store.trades("bybit", SYMBOL, *EVER)) == 230


async def test_dropped_trades_are_no_hole_and_do_not_come_back(store: Any) -> None:
    await store.write_trades([counted(range(300)), uncounted(range(30))])
    # What keeps partitions drops whole ones: months later, all of them.
    await store.drop_trades(time_of(300) + 100 * DAY_MS)
    assert await store.trades(EXCHANGE, SYMBOL, *EVER) == []
    assert await store.trades("bybit", SYMBOL, *EVER) == []
    assert await store.newest_trade(EXCHANGE, SYMBOL) is None
    assert await store.trade_runs(EXCHANGE, SYMBOL) == [run(0, 299)]
    assert await store.write_trades([counted(range(290, 310))]) == TradesWritten(inserted=10, known=10)
    assert await store.trade_runs(EXCHANGE, SYMBOL) == [run(0, 309)]


async def test_younger_trades_are_not_dropped(store: Any) -> None:
    await store.write_trades([counted(range(300)), uncounted(range(30))])
    await store.drop_trades(time_of(0))
    assert len(await store.trades(EXCHANGE, SYMBOL, *EVER)) == 300
    assert len(await store.trades("bybit", SYMBOL, *EVER)) == 30


# --- messages that could not be used ---


def message(number: int, **changes: Any) -> QuarantinedMessage:
    made = QuarantinedMessage(
        exchange=EXCHANGE,
        channel=Channel.TRADES,
        symbol=SYMBOL,
        reason="p: 'x' is no price",
        raw=f'{{"e":"trade","t":{number},"p":"x"}}',
        received_at=1_700_000_000_000 + number,
    )
    return replace(made, **changes)


async def test_refused_messages_come_back_newest_first(store: Any) -> None:
    unknown = message(5, exchange="okx", channel=None, symbol=None)
    await store.refuse_messages([message(1), message(3), message(2), unknown])
    assert await store.refused_messages(EXCHANGE, 2) == [message(3), message(2)]
    assert await store.refused_messages("okx") == [unknown]
    assert await store.refused_messages("bybit") == []
    await store.refuse_messages([])


async def test_the_same_message_for_the_same_reason_is_counted(store: Any) -> None:
    await store.refuse_messages([message(1), message(1, received_at=1_700_000_000_500)])
    await store.refuse_messages([message(1, received_at=1_700_000_000_400), message(1, reason="another")])
    found = await store.refused_messages(EXCHANGE)
    assert found == [message(1, received_at=1_700_000_000_500, times=3), message(1, reason="another")]


async def test_any_text_can_be_kept(store: Any) -> None:
    for number, raw in enumerate(["\0\0", "\ud800 alone", "é'\"\\;--", "x" * 100_000, ""]):
        one = message(1, exchange=f"exchange{number}", raw=raw, reason=raw)
        await store.refuse_messages([one])
        await store.refuse_messages([one])
        (found,) = await store.refused_messages(one.exchange)
        assert found == replace(one.storable(), times=2)


async def test_of_each_exchange_the_newest_are_kept(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert message_quarantine.KEPT_MESSAGES == 10_000
    await store.refuse_messages([message(0, exchange="okx"), *(message(one) for one in range(6000))])
    await store.refuse_messages([message(one) for one in range(6000, 10_000)])
    assert len(await store.refused_messages(EXCHANGE, 20_000)) == 10_000
    # One that came before is as new as when it came last.
    await store.refuse_messages([message(0, received_at=1_800_000_000_000)])
    await store.refuse_messages([message(one) for one in range(10_000, 10_500)])
    found = await store.refused_messages(EXCHANGE, 20_000)
    assert found[1:] == [message(one) for one in range(10_499, 500, -1)]
    assert (found[0].raw, found[0].times) == (message(0).raw, 2)
    assert len(await store.refused_messages("okx")) == 1


async def test_messages_refused_at_once_are_all_counted(store: Any) -> None:
    one, other = [message(number) for number in range(5)], [message(number, exchange="okx") for number in range(5)]
    await asyncio.gather(
        *(store.refuse_messages([*one, *other] if turn % 2 else [*other, *one][::-1]) for turn in range(10))
    )
    for exchange in (EXCHANGE, "okx"):
        assert [found.times for found in await store.refused_messages(exchange)] == [10] * 5


# --- settle checks ---


async def test_settle_checks_add_up(store: Any, clock: Any) -> None:
    hour = TIMEFRAMES["1h"]
    await store.record_settle(EXCHANGE, ONE_MINUTE, [SettleCount(2000, 10, 1, 60_000), SettleCount(500, 3, 0)])
    clock.advance(1000)
    await store.record_settle(EXCHANGE, ONE_MINUTE, [SettleCount(2000, 5, 2, 30_000), SettleCount(500, 1, 1, 0)])
    await store.record_settle("okx", hour, [SettleCount(2000, 1, 0)])
    await store.record_settle("okx", hour, [])
    now = clock.now_ms()

    def check(exchange: str, timeframe: Any, *numbers: Any) -> SettleCheck:
        age, checked, drifted, last = numbers
        return SettleCheck(
            exchange=exchange,
            timeframe=timeframe,
            age_ms=age,
            checked=checked,
            drifted=drifted,
            last_drift_open_time=last,
            updated_at=now,
        )

    ours = [check(EXCHANGE, ONE_MINUTE, 500, 4, 1, 0), check(EXCHANGE, ONE_MINUTE, 2000, 15, 3, 60_000)]
    assert await store.settle_checks(EXCHANGE) == ours
    assert await store.settle_checks() == [*ours, check("okx", hour, 2000, 1, 0, None)]
    assert await store.settle_checks("bybit") == []


async def test_settle_checks_recorded_at_once_are_all_counted(store: Any) -> None:
    counts = [SettleCount(age, 1, 0) for age in (500, 1000, 2000)]
    await asyncio.gather(
        *(store.record_settle(EXCHANGE, ONE_MINUTE, counts[:: 1 if turn % 2 else -1]) for turn in range(10))
    )
    assert [one.checked for one in await store.settle_checks()] == [10, 10, 10]
