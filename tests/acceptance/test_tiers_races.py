"""Writers and readers at the same time, processes that die, safety states that change: no answer that never was.

``CHANDLERY_TEST_TIERS_SECONDS`` makes the races longer.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chandlery import wiring
from chandlery.settings import Settings
from market.errors import StoreBusy
from store.control import SafetyState
from tests.support.tiers_racer import Register, main
from tests.support.tiers_worker import Place

LOG = logging.getLogger(__name__)
SECONDS = float(os.environ.get("CHANDLERY_TEST_TIERS_SECONDS", "2"))
SEED = 11
#: Seconds that a process may take to come to its end.
DEADLINE = 60.0
PLACES = (
    Place(settings={}, role="served"),
    Place(settings={"cache_memory_bytes": 20_000}, role="served"),
    Place(settings={"cache_memory_bytes": 100_000}, role="together"),
)


class Racer:
    """One process."""

    def __init__(self, context: Any, folder: Path, action: str, *arguments: Any) -> None:
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=main, args=(theirs, folder, action, *arguments), daemon=True)
        self.process.start()
        theirs.close()

    def result(self) -> Counter[str]:
        """What it counted. The test fails with what it said went wrong."""
        assert self._connection.poll(DEADLINE), "a process does not come to its end"
        said = self._connection.recv()
        self.end()
        if not isinstance(said, Counter):
            pytest.fail(said, pytrace=False)
        return said

    def failed(self) -> bool:
        """Whether it has said something already."""
        ready: bool = self._connection.poll()
        return ready

    def kill(self) -> None:
        """Nothing of it runs any more; safe to call twice."""
        if self.process is not None:
            self.process.kill()
            self.end()

    def end(self) -> None:
        self.process.join(DEADLINE)
        self.process.close()
        self._connection.close()
        self.process = None


async def race(
    folder: Path, settings: dict[str, Any], stale: bool, trouble: Callable[[random.Random, Any], Any]
) -> Counter[str]:
    """A writer, three readers, and `trouble` all the time.

    :param trouble: called again and again with the store and choices; may return an awaitable.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "tests.support.tiers_worker", "tests.support.tiers_racer"])
    register = Register.of(context)
    rng = random.Random(SEED)
    places = [Place(settings=settings | one.settings, role=one.role, may_be_stale=stale) for one in PLACES]
    counts: Counter[str] = Counter()
    racers: list[Racer] = []
    async with wiring.opened_store(Settings(**settings)) as store:
        try:
            racers.append(Racer(context, folder, "write", places[0], register))
            while register.committed.value < 0 and not racers[0].failed():
                racers[0].process.join(0.02)
            racers += [
                Racer(context, folder, "read", one, register, SEED + number) for number, one in enumerate(places)
            ]
            end = time.monotonic() + SECONDS
            while time.monotonic() < end and not any(one.failed() for one in racers):
                what = rng.randrange(20)
                if what < 2:
                    # The writer as often as any of the readers.
                    number = rng.randrange(len(racers)) if what else 0
                    if racers[number].failed():
                        break
                    racers[number].kill()
                    place = places[max(number - 1, 0)]
                    arguments = ("write", place, register) if number == 0 else ("read", place, register, SEED)
                    racers[number] = Racer(context, folder, *arguments)
                    counts["readers killed" if number else "writers killed"] += 1
                elif what == 2:
                    state = rng.choice((SafetyState.FAIL, SafetyState.LOCKDOWN))
                    await switched(store, state)
                    counts[state.value] += 1
                else:
                    await trouble(rng, store)
                # Long enough for what was started to do something.
                racers[1].process.join(0.2)
                await switched(store, SafetyState.NORMAL)
            register.over.value = 1
            for one in racers:
                counts += one.result()
            # What killed writers have written, too.
            counts["versions"] = register.committed.value
        finally:
            for one in racers:
                one.kill()
    return counts


async def switched(store: Any, state: SafetyState) -> None:
    """Switch the safety state; a writer that never rests may be in the way for a while."""
    while True:
        with contextlib.suppress(StoreBusy):
            await store.set_control(safety=state, reason="race")
            return


async def test_readers_never_see_what_was_never_there(tmp_path: Path) -> None:
    home = tmp_path / "home"
    cache = home / "cache"

    async def trouble(rng: random.Random, store: Any) -> None:
        files = [one for one in cache.rglob("*.arrow") if one.is_file()]
        if files:
            rng.choice(files).unlink(missing_ok=True)

    counts = await race(tmp_path, {"home": home}, False, trouble)
    LOG.info("%s", dict(sorted(counts.items())))
    assert counts["reads"] > 0
    assert counts["tier memory"] > 0
    assert counts["versions"] > 1
