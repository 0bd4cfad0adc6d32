"""Periods are made of whole chunks, each of exactly one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from market.clock import EARLIEST_MS, LATEST_MS
from market.fingerprint import Digest
from market.timeframe import TIMEFRAMES
from store.candle_store import Chunk
from store.merge import chunk_end, chunk_start
from store.tiers.periods import period_of, periods_of
from tests.support.made_candles import BTC

INSTANTS = st.integers(EARLIEST_MS, LATEST_MS - 1)
ALL = st.sampled_from(sorted(TIMEFRAMES.values()))


@given(instant=INSTANTS, timeframe=ALL)
def test_a_period_holds_its_instant_and_the_whole_chunk_of_it(instant: int, timeframe) -> None:  # type: ignore[no-untyped-def]
    period, chunk = period_of(instant, timeframe), chunk_start(instant, timeframe)
    assert period.start <= chunk <= instant < chunk_end(chunk, timeframe) <= period.end
    # Its neighbours begin and end where it does.
    assert period_of(period.end, timeframe).start == period.end
    assert period_of(period.start - 1, timeframe).end == period.start
    assert period_of(period.end - 1, timeframe) == period


@given(instants=st.lists(INSTANTS, max_size=30), timeframe=ALL)
def test_each_chunk_is_in_the_period_of_its_start(instants: list[int], timeframe) -> None:  # type: ignore[no-untyped-def]
    starts = sorted({chunk_start(one, timeframe) for one in instants})
    chunks = [Chunk(start=one, digest=Digest(1, one, 0), revision=number) for number, one in enumerate(starts)]
    found = periods_of(BTC.at(timeframe), reversed(chunks))
    assert list(found) == sorted(found)
    for start, period in found.items():
        inside = [one for one in chunks if period.start <= one.start < period.end]
        assert start == period.start
        assert period.digest == sum((one.digest for one in inside), Digest())
        assert period.revision == max(one.revision for one in inside)
    assert sum(one.digest.rows for one in found.values()) == len(chunks)
