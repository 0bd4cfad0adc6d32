"""One order book, and the trades of one market, on their way to Redis: what to send next, given what was sent.

Neither waits for anything. Where it is not sure what Redis has, everything is sent: the whole book, all trades.
"""

from __future__ import annotations

from market.book_message import BookChange, BookSnapshot
from market.clock import Clock
from market.trade import Trade
from store.live_books import BookEdition, FollowedBook
from store.live_changes import Market, Waiting
from store.live_trades import LiveTrades
from store.redis.command import Command, Reply
from store.redis.live_rules import LiveWriterRules, LiveWriterStatus, Step
from store.redis.live_values import RedisTrades
from store.redis.order_book import LevelChanges, RedisOrderBook, written
from store.redis.ownership import Call, Outcome


class _Turns:
    """The calls of one owner for one record."""

    def __init__(self, owner: str, clock: Clock, rules: LiveWriterRules, status: LiveWriterStatus) -> None:
        self._owner = owner
        self._clock = clock
        self._rules = rules
        self._status = status
        self._number = 0
        # Another writer keeps it until then.
        self._not_before = 0
        #: Whether Redis surely has what the call `_number` left.
        self.sure = False

    def doubt(self) -> None:
        """Nobody knows what Redis has: send everything."""
        self.sure = False

    def _call(self) -> Call:
        self._number += 1
        # Until the answer says otherwise: what is sent next is sent after it.
        self.sure = True
        return Call(self._owner, self._number, self._rules.lease_ms)

    def _heed(self, outcome: Outcome) -> None:
        if outcome is Outcome.DONE:
            return
        self.sure = False
        if outcome is Outcome.REFUSED:
            self._status.refused += 1
        else:
            self._status.kept_by_another += 1
            self._not_before = self._clock.now_ms() + self._rules.lease_ms


class BookWriter(_Turns):
    """One order book."""

    def __init__(
        self,
        market: Market,
        book: FollowedBook,
        owner: str,
        clock: Clock,
        rules: LiveWriterRules,
        status: LiveWriterStatus,
    ) -> None:
        super().__init__(owner, clock, rules, status)
        self.book = book
        self._commands = RedisOrderBook(*market)
        # What Redis shows, if we are sure: nothing, or this, with levels as far as these prices.
        self._shown: BookEdition | None = None
        self._bounds: tuple[float | None, float | None] = (None, None)
        self._cut = False
        self._stands = LevelChanges(0, None, 0, {}, {})

    def step(self, waiting: Waiting[BookChange], *, look: bool = False) -> Step | None:
        """What is to be sent now.

        :param look: send something in any case, so that it shows whether Redis still has the book.
        """
        now = self._clock.now_ms()
        if now < self._not_before:
            self.sure = False
            return None
        edition = self.book.edition()
        if edition is None:
            return self._remove(self.book.why()) if look or not self.sure or self._shown is not None else None
        if not self.sure or edition != self._shown or not waiting.all:
            snapshot = self.book.top(self._rules.most_levels)
            return None if snapshot is None else self._replace(edition, snapshot, now)
        if edition.changes and waiting.new:
            self._stands = self._joined(waiting.new)
            self._status.books_changed += 1
        elif not look:
            return None
        changes, self._stands = self._stands, self._stands._replace(bids={}, asks={})
        after, lifetime = self._number, self._lifetime(changes.received_at, now)
        if lifetime <= 0:
            self.sure = False
            return None
        return self._step(
            self._commands.apply(self._call(), after, changes, lifetime), len(changes.bids) + len(changes.asks)
        )

    def farewell(self) -> Command | None:
        """Take the book away, if Redis may have it: nobody will keep it right."""
        if self._shown is None:
            return None
        return self._commands.remove(self._call(), "its ingest has ended", self._rules.why_ms)

    def _remove(self, why: str) -> Step:
        self._shown = None
        self._status.books_removed += 1
        return self._step(self._commands.remove(self._call(), why, self._rules.why_ms), 1)

    def _replace(self, edition: BookEdition, book: BookSnapshot, now: int) -> Step | None:
        lifetime = self._lifetime(book.received_at, now)
        if lifetime <= 0:
            return self._remove(f"not heard of for {now - book.received_at} ms")
        most = self._rules.most_levels
        self._cut = max(len(book.bids), len(book.asks)) >= most
        self._bounds = (
            book.bids[-1][0] if len(book.bids) >= most else edition.bid_bound,
            book.asks[-1][0] if len(book.asks) >= most else edition.ask_bound,
        )
        self._shown = edition
        self._stands = LevelChanges(book.last_id, book.event_time, book.received_at, {}, {})
        self._status.books_replaced += 1
        return self._step(self._commands.replace(self._call(), book, lifetime), len(book.bids) + len(book.asks))

    def _joined(self, changes: list[BookChange]) -> LevelChanges:
        """All of them as one, without the levels that Redis is not to have."""
        bids: dict[float, float] = {}
        asks: dict[float, float] = {}
        event_time, received_at = self._stands.event_time, self._stands.received_at
        for change in changes:
            bids.update(change.bids)
            asks.update(change.asks)
            received_at = max(received_at, change.received_at)
            if change.event_time is not None:
                event_time = change.event_time
        lowest, highest = self._bounds
        if lowest is not None:
            bids = {price: size for price, size in bids.items() if price >= lowest}
        if highest is not None:
            asks = {price: size for price, size in asks.items() if price <= highest}
        return LevelChanges(changes[-1].last_id, event_time, received_at, bids, asks)

    def _lifetime(self, received_at: int, now: int) -> int:
        return self._rules.book_ms - max(now - received_at, 0)

    def _step(self, command: Command, weight: int) -> Step:
        return Step(command, weight, self._answered, self.doubt)

    def _answered(self, reply: Reply) -> None:
        done = written(reply)
        self._heed(done.outcome)
        if done.outcome is Outcome.DONE and self._shown is not None:
            most = self._rules.most_levels
            # The market has moved: too few levels are left of those that were sent, or there are too many.
            if (self._cut and min(done.bids, done.asks) < most // 2) or max(done.bids, done.asks) > 3 * most:
                self.sure = False


class TradesWriter(_Turns):
    """The recent trades of one market."""

    def __init__(
        self,
        market: Market,
        held: LiveTrades,
        owner: str,
        clock: Clock,
        rules: LiveWriterRules,
        status: LiveWriterStatus,
    ) -> None:
        super().__init__(owner, clock, rules, status)
        self._market = market
        self._held = held
        self._commands = RedisTrades(*market)

    def step(self, waiting: Waiting[Trade], *, look: bool = False) -> Step | None:
        """What is to be sent now.

        :param look: send something in any case, so that it shows whether Redis still has the trades.
        """
        now = self._clock.now_ms()
        if now < self._not_before:
            self.sure = False
            return None
        rules = self._rules
        after: int | None = self._number
        trades = waiting.new
        if not self.sure or not waiting.all:
            after, trades = None, self._held.get(*self._market, rules.most_trades)
            if not trades:
                return None
        elif not trades and not look:
            return None
        self._status.trades += len(trades)
        command = self._commands.add(
            self._call(), after, trades, rules.most_trades, now - rules.trades_ms, rules.trades_ms
        )
        return Step(command, len(trades), lambda reply: self._heed(Outcome.of(reply)), self.doubt)
