"""Numbers of messages: what is left out is noticed, what only comes late is not."""

from __future__ import annotations

import struct
from typing import Any, cast

import pytest

from market.errors import BadInput
from store.cache.invalidation import Invalidation
from store.redis.address import RedisUrl
from store.redis.connection import RedisConnection
from store.redis.invalidations import Invalidations, ListeningRules


class _Nowhere:
    """What a listener wants to know of its connection before it listens."""

    url = RedisUrl.parse("redis://nowhere/3")


class Ear:
    """A listener that is handed messages."""

    def __init__(self) -> None:
        self.heard: list[Invalidation] = []
        self.missed = 0
        connection: Any = _Nowhere()
        self._one = Invalidations(cast(RedisConnection, connection))
        self._one._hear = self.heard.append
        self._one._missed = self._miss

    def _miss(self) -> None:
        self.missed += 1

    def take(self, run: int, number: int, body: bytes = b"") -> int:
        """How often something was missed since the start."""
        self._one._take(struct.pack(">QQ", run, number) + body)
        return self.missed


async def test_numbers_in_a_row_are_all_there_is() -> None:
    ear = Ear()
    assert [ear.take(1, number) for number in (1, 2, 3)] == [0, 0, 0]
    assert [ear.take(2, number) for number in (1, 2)] == [0, 0]


@pytest.mark.parametrize(
    ("numbers", "missed"),
    [
        ((1, 3), 1),
        ((1, 3, 4), 1),
        ((1, 3, 2, 4), 1),
        ((1, 2, 2, 3), 0),
        ((1, 5, 9), 2),
        # A process that we have not heard of since we began to count.
        ((7, 8), 1),
    ],
)
async def test_a_number_left_out(numbers: tuple[int, ...], missed: int) -> None:
    ear = Ear()
    for number in numbers:
        ear.take(1, number)
    assert ear.missed == missed


async def test_what_is_said_is_heard_even_after_a_gap() -> None:
    said = Invalidation(sender="a", everything=True)
    ear = Ear()
    ear.take(1, 1, said.packed())
    ear.take(1, 5, said.packed())
    assert ear.heard == [said, said]
    assert ear.missed == 1


async def test_what_is_not_understood_may_have_been_anything() -> None:
    ear = Ear()
    assert ear.take(1, 1, b"another version's") == 1
    assert ear.heard == []


@pytest.mark.parametrize("seconds", [0, -1, 3.5, 9])
def test_a_wrong_bound_is_refused_by_name(seconds: float) -> None:
    with pytest.raises(BadInput) as caught:
        ListeningRules(beat_seconds=seconds)
    assert caught.value.field == "beat_seconds"
