"""Fingerprints: equal candles and only they give equal digests, in any order and any parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.candle import CANDLE_SCHEMA, COLUMNS, candles, no_candles
from market.fingerprint import Digest, dataset_fingerprint, digest, group_digests, row_hashes
from market.instrument import Series

START = 1_672_531_200_000
numbers = st.floats(min_value=1e-8, max_value=1e12)
maybe = st.none() | numbers

rows = st.fixed_dictionaries(
    {
        "open_time": st.integers(0, 10**6).map(lambda minute: START + minute * 60_000),
        **{name: numbers for name in ("open", "high", "low", "close", "volume")},
        "quote_volume": maybe,
        "trades": st.none() | st.integers(0, 10**9),
        "taker_buy_volume": maybe,
        "taker_buy_quote_volume": maybe,
        "early_close_time": st.none() | st.integers(START, START + 10**9),
    }
)
several = st.lists(rows, min_size=1, max_size=20)


def table(found: list[dict[str, Any]]) -> pa.Table:
    return candles({name: [one[name] for one in found] for name in COLUMNS})


@given(several, st.randoms(use_true_random=False), st.integers(0, 20))
def test_order_and_parts_do_not_matter(found: list[dict[str, Any]], random: Any, cut: int) -> None:
    whole = digest(table(found))
    shuffled = list(found)
    random.shuffle(shuffled)
    assert digest(table(shuffled)) == whole
    one, other = digest(table(found[:cut])), digest(table(found[cut:]))
    assert one + other == whole
    assert whole - other == one
    assert whole.rows == len(found)
    assert digest(pa.concat_tables([table(found[:cut]), table(found[cut:])])) == whole
    assert digest(table(found).slice(cut)) == other


@given(several, st.data())
def test_any_single_changed_cell_changes_it(found: list[dict[str, Any]], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(found) - 1))
    name = data.draw(st.sampled_from(COLUMNS))
    value = found[at][name]
    if isinstance(value, float):
        changed: Any = float(np.nextafter(value, np.inf))
    else:
        changed = 0 if value is None else value + 1
        changed = START if name == "early_close_time" and value is None else changed
    other = [*found[:at], {**found[at], name: changed}, *found[at + 1 :]]
    before, after = digest(table(found)), digest(table(other))
    # Each lane alone tells them apart.
    assert before.low != after.low
    assert before.high != after.high


@given(rows, st.permutations(["open", "high", "low", "close", "volume", "quote_volume", "taker_buy_volume"]))
def test_values_that_change_places_change_it(row: dict[str, Any], order: list[str]) -> None:
    given_names = ["open", "high", "low", "close", "volume", "quote_volume", "taker_buy_volume"]
    row = {**row, "quote_volume": row["quote_volume"] or 1.5, "taker_buy_volume": row["taker_buy_volume"] or 2.5}
    swapped = {**row, **{new: row[old] for old, new in zip(given_names, order, strict=True)}}
    assert (digest(table([row])) == digest(table([swapped]))) == (row == swapped)


@given(rows, rows)
def test_values_that_change_rows_change_it(one: dict[str, Any], other: dict[str, Any]) -> None:
    crossed = [{**one, "close": other["close"]}, {**other, "close": one["close"]}]
    same = one["close"] == other["close"] or {**one, "close": 0} == {**other, "close": 0}
    assert (digest(table([one, other])) == digest(table(crossed))) == same


@pytest.mark.parametrize("name", [field.name for field in CANDLE_SCHEMA if field.nullable])
def test_null_is_not_zero(name: str) -> None:
    row = {
        "open_time": START,
        **dict.fromkeys(("open", "high", "low", "close", "volume"), 1.0),
        **{field.name: None for field in CANDLE_SCHEMA if field.nullable},
    }
    assert digest(table([row])) != digest(table([{**row, name: 0}]))


def test_minus_zero_is_zero() -> None:
    columns = {"open_time": [START], **{name: [1.0] for name in COLUMNS[1:5]}}
    assert digest(candles({**columns, "volume": [-0.0]})) == digest(candles({**columns, "volume": [0.0]}))


def test_repeated_rows_count() -> None:
    row = {"open_time": START, **dict.fromkeys(COLUMNS[1:6], 1.0), **dict.fromkeys(COLUMNS[6:])}
    assert digest(table([row, row])) != digest(table([row]))
    assert digest(table([row, row])) != digest(no_candles())


def test_no_rows() -> None:
    assert digest(no_candles()) == Digest()
    assert digest(no_candles()).hex == "0" * 32


def test_rows_that_differ_hash_apart() -> None:
    # Regular candles, as in markets: small steps in few bits of the mantissa.
    count = 100_000
    steps = np.arange(count)
    prices = 16_500 + (steps % 997) / 100
    found = candles(
        {
            "open_time": steps * 60_000 + START,
            **{name: prices for name in ("open", "high", "low", "close")},
            "volume": (steps % 89) / 1000,
        }
    )
    for lane in row_hashes(found):
        assert len(np.unique(lane)) == count
        # Every bit is set in about half of the rows.
        shares = [float(((lane >> np.uint64(bit)) & np.uint64(1)).mean()) for bit in range(64)]
        assert 0.48 < min(shares) <= max(shares) < 0.52


@given(several, st.sets(st.integers(1, 19), max_size=5))
def test_groups(found: list[dict[str, Any]], cuts: set[int]) -> None:
    starts = [0, *sorted(cut for cut in cuts if cut < len(found))]
    ends = [*starts[1:], len(found)]
    expected = [digest(table(found[start:end])) for start, end in zip(starts, ends, strict=True)]
    assert group_digests(table(found), np.array(starts)) == expected


@given(st.integers(0, 10**6), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_hex_and_back(count: int, low: int, high: int) -> None:
    one = Digest(count, low, high)
    assert Digest.of_hex(count, one.hex) == one
    assert one + Digest() == one
    assert one - one == Digest()


def test_the_digest_of_a_known_row_stays_as_it_is() -> None:
    """Stored fingerprints must mean the same in every release."""
    row = {"open_time": START, **dict.fromkeys(COLUMNS[1:6], 16541.77), **dict.fromkeys(COLUMNS[6:])}
    assert digest(table([row])).hex == "32509378ab8463d4103ac6183c29e3f9"


def test_dataset_fingerprint() -> None:
    btc, eth = Series.parse("binance", "BTC/USDT", "1m"), Series.parse("binance", "ETH/USDT", "1m")
    one, other = Digest(1, 2, 3), Digest(4, 5, 6)
    both = dataset_fingerprint([(btc, one), (eth, other)])
    assert both == dataset_fingerprint([(eth, other), (btc, one)])
    assert len(both) == 64
    different = [
        [(btc, other), (eth, one)],
        [(btc, one)],
        [(btc, one), (eth, Digest(5, 5, 6))],
        [(btc, one), (Series.parse("binance", "ETH/USDT", "1h"), other)],
        [(btc, one), (Series.parse("kraken", "ETH/USDT", "1m"), other)],
        [],
    ]
    assert len({both, *map(dataset_fingerprint, different)}) == 1 + len(different)
