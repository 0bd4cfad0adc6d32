"""How much may be asked of an exchange now: the rules, and the record that they are applied to. No I/O here.

A request costs weight. What counts is all weight of the last window (a minute, at Binance), whatever the clock
says: no minute of the exchange's own then holds more, wherever it begins and however long requests were under way.

* Of the exchange's limit a share may be used, 80 % at most. It is cut by three tenths when the exchange says 429,
  and grows back with requests that succeed, by a twentieth of the limit a minute.
* Backfill may use three quarters of the share, and waits while anything live waits. Within one purpose the request
  that waits longest goes first.
* Retry-After and bans hold back everything, live work too.
* Where the exchange counts more than we do, others use the same address: the difference counts as ours.

The record is a few hundred numbers of a fixed layout with a checksum, so that processes can share it in a file.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum

#: Of the limit, at most and at least.
MOST = 0.8
LEAST = 0.05
#: Of the share.
BACKFILL_PART = 0.75
CUT = 0.7
#: Of the limit, a minute.
GROWTH = 0.05
#: A window is counted in so many slots. A slot counts until the window after its end is over.
SLOTS = 60
#: Who waits says so again within this time, milliseconds; who does not is gone.
WAITER_SILENT_MS = 1000
#: Waiters that are told apart; with more, those unheard of for longest are forgotten until they speak again.
MOST_WAITERS = 32
#: No exchange bans for longer, milliseconds; whatever says more is a mistake.
LONGEST_HOLD_MS = 3 * 86_400_000

_MAGIC = b"CHLIMIT1"
_HEADER = struct.Struct("<8sdq?dqq?")
_SPENT = struct.Struct("<qd")
_WAITER = struct.Struct("<QBHqq")
_CHECK = struct.Struct("<I")
_KEPT_SLOTS = SLOTS + 4
#: Bytes of a record.
SIZE = _HEADER.size + _KEPT_SLOTS * _SPENT.size + MOST_WAITERS * _WAITER.size + _CHECK.size


class Purpose(IntEnum):
    """Why something is asked. The lower one goes first."""

    LIVE = 0
    BACKFILL = 1


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What an exchange allows one address."""

    #: Weight in one window.
    weight: float
    window_ms: int = 60_000
    #: The exchange said so itself. What it said is not replaced by what was assumed.
    told: bool = False


@dataclass(frozen=True, kw_only=True)
class Waiter:
    """Requests of one process and one purpose that wait."""

    purpose: Purpose
    count: int
    #: Since when the first of them waits, and when it was last heard of; epoch milliseconds.
    since_ms: int
    seen_ms: int


@dataclass(frozen=True, kw_only=True)
class BudgetStatus:
    """A budget as people want to see it."""

    #: Host and kind of the limit.
    name: str
    #: The exchange's limit in one window of so many milliseconds.
    limit: float
    window_ms: int
    #: Used in the last window by all, and how much of it is allowed now, by purpose.
    used: float
    allowed: dict[Purpose, float]
    #: Of the limit.
    share: float
    #: Requests that wait, in all processes.
    waiting: dict[Purpose, int]
    #: Epoch milliseconds until which nothing may be asked, and whether that is a ban; None where nothing holds.
    held_until: int | None
    banned_until: int | None


