"""What a candle store gives back: ranges, limits, the ledger beside them, series and instruments."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from market.coverage import CoverageState
from market.errors import BadInput
from market.instrument import Instrument
from market.interval import Interval
from market.timeframe import DAY_MS, TIMEFRAMES
from store.batch import Absence
from store.integrity import check_series
from tests.support.made_candles import BTC, ETH, MINUTE, START, absence, at, batch, buckets, made, made_at

WHOLE = (START, at(100_000))


async def test_ranges_are_half_open(store: Any) -> None:
    await store.write(batch(made(range(10))))
    assert await store.read(BTC, at(3), at(6)) == made([3, 4, 5])
    assert await store.read(BTC, at(3) + 1, at(6) + 1) == made([4, 5, 6])
    assert await store.read(BTC, at(3) - 1, at(3)) == made([])
    assert await store.read(BTC, 0, START) == made([])
    assert await store.read(BTC, at(10), at(20)) == made([])


async def test_limits_take_the_first_or_the_last_rows(store: Any) -> None:
    await store.write(batch(made(range(10))))
    assert await store.read(BTC, at(2), at(9), limit=3) == made([2, 3, 4])
    assert await store.read(BTC, at(2), at(9), limit=3, newest=True) == made([6, 7, 8])
    assert await store.read(BTC, at(2), at(4), limit=30, newest=True) == made([2, 3])
    assert await store.read(BTC, at(2), at(4), newest=True) == made([2, 3])


async def test_long_reads_come_in_order_whatever_their_direction(store: Any) -> None:
    await store.write(batch(made(range(40_000))))
    assert await store.read(BTC, *WHOLE) == made(range(40_000))
    assert await store.read(BTC, *WHOLE, newest=True) == made(range(40_000))
    assert await store.read(BTC, *WHOLE, newest=True, limit=33_000) == made(range(7000, 40_000))


async def test_an_unknown_series_is_empty_everywhere(store: Any) -> None:
    await store.write(batch(made([0])))
    assert (await store.read(ETH, *WHOLE)).num_rows == 0
    assert await store.coverage(ETH) == []
    assert await store.chunks(ETH) == []
    assert await store.quarantined(ETH) == []
    assert await store.facts(ETH) is None
    assert (await store.page(ETH, Interval(*WHOLE))).coverage == []


async def test_a_range_that_is_empty_is_refused(store: Any) -> None:
    await store.write(batch(made([0])))
    with pytest.raises(BadInput, match="start before the end"):
        await store.read(BTC, at(5), at(5))


async def test_a_page_has_the_ledger_of_what_it_speaks_for(store: Any) -> None:
    await store.write(batch(made([0, 1, 5, 6, 7]), absences=[absence(2, 5)]))

    def spans(page: Any) -> list[tuple[int, int, CoverageState]]:
        return [
            ((one.interval.start - START) // MINUTE, (one.interval.end - START) // MINUTE, one.state)
            for one in page.coverage
        ]

    whole = Interval(at(1), at(20))
    present, empty = CoverageState.PRESENT, CoverageState.EMPTY
    assert spans(await store.page(BTC, whole)) == [(1, 2, present), (2, 5, empty), (5, 8, present)]
    assert spans(await store.page(BTC, whole, limit=2)) == [(1, 2, present), (2, 5, empty), (5, 6, present)]
    assert spans(await store.page(BTC, whole, limit=2, newest=True)) == [(6, 8, present)]


async def test_metadata_of_series(store: Any, clock: Any) -> None:
    await store.write(batch(made([0, 1, 5, 6]), absences=[absence(2, 4), absence(10, 12)], source="first"))
    await store.write(batch(made([8]), source="second"))
    await store.write(batch(series=ETH, absences=[absence(0, 10)]))
    btc, eth = await store.series()
    assert (btc.series, btc.rows, btc.first_open, btc.last_open) == (BTC, 5, at(0), at(8))
    # 4, 7 and 9 are in no state.
    assert (btc.missing, btc.verified_empty, btc.sources) == (3, 4, ("first", "second"))
    assert (btc.last_write, btc.revision) == (clock.now_ms() + 1, 2)
    assert (eth.rows, eth.first_open, eth.last_open, eth.verified_empty) == (0, None, None, 10)


async def test_instruments_are_kept_and_brought_up_to_date(store: Any) -> None:
    await store.write(batch(made([0])))
    (named,) = await store.instruments()
    assert (named.symbol, named.base, named.quote, named.kind) == ("BTC/USDT", "BTC", "USDT", "spot")
    told = Instrument(
        exchange="binance",
        symbol="BTC/USDT",
        exchange_symbol="BTCUSDT",
        base="BTC",
        quote="USDT",
        tick_size=Decimal("0.01"),
        lot_size=Decimal("0.00001"),
        min_notional=Decimal("10"),
        listed_ms=START,
    )
    other = replace(told, exchange="kraken", exchange_symbol="XBTUSDT", listed_ms=None, active=False)
    await store.save_instruments([told, other])
    assert await store.instruments() == [told, other]
    assert await store.instruments("kraken") == [other]
    assert await store.instruments("nobody") == []
    # An answer that lacks the listing does not take it away.
    await store.save_instruments([replace(told, listed_ms=None, tick_size=Decimal("0.10"))])
    assert (await store.instruments("binance"))[0] == replace(told, tick_size=Decimal("0.10"))
    assert await store.read(BTC, *WHOLE) == made([0])


async def test_three_day_candles_count_from_the_listing(store: Any) -> None:
    series = BTC.at(TIMEFRAMES["3d"])
    listed = START + DAY_MS
    times = [listed + 3 * DAY_MS * number for number in range(4)]
    await store.write(batch(made([0])))
    (named,) = await store.instruments()
    await store.save_instruments([replace(named, listed_ms=listed + 7 * 3_600_000)])
    shifted = [time + DAY_MS for time in times]
    assert len((await store.write(batch(made_at(shifted), series=series))).refusals) == 4
    written = await store.write(batch(made_at(times), series=series))
    assert (written.inserted, written.refusals) == (4, ())
    assert (await store.facts(series)).origin_ms % (3 * DAY_MS) == listed % (3 * DAY_MS)


async def test_missing_months_are_counted_as_months(store: Any) -> None:
    month = TIMEFRAMES["1M"]
    times = buckets(month, 24)
    series = BTC.at(month)
    silence = Absence(
        interval=Interval(times[12], times[15]), state=CoverageState.EMPTY, evidence="before the listing"
    )
    gone = [*times[:5], *times[9:12], times[23]]
    await store.write(batch(made_at(gone), series=series, absences=[silence], now_ms=month.next(times[-1])))
    (info,) = await store.series()
    assert (info.rows, info.missing, info.verified_empty) == (9, 4 + 8, 3)


async def test_a_listing_that_moves_three_day_buckets_makes_the_check_speak(store: Any, clock: Any) -> None:
    series = BTC.at(TIMEFRAMES["3d"])
    times = buckets(series.timeframe, 3)
    await store.write(batch(made_at(times), series=series))
    assert await check_series(store, series, clock) == []
    (named,) = await store.instruments()
    await store.save_instruments([replace(named, listed_ms=START)])
    findings = await check_series(store, series, clock)
    assert [(one.kind, one.start) for one in findings] == [("rule", one) for one in times]
    assert "not the start of a 3d bucket" in findings[0].detail
