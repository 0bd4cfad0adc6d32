"""Batches of many series in one transaction."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from market.errors import StoreUnusable
from market.instrument import Series
from market.timeframe import ONE_MINUTE, TIMEFRAMES
from store.batch import CandleBatch, Written
from tests.support.made_candles import BTC, ETH, START, absence, at, batch, made, made_at

WHOLE = (START, at(100_000))
MANY = [Series("binance", f"C{number}/USDT", ONE_MINUTE) for number in range(4)]


async def state(store: Any) -> list[Any]:
    """Everything that readers see."""
    found: list[Any] = [await store.series()]
    for info in found[0]:
        found += [await store.read(info.series, *WHOLE), await store.coverage(info.series)]
        found += [await store.chunks(info.series), await store.quarantined(info.series)]
    return found


def batches() -> list[CandleBatch]:
    """New, corrected, refused and repeated rows, absences; two batches of one series, both with corrections."""
    bad = made([20])
    place = bad.schema.get_field_index("volume")
    bad = bad.set_column(place, bad.schema.field(place), [[-1.0]])
    hours = made_at([START, START + 3_600_000])
    return [
        batch(made(range(5, 15), version=1), series=BTC),
        batch(hours, series=BTC.at(TIMEFRAMES["1h"])),
        batch(made([0, 1]), series=ETH, absences=[absence(30, 40)]),
        batch(made([7, 16], version=2), series=BTC),
        batch(bad, series=ETH),
    ]


async def test_many_at_once_are_as_one_after_the_other(store: Any, second_store: Any) -> None:
    for one in (store, second_store):
        await one.write(batch(made(range(10))))
    assert await store.write_all(batches()) == [await second_store.write(one) for one in batches()]
    assert await state(store) == await state(second_store)
    assert await store.write_all([]) == []


async def test_a_second_batch_of_a_series_meets_what_the_first_made(store: Any) -> None:
    first, second = batch(made(range(10))), batch(made([3], version=1))
    assert await store.write_all([first, second, first]) == [
        Written(inserted=10),
        Written(corrected=1),
        Written(unchanged=9, corrected=1),
    ]
    assert await store.read(BTC, *WHOLE) == made(range(10))
    assert (await store.facts(BTC)).revision == 3


async def test_a_batch_that_fails_leaves_nothing_of_any(store: Any) -> None:
    await store.write(batch(made(range(3))))
    before = await state(store)
    # Found out by the database, when everything else is written.
    with pytest.raises((UnicodeEncodeError, StoreUnusable)):
        await store.write_all([*batches(), batch(made([50]), series=ETH, source="\ud800")])
    assert await state(store) == before
    assert (await store.write_all(batches()))[0].written == 10


async def test_writers_at_once_do_not_wait_in_a_circle(store: Any) -> None:
    async def write(turn: int) -> None:
        minutes = range(10 * turn, 10 * turn + 15)
        one = [batch(made(minutes), series=series) for series in MANY]
        await store.write_all(one if turn % 2 else one[::-1])

    await asyncio.gather(*(write(turn) for turn in range(6)))
    for series in MANY:
        assert await store.read(series, *WHOLE) == made(range(65))
