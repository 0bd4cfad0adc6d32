"""Cursors come back as they were written, and only to the query they belong to."""

from __future__ import annotations

import base64

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.clock import EARLIEST_MS, LATEST_MS
from market.errors import BadInput
from market.instrument import Series
from serve.cursor import Place, read_cursor, write_cursor

BTC = Series.parse("binance", "BTC/USDT", "1m")
INSTANTS = st.integers(EARLIEST_MS, LATEST_MS - 1)


@given(start=INSTANTS, length=st.integers(1, 10**10), open_ended=st.booleans(), as_of=st.none() | INSTANTS)
def test_a_cursor_comes_back_as_it_was_written(
    start: int, length: int, open_ended: bool, as_of: int | None
) -> None:
    end = None if open_ended else min(start + length, LATEST_MS)
    place = Place(start_ms=start, end_ms=end)
    text = write_cursor(place, BTC, as_of, False)
    assert read_cursor(text, BTC, as_of, False) == place
    assert text.isascii()
    assert not set(text) & set("+/=&?#")


def test_a_cursor_of_another_query_is_refused() -> None:
    text = write_cursor(Place(start_ms=EARLIEST_MS, end_ms=LATEST_MS), BTC, None, False)
    for series, as_of, forming in (
        (Series.parse("binance", "ETH/USDT", "1m"), None, False),
        (Series.parse("kraken", "BTC/USDT", "1m"), None, False),
        (Series.parse("binance", "BTC/USDT", "1h"), None, False),
        (BTC, EARLIEST_MS, False),
        (BTC, None, True),
    ):
        with pytest.raises(BadInput, match="belongs to another"):
            read_cursor(text, series, as_of, forming)


@given(st.text(max_size=60))
def test_other_text_is_refused_by_name(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        read_cursor(text, BTC, None, False)
    assert caught.value.field == "cursor"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
        max_leaves=8,
    )
)
def test_other_json_is_refused_by_name(value: object) -> None:
    text = base64.urlsafe_b64encode(orjson.dumps(value)).rstrip(b"=").decode()
    with pytest.raises(BadInput) as caught:
        read_cursor(text, BTC, None, False)
    assert caught.value.field == "cursor"
