"""What a candle store does with a batch: new, same, corrected, outranked and refused rows."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from market.candle import CandleState, Refusal
from market.coverage import CoverageState
from market.errors import BadInput
from market.fingerprint import Digest, digest
from market.interval import Interval
from market.timeframe import TIMEFRAMES
from store.batch import Absence, CandleBatch, Written
from tests.support.made_candles import BTC, DAY, ETH, MINUTE, NOW, START, absence, at, batch, made, made_at, rows

WHOLE = (START, at(100_000))


async def counted(store: Any) -> Digest:
    return sum((one.digest for one in await store.chunks(BTC)), Digest())


async def test_the_same_batch_again_changes_nothing(store: Any, clock: Any) -> None:
    table = made(range(3000))
    first = await store.write(batch(table, absences=[absence(3000, 3010)]))
    assert first == Written(inserted=3000)
    before = await store.series(), await store.chunks(BTC), await store.coverage(BTC)
    clock.advance(5000)
    assert await store.write(batch(table, absences=[absence(3000, 3010)])) == Written(unchanged=3000)
    assert (await store.series(), await store.chunks(BTC), await store.coverage(BTC)) == before


async def test_part_of_a_day_again_changes_nothing(store: Any, clock: Any) -> None:
    await store.write(batch(made(range(3000))))
    before = await store.series(), await store.chunks(BTC)
    clock.advance(5000)
    assert await store.write(batch(made(range(700, 1900)))) == Written(unchanged=1200)
    assert (await store.series(), await store.chunks(BTC)) == before


async def test_each_change_counts_one_revision(store: Any) -> None:
    for number, one in enumerate([made([0]), made([1]), made([1], version=1)], start=1):
        await store.write(batch(one))
        assert (await store.facts(BTC)).revision == number


async def test_a_corrected_row_replaces_the_old_one_whole(store: Any) -> None:
    await store.write(batch(made(range(10), version=3)))
    assert await store.write(batch(made([4, 7], version=1))) == Written(corrected=2)
    expected = made(range(10), version=3).to_pylist()
    for row, new in zip((4, 7), made([4, 7], version=1).to_pylist(), strict=True):
        expected[row] = new
    assert (await store.read(BTC, *WHOLE)).to_pylist() == expected
    assert (await store.series())[0].corrections == 2


async def test_only_the_touched_chunk_gets_the_new_revision(store: Any) -> None:
    await store.write(batch(made(range(3 * 1440))))
    await store.write(batch(made([2000], version=1)))
    assert [one.revision for one in await store.chunks(BTC)] == [1, 2, 1]


async def test_as_of_gives_every_version_in_its_time(store: Any, clock: Any) -> None:
    learned: list[int] = []
    for version in (0, 1, 2, 0):
        await store.write(batch(made([0, 5], version=version)))
        learned.append((await store.series())[0].last_write)
        clock.advance(1000)
    assert rows(await store.read(BTC, *WHOLE, as_of_ms=learned[0] - 1)) == []
    for version, moment in zip((0, 1, 2, 0), learned, strict=True):
        for instant in (moment, moment + 999):
            assert await store.read(BTC, *WHOLE, as_of_ms=instant) == made([0, 5], version=version)
    assert await store.read(BTC, *WHOLE) == made([0, 5])


async def test_two_writes_in_one_millisecond_are_told_apart(store: Any, clock: Any) -> None:
    for version in range(3):
        await store.write(batch(made([0], version=version)))
    last = (await store.series())[0].last_write
    assert last == clock.now_ms() + 2
    seen = [await store.read(BTC, *WHOLE, as_of_ms=moment) for moment in range(last - 2, last + 1)]
    assert seen == [made([0], version=version) for version in range(3)]


async def test_as_of_with_a_clock_that_went_back(store: Any, clock: Any) -> None:
    await store.write(batch(made([0])))
    first = (await store.series())[0].last_write
    clock.advance(-3_600_000)
    await store.write(batch(made([0], version=1)))
    assert (await store.series())[0].last_write == first + 1
    assert await store.read(BTC, *WHOLE, as_of_ms=first) == made([0])


async def test_as_of_with_limits(store: Any, clock: Any) -> None:
    await store.write(batch(made(range(10))))
    then = clock.now_ms()
    clock.advance(1000)
    await store.write(batch(made([*range(0, 10, 2), 10, 11], version=1)))
    assert await store.read(BTC, *WHOLE, limit=3, as_of_ms=then) == made(range(3))
    assert await store.read(BTC, *WHOLE, limit=3, newest=True, as_of_ms=then) == made(range(7, 10))


async def test_closed_never_replaces_verified(store: Any) -> None:
    await store.write(batch(made(range(5)), state=CandleState.VERIFIED))
    before = await store.series(), await store.chunks(BTC)
    assert await store.write(batch(made([2, 3], version=1))) == Written(outranked=2)
    assert await store.write(batch(made([2, 3]))) == Written(unchanged=2)
    assert (await store.series(), await store.chunks(BTC)) == before
    assert await store.read(BTC, *WHOLE) == made(range(5))


async def test_verified_replaces_verified_and_closed(store: Any) -> None:
    await store.write(batch(made([0]), state=CandleState.VERIFIED))
    await store.write(batch(made([1])))
    written = await store.write(batch(made([0, 1], version=1), state=CandleState.VERIFIED))
    assert written == Written(corrected=2)
    assert await store.write(batch(made([0, 1]))) == Written(outranked=2)


@pytest.mark.parametrize("seen_again", [range(2880), range(100, 1500)], ids=["whole days", "parts of days"])
async def test_verifying_changes_nothing_that_a_reader_sees(store: Any, clock: Any, seen_again: range) -> None:
    await store.write(batch(made(range(2880))))
    before = await store.series(), await store.chunks(BTC)
    clock.advance(5000)
    written = await store.write(batch(made(seen_again), state=CandleState.VERIFIED))
    assert written == Written(unchanged=len(seen_again))
    assert (await store.series(), await store.chunks(BTC)) == before
    # From now on these rows are final; the others are not.
    assert (await store.write(batch(made(seen_again[:3], version=1)))).outranked == 3
    others = [one for one in range(2880) if one not in seen_again]
    assert (await store.write(batch(made(others, version=1)))).corrected == len(others)


BAD_ROWS = [
    ("high", 1.0, "high 1.0 is below low"),
    ("low", float("nan"), "low is nan: not a finite number"),
    ("volume", -1.0, "volume is -1.0: must not be negative"),
    ("close", 0.0, "close is 0.0: a price must be above zero"),
    ("quote_volume", float("inf"), "quote_volume is inf: not a finite number"),
    ("open_time", at(3) + 1, "open_time is not the start of a 1m bucket"),
    ("open_time", NOW, "its bucket ends in the future"),
    ("open_time", at(2), "another row of this batch has the same open_time"),
]


@pytest.mark.parametrize(("column", "value", "reason"), BAD_ROWS)
async def test_a_bad_row_goes_to_quarantine_and_the_rest_is_written(
    store: Any, column: str, value: float, reason: str
) -> None:
    good = made(range(6))
    place = good.schema.get_field_index(column)
    values = good.column(column).cast(pa.int64() if column == "open_time" else pa.float64()).to_pylist()
    values[3] = value
    bad = good.set_column(place, good.schema.field(place), pa.array(values).cast(good.schema.field(place).type))
    for _ in range(2):  # The second time nothing is kept twice.
        written = await store.write(batch(bad))
        (refusal,) = written.refusals
        assert (refusal.row, reason in refusal.reason) == (3, True), refusal.reason
        assert await store.read(BTC, *WHOLE) == made([0, 1, 2, 4, 5])
        kept = await store.quarantined(BTC)
        assert [(one.open_time, one.reason, one.raw) for one in kept] == [
            (refusal.open_time, refusal.reason, refusal.raw)
        ]
    info = (await store.series())[0]
    assert (info.quarantined, info.rows, info.revision) == (1, 5, 1)


async def test_rows_that_could_not_be_read_are_kept_with_their_reason(store: Any) -> None:
    refusal = Refusal(row=7, open_time=None, reason="open is 'abc': not a number", raw="line 9: abc")
    written = await store.write(
        CandleBatch(series=BTC, source="import", now_ms=NOW, table=made([0]), refusals=(refusal,))
    )
    assert written == Written(inserted=1, refusals=(refusal,))
    assert [(one.open_time, one.reason) for one in await store.quarantined(BTC)] == [(None, refusal.reason)]


async def test_order_and_exact_repeats_do_not_matter(store: Any, second_store: Any) -> None:
    await store.write(batch(made(range(2000))))
    shuffled = made([*range(1999, -1, -2), *range(0, 2000, 2), 5, 5])
    assert await second_store.write(batch(shuffled)) == Written(inserted=2000)
    assert await second_store.read(BTC, *WHOLE) == await store.read(BTC, *WHOLE)
    assert await second_store.chunks(BTC) == await store.chunks(BTC)


async def test_equal_data_has_equal_digests_however_it_came(store: Any, second_store: Any) -> None:
    await store.write(batch(made(range(3000))))
    for start in (2000, 0, 1000):
        await second_store.write(batch(made(range(start, start + 1000), version=2)))
    await second_store.write(batch(made(range(0, 3000, 7)), state=CandleState.VERIFIED))
    await second_store.write(batch(made(range(3000)), state=CandleState.VERIFIED))
    ours = [(one.start, one.digest) for one in await store.chunks(BTC)]
    assert [(one.start, one.digest) for one in await second_store.chunks(BTC)] == ours
    assert await counted(store) == digest(made(range(3000)))


@pytest.mark.parametrize("name", list(TIMEFRAMES))
async def test_every_timeframe_keeps_its_own_rows(store: Any, name: str) -> None:
    timeframe = TIMEFRAMES[name]
    series = BTC.at(timeframe)
    first = timeframe.ceil(START)
    times = [timeframe.next(first, number) for number in range(20)]
    await store.write(batch(made_at(times), series=series, now_ms=times[-1] * 2))
    await store.write(batch(made_at(times[5:9], version=1), series=series, now_ms=times[-1] * 2))
    read = await store.read(series, 0, times[-1] * 2)
    assert [one.timestamp() * 1000 for one in read.column("open_time").to_pylist()] == times
    chunks = await store.chunks(series)
    assert sum((one.digest for one in chunks), Digest()) == digest(read)
    assert [one.interval for one in await store.coverage(series)] == [Interval(times[0], timeframe.next(times[-1]))]


async def test_series_do_not_mix(store: Any) -> None:
    await store.write(batch(made(range(5))))
    await store.write(batch(made(range(2, 9), version=1), series=ETH))
    assert await store.read(BTC, *WHOLE) == made(range(5))
    assert await store.read(ETH, *WHOLE) == made(range(2, 9), version=1)
    assert [one.series for one in await store.series()] == [BTC, ETH]


async def test_a_batch_that_fails_leaves_nothing(store: Any) -> None:
    await store.write(batch(made([0])))
    before = await store.series(), await store.chunks(BTC), await store.coverage(BTC)
    # The absence comes last; what its evidence is cannot be stored, so the transaction fails after the rows.
    broken = absence(50, 60, evidence=object())  # type: ignore[arg-type]
    with pytest.raises(Exception, match=r"evidence|bind|parameter|type|attribute"):
        await store.write(batch(made(range(5), version=1), absences=[broken]))
    assert (await store.series(), await store.chunks(BTC), await store.coverage(BTC)) == before
    assert await store.read(BTC, *WHOLE) == made([0])
    assert await store.write(batch(made([1]))) == Written(inserted=1)


def test_a_forming_candle_cannot_even_be_asked_to_be_stored() -> None:
    with pytest.raises(BadInput, match="forming candle is never stored"):
        batch(made([0]), state=CandleState.FORMING)


def test_presence_cannot_be_claimed_without_a_candle() -> None:
    with pytest.raises(BadInput, match="only a stored candle makes a range present"):
        Absence(interval=Interval(START, START + MINUTE), state=CoverageState.PRESENT, evidence="")


async def test_three_day_candles_of_unknown_listing_count_from_where_most_of_them_open(store: Any) -> None:
    days = BTC.at(TIMEFRAMES["3d"])
    opens = [START + 3 * number * DAY for number in range(5)]
    strays = [START + DAY, START + 13 * DAY]
    written = await store.write(batch(made_at([*strays, *opens]), series=days))
    assert (written.inserted, len(written.refusals)) == (5, 2)
    # From then on the stored ones say where the others belong.
    written = await store.write(batch(made_at([START + 16 * DAY, START + 18 * DAY, START + 19 * DAY]), series=days))
    assert (written.inserted, len(written.refusals)) == (1, 2)
    assert (await store.facts(days)).origin_ms % (3 * DAY) == START % (3 * DAY)


async def test_a_zero_has_no_sign(store: Any) -> None:
    table = made([0])
    for name in ("volume", "taker_buy_volume"):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), [[-0.0]])
    await store.write(batch(table))
    found = (await store.read(BTC, *WHOLE)).to_pylist()[0]
    assert [repr(found[name]) for name in ("volume", "taker_buy_volume")] == ["0.0", "0.0"]
