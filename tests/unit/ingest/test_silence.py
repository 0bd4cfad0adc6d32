"""When a stream counts as silent: by its own usual pace, or because nothing at all comes on its connection."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from ingest.route import Silence, SilenceRules
from ingest.router import Router
from tests.conftest import ManualClock
from tests.unit.ingest.test_router import QUICK, Client, Heard, until

RULES = SilenceRules(silent_after=10_000, usual=20.0)


def paced(pause_ms: int, first_after_ms: int = 100) -> Silence:
    """A stream that has had ten messages, one each `pause_ms`, until the time is 0."""
    silence = Silence(RULES, -9 * pause_ms - first_after_ms)
    for number in range(10):
        assert silence.heard(number + 1, -(9 - number) * pause_ms)
    return silence


def test_a_busy_stream_is_silent_after_the_configured_time() -> None:
    silence = paced(100)
    assert not silence.silent(9_999)
    assert silence.silent(10_000)


def test_a_slow_stream_is_silent_after_many_times_its_usual_pause() -> None:
    silence = paced(1000)
    assert not silence.silent(19_999)
    assert silence.silent(20_001)


def test_the_time_before_the_first_message_is_not_its_pace() -> None:
    assert paced(100, first_after_ms=600_000).silent(10_000)


def test_a_still_connection_makes_the_pace_of_a_stream_count_for_nothing() -> None:
    silence = paced(1000)
    assert not silence.silent(12_000, 9_999)
    assert silence.silent(12_000, 10_000)


async def test_routes_are_told_for_how_long_their_connection_has_been_still() -> None:
    client, clock, route = Client(), ManualClock(), Heard("A/B")
    router = Router(client, clock, refused=lambda message: None, rules=replace(QUICK, dead_after=60.0))
    router.add(route)

    async def looked() -> None:
        before = route.checks
        await until(lambda: route.checks >= before + 2, "a look at the route")

    running = asyncio.create_task(router.run())
    try:
        await until(lambda: len(client.open) == 1, "a connection")
        for _ in range(3):
            client.open[0].frames += 1
            clock.advance(1000)
            await looked()
            assert route.still_ms == 0
        clock.advance(4000)
        await looked()
        # A message a second is usual; after five times that nothing comes any more.
        assert route.still_ms == 0
        clock.advance(1500)
        await looked()
        assert route.still_ms == 5500
        # While we do not read ourselves, nothing can come.
        router.crowd(True)
        await looked()
        router.crowd(False)
        await looked()
        assert route.still_ms == 0
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
