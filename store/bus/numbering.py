"""Numbers on messages, by which a subscriber sees what it missed and what came twice."""

from __future__ import annotations

import secrets
from collections import OrderedDict

from store.bus.message import Message
from store.bus.topic import checked_topic

#: Whole numbers up to here are the same in every language, JavaScript too.
RUN_BITS = 53
#: Runs of publishers remembered for each topic; of older ones nothing comes any more.
_RUNS = 16


def new_run() -> int:
    """A number that no other run of a publisher has."""
    return secrets.randbits(RUN_BITS)


class Numbering:
    """Numbers what one publisher publishes in one run: 1, 2, 3 and so on, on each topic."""

    def __init__(self) -> None:
        #: Tells this run of the publisher from all others.
        self.run = new_run()
        self._last: dict[str, int] = {}

    def stamped(self, topic: str, payload: bytes) -> Message:
        """The next message on `topic`.

        :raises BadInput: the topic is malformed.
        """
        last = self._last.get(topic)
        if last is None:
            last = 0
            checked_topic(topic)
        self._last[topic] = last + 1
        return Message(topic, payload, self.run, last + 1)


class Arrivals:
    """What one subscriber received: refuses repeats and counts what is missing."""

    def __init__(self) -> None:
        #: Messages that others came after without them.
        self.missed = 0
        self._last: dict[str, OrderedDict[int, int]] = {}

    def accept(self, message: Message) -> bool:
        """Whether this message is new; a hole before it is counted."""
        last = self._last_of(message)
        if last is not None:
            if message.sequence <= last:
                return False
            self.missed += message.sequence - last - 1
        self.begin_after(message)
        return True

    def begin_after(self, message: Message) -> None:
        """Only messages after this one are wanted, and every one of them."""
        runs = self._last.setdefault(message.topic, OrderedDict())
        runs[message.run] = message.sequence
        runs.move_to_end(message.run)
        if len(runs) > _RUNS:
            runs.popitem(last=False)

    def _last_of(self, message: Message) -> int | None:
        runs = self._last.get(message.topic)
        return None if runs is None else runs.get(message.run)
