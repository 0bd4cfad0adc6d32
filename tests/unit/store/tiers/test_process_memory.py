"""Process memory: never more than its bytes, and what is cheap to get back goes first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from market.instrument import Series
from market.timeframe import ONE_MINUTE
from store.cache.memory import MEMORY_TIER
from store.cache.statistics import TierStatistics
from store.tiers.process_memory import ProcessMemory

BTC = Series("binance", "BTC/USDT", ONE_MINUTE)
SORTS = ("series", "sealed", "derived", "encoded")


def memory(limit: int) -> tuple[ProcessMemory, TierStatistics]:
    statistics = TierStatistics(lambda: 0)
    return ProcessMemory(limit, statistics, monotonic_ms=lambda: 0.0), statistics


@given(
    st.integers(0, 100),
    st.lists(
        st.tuples(
            st.sampled_from(["put", "get", "forget"]), st.sampled_from(SORTS), st.integers(0, 5), st.integers(0, 60)
        )
    ),
)
def test_it_never_holds_more_than_its_bytes_and_knows_them(
    limit: int, steps: list[tuple[str, str, int, int]]
) -> None:
    held, statistics = memory(limit)
    sizes: dict[tuple[str, int], int] = {}
    for what, sort, number, size in steps:
        key = (sort, number)
        if what == "put":
            if held.put(key, (key, size), size):
                sizes[key] = size
                assert held.get(key) == (key, size)
        elif what == "get":
            assert held.get(key) in (None, (key, sizes.get(key)))
        else:
            held.pop_where(lambda one, key=key: one == key)
            assert held.get(key) is None
        assert held.used_bytes <= limit
        there = [key for key in ((sort, number) for sort in SORTS for number in range(6)) if held.get(key)]
        assert held.used_bytes == sum(sizes[one] for one in there)
        assert len(held) == len(there)
        assert sum(one.bytes for one in statistics.snapshot() if one.tier == MEMORY_TIER) == held.used_bytes


def test_periods_make_room_for_tails_and_never_the_other_way_round() -> None:
    held, statistics = memory(100)
    for number in range(4):
        assert held.put(("sealed", BTC, number), number, 25)
    assert held.put(("series", BTC), "tail", 40)
    # Two had to go, the oldest first.
    assert [held.get(("sealed", BTC, number)) for number in range(4)] == [None, None, 2, 3]
    assert held.put(("sealed", BTC, 4), 4, 25)
    assert held.get(("series", BTC)) == "tail"
    assert held.used_bytes == 90
    # A quarter is theirs at least.
    assert held.put(("derived", BTC), "more", 30)
    assert not held.put(("encoded", BTC), "too much", 76)
    assert held.put(("sealed", BTC, 5), 5, 25)
    assert held.used_bytes == 95
    assert {one.kind: one.evictions for one in statistics.snapshot()} == {"candles": 5}


def test_nothing_changes_while_it_is_frozen() -> None:
    held, _ = memory(100)
    held.put(("sealed", BTC, 1), 1, 60)
    held.frozen = True
    assert not held.put(("series", BTC), "tail", 60)
    assert (held.clear(), held.get(("sealed", BTC, 1)), held.used_bytes) == (0, 1, 60)
    held.frozen = False
    assert held.put(("series", BTC), "tail", 60)
    assert (held.get(("sealed", BTC, 1)), held.used_bytes) == (None, 60)
