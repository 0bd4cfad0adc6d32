"""Answers as the bytes that were sent, kept for as long as the same question has the same answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar, cast

from market.candle import open_times_ms
from market.clock import Clock
from store.answer import CandleAnswer
from store.cache.memory import MEMORY_TIER
from store.cache.statistics import TierStatistics
from store.tiers.process_memory import QUERY_KIND, ProcessMemory

_V = TypeVar("_V")


class Encoded(NamedTuple, Generic[_V]):
    """An answer in whatever form its owner wants it."""

    value: _V
    #: Bytes it takes.
    size: int
    #: What it was made of; None: it is not to be kept.
    answers: Sequence[CandleAnswer] | None


@dataclass(frozen=True)
class _Kept:
    value: object
    version: Hashable
    #: Our clock: from then on the ledger says something else of itself; None for never.
    until: int | None


class EncodedAnswers:
    """See the module. Used from one event loop."""

    def __init__(self, entries: ProcessMemory, statistics: TierStatistics, clock: Clock) -> None:
        self._entries = entries
        self._statistics = statistics
        self._clock = clock

    async def get(
        self,
        question: Hashable,
        version: Callable[[], Awaitable[Hashable | None]],
        make: Callable[[], Awaitable[Encoded[_V]]],
    ) -> tuple[_V, bool]:
        """The answer to `question`, and whether it was there already.

        :param version: what the answer depends on, as of now; None where that cannot be told.
        :param make: makes the answer. An error is not kept.
        """
        before = await version()
        key = ("encoded", question)
        kept = self._entries.get(key)
        now = self._clock.now_ms()
        if (
            before is not None
            and isinstance(kept, _Kept)
            and kept.version == before
            and (kept.until is None or now < kept.until)
        ):
            self._statistics.hit(MEMORY_TIER, QUERY_KIND)
            return cast(_V, kept.value), True
        self._statistics.miss(MEMORY_TIER, QUERY_KIND)
        made = await make()
        # What was read may be newer than the version from before: only if that still holds, it is of it.
        if before is not None and _lasting(made.answers, now) and before == await version():
            ends = [one for answer in made.answers or () if (one := _until(answer, now)) is not None]
            self._entries.put(key, _Kept(made.value, before, min(ends, default=None)), made.size)
        return made.value, False


def _lasting(answers: Sequence[CandleAnswer] | None, now_ms: int) -> bool:
    return answers is not None and all(lasting(one, now_ms) for one in answers)


def lasting(answer: CandleAnswer, now_ms: int) -> bool:
    """Whether an answer depends on the stored candles and their ledger alone, and not on what time it is."""
    if "closed" in answer.table.column_names or _overhanging(answer):
        return False
    known_to = answer.coverage[-1].interval.end if answer.coverage else 0
    return answer.interval.end <= max(known_to, now_ms)


def _overhanging(answer: CandleAnswer) -> bool:
    """Whether the last candle is made of some behind the interval, of whose ledger the answer says nothing."""
    if answer.derived_from is None or not answer.table.num_rows:
        return False
    last = int(open_times_ms(answer.table.slice(answer.table.num_rows - 1))[0])
    return answer.series.timeframe.next(last) > answer.interval.end


def _until(answer: CandleAnswer, now_ms: int) -> int | None:
    """When the first entry of the ledger expires, which changes what is missing."""
    ends = (one.expires_at for one in answer.coverage if one.expires_at is not None and one.expires_at > now_ms)
    return min(ends, default=None)
