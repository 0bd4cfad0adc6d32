"""Messages about what is no longer true: packed, unpacked, and what they name."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.errors import BadInput
from store.cache.invalidation import FROM_CANDLES, Invalidation, SeriesRange, of_keys
from store.cache.key import CacheKey, pattern_regex

MINUTES = SeriesRange(
    exchange="binance",
    symbol="BTC/USDT:USDT",
    timeframe="1m",
    start=1_700_000_000_000,
    end=1_700_000_060_000,
    revision=7,
)
KEYS = st.builds(
    CacheKey,
    st.sampled_from(["ticker", "candles", "query", "statistics"]),
    st.lists(st.sampled_from(["binance", "kraken", "BTC/USDT:USDT", "ETH/USDT", "1h", "*"]), max_size=4).map(tuple),
)


@given(
    st.text(max_size=5),
    st.lists(KEYS, max_size=3),
    st.sampled_from([None, "ticker:*"]),
    st.booleans(),
    st.booleans(),
)
def test_messages_come_back(
    sender: str, keys: list[CacheKey], pattern: str | None, series: bool, all_: bool
) -> None:
    message = Invalidation(
        sender=sender, keys=tuple(keys), pattern=pattern, series=MINUTES if series else None, everything=all_
    )
    assert Invalidation.unpack(message.packed()) == message


def test_the_wire_form_is_as_described() -> None:
    packed = Invalidation(sender="7f3a", series=MINUTES).packed()
    assert msgspec.msgpack.decode(packed) == [
        *(1, "7f3a", False, [], None),
        ["binance", "BTC/USDT:USDT", "1m", 1_700_000_000_000, 1_700_000_060_000, 7],
    ]


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode((2, "a", True, [], None, None)),
        msgspec.msgpack.encode((1, "a", True, [], None)),
        msgspec.msgpack.encode((1, "a", False, ["bar:1"], None, None)),
        msgspec.msgpack.encode((1, "a", False, [], "[", None)),
        msgspec.msgpack.encode((1, "a", False, [], None, ["binance"])),
        msgspec.msgpack.encode((1, "a", False, ["ticker"] * 1_001, None, None)),
    ],
)
def test_messages_of_others_are_not_used(message: bytes) -> None:
    assert Invalidation.unpack(message) is None


@given(KEYS)
def test_a_series_names_the_same_by_its_patterns(key: CacheKey) -> None:
    by_pattern = any(pattern_regex(pattern).match(key.text) for pattern in MINUTES.patterns)
    assert Invalidation(sender="a", series=MINUTES).matcher()(key) == by_pattern
    about_it = key.kind in FROM_CANDLES and key.parts[:2] in ((), ("binance",), ("binance", "BTC/USDT:USDT"))
    assert by_pattern == about_it


@given(KEYS, KEYS)
def test_what_a_message_names(key: CacheKey, other: CacheKey) -> None:
    assert Invalidation(sender="a", keys=(key,)).matcher()(other) == (key == other)
    assert Invalidation(sender="a", pattern="ticker:*").matcher()(key) == key.text.startswith("ticker:")
    assert Invalidation(sender="a", everything=True).matcher()(key)
    assert not Invalidation(sender="a").matcher()(key)


def test_many_keys_are_several_messages() -> None:
    keys = [CacheKey.of("query", str(number)) for number in range(1_001)]
    messages = of_keys("a", keys + keys)
    assert [len(message.keys) for message in messages] == [1_000, 1]
    assert of_keys("a", []) == []
    with pytest.raises(BadInput, match=r"^keys: 1001 "):
        Invalidation(sender="a", keys=tuple(keys))
