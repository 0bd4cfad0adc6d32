"""The bus over Redis: one Redis stream for each topic, under the topic's own name.

A stream is ring buffer and live feed in one, so a reader has one position and there is no seam between the two. A
subscriber has no queue of its own either: when it is slow, the server drops the oldest of the ring. Entries have
the fields ``payload``, ``run`` and ``sequence``.

Besides the topics there are two keys: the set :data:`INDEX` of all topics, and the stream :data:`NEWS` on which a
publisher says that it begins a topic, before the topic's first message. A subscriber reads the news along with its
topics, so it finds topics that did not exist when it came. Needs Redis 5; not for Redis Cluster, which cannot read
streams of several nodes at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import structlog
from redis.asyncio import ConnectionPool, Redis, SSLConnection
from redis.asyncio.connection import Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from market.errors import StoreBusy, StoreUnavailable
from store.bus.address import BusUrl
from store.bus.bus import BusRules, BusStatus, checked_backlog
from store.bus.message import Message
from store.bus.numbering import Arrivals, Numbering
from store.bus.outbox import Outbox
from store.bus.topic import Patterns

log = structlog.get_logger(__name__)

INDEX = "chandlery:topics"
NEWS = "chandlery:new_topics"
#: Entries kept of the news; who was away for longer looks into the index anyway.
_NEWS_LENGTH = 10_000
#: Seconds a read waits in the server at most; shorter than the time in which it must answer.
_BLOCK_SECONDS = 1.0
#: Entries asked for at once, of all topics together.
_READ_ENTRIES = 500
#: Topics asked about in one round trip.
_TOPICS_TOGETHER = 100
_BEGINNING = b"0-0"
#: The driver says otherwise about the types of its answers in each release; :func:`_message` checks what comes.
_Reader = Any
#: The id of an entry, ``milliseconds-number``, and its fields.
_Entry = tuple[bytes, Mapping[bytes, bytes]]


class RedisBus:
    """Publishes from one task, over one connection, many messages to a round trip."""

    def __init__(self, address: BusUrl, rules: BusRules, redis: Redis) -> None:
        self._address = address
        self._rules = rules
        self._redis = redis
        self._numbering = Numbering()
        self._outbox = Outbox(self._linked, rules, address.shown)
        self._subscriptions = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, address: BusUrl, rules: BusRules) -> AsyncIterator[RedisBus]:
        """The bus at `address`, whether the server answers or not."""
        pool = ConnectionPool(
            connection_class=SSLConnection if address.tls else Connection,
            max_connections=rules.connections,
            host=address.host,
            port=address.port,
            username=address.user,
            password=address.password,
            db=int(address.place),
            socket_connect_timeout=rules.connect_seconds,
            socket_timeout=rules.answer_seconds,
            # We wait and try again ourselves, so that the status tells.
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            client_name="chandlery",
        )
        async with Redis(connection_pool=pool) as redis:
            bus = cls(address, rules, redis)
            sending = asyncio.create_task(bus._outbox.run())
            try:
                await bus._outbox.tried.wait()
                yield bus
                if bus._outbox.connected:
                    with contextlib.suppress(StoreUnavailable):
                        await bus.flush()
            finally:
                sending.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await sending
                await pool.disconnect()

    @property
    def status(self) -> BusStatus:
        return BusStatus(
            location=self._address.shown,
            connected=self._outbox.connected,
            published=self._outbox.taken,
            dropped=self._outbox.dropped,
            waiting=self._outbox.waiting,
            subscriptions=self._subscriptions,
            error=self._outbox.error,
        )

    def publish(self, topic: str, payload: bytes) -> None:
        self._outbox.put(self._numbering.stamped(topic, payload))

    async def flush(self, seconds: float = 5.0) -> None:
        await self._outbox.settled(seconds)

    @contextlib.asynccontextmanager
    async def _linked(self) -> AsyncIterator[_Link]:
        link = _Link(self._redis, self._rules, self._address.shown)
        await link.send(())
        yield link

    @contextlib.asynccontextmanager
    async def subscribe(self, *patterns: str, backlog: int = 0) -> AsyncIterator[_Subscription]:
        """See :class:`store.bus.bus.Bus`."""
        subscription = _Subscription(
            self._redis, Patterns(patterns), checked_backlog(backlog), self._rules, self._address.shown
        )
        if self._subscriptions >= self._rules.connections - 1:
            raise StoreBusy(
                f"{self._address.shown}: all {self._rules.connections} connections are in use; "
                "share a subscription between readers"
            )
        self._subscriptions += 1
        try:
            await subscription.begin()
            yield subscription
        finally:
            self._subscriptions -= 1


class _Link:
    """One connection's worth of publishing: what it has announced, and how long each stream may be."""

    def __init__(self, redis: Redis, rules: BusRules, shown: str) -> None:
        self._redis = redis
        self._rules = rules
        self._shown = shown
        #: Mean size of a topic's messages, bytes: a stream is bounded by entries only.
        self._mean: dict[str, float] = {}
        #: When the server was last told to keep a topic for a while.
        self._kept_at: dict[str, float] = {}

    async def send(self, messages: Sequence[Message]) -> int:
        """See :class:`store.bus.outbox.Link`."""
        pipeline = self._redis.pipeline(transaction=False)
        #: Which message each command adds; None for the others.
        adds: list[Message | None] = []
        if not messages:
            pipeline.ping()
            adds.append(None)
        now = time.monotonic()
        for message in messages:
            topic = message.topic
            if topic not in self._mean:
                # In this order: whoever finds the topic by its announcement has missed nothing of it.
                pipeline.sadd(INDEX, topic)
                pipeline.xadd(NEWS, {"topic": topic}, maxlen=_NEWS_LENGTH)
                adds += [None, None]
            pipeline.xadd(
                topic,
                {"payload": message.payload, "run": message.run, "sequence": message.sequence},
                maxlen=self._length(message),
            )
            adds.append(message)
            if now - self._kept_at.get(topic, -1e9) > self._rules.forget_seconds / 100:
                self._kept_at[topic] = now
                pipeline.expire(topic, self._rules.forget_seconds)
                adds.append(None)
        with _translated(self._shown):
            answers = await pipeline.execute(raise_on_error=False)
        return self._refused(adds, answers)

    def _length(self, message: Message) -> int:
        """Entries the stream may have, so that it stays within the bytes of a ring."""
        size = len(message.payload) or 1
        mean = self._mean.get(message.topic, size)
        mean += (size - mean) / 64
        self._mean[message.topic] = mean
        return max(1, min(self._rules.ring_messages, int(self._rules.ring_bytes / mean)))

    def _refused(self, adds: Sequence[Message | None], answers: Sequence[object]) -> int:
        refused = 0
        for message, answer in zip(adds, answers, strict=True):
            if not isinstance(answer, Exception):
                continue
            if message is None or not str(answer).startswith("WRONGTYPE"):
                raise StoreUnavailable(f"{self._shown} refuses to publish: {answer}") from answer
            # Another program has something else under this name; the other topics are fine.
            refused += 1
            log.error("a topic cannot be published", bus=self._shown, topic=message.topic, error=str(answer))
        return refused


