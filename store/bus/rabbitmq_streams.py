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
        #: Offset of what was read last, and how to recognise it; None until something was.
        self.at: int | None = None
        self._mark: object = None
        #: Set by whatever comes from the stream, after each beginning to read it.
        self.heard = asyncio.Event()
        #: Something else is where we were: this is another stream of the same name.
        self.replaced = False
        #: Each beginning to read it has a number, so that what an earlier one still brings is not taken for new.
        self.reading = 0
        #: The backlog as far as it came, until our marker comes; None afterwards, and for a new topic, all of whose
        #: messages came after us.
        self.past: deque[Message] | None = None if new else deque(maxlen=backlog)
        #: Set when it is clear what was before us.
        self.placed = asyncio.Event()
        self._seen = Arrivals()
        self._newest: Message | None = None

    @property
    def start(self) -> int | str:
        """What to ask the server for.

        What was read last is asked for again: that it comes proves that the stream is still the one we read. The
        last chunk, where nothing of the past is wanted, has the newest message, after which none may be missing.
        """
        if self.at is not None:
            return self.at
        return "last" if self.past is not None and self.past.maxlen == 0 else "first"

    def begin(self) -> int:
        """Note that it is read from :attr:`start`; the number of this beginning."""
        self.heard.clear()
        self.reading += 1
        return self.reading

    def reset(self) -> None:
        """Read it from its beginning next time."""
        self.at, self.replaced = None, False

    def hear(self, offset: int, mark: object) -> bool:
        """Whether what comes next is to be taken; `mark` tells it from everything else in the stream."""
        if not self.heard.is_set():
            self.replaced = offset == self.at and mark != self._mark
            self.heard.set()
        if not self.replaced:
            self.at, self._mark = offset, mark
        return not self.replaced

    def before(self, message: Message) -> None:
        """Note a message from before our marker."""
        # Repeats must not push others out of the backlog.
        if self.past is not None and self._seen.accept(message):
            self.past.append(message)
            self._newest = message

    def place(self, arrivals: Arrivals) -> list[Message]:
        """The marker came; what was before it and is wanted."""
        if self.placed.is_set():
            return []
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
        self._error: BaseException | None = None

    @property
    def missed(self) -> int:
        return self._arrivals.missed

    async def next(self) -> Message:
        """The next message; may be cancelled."""
        while not self._ready:
            if self._error is not None:
                raise self._error
            self._filled.clear()
            await self._filled.wait()
        message, session, tag = self._ready.popleft()
        if session is not None:
            session.taken.append(tag)
            session.stirred.set()
        return message

    def ends(self, kept: asyncio.Task[None]) -> None:
        """Nothing comes any more; an error of the task that kept us reading is the reader's."""
        if not kept.cancelled():
            self._error = kept.exception()
            self._filled.set()

    async def begin(self, channel: AbstractChannel) -> None:
        """Read on over a new channel; the first time, find the topics and where they are now."""
        raw = await channel.get_underlay_channel()
        session = self._session = _Session(channel, raw)
        channel.close_callbacks.add(lambda _, error: session.breaks(f"the channel was closed: {error}"))
        # For example because the server dropped the segment that we were reading.
        raw.on_consumer_cancel_callbacks.add(lambda frame: session.breaks(f"{frame.consumer_tag} is not sent on"))
        await channel.set_qos(prefetch_count=PREFETCH)
        news = self._streams[NEWS]
        await self._consume(session, NEWS)
        if not news.placed.is_set():
            await self._place([NEWS], session)
        known = [topic for topic in self._streams if topic != NEWS]
        for topic in known:
            await self._consume(session, topic)
        await self._place([topic for topic in known if self._streams[topic].past is not None], session)
        await self._recognise(session)

    async def _place(self, topics: list[str], session: _Session) -> None:
        """Put our marker into these streams and wait until it comes back."""
        for topic in topics:
            marker = AmqpMessage(b"", headers={_MARKER: self._marker})
            await session.channel.default_exchange.publish(marker, topic)
        for topic in topics:
            await self._streams[topic].placed.wait()

    async def _recognise(self, session: _Session) -> None:
        """Find the streams that are no longer those we read, and read them from their beginning.

        A server that lost its data, or a stream that was deleted, counts from 0 again: where we were is something
        else now, or nothing yet, which is silence. What we know already is recognised by its numbers.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._rules.answer_seconds):
                for stream in self._streams.values():
                    if stream.at is not None:
                        await stream.heard.wait()
        for topic in [topic for topic, stream in self._streams.items() if stream.at is not None]:
            stream = self._streams[topic]
            if stream.replaced or not stream.heard.is_set():
                stream.reset()
                await session.raw.basic_cancel(topic)
                await self._consume(session, topic)

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
                await self._consume(session, session.new.popleft())

    async def _consume(self, session: _Session, topic: str) -> None:
        await declare_stream(session.channel, topic, NEWS_BYTES if topic == NEWS else self._rules.ring_bytes)
        stream = self._streams[topic]
        start, reading = stream.start, stream.begin()
        take = self._hear if topic == NEWS else self._take

        async def received(delivered: DeliveredMessage) -> None:
            tag = delivered.delivery_tag
            headers: dict[str, Any] = delivered.header.properties.headers or {}
            if session is not self._session or tag is None or reading != stream.reading:
                return
            offset, waits = headers.pop("x-stream-offset"), False
            if not stream.hear(offset, (headers, delivered.body)):
                pass
            elif _MARKER not in headers:
                waits = take(topic, delivered.body, headers, session, tag)
            elif headers[_MARKER] == self._marker:
                self._fill((message, None, 0) for message in stream.place(self._arrivals))
            if not waits:
                # A channel that breaks says so elsewhere.
                with contextlib.suppress(*CONNECTION_EXCEPTIONS):
                    await session.raw.basic_ack(tag, wait=False)

        await session.raw.basic_consume(topic, received, arguments={"x-stream-offset": start}, consumer_tag=topic)

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
