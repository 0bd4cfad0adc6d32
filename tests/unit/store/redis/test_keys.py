"""Names in Redis: one symbol in one slot, back to the key, and patterns that leave nothing out."""

from __future__ import annotations

import fnmatch
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from store.cache.key import CacheKey, pattern_regex
from store.cache.time_to_live import KINDS
from store.redis.keys import PREFIX, cache_key, match, redis_key, tag

parts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8) | st.sampled_from(
    ["{", "}", "{}", "*", "?", "a|b", "}:ticker", ":", "%7B", "[a]", "\\", "BTC/USDT"]
)
keys = st.builds(
    lambda kind, of: CacheKey.of(kind, *of), st.sampled_from(sorted(KINDS)), st.lists(parts, min_size=1, max_size=4)
)


def globbed(pattern: str) -> re.Pattern[str]:
    """What Redis makes of a pattern, as far as ours go: they have no brackets and no backslashes."""
    return re.compile(fnmatch.translate(pattern))


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (CacheKey.of("ticker", "binance", "BTC/USDT"), "chandlery:1:{binance|BTC/USDT}:ticker"),
        (CacheKey.of("candles", "binance", "BTC/USDT", "1m"), "chandlery:1:{binance|BTC/USDT}:candles:1m"),
        (CacheKey.of("query", "7f3a"), "chandlery:1:query:7f3a"),
        (CacheKey.of("ticker", "a}", "{b*"), "chandlery:1:{a%7D|%7Bb%2A}:ticker"),
        (CacheKey.of("ticker", "a|b", "c"), "chandlery:1:{a%7Cb|c}:ticker"),
    ],
)
def test_names(key: CacheKey, name: str) -> None:
    assert redis_key(key) == name


@given(keys)
def test_a_name_leads_back_to_its_key(key: CacheKey) -> None:
    assert cache_key(redis_key(key).encode()) == key


@given(keys, keys)
def test_two_keys_have_two_names(one: CacheKey, other: CacheKey) -> None:
    assert (redis_key(one) == redis_key(other)) == (one == other)


@given(parts, parts, st.sampled_from(sorted(KINDS)), st.sampled_from(sorted(KINDS)), st.lists(parts, max_size=2))
def test_one_symbol_lies_in_one_slot(exchange: str, symbol: str, kind: str, other: str, more: list[str]) -> None:
    names = [redis_key(CacheKey.of(kind, exchange, symbol)), redis_key(CacheKey.of(other, exchange, symbol, *more))]
    assert len({key_slot(name.encode()) for name in names}) == 1
    assert all(name.startswith(tag(exchange, symbol)) for name in names)


@given(key=keys, data=st.data())
def test_a_search_leaves_out_nothing_that_a_pattern_names(key: CacheKey, data: st.DataObject) -> None:
    """Patterns made from the key itself, so that most name it."""
    text = key.text
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    sign = data.draw(st.sampled_from(["*", "?", "", "**", "*?"]))
    pattern = text[:start] + sign + text[end:]
    if pattern and pattern_regex(pattern).match(text):
        assert globbed(match(pattern)).match(redis_key(key))


@pytest.mark.parametrize(
    ("pattern", "searched"),
    [
        ("*", f"{PREFIX}*"),
        ("ticker:*", f"{PREFIX}*"),
        ("ticker:bin*", f"{PREFIX}*"),
        ("ticker:binance:*", PREFIX + "{binance|*"),
        ("ticker:binance:BTC*", PREFIX + "{binance|BTC*"),
        ("ticker:binance:BTC/USDT", PREFIX + "{binance|BTC/USDT*"),
        ("candles:binance:BTC/USDT:*", PREFIX + "{binance|BTC/USDT}:*"),
    ],
)
def test_a_search_is_no_wider_than_it_need_be(pattern: str, searched: str) -> None:
    assert match(pattern) == searched


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b"ticker",
        b"chandlery:topics",
        b"chandlery:2:{binance|BTC/USDT}:ticker",
        b"chandlery:1:{binance|BTC/USDT}:live:ticker",
        b"chandlery:1:{binance}:ticker",
        b"chandlery:1:{binance|BTC/USDT}",
        b"chandlery:1:{a|b|c}:ticker",
        b"chandlery:1:ticker:binance:BTC/USDT",
        b"chandlery:1:{a|b%2f}:ticker",
        b"chandlery:1:nothing:a",
        b"chandlery:1:\xff",
    ],
)
def test_what_is_none_of_ours_is_no_key(name: bytes) -> None:
    assert cache_key(name) is None