class _Subscription:
    """A position in every stream that the patterns stand for; reads only when it is asked for more."""

    def __init__(self, redis: _Reader, patterns: Patterns, backlog: int, rules: BusRules, shown: str) -> None:
        self._redis = redis
        self._patterns = patterns
        self._backlog = backlog
        self._rules = rules
        self._shown = shown
        self._arrivals = Arrivals()
        #: Last entry read of each stream.
        self._read_to: dict[bytes, bytes] = {}
        #: Topics whose backlog is still to be read, with their newest message when we came.
        self._past: deque[tuple[bytes, Message | None]] = deque()
        self._ready: deque[Message] = deque()
        self._wait = rules.first_wait
        self.connected = True

    @property
    def missed(self) -> int:
        return self._arrivals.missed

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        while not self._ready:
            try:
                await self._read()
            except StoreUnavailable as error:
                if self.connected:
                    log.warning("a subscription waits for its bus", error=str(error))
                self.connected = False
                await asyncio.sleep(self._wait)
                self._wait = min(self._wait * 2, self._rules.longest_wait)
        return self._ready.popleft()

    async def begin(self) -> None:
        """Find the topics and where they are now. First the news, so that no new topic falls between."""
        with _translated(self._shown):
            newest = await self._redis.xrevrange(NEWS, count=1)
            self._read_to[NEWS.encode()] = newest[0][0] if newest else _BEGINNING
            topics = sorted(topic for topic in await self._topics() if self._wants(topic))
            for start in range(0, len(topics), _TOPICS_TOGETHER):
                some = topics[start : start + _TOPICS_TOGETHER]
                for topic, entries in zip(some, await self._newest(some), strict=True):
                    self._begin_at(topic, entries)

    def _begin_at(self, topic: bytes, newest: Sequence[_Entry]) -> None:
        self._read_to[topic] = newest[0][0] if newest else _BEGINNING
        message = _message(topic, newest[0][1]) if newest else None
        if self._backlog and newest:
            self._past.append((topic, message))
        elif message is not None:
            self._arrivals.begin_after(message)

    async def _read(self) -> None:
        with _translated(self._shown):
            if not self.connected:
                await self._look_around()
            if self._past:
                await self._read_past()
            else:
                await self._read_live()
        self.connected, self._wait = True, self._rules.first_wait

    async def _read_past(self) -> None:
        """The backlog of one topic: one at a time, so that no more than one ring is in memory."""
        topic, newest = self._past[0]
        entries = await self._redis.xrevrange(topic, max=self._read_to[topic], count=self._backlog)
        self._past.popleft()
        for _, fields in reversed(entries):
            self._take(topic, fields)
        if not entries and newest is not None:
            self._arrivals.begin_after(newest)

    async def _read_live(self) -> None:
        most = max(1, _READ_ENTRIES // len(self._read_to))
        block = min(_BLOCK_SECONDS, self._rules.answer_seconds / 2)
        answer = await self._redis.xread(dict(self._read_to), count=most, block=int(block * 1000))
        for key, entries in answer.items() if isinstance(answer, dict) else answer:
            for entry, fields in entries:
                if key == NEWS.encode():
                    self._begin_new(fields.get(b"topic", b""))
                else:
                    self._take(key, fields)
                self._read_to[key] = entry

    async def _look_around(self) -> None:
        """After the server was away: find what is new, and what it forgot."""
        for topic in await self._topics():
            self._begin_new(topic)
        keys = sorted(self._read_to)
        for start in range(0, len(keys), _TOPICS_TOGETHER):
            some = keys[start : start + _TOPICS_TOGETHER]
            for key, entries in zip(some, await self._newest(some), strict=True):
                # A server that lost its memory and whose clock is behind counts from below our position again.
                if not entries or _order(entries[0][0]) < _order(self._read_to[key]):
                    self._read_to[key] = _BEGINNING

    async def _newest(self, keys: Sequence[bytes]) -> list[Sequence[_Entry]]:
        """The newest entry of each of these streams, if it has any."""
        pipeline = self._redis.pipeline(transaction=False)
        for key in keys:
            pipeline.xrevrange(key, count=1)
        answers: list[Sequence[_Entry]] = await pipeline.execute()
        return answers

    def _begin_new(self, topic: bytes) -> None:
        # A topic that was not there when we came: everything on it came after us.
        if topic not in self._read_to and self._wants(topic):
            self._read_to[topic] = _BEGINNING

    def _take(self, topic: bytes, fields: Mapping[bytes, bytes]) -> None:
        message = _message(topic, fields)
        if message is not None and self._arrivals.accept(message):
            self._ready.append(message)

    async def _topics(self) -> set[bytes]:
        topics: set[bytes] = await self._redis.smembers(INDEX)
        return topics

    def _wants(self, topic: bytes) -> bool:
        return self._patterns.match(topic.decode(errors="replace"))


def _order(entry: bytes) -> tuple[int, ...]:
    """By which ids of entries are in order."""
    return tuple(int(part) for part in entry.split(b"-"))


def _message(topic: bytes, fields: Mapping[bytes, bytes]) -> Message | None:
    """The message in an entry; None where somebody else wrote it."""
    try:
        return Message(topic.decode(), fields[b"payload"], int(fields[b"run"]), int(fields[b"sequence"]))
    except (KeyError, ValueError):
        return None


@contextlib.contextmanager
def _translated(shown: str) -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        what = "refuses" if isinstance(error, ResponseError) else "does not answer"
        raise StoreUnavailable(f"{shown} {what}: {error}") from error
