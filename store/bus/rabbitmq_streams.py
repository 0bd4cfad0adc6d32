"""Reading topics from the streams of RabbitMQ: positions, backlog, topics that are new."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import deque
from collections.abc import Iterable
from typing import Any

from aio_pika import Message as AmqpMessage
from aio_pika.abc import AbstractChannel, AbstractQueue
from aio_pika.exceptions import CONNECTION_EXCEPTIONS
from aiormq.abc import AbstractChannel as RawChannel
from aiormq.abc import DeliveredMessage

from market.errors import StoreUnavailable
from store.bus.bus import MEBIBYTE, BusRules
from store.bus.message import Message
from store.bus.numbering import Arrivals
from store.bus.topic import Patterns

EXCHANGE = "chandlery"
NEWS = "chandlery.new_topics"
#: Room for a hundred thousand names.
NEWS_BYTES = 16 * MEBIBYTE
#: Messages of each stream that the server hands us before we took the first of them.
PREFETCH = 64
_MARKER = "marker"


async def declare_stream(channel: AbstractChannel, name: str, size: int) -> AbstractQueue:
    """The stream called `name`, made if it is not there; keeps at least `size` bytes, as long as that many came."""
    segment = max(size // 2, 65_536)
    return await channel.declare_queue(
        name,
        durable=True,
        arguments={
            "x-queue-type": "stream",
            "x-max-length-bytes": size + segment,
            "x-stream-max-segment-size-bytes": segment,
        },
    )


class _Stream:
    """Where a subscriber is in the stream of one topic."""

    def __init__(self, backlog: int, *, new: bool) -> None:
        #: Offset to read from; None until something was read.
        self.next: int | None = None
        #: The backlog as far as it came, until our marker comes; None afterwards, and for a new topic, all of whose
        #: messages came after us.
        self.past: deque[Message] | None = None if new else deque(maxlen=backlog)
        #: Set when it is clear what was before us.
        self.placed = asyncio.Event()
        self._seen = Arrivals()
        self._newest: Message | None = None

    @property
    def start(self) -> int | str:
        """What to ask the server for. Its last chunk shows the newest message, after which none may be missing."""
        if self.next is not None:
            return self.next
        return "last" if self.past is not None and self.past.maxlen == 0 else "first"

    def before(self, message: Message) -> None:
        """Note a message from before our marker."""
        # Repeats must not push others out of the backlog.
        if self.past is not None and self._seen.accept(message):
            self.past.append(message)
            self._newest = message

    def place(self, arrivals: Arrivals) -> list[Message]:
        """The marker came; what was before it and is wanted."""
        past, self.past = self.past or (), None
        if not past and self._newest is not None:
            arrivals.begin_after(self._newest)
        self.placed.set()
        return [message for message in past if arrivals.accept(message)]


class _Session:
    """One channel, as long as it works."""

    def __init__(self, channel: AbstractChannel, raw: RawChannel) -> None:
        self.channel = channel
        self.raw = raw
        #: Messages that the subscriber took, for which the server may hand us others.
        self.taken: deque[int] = deque()
        #: New topics that nobody reads yet.
        self.new: deque[str] = deque()
        self.stirred = asyncio.Event()
        self._broken: str | None = None

    def breaks(self, reason: str) -> None:
        """Read no more on this channel."""
        self._broken = reason
        self.stirred.set()

    async def stir(self) -> None:
        """Wait until there is something to do.

        :raises StoreUnavailable: the channel is of no use any more.
        """
        await self.stirred.wait()
        self.stirred.clear()
        if self._broken is not None:
            raise StoreUnavailable(self._broken)


class Reading:
    """What one subscriber reads. Outlives the channels over which it is read."""

    def __init__(self, patterns: Patterns, backlog: int, rules: BusRules) -> None:
        self._patterns = patterns
        self._backlog = backlog
        self._rules = rules
        self._arrivals = Arrivals()
        self._marker = uuid.uuid4().hex
        self._streams: dict[str, _Stream] = {NEWS: _Stream(1, new=False)}
        #: Messages, and the session and number under which the server waits to hear that they were taken. At most
        #: PREFETCH of each stream, besides the backlogs.
        self._ready: deque[tuple[Message, _Session | None, int]] = deque()
        self._filled = asyncio.Event()
        self._session: _Session | None = None

    @property
    def missed(self) -> int:
        return self._arrivals.missed

    async def next(self) -> Message:
        """The next message; may be cancelled."""
        while not self._ready:
            self._filled.clear()
            await self._filled.wait()
        message, session, tag = self._ready.popleft()
        if session is not None:
            session.taken.append(tag)
            session.stirred.set()
        return message

    async def begin(self, channel: AbstractChannel) -> None:
        """Read on over a new channel; the first time, find the topics and where they are now."""
        raw = await channel.get_underlay_channel()
        session = self._session = _Session(channel, raw)
        channel.close_callbacks.add(lambda _, error: session.breaks(f"the channel was closed: {error}"))
        # For example because the server dropped the segment that we were reading.
        raw.on_consumer_cancel_callbacks.add(lambda frame: session.breaks(f"{frame.consumer_tag} is not sent on"))
        await channel.set_qos(prefetch_count=PREFETCH)
        news = self._streams[NEWS]
        await self._consume(session, NEWS, NEWS_BYTES)
        if not news.placed.is_set():
            await self._place([NEWS], session)
        known = [topic for topic in self._streams if topic != NEWS]
        for topic in known:
            await self._consume(session, topic, self._rules.ring_bytes)
        await self._place([topic for topic in known if self._streams[topic].past is not None], session)

    async def _place(self, topics: list[str], session: _Session) -> None:
        """Put our marker into these streams and wait until it comes back."""
        for topic in topics:
            marker = AmqpMessage(b"", headers={_MARKER: self._marker})
            await session.channel.default_exchange.publish(marker, topic)
        for topic in topics:
            await self._streams[topic].placed.wait()

    async def keep(self) -> None:
        """Tell the server what was taken, and begin with new topics, until the channel breaks.

        :raises StoreUnavailable: it did.
        """
        session = self._session
        while session is not None:
            await session.stir()
            while session.taken:
                await session.raw.basic_ack(session.taken.popleft())
            while session.new:
                await self._consume(session, session.new.popleft(), self._rules.ring_bytes)

    async def _consume(self, session: _Session, topic: str, size: int) -> None:
        await declare_stream(session.channel, topic, size)
        stream = self._streams[topic]
        take = self._hear if topic == NEWS else self._take

        async def received(delivered: DeliveredMessage) -> None:
            tag = delivered.delivery_tag
            headers: dict[str, Any] = delivered.header.properties.headers or {}
            if session is not self._session or tag is None:
                return
            stream.next = headers["x-stream-offset"] + 1
            waits = False
            if _MARKER not in headers:
                waits = take(topic, delivered.body, headers, session, tag)
            elif headers[_MARKER] == self._marker:
                self._fill((message, None, 0) for message in stream.place(self._arrivals))
            if not waits:
                # A channel that breaks says so elsewhere.
                with contextlib.suppress(*CONNECTION_EXCEPTIONS):
                    await session.raw.basic_ack(tag, wait=False)

        await session.raw.basic_consume(
            topic, received, arguments={"x-stream-offset": stream.start}, consumer_tag=topic
        )

    def _take(self, topic: str, body: bytes, headers: dict[str, Any], session: _Session, tag: int) -> bool:
        """Take a message of a topic; whether it waits for the subscriber."""
        run, sequence = headers.get("run"), headers.get("sequence")
        if not isinstance(run, int) or not isinstance(sequence, int):
            return False  # of another program
        stream, message = self._streams[topic], Message(topic, body, run, sequence)
        if stream.past is not None:
            stream.before(message)
            return False
        if not self._arrivals.accept(message):
            return False
        self._fill([(message, session, tag)])
        return True

    def _hear(self, _news: str, body: bytes, headers: dict[str, Any], session: _Session, tag: int) -> bool:
        """Hear of a topic; nothing waits."""
        topic = body.decode(errors="replace")
        if topic not in self._streams and self._patterns.match(topic):
            new = self._streams[NEWS].placed.is_set()
            self._streams[topic] = _Stream(self._backlog, new=new)
            if new:
                session.new.append(topic)
                session.stirred.set()
        return False

    def _fill(self, ready: Iterable[tuple[Message, _Session | None, int]]) -> None:
        self._ready.extend(ready)
        self._filled.set()
