"""One budget for all processes of a machine that talk to the same host: a small file, and turns at it.

The file is locked (flock) for the microseconds in which the record is read, changed and written; never while anyone
waits. A process that dies holding the lock gives it back with its end; a record that was written in half does not
match its checksum and is made anew. Nothing is kept open between two looks, so nothing needs to be closed, and a
file that someone deletes is simply begun again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import structlog

from exchange.budget import SIZE, Budget, BudgetStatus, Limit, Purpose, Waiter, rebuilt, unpacked
from market.clock import Clock, SystemClock
from market.errors import RateLimited, StoreUnusable

log = structlog.get_logger(__name__)

Answer = TypeVar("Answer")

#: Seconds that a request waits for its turn before it is given back.
LONGEST_WAIT = 120.0
#: Between two looks at the record, seconds. The longest is well below the time after which a waiter counts as gone.
_SHORTEST_LOOK = 0.005
_LONGEST_LOOK = 0.1
#: Seconds to try for the lock where nothing can be awaited, and between two tries where it can.
_INSIST = 0.01
_LOCK_PAUSE = 0.001
#: Whoever refuses means at least so long, milliseconds.
_SHORTEST_HOLD_MS = 100.0
#: What answers told and could not be written at once; the oldest are left out (the next answer tells as much).
_MOST_NEWS = 1000
_UNSAFE = re.compile(r"[^A-Za-z0-9.-]+")


class _Look(NamedTuple):
    """What a look at the record gave."""

    now_ms: int
    #: Until the next look is worth it; 0 where the request may be sent.
    wait_ms: float
    #: For which the exchange holds everything back, and whether that is a ban.
    held_ms: int
    banned: bool


class SharedBudget:
    """The budget of one limit of one host, shared through a file.

    :param folder: where the files of all budgets are; made when first needed.
    :param name: host and kind of the limit: processes that use the same name share.
    :param limit: assumed until the exchange says what it is.
    :param longest_wait: seconds after which a request that could not be sent is given back.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        limit: Limit,
        *,
        clock: Clock | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        longest_wait: float = LONGEST_WAIT,
    ) -> None:
        self.name = name
        self.path = folder / (_UNSAFE.sub("_", name) + ".limit")
        self._limit = limit
        self._clock = clock or SystemClock()
        self._sleep = sleep
        self._longest_wait = longest_wait
        #: One request of a purpose looks at the record; the others of this process queue behind it. The queue is
        #: bounded by who asks (a router asks one thing at a time, a backfill a few) and by `longest_wait`.
        self._turns = {one: asyncio.Lock() for one in Purpose}
        self._tokens = {one: secrets.randbits(63) + 1 for one in Purpose}
        self._waiting = dict.fromkeys(Purpose, 0)
        self._noted = dict.fromkeys(Purpose, False)
        self._news: deque[Callable[[Budget, int], None]] = deque(maxlen=_MOST_NEWS)

    async def spend(self, weight: float, purpose: Purpose) -> int:
        """Return when a request of this weight may be sent; it counts from then on.

        :returns: that time, epoch milliseconds.
        :raises RateLimited: if it is not within `longest_wait`: at once where that is known, else in the end.
        :raises StoreUnusable: where the file cannot be used.
        """
        since_ms = self._clock.now_ms()
        self._waiting[purpose] += 1
        try:
            async with asyncio.timeout(self._longest_wait), self._turns[purpose]:
                return await self._turn(weight, purpose, since_ms)
        except TimeoutError:
            raise self._used_up(weight, purpose) from None
        finally:
            self._waiting[purpose] -= 1
            if self._noted[purpose] and not self._waiting[purpose]:
                self._noted[purpose] = False
                self._tell(lambda budget, now_ms: budget.leave(self._tokens[purpose]))

    async def _turn(self, weight: float, purpose: Purpose, since_ms: int) -> int:
        """Look at the record until the request may be sent."""

        def look(budget: Budget, now_ms: int) -> _Look:
            token = self._tokens[purpose]
            wait_ms = budget.spend(now_ms, weight, purpose, token, since_ms)
            count = self._waiting[purpose]
            self._noted[purpose] = wait_ms > 0 or count > 1
            if self._noted[purpose]:
                budget.wait(token, Waiter(purpose=purpose, count=count, since_ms=since_ms, seen_ms=now_ms))
            else:
                budget.leave(token)
            return _Look(now_ms, wait_ms, max(0, budget.held_until_ms - now_ms), budget.banned)

        while True:
            seen = await self._change(look)
            if not seen.wait_ms:
                return seen.now_ms
            left_ms = since_ms + self._longest_wait * 1000 - seen.now_ms
            if seen.held_ms > left_ms:
                raise self._held(seen.held_ms / 1000, banned=seen.banned)
            if left_ms <= 0:
                raise self._used_up(weight, purpose, seen.wait_ms / 1000)
            await self._sleep(min(max(seen.wait_ms / 1000, _SHORTEST_LOOK), _LONGEST_LOOK))

    def _held(self, left: float, *, banned: bool) -> RateLimited:
        why = "this address is banned" if banned else "it asked to slow down"
        return RateLimited(f"{self.name}: {why}; {left:.1f} s are left to wait", left, banned=banned)

    def _used_up(self, weight: float, purpose: Purpose, left: float | None = None) -> RateLimited:
        """:param left: seconds to the next look that is worth it, where that is known."""
        status = self.status()
        if status.held_until is not None:
            held = (status.held_until - self._clock.now_ms()) / 1000
            return self._held(max(held, 0.0), banned=status.banned_until is not None)
        if left is None:
            left = status.window_ms / 1000 if status.used + weight > status.allowed[purpose] else 1.0
        return RateLimited(
            f"{self.name}: other requests left no room for {self._longest_wait:g} s "
            f"({status.used:g} of {status.allowed[purpose]:g} is used)",
            left,
        )

    def answered(self, weight: float, sent_ms: int, counted: float | None = None, *, well: bool = True) -> None:
        """An answer came that is no refusal; see :meth:`exchange.budget.Budget.answered`."""
        self._tell(lambda budget, now_ms: budget.answered(now_ms, weight, sent_ms, counted, well))

    def refused(self, wait: float, *, banned: bool) -> None:
        """The exchange said to wait for so many seconds: every process obeys from now on."""
        heard_ms = self._clock.now_ms()
        log.warning("the exchange asks to wait", limit=self.name, seconds=round(wait, 1), banned=banned)
        # Written late, it still ends when the exchange said.
        self._tell(
            lambda budget, now_ms: budget.refused(
                now_ms, max(_SHORTEST_HOLD_MS, wait * 1000 - (now_ms - heard_ms)), banned=banned
            )
        )

    def learn(self, limit: Limit) -> None:
        """The exchange said what it allows."""
        self._limit = limit
        self._tell(lambda budget, now_ms: budget.learn(now_ms, limit))

    def status(self) -> BudgetStatus:
        """The budget now.

        :raises StoreUnusable: where the file cannot be used.
        """
        status = self._at_once(lambda budget, now_ms: budget.status(self.name, now_ms))
        # Nobody holds the lock for so long but a stopped process; then the settings are all there is to tell.
        return status or Budget(limit=self._limit).status(self.name, self._clock.now_ms())

    async def _change(self, work: Callable[[Budget, int], Answer]) -> Answer:
        """Do `work` on the record, once nobody else is at it. The loop is not held up."""
        while True:
            done = self._try(work)
            if done is not None:
                return done[0]
            # The lock cannot be awaited; its holders need microseconds.
            await asyncio.sleep(_LOCK_PAUSE)

    def _tell(self, news: Callable[[Budget, int], None]) -> None:
        """Write what an answer told: now, or with the next look where the lock cannot be had at once."""
        self._news.append(news)
        self._at_once(lambda budget, now_ms: None)

    def _at_once(self, work: Callable[[Budget, int], Answer]) -> Answer | None:
        """Do `work` on the record; None where another process keeps the lock."""
        end = time.monotonic() + _INSIST
        while True:
            done = self._try(work)
            if done is not None:
                return done[0]
            if time.monotonic() > end:
                return None

    def _try(self, work: Callable[[Budget, int], Answer]) -> tuple[Answer] | None:
        """Do `work` on the record, after the news that wait; None if another has the lock."""
        try:
            with self._locked() as descriptor:
                if descriptor is None:
                    return None
                now_ms = self._clock.now_ms()
                budget = self._read(descriptor, now_ms)
                while self._news:
                    self._news.popleft()(budget, now_ms)
                answer = work(budget, now_ms)
                os.pwrite(descriptor, budget.packed(), 0)
                return (answer,)
        except OSError as error:
            raise StoreUnusable(f"{self.path}: {error.strerror or error}") from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int | None]:
        """The open file, locked; None while another has the lock."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            descriptor = os.open(self.path, flags, 0o666)
        except FileNotFoundError:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, flags, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield descriptor
        finally:
            # Which gives the lock back.
            os.close(descriptor)

    def _read(self, descriptor: int, now_ms: int) -> Budget:
        data = os.pread(descriptor, SIZE + 1, 0)
        budget = unpacked(data)
        if budget is None and data:
            log.warning("the record of a rate limit cannot be read and is made anew", file=str(self.path))
            os.ftruncate(descriptor, 0)
            return rebuilt(self._limit, now_ms)
        if budget is None:
            return Budget(limit=self._limit, changed_ms=now_ms)
        budget.assume(now_ms, self._limit)
        return budget
