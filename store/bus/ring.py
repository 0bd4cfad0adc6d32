"""The most recent messages of every topic, packed, for subscribers that come late."""

from __future__ import annotations

from collections import OrderedDict, deque

from store.bus.message import Message
from store.bus.topic import Patterns

#: What a message takes besides its payload, roughly, in bytes.
OVERHEAD = 200


class _Recent:
    """Messages of one topic, oldest first."""

    __slots__ = ("messages", "size")

    def __init__(self) -> None:
        self.messages: deque[Message] = deque()
        self.size = 0


class RingBuffer:
    """Bounded three ways: messages of a topic, bytes of a topic, and bytes of all topics.

    A topic that is full loses its oldest message. When all together are too large, the topic that was silent for
    the longest time loses its oldest ones. The newest message of a topic is kept even when it alone is too large
    for the topic, but not when it is too large for all.
    """

    def __init__(self, messages: int, size: int, total_size: int) -> None:
        self._messages = messages
        self._size = size
        self._total_size = total_size
        #: The longest silent topic first.
        self._topics: OrderedDict[str, _Recent] = OrderedDict()
        #: Bytes in all topics, with what each message takes besides its payload.
        self.size = 0

    def append(self, message: Message) -> None:
        """Keep `message` as the newest of its topic."""
        recent = self._topics.get(message.topic)
        if recent is None:
            recent = self._topics[message.topic] = _Recent()
        else:
            self._topics.move_to_end(message.topic)
        recent.messages.append(message)
        taken = len(message.payload) + OVERHEAD
        recent.size += taken
        self.size += taken
        while len(recent.messages) > self._messages or (recent.size > self._size and len(recent.messages) > 1):
            self._drop_from(recent)
        while self.size > self._total_size:
            silent, oldest = next(iter(self._topics.items()))
            self._drop_from(oldest)
            if not oldest.messages:
                del self._topics[silent]

    def _drop_from(self, recent: _Recent) -> None:
        taken = len(recent.messages.popleft().payload) + OVERHEAD
        recent.size -= taken
        self.size -= taken

    def last(self, topic: str, most: int) -> list[Message]:
        """The newest messages of `topic`, at most so many, oldest first."""
        recent = self._topics.get(topic)
        if recent is None or most == 0:
            return []
        messages = recent.messages
        return [messages[at] for at in range(max(0, len(messages) - most), len(messages))]

    def topics(self, patterns: Patterns) -> list[str]:
        """The topics with messages that `patterns` stand for, in the order of their names."""
        return sorted(topic for topic in self._topics if patterns.match(topic))

    def __len__(self) -> int:
        """Messages of all topics."""
        return sum(len(recent.messages) for recent in self._topics.values())