@dataclass(kw_only=True)
class Budget:
    """The record of one limit. All times are epoch milliseconds."""

    limit: Limit
    share: float = MOST
    #: When the share last grew or was cut.
    changed_ms: int = 0
    held_until_ms: int = 0
    banned: bool = False
    #: Weight by slot (a time divided by the length of a slot).
    spent: dict[int, float] = field(default_factory=dict)
    waiters: dict[int, Waiter] = field(default_factory=dict)

    def allowed(self, purpose: Purpose) -> float:
        """Weight that requests of a purpose may fill a window up to."""
        part = BACKFILL_PART if purpose is Purpose.BACKFILL else 1.0
        return self.limit.weight * self.share * part

    def used(self, now_ms: int) -> float:
        """Weight of the last window."""
        return sum(self._counting(now_ms).values())

    def spend(self, now_ms: int, weight: float, purpose: Purpose, waiter: int, since_ms: int) -> float:
        """Count `weight` and return 0, if the request may be sent now; else milliseconds after which to ask again.

        A request that is dearer than all that is allowed goes once nothing else is counted.

        :param waiter: who asks, to be told from the others that wait.
        :param since_ms: since when.
        """
        self.forget(now_ms)
        if now_ms < self.held_until_ms:
            return self.held_until_ms - now_ms
        room = self.allowed(purpose) - min(weight, self.allowed(purpose))
        used = self.used(now_ms)
        if used > room:
            return self._until_free(now_ms, used - room)
        if any(self._before(one, purpose, since_ms) for token, one in self.waiters.items() if token != waiter):
            # They have room too, and come for it within moments.
            return 1.0
        self._add(now_ms, weight)
        return 0.0

    def answered(self, now_ms: int, weight: float, sent_ms: int, counted: float | None, well: bool) -> None:
        """An answer came that is no refusal to serve so much.

        The exchange counted the request at some time between `sent_ms` and now; to be safe it counts from now on.

        :param counted: the weight that the exchange has counted in its own window; None where it does not say.
        :param well: the exchange is well: no error of its own.
        """
        self.forget(now_ms)
        slot = self._slot(sent_ms)
        moved = min(weight, self.spent.get(slot, 0.0))
        if moved:
            self.spent[slot] -= moved
        self._add(now_ms, weight)
        if counted is not None:
            self._add(now_ms, max(0.0, counted - self._since(self._window_start(sent_ms))))
        if well:
            # A pause is no proof that more is welcome: it counts for a minute at most.
            passed = min(now_ms - self.changed_ms, 60_000)
            self.share = min(MOST, self.share + GROWTH * passed / 60_000)
        self.changed_ms = now_ms

    def refused(self, now_ms: int, wait_ms: float, *, banned: bool) -> None:
        """The exchange said 429, or 418 (`banned`), and to wait for so long; a longer wait is never shortened."""
        self.forget(now_ms)
        if now_ms >= self.held_until_ms:
            # Requests that were under way together are refused together: one cut for all of them.
            self.share = max(LEAST, self.share * CUT)
            self.changed_ms = now_ms
        until = now_ms + min(round(wait_ms), LONGEST_HOLD_MS)
        self.held_until_ms = max(self.held_until_ms, until)
        self.banned = self.banned or banned

    def learn(self, now_ms: int, limit: Limit) -> None:
        """Go by another limit; what was used in the last window stays used."""
        if limit == self.limit:
            return
        used = self.used(now_ms)
        self.limit = limit
        self.spent = {}
        self._add(now_ms, used)

    def assume(self, now_ms: int, limit: Limit) -> None:
        """Go by the limit that a process assumes, unless the exchange told one.

        Where processes assume different ones, the strictest holds for as long as anything is counted.
        """
        if self.limit.told or limit == self.limit:
            return
        stricter = limit.weight / limit.window_ms < self.limit.weight / self.limit.window_ms
        if limit.told or stricter or not self.used(now_ms):
            self.learn(now_ms, limit)

    def wait(self, token: int, waiter: Waiter) -> None:
        """Note that a request waits."""
        self.waiters[token] = waiter
        if len(self.waiters) > MOST_WAITERS:
            del self.waiters[min(self.waiters, key=lambda one: self.waiters[one].seen_ms)]

    def leave(self, token: int) -> None:
        """Note that nothing waits there any more."""
        self.waiters.pop(token, None)

    def waiting(self, now_ms: int, purpose: Purpose) -> int:
        """Requests of a purpose that wait, in all processes."""
        self.forget(now_ms)
        return sum(one.count for one in self.waiters.values() if one.purpose is purpose)

    def forget(self, now_ms: int) -> None:
        """Leave out what is over, and what a clock that was set back has made impossible."""
        self.spent = self._counting(now_ms)
        self.waiters = {
            token: one for token, one in self.waiters.items() if abs(now_ms - one.seen_ms) <= WAITER_SILENT_MS
        }
        if not now_ms < self.held_until_ms <= now_ms + LONGEST_HOLD_MS:
            self.held_until_ms, self.banned = 0, False
        self.changed_ms = min(self.changed_ms, now_ms)

    def _counting(self, now_ms: int) -> dict[int, float]:
        now = self._slot(now_ms)
        return {
            slot: weight for slot, weight in self.spent.items() if now - SLOTS <= slot <= now + 1 and weight > 0
        }

    def _slot(self, ms: int) -> int:
        return ms * SLOTS // self.limit.window_ms

    def _add(self, now_ms: int, weight: float) -> None:
        if weight > 0:
            slot = self._slot(now_ms)
            self.spent[slot] = self.spent.get(slot, 0.0) + weight

    def _since(self, ms: int) -> float:
        first = self._slot(ms)
        return sum(weight for slot, weight in self.spent.items() if slot >= first)

    def _window_start(self, sent_ms: int) -> int:
        """Where the exchange's window of a request began at the earliest, by its clock or by ours."""
        window = self.limit.window_ms
        start = sent_ms // window * window
        # Clocks differ, and the request was under way for a while: just after our minute begins, the answer may
        # still be about the one before.
        return start if sent_ms - start > window // 12 else start - window

    def _until_free(self, now_ms: int, wanted: float) -> float:
        """Milliseconds until `wanted` weight no longer counts."""
        for slot in sorted(self.spent):
            wanted -= self.spent[slot]
            if wanted <= 0:
                # The first millisecond of the slot in which this one no longer counts.
                return -(-(slot + SLOTS + 1) * self.limit.window_ms // SLOTS) - now_ms
        return float(self.limit.window_ms)

    @staticmethod
    def _before(other: Waiter, purpose: Purpose, since_ms: int) -> bool:
        return (other.purpose, other.since_ms) < (purpose, since_ms)

    def status(self, name: str, now_ms: int) -> BudgetStatus:
        """The budget now."""
        self.forget(now_ms)
        held = self.held_until_ms or None
        return BudgetStatus(
            name=name,
            limit=self.limit.weight,
            window_ms=self.limit.window_ms,
            used=self.used(now_ms),
            allowed={one: self.allowed(one) for one in Purpose},
            share=self.share,
            waiting={one: self.waiting(now_ms, one) for one in Purpose},
            held_until=held,
            banned_until=held if self.banned else None,
        )

    def packed(self) -> bytes:
        """The record as :data:`SIZE` bytes."""
        limit = self.limit
        parts = [
            _HEADER.pack(
                _MAGIC,
                limit.weight,
                limit.window_ms,
                limit.told,
                self.share,
                self.changed_ms,
                self.held_until_ms,
                self.banned,
            )
        ]
        newest = sorted(self.spent.items())[-_KEPT_SLOTS:]
        parts += (_SPENT.pack(*one) for one in _filled(newest, _KEPT_SLOTS, (0, 0.0)))
        waiters = [
            (token, one.purpose, min(one.count, 0xFFFF), one.since_ms, one.seen_ms)
            for token, one in self.waiters.items()
        ]
        parts += (_WAITER.pack(*one) for one in _filled(waiters, MOST_WAITERS, (0, 0, 0, 0, 0)))
        body = b"".join(parts)
        return body + _CHECK.pack(zlib.crc32(body))


def unpacked(data: bytes) -> Budget | None:
    """The record that was packed; None if the bytes are not one."""
    if len(data) != SIZE or _CHECK.unpack(data[-_CHECK.size :])[0] != zlib.crc32(data[: -_CHECK.size]):
        return None
    magic, weight, window_ms, told, share, changed_ms, held_until_ms, banned = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        return None
    budget = Budget(
        limit=Limit(weight=weight, window_ms=window_ms, told=told),
        share=share,
        changed_ms=changed_ms,
        held_until_ms=held_until_ms,
        banned=banned,
    )
    middle = _HEADER.size + _KEPT_SLOTS * _SPENT.size
    budget.spent = {slot: spent for slot, spent in _SPENT.iter_unpack(data[_HEADER.size : middle]) if spent > 0}
    for token, purpose, count, since_ms, seen_ms in _WAITER.iter_unpack(data[middle : -_CHECK.size]):
        if count:
            one = Waiter(purpose=Purpose(purpose), count=count, since_ms=since_ms, seen_ms=seen_ms)
            budget.waiters[token] = one
    return budget


def rebuilt(limit: Limit, now_ms: int) -> Budget:
    """A budget in place of a record that was lost. Nobody knows what was used: half of what is allowed."""
    budget = Budget(limit=limit, changed_ms=now_ms)
    budget.spent = {now_ms * SLOTS // limit.window_ms: budget.allowed(Purpose.LIVE) / 2}
    return budget


def _filled(rows: Iterable[tuple[float, ...]], count: int, empty: tuple[float, ...]) -> list[tuple[float, ...]]:
    listed = list(rows)
    return listed + [empty] * (count - len(listed))
