"""One load per key at a time, however many want its value."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from market.errors import BadInput, StoreBusy, StoreUnavailable

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def monotonic_ms() -> float:
    """Milliseconds that only go forward."""
    return time.monotonic_ns() / 1e6


class _Flight(Generic[V]):
    """One load and those who wait for it; or, before it has a task, the load that will follow another."""

    __slots__ = ("after", "began", "load", "outdated", "result", "task", "waiting")

    def __init__(self, load: Callable[[], Awaitable[V]]) -> None:
        self.load = load
        self.result: asyncio.Future[V] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[V] | None = None
        self.waiting = 0
        #: Monotonic milliseconds; None while it waits for its turn.
        self.began: float | None = None
        #: What it will find may be no longer true, or it was cancelled: nobody may join any more.
        self.outdated = False
        #: Who came too late to join waits for this one.
        self.after: _Flight[V] | None = None


class SingleFlight(Generic[K, V]):
    """Joins calls for one key into one load.

    All who wait get its value, or its error; an error is not remembered. Cancelling one who waits (even the first)
    leaves the load alone; it is cancelled when nobody waits any more. Who comes when a load is outdated waits for
    the next one, which begins when that has ended: there are never two loads of one key at a time.

    :param most_loads: loads of different keys at a time.
    :param most_waiting: loads that may wait for their turn; one more is refused (StoreBusy).
    :param wait_seconds: a load that has waited this long for its turn is refused (StoreBusy).
    :param named: how a key is called in errors.
    :param monotonic_ms: milliseconds that only go forward.
    """

    def __init__(
        self,
        *,
        most_loads: int = 32,
        most_waiting: int = 1_000,
        wait_seconds: float = 5.0,
        named: Callable[[K], str] = str,
        monotonic_ms: Callable[[], float] = monotonic_ms,
    ) -> None:
        if most_loads < 1:
            raise BadInput("most_loads", most_loads, "at least 1")
        if most_waiting < 0:
            raise BadInput("most_waiting", most_waiting, "0 or more")
        self._flights: dict[K, _Flight[V]] = {}
        self._slots = asyncio.Semaphore(most_loads)
        self._most_loads = most_loads
        self._most_waiting = most_waiting
        self._wait_seconds = wait_seconds
        self._named = named
        self._monotonic_ms = monotonic_ms
        self._waiting = 0
        self._loads = self._joined = self._refused = 0

    async def run(self, key: K, load: Callable[[], Awaitable[V]], *, younger_than_ms: float | None = None) -> V:
        """The value of `load()`, or of the load of this key that is already under way.

        :param younger_than_ms: a load that began this long ago or longer is not joined.
        :raises StoreBusy: too many other keys are being loaded; whatever else `load` raises.
        """
        flight = self._join(key, load, younger_than_ms)
        flight.waiting += 1
        try:
            # The shield: cancelling this caller must not cancel the result that the others wait for.
            return await asyncio.shield(flight.result)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.result.done():
                self._give_up(key, flight)

    def outdate(self, key: K) -> None:
        """What a load under way finds may be no longer true: from now on nobody joins it."""
        flight = self._flights.get(key)
        # One that has not begun yet will see what is true then.
        if flight is not None and flight.began is not None:
            flight.outdated = True

    def outdate_where(self, matches: Callable[[K], bool]) -> None:
        """:meth:`outdate` for all keys that match."""
        for key in [key for key in self._flights if matches(key)]:
            self.outdate(key)

    @property
    def loading(self) -> int:
        """Keys whose load is under way or waits for its turn."""
        return len(self._flights)

    @property
    def waiting(self) -> int:
        """Loads that wait for their turn."""
        return self._waiting

    @property
    def loads(self) -> int:
        """Loads begun since the start."""
        return self._loads

    @property
    def joined(self) -> int:
        """Calls that needed no load of their own since the start."""
        return self._joined

    @property
    def refused(self) -> int:
        """Loads refused since the start, because too many waited or for too long."""
        return self._refused

    def _join(self, key: K, load: Callable[[], Awaitable[V]], younger_than_ms: float | None) -> _Flight[V]:
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(load)
            self._start(key, flight)
            return flight
        too_old = (
            flight.began is not None
            and younger_than_ms is not None
            and self._monotonic_ms() - flight.began >= younger_than_ms
        )
        if flight.outdated or too_old:
            if flight.after is None:
                flight.after = _Flight(load)
                return flight.after
            flight = flight.after
        self._joined += 1
        return flight

    def _start(self, key: K, flight: _Flight[V]) -> None:
        flight.task = asyncio.create_task(self._fly(key, flight))
        flight.task.add_done_callback(lambda task: self._landed(key, flight, task))

    async def _fly(self, key: K, flight: _Flight[V]) -> V:
        await self._turn(key)
        try:
            self._loads += 1
            flight.began = self._monotonic_ms()
            return await flight.load()
        finally:
            self._slots.release()

    async def _turn(self, key: K) -> None:
        """Wait for a slot. Bounded: one more than `most_waiting` is refused at once, the others after a while."""
        if not self._slots.locked():
            await self._slots.acquire()
            return
        if self._waiting >= self._most_waiting:
            self._refused += 1
            raise StoreBusy(f"{self._named(key)} was not loaded: {self._waiting} loads are waiting already")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._slots.acquire()
        except TimeoutError as error:
            self._refused += 1
            raise StoreBusy(
                f"{self._named(key)} was not loaded: {self._most_loads} other loads took all "
                f"of {self._wait_seconds:g} s"
            ) from error
        finally:
            self._waiting -= 1

    def _landed(self, key: K, flight: _Flight[V], task: asyncio.Task[V]) -> None:
        error = None if task.cancelled() else task.exception()
        if flight.waiting:
            if task.cancelled():
                # Not by us, since somebody waits: whatever it called was shut down.
                flight.result.set_exception(StoreUnavailable(f"the load of {self._named(key)} was cancelled"))
            elif error is not None:
                flight.result.set_exception(error)
            else:
                flight.result.set_result(task.result())
            # Looked at here: whoever waits may have been cancelled just now, and nobody would look.
            flight.result.exception()
        if flight.after is None:
            del self._flights[key]
        else:
            self._flights[key] = flight.after
            self._start(key, flight.after)

    def _give_up(self, key: K, flight: _Flight[V]) -> None:
        if flight.task is not None:
            # It goes on until it has noticed; who comes meanwhile waits for the next.
            flight.outdated = True
            flight.task.cancel()
        elif (current := self._flights.get(key)) is not None and current.after is flight:
            current.after = None
