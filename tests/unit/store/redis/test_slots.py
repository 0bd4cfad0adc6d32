"""What a cluster says of who has what."""

from __future__ import annotations

from typing import Any

import pytest

from market.errors import BadInput
from store.redis.address import Place
from store.redis.node import RedisRules
from store.redis.slots import owners_in

ASKED = Place("10.0.0.9", 7000)


def test_ranges_belong_to_the_first_server_and_replicas_have_none() -> None:
    reply = [
        [0, 5460, [b"10.0.0.1", 7001, b"09dbe9", []], [b"10.0.0.4", 7004, b"c9d93d", []]],
        [5461, 16383, [b"10.0.0.2", 7002, b"c9d93e", []]],
    ]
    assert owners_in(reply, ASKED) == {
        Place("10.0.0.1", 7001): [(0, 5460)],
        Place("10.0.0.4", 7004): [],
        Place("10.0.0.2", 7002): [(5461, 16383)],
    }


def test_a_server_may_have_several_ranges() -> None:
    one = [b"h", 1, b"x", []]
    assert owners_in([[0, 1, one], [5, 5, one]], ASKED) == {Place("h", 1): [(0, 1), (5, 5)]}


@pytest.mark.parametrize("host", [b"", None])
def test_a_server_without_a_name_is_where_we_asked(host: bytes | None) -> None:
    assert owners_in([[0, 1, [host, 7000, b"x", []]]], ASKED) == {ASKED: [(0, 1)]}


@pytest.mark.parametrize("name", ["connections", "connect_seconds", "answer_seconds", "refresh_seconds"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_a_wrong_bound_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(BadInput) as caught:
        RedisRules(**{name: value})
    assert caught.value.field == name
