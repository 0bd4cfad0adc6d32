"""What waits for a server: in order, bounded, sent again after a failure, and counted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest

from market.errors import StoreUnavailable
from store.bus.bus import BusRules
from store.bus.message import Message
from store.bus.outbox import Outbox
from tests.support.notes import eventually

RULES = BusRules(first_wait=0.0, longest_wait=0.0, outgoing_messages=10, outgoing_bytes=1000)


class Server:
    """Takes messages, unless it is away; loses the connection after so many messages where it is told to."""

    def __init__(self) -> None:
        self.away = False
        self.breaks_after: int | None = None
        self.refuses = b""
        self.taken: list[Message] = []
        self.connections = 0
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()
        self.answers.set()

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator[Server]:
        if self.away:
            raise StoreUnavailable("away")
        self.connections += 1
        yield self

    async def send(self, messages: Sequence[Message]) -> int:
        messages = list(messages)
        self.asked.set()
        await self.answers.wait()
        if self.away:
            raise StoreUnavailable("away")
        if self.breaks_after is not None:
            self.taken += messages[: self.breaks_after]
            self.breaks_after = None
            raise StoreUnavailable("broken")
        kept = [message for message in messages if message.payload != self.refuses]
        self.taken += kept
        return len(messages) - len(kept)


def messages(count: int, size: int = 1) -> list[Message]:
    return [Message("a", bytes(size), 1, number) for number in range(1, count + 1)]


@contextlib.asynccontextmanager
async def running(server: Server) -> AsyncIterator[Outbox]:
    outbox = Outbox(server.connect, RULES, "test://")
    task = asyncio.create_task(outbox.run())
    try:
        async with asyncio.timeout(10):
            await outbox.tried.wait()
            yield outbox
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_messages_are_sent_in_order() -> None:
    server = Server()
    async with running(server) as outbox:
        for message in messages(7):
            outbox.put(message)
        await outbox.settled(5)
        assert server.taken == messages(7)
        assert (outbox.taken, outbox.waiting, outbox.dropped, outbox.connected) == (7, 0, 0, True)


async def test_the_oldest_are_dropped_while_the_server_is_away() -> None:
    server = Server()
    server.away = True
    async with running(server) as outbox:
        for message in messages(25):
            outbox.put(message)
        assert (outbox.waiting, outbox.dropped, outbox.connected, outbox.error) == (10, 15, False, "away")
        with pytest.raises(StoreUnavailable, match=r"test:// did not take all messages within 0.01 s: away"):
            await outbox.settled(0.01)
        server.away = False
        await outbox.settled(5)
        assert server.taken == messages(25)[15:]
        assert outbox.error is None


async def test_bytes_are_bounded_too() -> None:
    server = Server()
    server.away = True
    async with running(server) as outbox:
        for message in messages(6, size=300):
            outbox.put(message)
        assert (outbox.waiting, outbox.dropped) == (3, 3)


async def test_what_was_under_way_is_sent_again_before_what_came_later() -> None:
    server = Server()
    server.breaks_after = 2
    async with running(server) as outbox:
        for message in messages(5):
            outbox.put(message)
        await outbox.settled(5)
        assert server.taken == [*messages(2), *messages(5)]
        assert server.connections == 2
        assert outbox.dropped == 0


async def test_what_is_under_way_counts_when_it_comes_back() -> None:
    server = Server()
    server.answers.clear()

    async def lost() -> bool:
        return not outbox.connected

    async with running(server) as outbox:
        first = messages(8)
        for message in first:
            outbox.put(message)
        await asyncio.wait_for(server.asked.wait(), 5)
        for message in messages(17)[8:]:
            outbox.put(message)
        assert (outbox.waiting, outbox.dropped) == (17, 0)
        server.away = True
        server.answers.set()
        await eventually(lost, "the outbox sees that the server is away")
        assert (outbox.waiting, outbox.dropped) == (10, 7)
        server.away = False
        await outbox.settled(5)
        assert server.taken == messages(17)[7:]


async def test_settled_does_not_wait_for_what_comes_later() -> None:
    server = Server()
    async with running(server) as outbox:

        async def keep_publishing() -> None:
            while True:
                outbox.put(messages(1)[0])
                await asyncio.sleep(0)

        busy = asyncio.create_task(keep_publishing())
        try:
            outbox.put(messages(1)[0])
            await outbox.settled(5)
        finally:
            busy.cancel()


async def test_refused_messages_are_dropped_and_the_others_are_not() -> None:
    server = Server()
    server.refuses = bytes(3)
    async with running(server) as outbox:
        for message in [*messages(1), *messages(1, size=3), *messages(1)]:
            outbox.put(message)
        await outbox.settled(5)
        assert (len(server.taken), outbox.dropped) == (2, 1)
