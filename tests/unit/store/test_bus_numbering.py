"""Numbers on messages: what comes twice is refused, what is missing is counted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from store.bus.message import Message
from store.bus.numbering import Arrivals, Numbering


@given(
    st.lists(st.sampled_from(["a", "b"]), max_size=60),
    st.data(),
)
def test_what_came_and_what_is_missed_is_all_that_was_published(topics: list[str], data: st.DataObject) -> None:
    numbering = Numbering()
    published = [numbering.stamped(topic, b"") for topic in topics]
    lost = data.draw(st.sets(st.sampled_from(range(len(published)))) if published else st.just(set[int]()))
    arrived = [message for at, message in enumerate(published) if at not in lost]
    # A publisher whose connection broke sends its last messages again.
    again = data.draw(st.integers(0, len(arrived)))
    arrivals = Arrivals()
    for topic in "ab":
        arrivals.begin_after(Message(topic, b"", numbering.run, 0))
    accepted = [message for message in [*arrived, *arrived[again:]] if arrivals.accept(message)]
    assert accepted == arrived
    # A hole is seen by what comes after it.
    seen = {topic: max((one.sequence for one in arrived if one.topic == topic), default=0) for topic in "ab"}
    assert arrivals.missed == sum(seen.values()) - len(arrived)


def test_who_comes_late_has_missed_nothing_before() -> None:
    arrivals = Arrivals()
    assert arrivals.accept(Message("a", b"", 1, 500))
    assert arrivals.missed == 0
    assert arrivals.accept(Message("a", b"", 1, 503))
    assert arrivals.missed == 2


def test_runs_are_told_apart_and_old_ones_forgotten() -> None:
    arrivals = Arrivals()
    for run in range(100):
        assert arrivals.accept(Message("a", b"", run, 1))
    assert arrivals.missed == 0
    assert not arrivals.accept(Message("a", b"", 99, 1))


def test_each_topic_counts_from_one() -> None:
    one, other = Numbering(), Numbering()
    assert [one.stamped(topic, b"").sequence for topic in "aabaa"] == [1, 2, 1, 3, 4]
    assert one.run != other.run
