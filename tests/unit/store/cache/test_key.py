"""Keys as text and back, and the patterns that name them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.errors import BadInput
from store.cache.key import CacheKey, check_pattern, pattern_regex

PARTS = st.lists(st.one_of(st.text(max_size=8), st.sampled_from(["BTC/USDT:USDT", "*", "a?b", "{}", "%41"])))


@given(st.sampled_from(["ticker", "query"]), PARTS)
def test_a_key_comes_back_from_its_text(kind: str, parts: list[str]) -> None:
    key = CacheKey.of(kind, *parts)
    assert CacheKey.parse(key.text) == key
    assert not set(key.text) & set("*?[]{} \n\\")
    # A key's own text is a pattern that names this key alone.
    assert pattern_regex(key.text).match(key.text)


def test_the_text_of_a_symbol_stays_readable() -> None:
    key = CacheKey.of("ticker", "binance", "BTC/USDT:USDT")
    assert key.text == "ticker:binance:BTC/USDT%3AUSDT"
    assert (CacheKey.of("query").text, CacheKey.of("query", "").text) == ("query", "query:")


@pytest.mark.parametrize(
    "text",
    ["", "bar:a", "ticker:a b", "ticker:%zz", "ticker:%41", "ticker:%ff", "ticker:*", "ticker:ä", "ticker\n"],
)
def test_texts_of_no_key_are_refused(text: str) -> None:
    with pytest.raises(BadInput):
        CacheKey.parse(text)


def test_a_part_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(BadInput, match=r"^key: "):
        _ = CacheKey.of("ticker", "\ud800").text
    with pytest.raises(BadInput, match=r"^kind: "):
        CacheKey.of("bar")


@pytest.mark.parametrize("wrong", ["", "ticker:[ab]", "ticker:{a}", "a b", "a\\*", "*\n", "a" * 1_001])
def test_what_is_no_pattern_is_refused(wrong: str) -> None:
    with pytest.raises(BadInput, match=r"^pattern: "):
        check_pattern(wrong)


def named(pattern: str, text: str) -> bool:
    """Globs in the plainest way."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(named(pattern[1:], text[skipped:]) for skipped in range(len(text) + 1))
    return bool(text) and pattern[0] in ("?", text[0]) and named(pattern[1:], text[1:])


@given(st.text("ab:*?", min_size=1, max_size=8), st.text("ab:", max_size=8))
def test_stars_and_question_marks_name_what_globs_name(pattern: str, text: str) -> None:
    assert bool(pattern_regex(pattern).match(text)) == named(pattern, text)


def test_no_pattern_takes_long() -> None:
    assert not pattern_regex("*a" * 200 + "*b").match("a" * 1_000)
