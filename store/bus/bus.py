"""What every bus does: hand on messages from who publishes to whoever subscribed, in this process or another.

Messages of one topic and publisher arrive in order. Nobody waits for anybody: what is too much is dropped, the
oldest first, and counted on both sides. Whoever needs every trade and candle reads the store, which is complete.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from market.errors import BadInput
from store.bus.message import Message

MEBIBYTE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class BusRules:
    """Bounds. All programs on one bus must use the same for the ring."""

    #: Recent messages kept of each topic for late subscribers: at most so many, of so many bytes.
    ring_messages: int = 1_000
    ring_bytes: int = MEBIBYTE
    #: Bytes that the rings of all topics may have together, where they are in our memory.
    ring_total_bytes: int = 64 * MEBIBYTE
    #: Messages that wait for the server; when it is full, the oldest is dropped and counted.
    outgoing_messages: int = 10_000
    outgoing_bytes: int = 16 * MEBIBYTE
    #: Messages that wait in our memory for a subscriber; when it is full, the oldest is dropped and counted.
    #: A server's subscribers have no queue of their own: the ring is it.
    waiting_messages: int = 10_000
    #: Seconds until a server must have let us in, and until it must have answered.
    connect_seconds: float = 0.5
    answer_seconds: float = 3.0
    #: Seconds before the next try after a failure; doubled with each further one, up to the longest.
    first_wait: float = 0.1
    longest_wait: float = 5.0
    #: Connections to the server at most: one to publish, one for each subscription.
    connections: int = 50
    #: Seconds after which a server forgets the ring of a topic on which nothing was published.
    forget_seconds: int = 86_400

    def __post_init__(self) -> None:
        for name in ("ring_messages", "ring_bytes", "outgoing_messages", "waiting_messages", "connections"):
            if getattr(self, name) < 1:
                raise BadInput(name, getattr(self, name), "a number of at least 1")


@dataclass(frozen=True, kw_only=True)
class BusStatus:
    """How a bus is doing."""

    #: Where it is, without a password: ``memory://``, ``redis://host:6379/0``.
    location: str
    #: Whether the server answers; a bus in memory always does.
    connected: bool
    #: Messages taken since the start, and those of them that no subscriber will see.
    published: int
    dropped: int
    #: Messages that the server does not have yet.
    waiting: int
    #: Subscriptions open in this process.
    subscriptions: int
    #: Why it is not connected; None when it is.
    error: str | None = None


class Subscription(Protocol):
    """Messages for one subscriber: an endless async iterator. Waiting for the next one may be cancelled."""

    @property
    def missed(self) -> int:
        """Messages that were published since the subscription began and will not come, as far as known."""
        ...

    @property
    def connected(self) -> bool:
        """False while the server is away; the iterator waits and goes on where it was."""
        ...

    def __aiter__(self) -> AsyncIterator[Message]: ...

    async def __anext__(self) -> Message: ...


class Bus(Protocol):
    """One way to hand on messages. Used from one event loop only."""

    @property
    def status(self) -> BusStatus: ...

    def publish(self, topic: str, payload: bytes) -> None:
        """Hand on `payload`; returns at once and never waits for a server or a subscriber.

        :raises BadInput: `topic` is malformed.
        """
        ...

    async def flush(self, seconds: float = 5.0) -> None:
        """Wait until the server has everything published so far, or it was dropped.

        :raises StoreUnavailable: not within `seconds`; what waits keeps waiting.
        """
        ...

    def subscribe(self, *patterns: str, backlog: int = 0) -> AbstractAsyncContextManager[Subscription]:
        """Messages of all topics that `patterns` stand for (see :mod:`store.bus.topic`), known or new.

        Once entered, everything published from then on arrives. The last `backlog` messages of each topic, as far
        as they are still in the ring, come before its newer ones, without a hole or a repeat between the two.

        :raises BadInput: no or malformed patterns, a negative backlog.
        :raises StoreUnavailable: on entering, the server does not answer. Later it is waited for.
        :raises StoreBusy: on entering, all connections are in use.
        """
        ...


def checked_backlog(backlog: int) -> int:
    """:raises BadInput: it is negative."""
    if backlog < 0:
        raise BadInput("backlog", backlog, "how many recent messages of each topic to get first, 0 or more")
    return backlog
