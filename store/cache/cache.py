"""Values of any kind, kept in process memory and shared between processes, by the policies of D4."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any, TypeVar

from market.clock import Clock
from market.errors import StoreReadOnly
from store.cache.cached import Cached, CacheHealth
from store.cache.codec import Codec, Envelope, PlainCodec
from store.cache.invalidation import Invalidation, SeriesRange, of_keys
from store.cache.key import CacheKey
from store.cache.lease import Lease, Leases
from store.cache.memory import MEMORY_TIER, Memory
from store.cache.pushing import Pushing
from store.cache.shared_values import ROUTER_TIER, Held, SharedAway, SharedTier, SharedValues
from store.cache.single_flight import SingleFlight, monotonic_ms
from store.cache.statistics import TierStatistics
from store.cache.time_to_live import KINDS, TimesToLive, check_ttl, class_of
from store.candle_store import DATABASE_TIER
from store.control import Control, SafetyState

V = TypeVar("V")

_PROBE = CacheKey("statistics", ("health",))


class Cache:
    """The cache of one process.

    A value is served for at most the time to live of its kind, counted from when its load began; how far the clocks
    of processes differ comes on top. What this process was doing when a value was invalidated never brings it back.
    Another process may still serve it, or even put it into the shared tier, until it hears of it: at most for that
    time.

    :param limit_bytes: of process memory.
    :param control: what the operator wants now; asked at each call, so it must be cheap.
    :param times: its operating state is kept as `control` says.
    :param shared: None: process memory only.
    :param codecs: by kind; the values of other kinds are plain structures.
    :param flights: bounds the loads of :meth:`cache_aside`.
    :param monotonic_ms: milliseconds that only go forward.
    :param sender: the name of this process in invalidations.
    :raises BadInput: an unknown kind in `codecs`, a wrong limit.
    """

    def __init__(
        self,
        *,
        limit_bytes: int,
        clock: Clock,
        control: Callable[[], Control],
        times: TimesToLive | None = None,
        shared: SharedValues | None = None,
        codecs: Mapping[str, Codec] = MappingProxyType({}),
        statistics: TierStatistics | None = None,
        flights: SingleFlight[CacheKey, Cached[Any]] | None = None,
        monotonic_ms: Callable[[], float] = monotonic_ms,
        sender: str | None = None,
    ) -> None:
        for kind in codecs:
            class_of(kind, "codecs")
        self.sender = sender or uuid.uuid4().hex
        self.times = times or TimesToLive()
        self.statistics = statistics or TierStatistics(clock.now_ms)
        self._clock = clock
        self._monotonic_ms = monotonic_ms
        plain = PlainCodec()
        self._codecs: dict[str, Codec] = {kind: codecs.get(kind, plain) for kind in KINDS}
        self._memory = Memory(limit_bytes, self.times, clock, self.statistics, monotonic_ms)
        self._shared = SharedTier(shared, self._codecs, self.times, clock, self.statistics, self.sender)
        self._flights: SingleFlight[CacheKey, Cached[Any]] = flights or SingleFlight(
            named=lambda key: key.text, monotonic_ms=monotonic_ms
        )
        self._leases = Leases()
        self._pushing = Pushing(self._shared, self._leases, self.times, clock, self.sender)
        self._control = control
        self._said: Control | None = None
        self._safety = SafetyState.NORMAL

    def peek(self, key: CacheKey) -> Cached[Any] | None:
        """The value if process memory has it: :meth:`get` without waiting for anything."""
        if not self._state().reads_cache:
            return None
        held = self._memory.get(key)
        return None if held is None else self._answer(held, MEMORY_TIER)

    async def get(self, key: CacheKey) -> Cached[Any] | None:
        """The value if a tier has it; never loads."""
        found = self.peek(key)
        return found if found is not None else (await self._from_shared([key])).get(key)

    async def get_many(self, keys: Iterable[CacheKey]) -> dict[CacheKey, Cached[Any]]:
        """Those of the values that a tier has, the others left out; one question to the shared tier."""
        wanted = list(dict.fromkeys(keys))
        found = {key: answer for key in wanted if (answer := self.peek(key)) is not None}
        return found | await self._from_shared([key for key in wanted if key not in found])

    async def pushed(self, key: CacheKey) -> Cached[Any] | None:
        """What was pushed last. None means that there is no data: it is never loaded."""
        return await self.get(key)

    async def cache_aside(
        self, key: CacheKey, load: Callable[[], Awaitable[V]], *, keep_none: bool = False, ttl_ms: int | None = None
    ) -> Cached[V]:
        """The value from the first tier that has it, else from `load()`, which is then kept.

        However many ask, there is one load per key at a time; its error goes to all of them and is not kept.

        :param keep_none: whether None ("not there") is kept like any other value.
        :param ttl_ms: instead of the time to live of its kind.
        :raises StoreBusy: too many loads are waiting; whatever else `load` raises.
        """
        found = self.peek(key)
        if found is not None:
            return found

        async def look_up() -> Cached[V]:
            with self._leases.held(key) as lease:
                return await self._look_up(key, load, lease, keep_none=keep_none, ttl_ms=ttl_ms)

        # Who joined an older load would be given a value that is too old when it comes.
        oldest = self.times.milliseconds(key.kind, self._clock.now_ms()) if ttl_ms is None else ttl_ms
        return await self._flights.run(key, look_up, younger_than_ms=oldest)

    async def set(self, key: CacheKey, value: Any, ttl_ms: int | None = None) -> None:
        """Keep a value in all tiers; other processes forget theirs. Without the shared tier it is kept here.

        :param ttl_ms: instead of the time to live of its kind.
        :raises StoreReadOnly: the safety state forbids writing.
        """
        self._must_write("set")
        held, envelope = self._held(key, value, self._clock.now_ms(), ttl_ms)
        async with self._leases.writing(key):
            await self._put(key, held, envelope, truth_elsewhere=False)

    async def write_through(self, key: CacheKey, value: V, save: Callable[[], Awaitable[object]]) -> None:
        """Save a value in the database, and only then in the tiers (fills, positions).

        If `save()` raises, nothing has changed in any tier. Writes of one key happen one after the other. If the
        shared tier fails, no tier of this process has the value, and the old one is deleted as soon as possible.

        :raises StoreReadOnly: the safety state forbids writing; `save` was not called. Or whatever `save` raises.
        """
        self._must_write("write_through")
        async with self._leases.writing(key):
            # First of all: a value that cannot be kept is not saved either.
            held, envelope = self._held(key, value, self._clock.now_ms(), None)
            with self._leases.held(key) as lease:
                try:
                    await save()
                except asyncio.CancelledError:
                    # Nobody knows whether it was saved.
                    self._forget([key])
                    self._shared.owe(of_keys(self.sender, [key]))
                    raise
                latest = lease.holds()
            # Somebody else wrote meanwhile, or FAIL was declared: our value is not kept, the old one is untrue.
            if latest and self._state().writes:
                await self._put(key, held, envelope, truth_elsewhere=True)
            else:
                await self.invalidate(key)

    async def push(self, key: CacheKey, value: Any, lifetime_ms: int | None = None) -> None:
        """:meth:`push_many` of one value."""
        await self.push_many([(key, value)], lifetime_ms)

    async def push_many(self, items: Sequence[tuple[CacheKey, Any]], lifetime_ms: int | None = None) -> None:
        """Keep the newest values of what is only ever pushed (prices); in memory at once.

        While the shared tier is busy or away a newer value takes the place of an older one, and what could not be
        sent is sent with the next.

        :param lifetime_ms: for how long there is data at all; None: the time to live of their kind. Other
            processes ask the shared tier again after the time to live of their kind.
        :raises StoreReadOnly: the safety state forbids writing.
        """
        self._must_write("push")
        now = self._clock.now_ms()
        values = [self._held(key, value, now, lifetime_ms) for key, value in items]
        for (key, _), (held, envelope) in zip(items, values, strict=True):
            self._memory.put(key, held)
            self._pushing.put(key, envelope)
        await self._pushing.send()

    async def delete(self, *keys: CacheKey) -> None:
        """Forget values in all tiers of all processes.

        :raises StoreReadOnly: the safety state forbids it.
        """
        self._must_write("delete")
        await self.invalidate(*keys)

    async def invalidate(self, *keys: CacheKey) -> None:
        """These values are no longer true: no tier of any process may serve them. Done in every safety state.

        What the shared tier cannot be told now it is told later; until then this process does not ask it.
        """
        self._forget(keys)
        await self._shared.drop(of_keys(self.sender, keys))

    async def invalidate_matching(self, pattern: str) -> None:
        """:meth:`invalidate` for all keys whose text matches: ``ticker:binance:*``.

        :raises BadInput: naming ``pattern``.
        """
        await self._drop(Invalidation(sender=self.sender, pattern=pattern))

    async def invalidate_series(self, written: SeriesRange) -> None:
        """:meth:`invalidate` for all values that may come from candles of that range."""
        await self._drop(Invalidation(sender=self.sender, series=written))

    async def clear(self) -> None:
        """Forget everything in all tiers of all processes.

        :raises StoreReadOnly: the safety state forbids it.
        """
        self._must_write("clear")
        await self._drop(Invalidation(sender=self.sender, everything=True))

    def apply(self, invalidation: Invalidation) -> None:
        """What another process said is no longer true is no longer served here; our own words are left alone.

        After a time without hearing (a lost connection), apply one that names everything.
        """
        if invalidation.sender == self.sender:
            return
        if invalidation.keys and not (invalidation.everything or invalidation.pattern or invalidation.series):
            self._forget(invalidation.keys)
        else:
            self._forget_where(invalidation.matcher())

    async def apply_control(self, control: Control) -> None:
        """Obey the operator now, without waiting for the next call; LOCKDOWN also empties the shared tier."""
        self._obey(control)
        await self._shared.settle()

    async def settle(self) -> bool:
        """Tell the shared tier what it could not be told before; False if it still cannot. For a timer."""
        self._state()
        return await self._shared.settle()

    async def health_check(self) -> CacheHealth:
        """Ask the shared tier for something."""
        began = self._monotonic_ms()
        if not self._state().reads_cache:
            return CacheHealth(False, DATABASE_TIER, 0.0, "the safety state is lockdown: the cache is not used")
        if self._shared.values is None:
            return CacheHealth(True, MEMORY_TIER, 0.0, "")
        try:
            await self._shared.values.get([_PROBE])
        except SharedAway as error:
            return CacheHealth(False, MEMORY_TIER, self._monotonic_ms() - began, str(error))
        return CacheHealth(True, ROUTER_TIER, self._monotonic_ms() - began, "")

    @property
    def used_bytes(self) -> int:
        """Of process memory."""
        return self._memory.entries.used_bytes

    @property
    def owed(self) -> int:
        """Invalidations that the shared tier could not be told yet."""
        return self._shared.owed

    async def _look_up(
        self,
        key: CacheKey,
        load: Callable[[], Awaitable[V]],
        lease: Lease,
        *,
        keep_none: bool,
        ttl_ms: int | None,
    ) -> Cached[V]:
        found = (await self._from_shared([key])).get(key)
        if found is not None:
            return found
        began = self._clock.now_ms()
        try:
            value = await load()
        except BaseException:
            self.statistics.error(DATABASE_TIER, key.kind)
            raise
        self.statistics.hit(DATABASE_TIER, key.kind)
        if (value is not None or keep_none) and lease.holds() and self._state().writes:
            await self._keep(key, *self._held(key, value, began, ttl_ms), lease)
        return Cached(value, DATABASE_TIER, max(0, self._clock.now_ms() - began))

    async def _from_shared(self, keys: Sequence[CacheKey]) -> dict[CacheKey, Cached[Any]]:
        """What the shared tier has, which is then also kept in memory."""
        if not self._state().reads_cache:
            # Emptying it is still owed if it was away when LOCKDOWN came.
            await self._shared.settle()
            return {}
        asked = [key for key in keys if not self._leases.doubtful(key)]
        answers = {}
        with ExitStack() as stack:
            leases = {key: stack.enter_context(self._leases.held(key)) for key in asked}
            for key, read in (await self._shared.read(asked)).items():
                # Invalidated while we asked: what came may be what was there before.
                if not leases[key].holds():
                    continue
                held = self._memory.newer(key, read)
                if held is None:
                    held = read
                    if self._state().writes:
                        self._memory.put(key, held, own=False)
                answers[key] = self._answer(held, ROUTER_TIER)
        return answers

    async def _keep(self, key: CacheKey, held: Held, envelope: Envelope, lease: Lease) -> None:
        """Put a loaded value into the tiers; take it out again if it is said to be untrue meanwhile."""
        self._memory.put(key, held)
        try:
            await self._shared.write([(key, envelope)])
        finally:
            if not lease.holds():
                self._shared.owe(of_keys(self.sender, [key]))
        if not lease.holds():
            await self._shared.settle()

    async def _put(self, key: CacheKey, held: Held, envelope: Envelope, *, truth_elsewhere: bool) -> None:
        """Put a written value into the tiers and tell the others.

        :param truth_elsewhere: it is saved in the database, so it need not be kept here if others cannot be told.
        """
        self._forget([key])
        told = latest = False
        with self._leases.held(key) as lease:
            try:
                told = await self._shared.write([(key, envelope)])
                told = told and await self._shared.tell(of_keys(self.sender, [key]))
            finally:
                latest = lease.holds()
                if not (told and latest):
                    self._shared.owe(of_keys(self.sender, [key]))
                # Whoever asked the shared tier since we began may be about to keep the old value.
                self._forget([key])
        if latest and (told or not truth_elsewhere) and self._state().writes:
            self._memory.put(key, held)
        if not (told and latest):
            await self._shared.settle()

    async def _drop(self, invalidation: Invalidation) -> None:
        self._forget_where(invalidation.matcher())
        await self._shared.drop([invalidation])

    def _forget(self, keys: Iterable[CacheKey]) -> None:
        """In this process: not kept, not to be put by anybody who is under way, loads not to be joined."""
        for key in keys:
            self._leases.outdate(key)
            self._flights.outdate(key)
            self._pushing.forget(key)
        self._memory.forget(keys)

    def _forget_where(self, matches: Callable[[CacheKey], bool]) -> None:
        self._leases.outdate_where(matches)
        self._flights.outdate_where(matches)
        self._pushing.forget_where(matches)
        self._memory.forget_where(matches)

    def _state(self) -> SafetyState:
        said = self._control()
        if said is not self._said:
            if said != self._said:
                self._obey(said)
            self._said = said
        return self._safety

    def _obey(self, control: Control) -> None:
        self.times.operating = control.operating
        if control.safety is self._safety:
            return
        self._safety = control.safety
        self._memory.entries.frozen = control.safety is SafetyState.FAIL
        if control.safety is SafetyState.LOCKDOWN:
            self._forget_where(lambda key: True)
            self._shared.owe([Invalidation(sender=self.sender, everything=True)])

    def _must_write(self, what: str) -> None:
        state = self._state()
        if not state.writes:
            raise StoreReadOnly(f"{what}: the safety state is {state.value}, so the cache is read-only")

    def _held(self, key: CacheKey, value: Any, now: int, ttl_ms: int | None) -> tuple[Held, Envelope]:
        """The value as memory and as the shared tier keep it; BadInput for a wrong kind, value or time to live."""
        class_of(key.kind)
        if ttl_ms is not None:
            check_ttl(ttl_ms, "ttl_ms")
        codec = self._codecs[key.kind]
        payload = codec.encode(value)
        return Held(value, now, ttl_ms, codec.size(value, payload)), Envelope(now, ttl_ms, payload)

    def _answer(self, held: Held, tier: str) -> Cached[Any]:
        return Cached(held.value, tier, max(0, self._clock.now_ms() - held.stored_at))
