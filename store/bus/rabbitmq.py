"""The bus over RabbitMQ (3.9 or newer): one stream queue for each topic, behind one topic exchange.

Messages go to the durable topic exchange :data:`EXCHANGE`, routed by their topic, so that anybody can bind a queue
of their own to it. The stream of each topic is bound there too. A stream keeps what was read: it is ring buffer and
live feed in one, every reader has a position (an offset) of its own, and nothing lies between the two. A classic
queue for each subscriber would have neither the ring nor, after a cut connection, what came meanwhile; the exchange
that keeps a history is a plugin and has a seam.

Where "now" is in a stream, a subscriber learns from a marker: an empty message of its own, which all others skip.
The stream :data:`NEWS` has the names of all topics; a publisher writes there before the first message of a topic.
Run and sequence are the headers of a message. The server drops the oldest of a stream by segments, so a ring has up
to a segment more than its bytes; streams of topics that ended stay until somebody deletes them. A server
(seen with 3.10) that is killed within a second of the first stream it ever made cannot use streams later: "home
node is down or inaccessible". The status says so, and the server's data must be removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Sequence

import structlog
from aio_pika import Message as AmqpMessage
from aio_pika import connect
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, ExchangeType
from aio_pika.exceptions import CONNECTION_EXCEPTIONS

from market.errors import StoreBusy, StoreUnavailable
from store.bus.address import BusUrl
from store.bus.bus import BusRules, BusStatus, checked_backlog
from store.bus.message import Message
from store.bus.numbering import Numbering
from store.bus.outbox import Outbox
from store.bus.rabbitmq_streams import EXCHANGE, NEWS, NEWS_BYTES, Reading, declare_stream
from store.bus.topic import Patterns

log = structlog.get_logger(__name__)

#: Seconds without a sign of the server after which the connection counts as broken.
HEARTBEAT_SECONDS = 10
#: RabbitMQ's own default: name and password of who may connect from the same machine.
_GUEST = "guest"
#: Seconds until a subscription must be in place; it asks about every topic.
_BEGIN_SECONDS = 15.0


class RabbitBus:
    """Publishes from one task over one channel, many messages at once, and waits for their confirmations."""

    def __init__(self, address: BusUrl, rules: BusRules) -> None:
        self._address = address
        self._rules = rules
        self._numbering = Numbering()
        self._outbox = Outbox(self._linked, rules, address.shown)
        self._subscriptions = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, address: BusUrl, rules: BusRules) -> AsyncIterator[RabbitBus]:
        """The bus at `address`, whether the server answers or not."""
        # The driver tells every attempt to connect; we tell when the server goes and when it is back.
        for driver in ("aio_pika", "aiormq"):
            logging.getLogger(driver).setLevel(logging.CRITICAL)
        bus = cls(address, rules)
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
        async with _connected(self._address, self._rules) as connection:
            link = _Link(connection, self._rules, self._address.shown)
            await link.begin()
            yield link

    @contextlib.asynccontextmanager
    async def subscribe(self, *patterns: str, backlog: int = 0) -> AsyncIterator[_Subscription]:
        """See :class:`store.bus.bus.Bus`."""
        reading = Reading(Patterns(patterns), checked_backlog(backlog), self._rules)
        if self._subscriptions >= self._rules.connections - 1:
            raise StoreBusy(
                f"{self._address.shown}: all {self._rules.connections} connections are in use; "
                "share a subscription between readers"
            )
        subscription = _Subscription(self._address, self._rules, reading)
        self._subscriptions += 1
        kept = asyncio.create_task(subscription.keep())
        # An error that nobody expected must reach the reader, who would wait for ever.
        kept.add_done_callback(reading.ends)
        try:
            await subscription.begun(kept)
            yield subscription
        finally:
            self._subscriptions -= 1
            kept.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await kept


class _Link:
    """A channel on which messages are published and confirmed."""

    def __init__(self, connection: AbstractConnection, rules: BusRules, shown: str) -> None:
        self._connection = connection
        self._rules = rules
        self._shown = shown
        self._channel: AbstractChannel
        self._exchange: AbstractExchange
        #: Topics whose streams exist.
        self._streams: set[str] = set()

    async def begin(self) -> None:
        with _translated(self._shown):
            async with asyncio.timeout(self._rules.answer_seconds):
                # A message that no stream takes must be an error: somebody deleted the stream.
                self._channel = await self._connection.channel(publisher_confirms=True, on_return_raises=True)
                self._exchange = await self._channel.declare_exchange(EXCHANGE, ExchangeType.TOPIC, durable=True)
                await declare_stream(self._channel, NEWS, NEWS_BYTES)

    async def send(self, messages: Sequence[Message]) -> int:
        """See :class:`store.bus.outbox.Link`."""
        with _translated(self._shown):
            if self._connection.is_closed or self._channel.is_closed:
                raise StoreUnavailable(f"{self._shown} closed the connection")
            for topic in dict.fromkeys(message.topic for message in messages):
                if topic not in self._streams:
                    await self._begin_topic(topic)
            async with asyncio.timeout(self._rules.answer_seconds):
                await _all(
                    self._exchange.publish(
                        AmqpMessage(message.payload, headers={"run": message.run, "sequence": message.sequence}),
                        message.topic,
                    )
                    for message in messages
                )
        return 0

    async def _begin_topic(self, topic: str) -> None:
        async with asyncio.timeout(self._rules.answer_seconds):
            stream = await declare_stream(self._channel, topic, self._rules.ring_bytes)
            await stream.bind(self._exchange, topic)
            # After the stream is there and before its first message: whoever reads this has missed nothing of it.
            await self._channel.default_exchange.publish(AmqpMessage(topic.encode()), NEWS)
        self._streams.add(topic)


class _Subscription:
    """Keeps a connection on which a :class:`Reading` goes on, and makes another when it breaks."""

    def __init__(self, address: BusUrl, rules: BusRules, reading: Reading) -> None:
        self._address = address
        self._rules = rules
        self._reading = reading
        self._begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.connected = False

    @property
    def missed(self) -> int:
        return self._reading.missed

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        return await self._reading.next()

    async def begun(self, kept: asyncio.Task[None]) -> None:
        """Wait until the subscription is in place.

        :param kept: the task of :meth:`keep`.
        :raises StoreUnavailable: the first attempt failed.
        """
        await asyncio.wait((self._begun, kept), return_when=asyncio.FIRST_COMPLETED)
        await (self._begun if self._begun.done() else kept)

    async def keep(self) -> None:
        """Read until cancelled."""
        wait = self._rules.first_wait
        while True:
            try:
                async with _connected(self._address, self._rules) as connection:
                    with _translated(self._address.shown):
                        async with asyncio.timeout(_BEGIN_SECONDS):
                            channel = await connection.channel(publisher_confirms=True)
                            await self._reading.begin(channel)
                        self.connected, wait = True, self._rules.first_wait
                        if not self._begun.done():
                            self._begun.set_result(None)
                        await self._reading.keep()
            except StoreUnavailable as error:
                if not self._begun.done():
                    self._begun.set_exception(error)
                    return
                if self.connected:
                    log.warning("a subscription waits for its bus", error=str(error))
            self.connected = False
            await asyncio.sleep(wait)
            wait = min(wait * 2, self._rules.longest_wait)


@contextlib.asynccontextmanager
async def _connected(address: BusUrl, rules: BusRules) -> AsyncIterator[AbstractConnection]:
    """:raises StoreUnavailable: the server does not let us in."""
    with _translated(address.shown):
        # One time-out for the way there, which is short, and the handshake, in which the server thinks.
        async with asyncio.timeout(rules.connect_seconds + rules.answer_seconds):
            connection = await connect(
                host=address.host,
                port=address.port,
                login=address.user or _GUEST,
                password=address.password or ("" if address.user else _GUEST),
                virtualhost=address.place,
                ssl=address.tls,
                heartbeat=HEARTBEAT_SECONDS,
                client_properties={"connection_name": "chandlery"},
            )
    try:
        yield connection
    finally:
        with contextlib.suppress(StoreUnavailable), _translated(address.shown):
            async with asyncio.timeout(rules.answer_seconds):
                await connection.close()


async def _all(publishing: Iterable[Awaitable[object]]) -> None:
    """Wait for all; then raise the first error there was."""
    for outcome in await asyncio.gather(*publishing, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


@contextlib.contextmanager
def _translated(shown: str) -> Iterator[None]:
    try:
        yield
    except CONNECTION_EXCEPTIONS as error:
        raise StoreUnavailable(f"{shown} does not answer: {error or type(error).__name__}") from error
    except asyncio.CancelledError as error:
        # The driver cancels what waits when it closes; we are cancelled only if somebody asked for it.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise StoreUnavailable(f"{shown} closed the connection") from error
