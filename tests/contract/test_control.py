"""The safety state: what it forbids, in which moment, and what goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from market.errors import BadInput, StoreReadOnly
from market.instrument import Instrument
from market.timeframe import ONE_MINUTE
from store.control import LONGEST_REASON, Control, OperatingState, SafetyState
from store.message_quarantine import QuarantinedMessage
from store.settling import SettleCount
from tests.support.failing_store import until
from tests.support.made_candles import BTC, ETH, START, absence, at, batch, made
from tests.support.made_trades import EXCHANGE, SYMBOL, counted

EVER = (0, 2**52)
FORBIDDING = [SafetyState.FAIL, SafetyState.LOCKDOWN]
INSTRUMENT = Instrument(exchange="binance", symbol="NEW/USDT", exchange_symbol="NEWUSDT", base="NEW", quote="USDT")
MESSAGE = QuarantinedMessage(
    exchange="binance", channel=None, symbol=None, reason="no JSON", raw="<html>", received_at=START
)

#: Every call that writes data.
WRITES: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "write": lambda store: store.write(batch(made([0], version=7), absences=[absence(500, 510)])),
    "write_all": lambda store: store.write_all([batch(made([900])), batch(made([0]), series=ETH)]),
    "nothing": lambda store: store.write(batch()),
    "save_instruments": lambda store: store.save_instruments([INSTRUMENT], complete=True),
    "write_trades": lambda store: store.write_trades([counted(range(50, 60))]),
    "lose_trades": lambda store: store.lose_trades(EXCHANGE, SYMBOL, 100, 110, START, START + 1, "gone"),
    "drop_trades": lambda store: store.drop_trades(2**42),
    "refuse_messages": lambda store: store.refuse_messages([MESSAGE]),
    "record_settle": lambda store: store.record_settle("binance", ONE_MINUTE, [SettleCount(5000, 1, 0, None)]),
}


async def everything(store: Any) -> list[Any]:
    """All that a reader can ask for."""
    return [
        await store.series(),
        await store.instruments(),
        await store.read(BTC, *EVER),
        await store.coverage(BTC),
        await store.chunks(BTC),
        (await store.versions([BTC, ETH]))[0],
        await store.quarantined(BTC),
        await store.trades(EXCHANGE, SYMBOL, *EVER),
        await store.trade_runs(EXCHANGE, SYMBOL),
        await store.refused_messages("binance"),
        await store.settle_checks(),
    ]


async def test_a_new_store_may_be_written(store: Any) -> None:
    assert await store.control() == Control()


async def test_what_was_switched_is_kept(store: Any, clock: Any) -> None:
    first = Control(safety=SafetyState.WARNING, reason="a disk is slow", changed_at=clock.now_ms())
    assert await store.set_control(safety=SafetyState.WARNING, reason=" a disk is slow ") == first
    assert await store.control() == first
    clock.advance(1000)
    # The reason is that of the safety state.
    second = Control(
        safety=SafetyState.WARNING,
        operating=OperatingState.DEFENSIVE,
        reason="a disk is slow",
        changed_at=clock.now_ms(),
    )
    assert await store.set_control(operating=OperatingState.DEFENSIVE) == second
    found = await store.set_control(operating=OperatingState.AGGRESSIVE, reason="ein Börsentag")
    assert (found.safety, found.reason) == (SafetyState.WARNING, "ein Börsentag")
    third = await store.set_control(safety=SafetyState.NORMAL)
    assert (third.safety, third.operating, third.reason) == (SafetyState.NORMAL, OperatingState.AGGRESSIVE, "")
    assert (await store.versions([]))[1] == await store.control() == third


@pytest.mark.parametrize("reason", ["two\nlines", "nul\x00", "x" * (LONGEST_REASON + 1), "\x1b[31mred"])
async def test_a_reason_that_cannot_be_shown_is_refused(store: Any, reason: str) -> None:
    with pytest.raises(BadInput, match="reason"):
        await store.set_control(safety=SafetyState.FAIL, reason=reason)
    assert await store.control() == Control()


@pytest.mark.parametrize("state", FORBIDDING)
async def test_nothing_is_written(store: Any, state: SafetyState) -> None:
    await store.write(batch(made(range(10)), absences=[absence(20, 30)]))
    await store.write_trades([counted(range(20))])
    before = await everything(store)
    await store.set_control(safety=state, reason="the disk is failing")
    for name, write in WRITES.items():
        with pytest.raises(StoreReadOnly) as told:
            await write(store)
        assert str(told.value) == (
            f"the safety state is {state.value} (the disk is failing): nothing was written; "
            "`chandlery safety set normal` allows writing again"
        ), name
    assert await everything(store) == before
    # How fresh values are may be switched meanwhile, and the state itself.
    await store.set_control(operating=OperatingState.DEFENSIVE)
    await store.set_control(safety=SafetyState.WARNING)
    for write in WRITES.values():
        await write(store)
    after = await everything(store)
    assert all(one != other for one, other in zip(before[:6], after[:6], strict=True))


async def test_without_a_reason_none_is_told(store: Any) -> None:
    await store.set_control(safety=SafetyState.LOCKDOWN)
    with pytest.raises(StoreReadOnly, match=r"^the safety state is lockdown: nothing was written"):
        await store.write(batch(made([0])))


async def test_when_it_is_switched_the_last_write_has_committed(store: Any) -> None:
    """Many write at once, and somebody switches: from the moment he has his answer, nothing changes."""
    committed = []

    async def write(number: int) -> None:
        for turn in range(1000):
            minute = number * 1000 + turn
            try:
                await store.write(batch(made([minute])))
            except StoreReadOnly:
                return
            committed.append(at(minute))

    for turn in range(3):
        async with asyncio.TaskGroup() as group:
            for number in range(6):
                group.create_task(write(turn * 6 + number))
            goal = len(committed) + 20
            await until(lambda goal=goal: len(committed) >= goal)  # type: ignore[misc]
            await store.set_control(safety=SafetyState.FAIL)
            rows = await store.read(BTC, *EVER)
            revision = (await store.versions([BTC]))[0][BTC].revision
        assert await store.read(BTC, *EVER) == rows
        assert (await store.versions([BTC]))[0][BTC].revision == revision == len(committed) == rows.num_rows
        await store.set_control(safety=SafetyState.NORMAL)
