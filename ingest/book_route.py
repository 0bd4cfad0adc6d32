"""The order book of one instrument: right, or not served.

The book itself (:class:`market.order_book.OrderBook`) knows when it is right. This route gets it what it needs: a
REST snapshot where the book begins with one, another after a hole, a comparison with one from time to time, and
snapshots alone while the stream is silent or away. All of that over one request at a time.

A book that begins over REST may be fed by two connections at once, while one takes over from the other: its numbers
tell what is new. One whose stream begins with the whole book may not: close the old connection first.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from functools import partial

import structlog

from exchange.stream import StreamRules
from ingest.book_check import BookChecks, same_book
from ingest.book_rules import BookRules, BookStatus
from ingest.book_top import BookTop
from ingest.route import Path, RouteStatus, Spawn
from market.book_message import BookChain, BookChange, BookSnapshot, BookStart
from market.channel import Topic
from market.clock import Clock
from market.errors import BadInput, ChandleryError, ExchangeRefused, RateLimited
from market.order_book import BookMark, BookState, OrderBook, ignore_mark
from store.live_books import BookEdition

log = structlog.get_logger(__name__)

#: From (symbol, levels) to a whole book over REST.
AskSnapshot = Callable[[str, int], Awaitable[BookSnapshot]]


class BookRoute:
    """The order book of one topic.

    :param ask: asks for a REST snapshot; None where the exchange has none that goes with its stream.
    :param on_top: told of the best levels while the book is LIVE. Returns at once and never raises.
    :param mark: told of each change of state of the book that the stream builds, for those who record it.
    :param taken: told of each change that went into that book, for those who keep another by it.
    :param report: told when the exchange refuses a snapshot for good.
    """

    def __init__(
        self,
        topic: Topic,
        stream: StreamRules,
        clock: Clock,
        spawn: Spawn,
        *,
        ask: AskSnapshot | None = None,
        on_top: Callable[[BookSnapshot], None] | None = None,
        mark: Callable[[BookMark], None] = ignore_mark,
        taken: Callable[[BookChange], None] | None = None,
        report: Callable[[ChandleryError], None] | None = None,
        rules: BookRules | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.topic = topic
        self._clock = clock
        self._spawn = spawn
        self._ask = ask
        self._tell_mark = mark
        self._report = report
        self._rules = rules = rules or BookRules()
        self._sleep = sleep
        self._chance = chance
        self._from_rest = stream.book_start is BookStart.REST
        self._chain = stream.book_chain
        if self._from_rest and ask is None:
            raise BadInput("ask", ask, "a way to ask for snapshots: the stream sends none")
        self._book = OrderBook(
            stream.book_chain,
            stream.book_start,
            snapshot_levels=rules.levels if self._from_rest else None,
            checksum=stream.book_checksum,
            mark=self._marked,
            taken=taken,
        )
        now = clock.now_ms()
        self._connected_at: int | None = None
        #: Counts connections, so that an answer that was asked for on an earlier one is known by it.
        self._connections = 0
        self._heard_at: int | None = None
        self._messages = self._polls = 0
        #: One request at a time.
        self._asking = False
        #: Snapshots asked for since the book was last calm.
        self._tries = 0
        #: A rate limit, or a refusal, lasts until then.
        self._not_before = 0
        self._refused: str | None = None
        #: The book over REST while the stream has none, and the newest number seen on any path.
        self._polled: BookSnapshot | None = None
        self._poll_at = self._newest_id = 0
        #: Times in a row that REST had something else than a silent stream.
        self._missed_polls = 0
        self._checks = BookChecks(self._book, self._chain, rules, now)
        self._told = BookTop(partial(self.top, rules.top_levels), on_top, rules.top_every_ms, clock, spawn, sleep)
        self._reason = "nothing has come yet"
        self._standing = (BookState.SYNCING, Path.STARTING)
        self._since = now

    # What the router calls.

    @property
    def missing_out(self) -> bool:
        """True where only a new connection helps: REST is ahead of a silent stream, or a whole book must come."""
        if self._connected_at is None:
            return False
        if self._from_rest or not self._book.wants_snapshot:
            return self._missed_polls >= 2
        return (
            self._book.state is BookState.STALE
            or self._clock.now_ms() - self._connected_at >= self._rules.silence_ms
        )

    def on_message(self, message: BookSnapshot | BookChange) -> None:
        """The next message of the stream."""
        self._messages += 1
        if self._connected_at is None:
            # A whole book may come before the router knows that the connection stands.
            self.connected()
        book = self._book
        if isinstance(message, BookSnapshot):
            self._heard_at = message.received_at
            if book.snapshot(message):
                self._told.changed(message.received_at)
        elif book.apply(message):
            self._heard_at = message.received_at
            self._differs(self._checks.apply(message, message.received_at))
            self._told.changed(message.received_at)
        elif book.wants_snapshot or self._unproven:
            self._heard_at = message.received_at
            if self._ask is None and self._unproven:
                book.lose(f"changes may be missing: {book.reason}", message.received_at)
            self._help()

    def connected(self) -> None:
        """A connection with this topic is open; while another one is, nothing changes."""
        if self._connected_at is not None:
            return
        self._connected_at = self._heard_at = self._clock.now_ms()
        self._connections += 1
        self._missed_polls = 0
        if self._refused is not None:
            self._refused, self._not_before = None, 0
        self._book.clear("connected", self._connected_at)
        if self._from_rest:
            self._help()

    def disconnected(self, reason: str) -> None:
        """No connection has this topic any more: the book is STALE at once."""
        self._reason = f"disconnected: {reason}"
        if self._connected_at is None and self._book.state is BookState.STALE:
            return
        self._connected_at = None
        self._connections += 1
        self._book.lose(self._reason, self._clock.now_ms())
        self._help()

    def refused(self, reason: str) -> None:
        """A message could not be used. Where changes have no numbers, nothing else shows that one is missing."""
        if self._chain is BookChain.CONNECTION and self._connected_at is not None:
            self._book.lose(f"a message could not be used: {reason}", self._clock.now_ms())
            self._help()

    def check(self, now_ms: int, still_ms: int = 0) -> None:
        """Look whether the stream is silent, and do what has to be done then. Called about once a second."""
        silent = self.silent_since(now_ms)
        if silent is not None and self._book.state is BookState.LIVE:
            self._book.doubt(f"no change for {now_ms - silent} ms", now_ms)
        self._checks.pass_time(now_ms)
        if self._book.state is BookState.LIVE and now_ms - self._since >= self._rules.calm_ms:
            self._tries = 0
        self._help()
        self._stand(now_ms)

    def silent_since(self, now_ms: int) -> int | None:
        """When the last new change came, if that is too long ago; None if it is not, or there is no connection."""
        if self._connected_at is None or self._heard_at is None:
            return None
        return self._heard_at if now_ms - self._heard_at >= self._rules.silence_ms else None

    def status(self) -> RouteStatus:
        book = self.book_status()
        return RouteStatus(
            topic=self.topic,
            path=book.path,
            since=book.since,
            heard_at=book.received_at or None,
            messages=self._messages,
            repeated=self._book.ignored,
            refills=book.resyncs,
            refilled=self._polls,
            reason=book.last_reason,
        )

    def book_status(self) -> BookStatus:
        """How the book fares."""
        state, path = self._stand(self._clock.now_ms())
        shown = self._polled if path is Path.REST and self._polled is not None else self._book
        return BookStatus(
            state=state,
            path=path,
            since=self._since,
            resyncs=self._book.resyncs,
            differences=self._checks.differences,
            agreements=self._checks.agreements,
            missed_comparisons=self._checks.missed,
            last_reason=self._refused or self._reason,
            last_id=shown.last_id,
            event_time=shown.event_time,
            received_at=shown.received_at,
        )

    # What readers call.

    def top(self, levels: int) -> BookSnapshot | None:
        """The best levels, or None where nothing may be served."""
        if self._book.state is BookState.LIVE:
            return self._book.top(levels)
        state, _ = self._stand(self._clock.now_ms())
        if state is not BookState.LIVE or self._polled is None:
            return None
        return self._polled._replace(bids=self._polled.bids[:levels], asks=self._polled.asks[:levels])

    def edition(self) -> BookEdition | None:
        """What :meth:`top` shows, for those who keep the same by its changes; None where nothing may be served."""
        if self._book.state is BookState.LIVE:
            return BookEdition(self._book.bases, True, *self._book.bounds)
        state, _ = self._stand(self._clock.now_ms())
        return BookEdition(self._polls, False) if state is BookState.LIVE else None

    def why(self) -> str:
        """The state, and why, in words."""
        now = self.book_status()
        return f"{now.state} ({now.path}): {now.last_reason}"

    # State.

    @property
    def _unproven(self) -> bool:
        """True if the book may be right, but nothing in its changes will show it: they have no numbers."""
        book = self._book
        return book.state is BookState.STALE and not book.wants_snapshot and self._chain is BookChain.CONNECTION

    def _marked(self, mark: BookMark) -> None:
        self._reason = mark.reason
        self._newest_id = mark.last_id or self._newest_id
        if mark.state is BookState.LIVE:
            self._missed_polls = 0
            self._refused = self._polled = None
            self._checks.began(mark.at)
        self._stand(self._clock.now_ms())
        self._tell_mark(mark)

    def _stand(self, now_ms: int) -> tuple[BookState, Path]:
        """What is served now, and from where."""
        state, path = self._book.state, Path.REST
        if state is BookState.LIVE:
            path = Path.STREAM
        elif self._polled is not None and now_ms - self._polled.received_at < self._rules.lifetime_ms:
            state = BookState.LIVE
        elif self._refused is not None:
            path = Path.REFUSED
        elif self._connected_at is not None and self._book.wants_snapshot:
            path = Path.REFILL
        elif self._connections == 0:
            path = Path.STARTING
        if (state, path) != self._standing:
            self._standing, self._since = (state, path), now_ms
        return self._standing

    # Requests.

    def _help(self) -> None:
        """Begin the request that is due, if any."""
        now = self._clock.now_ms()
        if self._ask is None or self._asking or now < self._not_before:
            return
        if self._connected_at is not None and self._from_rest and self._book.wants_snapshot:
            work = self._begin_book(self._ask)
        elif self._book.state is not BookState.LIVE and now >= self._poll_at:
            work = self._poll(self._ask)
        elif self._from_rest and self._checks.due(now):
            work = self._compare(self._ask)
        else:
            return
        self._asking = True
        self._spawn(self._alone(work))

    async def _alone(self, work: Awaitable[None]) -> None:
        try:
            await work
        finally:
            self._asking = False
        self._help()

    async def _begin_book(self, ask: AskSnapshot) -> None:
        """Ask until the book is LIVE, more slowly each time."""
        while self._connected_at is not None and self._book.wants_snapshot:
            if self._tries:
                wait = min(self._rules.longest_wait, self._rules.first_wait * 2 ** min(self._tries - 1, 20))
                await self._sleep(wait * (0.5 + self._chance() / 2))
            self._tries += 1
            connection = self._connections
            snapshot = await self._answer(ask, self._rules.levels)
            # What was asked for before a new connection may be older than what that one has begun with.
            if snapshot is not None and connection == self._connections and self._book.snapshot(snapshot):
                self._heard_at = snapshot.received_at
                self._told.changed(snapshot.received_at)
            if self._clock.now_ms() < self._not_before:
                return

    async def _poll(self, ask: AskSnapshot) -> None:
        """A book over REST, while the stream has none."""
        snapshot = await self._answer(ask, self._rules.poll_levels)
        now = self._clock.now_ms()
        self._poll_at = now + self._rules.poll_ms
        if snapshot is None or self._book.state is BookState.LIVE:
            return
        # An exchange without numbers says 0.
        if 0 < snapshot.last_id < self._newest_id:
            self._reason = f"REST answers with {snapshot.last_id}, but {self._newest_id} had been seen"
        elif snapshot.bids and snapshot.asks and snapshot.bids[0][0] >= snapshot.asks[0][0]:
            self._reason = "REST answers with a crossed book"
        else:
            self._polled, self._newest_id = snapshot, snapshot.last_id or self._newest_id
            self._polls += 1
            agrees = same_book(self._book, snapshot)
            self._missed_polls = 0 if agrees else self._missed_polls + 1
            if agrees and self._unproven:
                self._heard_at = now
                self._book.confirm(now)
            self._told.changed(now)

    async def _compare(self, ask: AskSnapshot) -> None:
        check = self._checks.begin(self._clock.now_ms())
        snapshot = await self._answer(ask, self._rules.levels)
        self._differs(self._checks.answered(check, snapshot, self._clock.now_ms()))

    def _differs(self, difference: str | None) -> None:
        if difference is not None:
            self._book.lose(f"not what REST says: {difference}", self._clock.now_ms())
            self._help()

    async def _answer(self, ask: AskSnapshot, levels: int) -> BookSnapshot | None:
        """A snapshot; None where there is none now, in which case what is asked next waits for its time."""
        try:
            async with asyncio.timeout(self._rules.request_seconds):
                snapshot = await ask(self.topic.symbol, levels)
            self._refused = None
            return snapshot
        except TimeoutError:
            self._reason = f"no snapshot within {self._rules.request_seconds:g} s"
        except RateLimited as error:
            self._reason = str(error)
            self._not_before = self._clock.now_ms() + math.ceil(error.retry_after * 1000)
        except (ExchangeRefused, BadInput) as error:
            self._refused = str(error)
            self._not_before = self._clock.now_ms() + self._rules.refused_ms
            log.warning("order book refused", topic=str(self.topic), reason=self._refused)
            if self._report is not None:
                self._report(error)
        except ChandleryError as error:
            self._reason = str(error)
        return None
