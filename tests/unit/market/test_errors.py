"""Errors: their tree, and messages that name the field, the value and what would be accepted."""

from __future__ import annotations

import inspect
import re

import pytest

from market import errors
from market.errors import BadInput, ChandleryError, NotFound, RateLimited, Retryable, Terminal


def test_bad_input_says_what_was_sent_and_what_is_accepted() -> None:
    error = BadInput("limit", 0, "1 to 100000")
    assert str(error) == "limit: 0 is not accepted; expected 1 to 100000"
    assert (error.field, error.value, error.accepted) == ("limit", 0, "1 to 100000")


def test_long_values_are_cut_in_the_message_only() -> None:
    error = BadInput("symbol", "x" * 5000, "a symbol")
    assert len(str(error)) < 200
    assert "..." in str(error)
    assert error.value == "x" * 5000


def test_values_cannot_break_the_line() -> None:
    assert "\n" not in str(BadInput("symbol", "a\nb\x1b[31m", "a symbol"))
    assert "\x1b" not in str(BadInput("symbol", "a\nb\x1b[31m", "a symbol"))


@pytest.mark.parametrize(
    ("known", "hint", "said"),
    [
        (["binance", "kraken"], "", "one of: binance, kraken"),
        ([], "", "something that exists (nothing is stored yet)"),
        (range(20), "", "one of: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 8 more"),
        (["a"], "a stored series", "a stored series"),
    ],
)
def test_not_found_lists_what_is_there(known: list[object], hint: str, said: str) -> None:
    error = NotFound("exchange", "okx", known, hint)
    assert str(error) == f"exchange: 'okx' is not accepted; expected {said}"
    assert isinstance(error, BadInput)


def test_rate_limited_carries_the_wait() -> None:
    error = RateLimited("binance: 418", 120.0, banned=True)
    assert (str(error), error.retry_after, error.banned) == ("binance: 418", 120.0, True)
    assert isinstance(error, Retryable)


def test_the_drawn_tree_is_the_real_one() -> None:
    real = {
        name: one.__bases__[0].__name__
        for name, one in inspect.getmembers(errors, inspect.isclass)
        if issubclass(one, ChandleryError) and one is not ChandleryError
    }
    drawn: dict[str, str] = {}
    branch = ""
    for sign, name in re.findall(r"^ +(?:\|? +)?([+-]) (\w+)", errors.__doc__ or "", re.MULTILINE):
        if sign == "+":
            branch = name
            drawn[name] = "ChandleryError"
        else:
            drawn[name] = branch
    # SchemaTooNew is a special case of StoreUnusable; the drawing has two levels only.
    assert drawn.pop("SchemaTooNew") == "Terminal"
    assert real.pop("SchemaTooNew") == "StoreUnusable"
    assert drawn == real


def test_an_error_says_either_try_again_or_act() -> None:
    for _, one in inspect.getmembers(errors, inspect.isclass):
        if not issubclass(one, ChandleryError):
            continue
        assert not (issubclass(one, Retryable) and issubclass(one, (Terminal, BadInput))), one
        assert inspect.getdoc(one), one
