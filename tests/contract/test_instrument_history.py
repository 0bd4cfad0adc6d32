"""What every store keeps of the past of instruments."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

from market.instrument import Instrument
from tests.support.made_candles import batch, made

BTC = Instrument(
    exchange="binance",
    symbol="BTC/USDT",
    exchange_symbol="BTCUSDT",
    base="BTC",
    quote="USDT",
    tick_size=Decimal("0.01"),
    lot_size=Decimal("0.00001"),
    min_notional=Decimal(5),
    listed_ms=1_500_000_000_000,
)
ETH = replace(BTC, symbol="ETH/USDT", exchange_symbol="ETHUSDT", base="ETH")
OKX = replace(BTC, exchange="okx", exchange_symbol="BTC-USDT")
CHANGES: list[dict[str, Any]] = [
    {"exchange_symbol": "BTCUSDT2"},
    {"kind": "swap"},
    {"tick_size": Decimal("0.1")},
    {"tick_size": None},
    {"lot_size": Decimal("0.0001")},
    {"min_notional": Decimal(10)},
    {"active": False},
    {"listed_ms": 1_500_000_060_000},
]


async def test_a_change_counts_from_when_it_was_said(store: Any, clock: Any) -> None:
    old = {f"exchange{number}": replace(BTC, exchange=f"exchange{number}") for number in range(len(CHANGES))}
    new = {name: replace(old[name], **change) for name, change in zip(old, CHANGES, strict=True)}
    start = clock.now_ms()
    await store.save_instruments([*old.values()])
    clock.advance(1000)
    await store.save_instruments([*new.values()])
    clock.advance(1000)
    for name in old:
        assert await store.instruments(name) == [new[name]]
        assert await store.instruments(name, start - 1) == []
        assert await store.instruments(name, start) == [old[name]]
        assert await store.instruments(name, start + 999) == [old[name]]
        assert await store.instruments(name, start + 1000) == [new[name]]
    assert await store.instruments(as_of_ms=start + 5000) == [*new.values()]
    clock.advance(1000)
    await store.save_instruments([*old.values()])
    assert await store.instruments(as_of_ms=start + 2999) == [*new.values()]
    assert await store.instruments(as_of_ms=start + 3000) == [*old.values()]


async def test_what_is_said_again_changes_nothing(store: Any, clock: Any) -> None:
    start = clock.now_ms()
    await store.save_instruments([BTC])
    clock.advance(1000)
    again = replace(BTC, tick_size=Decimal("0.010"), min_notional=Decimal("5.00"), listed_ms=None)
    await store.save_instruments([again], complete=True)
    assert await store.instruments(as_of_ms=start) == [BTC]
    assert await store.instruments(as_of_ms=start + 1000) == [BTC]
    assert (await store.instruments(as_of_ms=start + 1000))[0].listed_ms == BTC.listed_ms


async def test_of_two_things_said_at_one_instant_the_last_counts(store: Any, clock: Any) -> None:
    other = replace(BTC, tick_size=Decimal(1))
    await store.save_instruments([BTC])
    await store.save_instruments([other])
    assert await store.instruments(as_of_ms=clock.now_ms()) == [other]
    # So where the clock was put back.
    clock.advance(-1000)
    await store.save_instruments([BTC])
    assert await store.instruments(as_of_ms=clock.now_ms() + 1000) == [BTC]
    assert await store.instruments(as_of_ms=clock.now_ms()) == []


async def test_what_a_complete_list_does_not_name_becomes_inactive(store: Any, clock: Any) -> None:
    start = clock.now_ms()
    await store.save_instruments([BTC, ETH, OKX])
    clock.advance(1000)
    await store.save_instruments([BTC])
    assert await store.instruments() == [BTC, ETH, OKX]
    await store.save_instruments([], complete=True)
    assert await store.instruments() == [BTC, ETH, OKX]
    await store.save_instruments([BTC], complete=True)
    gone = replace(ETH, active=False)
    assert await store.instruments() == [BTC, gone, OKX]
    assert await store.instruments(as_of_ms=start + 999) == [BTC, ETH, OKX]
    assert await store.instruments(as_of_ms=start + 1000) == [BTC, gone, OKX]
    clock.advance(1000)
    await store.save_instruments([BTC, ETH], complete=True)
    assert await store.instruments(as_of_ms=start + 1999) == [BTC, gone, OKX]
    assert await store.instruments(as_of_ms=start + 2000) == [BTC, ETH, OKX]


async def test_an_instrument_that_was_only_named_has_no_past(store: Any, clock: Any) -> None:
    await store.write(batch(made([0])))
    (named,) = await store.instruments()
    assert named.active
    assert await store.instruments(as_of_ms=clock.now_ms()) == []
    await store.save_instruments([ETH], complete=True)
    assert [one.active for one in await store.instruments()] == [False, True]
    clock.advance(1000)
    await store.save_instruments([BTC])
    assert await store.instruments(as_of_ms=clock.now_ms()) == [BTC, ETH]
