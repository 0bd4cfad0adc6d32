"""The ring of recent messages: its three bounds hold after every step, and what it keeps is the newest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from store.bus.message import Message
from store.bus.ring import OVERHEAD, RingBuffer
from store.bus.topic import Patterns

ALL = Patterns(["#"])


def message(topic: str, sequence: int, size: int) -> Message:
    return Message(topic, bytes(size), 1, sequence)


@given(
    steps=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 600)), max_size=120),
    messages=st.integers(1, 8),
    size=st.integers(1, 3000),
    total=st.integers(1, 6000),
)
def test_bounds_hold_and_the_newest_stay(
    steps: list[tuple[str, int]], messages: int, size: int, total: int
) -> None:
    ring = RingBuffer(messages, size, total)
    published: dict[str, list[Message]] = {}
    for topic, length in steps:
        of_topic = published.setdefault(topic, [])
        of_topic.append(message(topic, len(of_topic) + 1, length))
        ring.append(of_topic[-1])

        kept = {topic: ring.last(topic, 1000) for topic in published}
        sizes = {topic: sum(len(one.payload) + OVERHEAD for one in kept[topic]) for topic in kept}
        assert sum(sizes.values()) == ring.size <= total
        assert sum(len(one) for one in kept.values()) == len(ring)
        assert ring.topics(ALL) == sorted(topic for topic in kept if kept[topic])
        for topic, some in kept.items():
            assert len(some) <= messages
            assert sizes[topic] <= size or len(some) == 1
            # The newest, in order, and none left out between them.
            assert some == published[topic][len(published[topic]) - len(some) :]
            for most in (0, 1, 3):
                assert ring.last(topic, most) == some[len(some) - min(most, len(some)) :]


def test_what_fits_is_kept() -> None:
    ring = RingBuffer(3, 10_000, 100_000)
    for number in range(1, 6):
        ring.append(message("a", number, 10))
    assert [one.sequence for one in ring.last("a", 10)] == [3, 4, 5]
    assert ring.last("b", 10) == []


def test_the_longest_silent_topic_makes_room() -> None:
    each = 100 + OVERHEAD
    ring = RingBuffer(100, 100 * each, 4 * each)
    for topic in "aabb":
        ring.append(message(topic, 1, 100))
    ring.append(message("a", 3, 100))
    assert len(ring.last("b", 10)) == 1
    assert len(ring.last("a", 10)) == 3
    ring.append(message("c", 1, 100))
    assert ring.topics(ALL) == ["a", "c"]


def test_a_message_too_large_for_its_topic_is_kept_alone() -> None:
    ring = RingBuffer(100, 1000, 10_000)
    ring.append(message("a", 1, 10))
    ring.append(message("a", 2, 5000))
    assert [one.sequence for one in ring.last("a", 10)] == [2]
    ring.append(message("a", 3, 20_000))
    assert len(ring) == 0
