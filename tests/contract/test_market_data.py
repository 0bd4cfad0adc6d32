"""The read interface over a candle store: pages, cursors, larger timeframes, the forming candle, fingerprints."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from market.candle import CandleState, open_times_ms
from market.coverage import CoverageState
from market.errors import BadInput, NotFound
from market.fingerprint import dataset_fingerprint, digest
from market.interval import Interval, IntervalSet
from market.rollup import roll_up
from market.timeframe import TIMEFRAMES
from store.live import LiveCandles
from store.market_data import MarketData
from tests.support.made_candles import BTC, DAY, ETH, HOUR, MINUTE, START, absence, at, batch, made, made_at

M15, H1, D1, D3, MONTH = (TIMEFRAMES[name] for name in ("15m", "1h", "1d", "3d", "1M"))


def closed(answer: Any) -> pa.Table:
    """The candle columns of an answer."""
    return answer.table.drop_columns([name for name in ("missing", "closed") if name in answer.table.column_names])


def missing(answer: Any) -> list[int]:
    return list(answer.table.column("missing").to_pylist())


async def test_an_answer_is_the_stored_rows_with_their_ledger_and_fingerprint(
    store: Any, market_data: MarketData
) -> None:
    await store.write(batch(made([0, 1, 5]), absences=[absence(2, 4)]))
    answer = await market_data.candles(BTC, start_ms=START, end_ms=at(8))
    assert closed(answer) == made([0, 1, 5])
    assert missing(answer) == [0, 0, 0]
    assert answer.fingerprint == dataset_fingerprint([(BTC, digest(made([0, 1, 5])))])
    assert answer.gaps == IntervalSet.of((at(4), at(5)), (at(6), at(8)))
    assert not answer.complete
    assert [one.state for one in answer.coverage] == [
        CoverageState.PRESENT, CoverageState.EMPTY, CoverageState.PRESENT,
    ]  # fmt: skip
    assert (answer.tier, answer.derived_from, answer.next_start) == ("database", None, None)


async def test_limits_with_and_without_a_start(store: Any, market_data: MarketData) -> None:
    await store.write(batch(made(range(20))))
    first = await market_data.candles(BTC, start_ms=at(3), limit=5)
    assert (closed(first), first.next_start) == (made(range(3, 8)), at(8))
    assert first.interval == Interval(at(3), at(8))
    last = await market_data.candles(BTC, limit=5)
    assert (closed(last), last.next_start) == (made(range(15, 20)), None)
    assert last.interval == Interval(at(15), at(20))
    before = await market_data.candles(BTC, end_ms=at(10), limit=5)
    assert closed(before) == made(range(5, 10))
    assert closed(await market_data.candles(BTC)) == made(range(20))
    exact = await market_data.candles(BTC, start_ms=at(15), limit=5)
    assert (closed(exact), exact.next_start) == (made(range(15, 20)), None)


@pytest.mark.parametrize(
    ("series", "field"),
    [
        (BTC.at(TIMEFRAMES["1m"]), "nothing"),
        (ETH, "symbol"),
        (type(BTC)("kraken", "BTC/USDT", BTC.timeframe), "exchange"),
    ],
)
async def test_unknown_series_are_named(store: Any, market_data: MarketData, series: Any, field: str) -> None:
    await store.write(batch(made([0])))
    if field == "nothing":
        assert (await market_data.candles(series)).table.num_rows == 1
        return
    with pytest.raises(NotFound) as raised:
        await market_data.candles(series)
    assert raised.value.field == field


async def test_a_timeframe_that_cannot_be_made_is_named(store: Any, market_data: MarketData) -> None:
    await store.write(batch(made_at([START]), series=BTC.at(H1)))
    with pytest.raises(NotFound, match="timeframe: '1d' is not accepted; expected one of: 1h"):
        await market_data.candles(BTC.at(D1))


async def test_bad_ranges_are_refused(store: Any, market_data: MarketData) -> None:
    await store.write(batch(made([0])))
    with pytest.raises(BadInput, match="after start"):
        await market_data.candles(BTC, start_ms=at(5), end_ms=at(5))
    with pytest.raises(BadInput, match="limit"):
        await market_data.candles(BTC, limit=0)
    # Before anything is known, and without a start: an empty answer, not an error.
    assert (await market_data.candles(BTC, end_ms=START - DAY)).table.num_rows == 0


async def test_a_batch_answers_many_series_in_their_order(store: Any, market_data: MarketData) -> None:
    await store.write(batch(made(range(30))))
    await store.write(batch(made(range(5, 40), version=1), series=ETH))
    asked = [ETH, BTC, BTC.at(M15), ETH]
    answers = await market_data.batch(asked, start_ms=START, end_ms=at(30))
    assert [one.series for one in answers] == asked
    assert answers[0].fingerprint == answers[3].fingerprint
    assert [one.table.num_rows for one in answers] == [25, 30, 2, 25]


async def test_a_cursor_walks_without_repeat_or_hole_while_others_write(
    store: Any, market_data: MarketData, clock: Any
) -> None:
    rng = random.Random(7)
    there = sorted(rng.sample(range(3000), 2000))
    await store.write(batch(made(there)))
    seen: list[int] = []
    start: int | None = START
    while start is not None:
        page = await market_data.candles(BTC, start_ms=start, end_ms=at(3000), limit=97)
        seen += [(one - START) // MINUTE for one in open_times_ms(page.table)]
        start = page.next_start
        if start is not None:
            # Corrections anywhere, new rows both behind and ahead of the cursor.
            await store.write(batch(made(rng.sample(there, 20), version=rng.randrange(1, 9))))
            await store.write(batch(made(rng.sample(range(3000), 3))))
    assert seen == sorted(set(seen))
    assert set(there) <= set(seen)


@pytest.mark.parametrize("timeframe", [M15, H1])
async def test_a_cursor_walks_derived_candles_too(store: Any, market_data: MarketData, timeframe: Any) -> None:
    rng = random.Random(3)
    there = [one for one in range(6000) if one // 240 % 3 != 1 or rng.random() < 0.01]
    await store.write(batch(made(there)))
    whole = await market_data.candles(BTC.at(timeframe), start_ms=START, end_ms=at(6000))
    for limit in (1, 2, 7, 10_000):
        pages, start = [], START
        while start is not None:
            page = await market_data.candles(BTC.at(timeframe), start_ms=start, end_ms=at(6000), limit=limit)
            pages.append(page.table)
            start = page.next_start
        assert pa.concat_tables(pages) == whole.table
        newest = await market_data.candles(BTC.at(timeframe), end_ms=at(6000), limit=limit)
        assert newest.table == whole.table.slice(max(0, whole.table.num_rows - limit))


async def test_larger_candles_say_how_many_minutes_they_lack(store: Any, market_data: MarketData) -> None:
    # First window whole, second lacks 3, third lacks 2 beside 5 known to be empty, fourth is empty.
    there = [*range(15), *range(18, 30), *range(30, 38), *range(60, 75)]
    await store.write(batch(made(there), absences=[absence(40, 45)]))
    answer = await market_data.candles(BTC.at(M15))
    assert open_times_ms(answer.table).tolist() == [at(0), at(15), at(30), at(60)]
    assert missing(answer) == [0, 3, 2, 0]
    assert closed(answer) == roll_up(made(there), M15).table
    assert answer.derived_from == "1m"
    assert answer.gaps == IntervalSet.of((at(15), at(18)), (at(38), at(40)), (at(45), at(60)))


async def test_an_expired_absence_counts_as_missing_again(store: Any, market_data: MarketData, clock: Any) -> None:
    expires = clock.now_ms() + 1000
    await store.write(batch(made(range(10)), absences=[absence(10, 15, expires_at=expires)]))
    assert missing(await market_data.candles(BTC.at(M15))) == [0]
    clock.advance(1000)
    answer = await market_data.candles(BTC.at(M15))
    assert missing(answer) == [5]
    assert answer.gaps == IntervalSet.of((at(10), at(15)))


async def test_a_window_is_closed_once_its_minutes_are_known_to_its_end(
    store: Any, market_data: MarketData
) -> None:
    await store.write(batch(made(range(29))))
    assert open_times_ms((await market_data.candles(BTC.at(M15))).table).tolist() == [at(0)]
    await store.write(batch(absences=[absence(29, 30)]))
    assert open_times_ms((await market_data.candles(BTC.at(M15))).table).tolist() == [at(0), at(15)]


async def test_the_exchanges_own_candle_stands_in_where_minutes_are_missing(
    store: Any, market_data: MarketData
) -> None:
    await store.write(batch(made([*range(60), *range(70, 120)])))
    own = made_at([START - HOUR, START, START + HOUR, START + 2 * HOUR], version=5)
    await store.write(batch(own, series=BTC.at(H1)))
    answer = await market_data.candles(BTC.at(H1))
    expected = own.to_pylist()
    expected[1] = roll_up(made(range(60)), H1).table.to_pylist()[0]
    assert closed(answer).to_pylist() == expected
    assert missing(answer) == [0, 0, 0, 0]
    assert answer.complete


@pytest.mark.parametrize("timeframe", list(TIMEFRAMES.values())[1:])
async def test_every_larger_timeframe_is_made_of_minutes(
    store: Any, market_data: MarketData, timeframe: Any
) -> None:
    # Seven minutes a day, known to be all there is, for 70 days.
    there = [day * 1440 + minute for day in range(70) for minute in (0, 1, 2, 700, 701, 1438, 1439)]
    silence = [absence(day * 1440, (day + 1) * 1440) for day in range(70)]
    await store.write(batch(made(there), absences=silence))
    answer = await market_data.candles(BTC.at(timeframe), start_ms=START, end_ms=START + 59 * DAY)
    table = made(there)
    rolled = roll_up(table, timeframe).table
    times = open_times_ms(rolled)
    inside = rolled.filter(pa.array((times >= START) & (times < START + 59 * DAY)))
    assert closed(answer) == inside
    assert set(missing(answer)) == {0}


async def test_three_day_candles_move_to_the_listing_day_when_it_becomes_known(
    store: Any, market_data: MarketData
) -> None:
    await store.write(batch(made(range(0, 12 * 1440, 10))))
    default = open_times_ms((await market_data.candles(BTC.at(D3), start_ms=START)).table)
    (named,) = await store.instruments()
    await store.save_instruments([replace(named, listed_ms=int(default[0]) + DAY + HOUR)])
    moved = open_times_ms((await market_data.candles(BTC.at(D3), start_ms=START)).table)
    assert (moved[0] - default[0]) % (3 * DAY) == DAY
    assert (await store.facts(BTC)).revision == 1


async def test_as_of_answers_for_rows_ledger_and_larger_candles(
    store: Any, market_data: MarketData, clock: Any
) -> None:
    await store.write(batch(made(range(10))))
    early = clock.now_ms()
    clock.advance(10_000)
    await store.write(batch(made([3, *range(10, 15)], version=1), absences=[absence(15, 30)]))
    late = clock.now_ms()
    clock.advance(10_000)
    answer = await market_data.candles(BTC, start_ms=START, end_ms=at(30), as_of_ms=early)
    assert closed(answer) == made(range(10))
    assert answer.gaps == IntervalSet.of((at(10), at(30)))
    assert closed(await market_data.candles(BTC, limit=2, as_of_ms=early)) == made([8, 9])
    larger = await market_data.candles(BTC.at(M15), as_of_ms=early)
    assert closed(larger) == roll_up(made(range(10)), M15).table
    assert missing(larger) == [5]
    assert missing(await market_data.candles(BTC.at(M15), as_of_ms=late)) == [0]
    nothing = await market_data.candles(BTC, start_ms=START, end_ms=at(30), as_of_ms=early - 1)
    assert (nothing.table.num_rows, nothing.gaps) == (0, IntervalSet.of((at(0), at(30))))


async def test_an_absence_expires_as_of_then(store: Any, market_data: MarketData, clock: Any) -> None:
    told = clock.now_ms()
    await store.write(batch(made([0]), absences=[absence(1, 5, expires_at=told + 1000)]))
    clock.advance(10_000)
    assert (await market_data.candles(BTC, as_of_ms=told + 500)).complete
    assert not (await market_data.candles(BTC, as_of_ms=told + 1500)).complete


async def test_the_forming_candle_comes_last_and_only_when_asked_for(
    store: Any, market_data: MarketData, live: LiveCandles, clock: Any
) -> None:
    await store.write(batch(made(range(20))))
    live.put(BTC, made([20]), at(20) + 5)
    assert closed(await market_data.candles(BTC)) == made(range(20))
    for asked in ({}, {"limit": 3}, {"start_ms": at(17)}, {"start_ms": at(17), "end_ms": at(21)}):
        answer = await market_data.candles(BTC, include_forming=True, **asked)
        assert closed(answer).slice(answer.table.num_rows - 4) == made([17, 18, 19, 20])
        assert answer.table.column("closed").to_pylist()[-2:] == [True, False]
    without: list[dict[str, int]] = [{"end_ms": at(20)}, {"start_ms": at(3), "limit": 4}, {"start_ms": at(30)}]
    for asked in without:
        answer = await market_data.candles(BTC, include_forming=True, **asked)
        assert False not in answer.table.column("closed").to_pylist()
    # A fingerprint and gaps speak of closed candles only.
    assert (await market_data.candles(BTC, include_forming=True)).fingerprint == (
        await market_data.candles(BTC)
    ).fingerprint


async def test_the_forming_candle_gives_way_to_the_closed_one(
    store: Any, market_data: MarketData, live: LiveCandles, clock: Any
) -> None:
    await store.write(batch(made(range(20))))
    live.put(BTC, made([20]), at(20) + 5)
    live.put(BTC, made([19]), at(19) + 5)  # An older message that comes late is not heard.
    await store.write(batch(made([20], version=1)))
    answer = await market_data.candles(BTC, limit=2, include_forming=True)
    assert closed(answer) == pa.concat_tables([made([19]), made([20], version=1)])
    assert answer.table.column("closed").to_pylist() == [True, True]


async def test_the_forming_candle_is_not_older_than_it_may_be(
    store: Any, market_data: MarketData, live: LiveCandles, clock: Any
) -> None:
    await store.write(batch(made(range(20))))
    live.put(BTC, made([20]), at(20) + 5)
    heard = clock.now_ms()
    assert (await market_data.candles(BTC, include_forming=True, as_of_ms=heard)).table.num_rows == 21
    assert (
        False
        not in (await market_data.candles(BTC, include_forming=True, as_of_ms=heard - 1))
        .table.column("closed")
        .to_pylist()
    )
    clock.advance(6 * MINUTE)
    assert (await market_data.candles(BTC, include_forming=True)).table.num_rows == 20


async def test_a_larger_forming_candle_is_made_of_its_minutes(
    store: Any, market_data: MarketData, live: LiveCandles
) -> None:
    await store.write(batch(made([*range(19), 20])))
    live.put(BTC, made([22], version=2), at(22) + 5)
    answer = await market_data.candles(BTC.at(M15), include_forming=True)
    parts = pa.concat_tables([made([15, 16, 17, 18, 20]), made([22], version=2)])
    assert closed(answer).to_pylist() == [
        *roll_up(made(range(15)), M15).table.to_pylist(),
        *roll_up(parts, M15).table.to_pylist(),
    ]
    # 19 and 21 are neither stored nor known to be empty.
    assert missing(answer) == [0, 2]
    assert answer.table.column("closed").to_pylist() == [True, False]


async def test_coverage_and_gaps_of_a_derived_timeframe_are_those_of_its_minutes(
    store: Any, market_data: MarketData
) -> None:
    await store.write(batch(made([0, 1, 5]), absences=[absence(2, 4)]))
    whole, ledger = await market_data.coverage(BTC.at(H1))
    assert whole == Interval(at(0), at(6))
    assert ledger == await store.coverage(BTC)
    assert await market_data.gaps(BTC.at(H1)) == (whole, IntervalSet.of((at(4), at(5))))


async def test_health_counts_what_is_there(store: Any, market_data: MarketData) -> None:
    await store.write(batch(made(range(7)), state=CandleState.VERIFIED))
    health = await market_data.health()
    assert (health.ok, health.series, health.rows) == (True, 1, 7)
    assert health.size_bytes > 0


@pytest.mark.parametrize("timeframe", [H1, D1, D3, TIMEFRAMES["1w"], MONTH], ids=str)
async def test_without_a_start_the_first_bucket_is_served_though_it_lacks_its_beginning(
    store: Any, market_data: MarketData, timeframe: Any
) -> None:
    first = at(9 * 1440 + 17)
    await store.write(batch(made(range(9 * 1440 + 17, 45 * 1440, 7))))
    series = BTC.at(timeframe)
    whole = await market_data.candles(series)
    assert whole.table.equals((await market_data.candles(series, start_ms=START - 40 * DAY)).table)
    assert open_times_ms(whole.table)[0] == timeframe.floor(first)
    assert whole.interval.start == timeframe.floor(first)
    assert missing(whole)[0] > 0
