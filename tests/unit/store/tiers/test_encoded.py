"""Answers as bytes are given again only while the same question has the same answer."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pytest

from market.coverage import CoverageState, Covered
from market.interval import Interval, IntervalSet
from market.timeframe import ONE_MINUTE, TIMEFRAMES
from store.answer import CandleAnswer
from store.cache.statistics import TierStatistics
from store.tiers.encoded import Encoded, EncodedAnswers
from store.tiers.process_memory import ProcessMemory
from tests.conftest import ManualClock
from tests.support.made_candles import BTC, HOUR, MINUTE, START, made_at

HOURS = BTC.at(TIMEFRAMES["1h"])


def answer(
    times: list[int], end: int, *, derived: bool = False, expires_at: int | None = None, forming: bool = False
) -> CandleAnswer:
    table = made_at(times).append_column("missing", pa.array(np.zeros(len(times), np.int32)))
    if forming:
        table = table.append_column("closed", pa.array([True] * len(times)))
    covered = Covered(
        interval=Interval(START, end), state=CoverageState.EMPTY, source="t", learned_at=0, expires_at=expires_at
    )
    return CandleAnswer(
        series=HOURS if derived else BTC,
        interval=Interval(START, end),
        table=table,
        coverage=(covered,),
        gaps=IntervalSet(),
        next_start=None,
        tier="memory",
        derived_from=ONE_MINUTE.name if derived else None,
    )


@dataclass
class Asked:
    """Answers that count how often they were made."""

    clock: ManualClock = field(default_factory=lambda: ManualClock(START + 100 * HOUR))
    version: Hashable | None = 1
    made: int = 0
    #: The version after each making.
    becomes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        statistics = TierStatistics(self.clock.now_ms)
        self.answers = EncodedAnswers(ProcessMemory(1 << 20, statistics), statistics, self.clock)

    async def get(self, given: CandleAnswer | None, question: str = "?") -> bool:
        """Whether it was there already."""

        async def version() -> Hashable | None:
            return self.version

        async def make() -> Encoded[int]:
            self.made += 1
            if self.becomes:
                self.version = self.becomes.pop(0)
            return Encoded(self.made, 100, None if given is None else [given])

        return (await self.answers.get(question, version, make))[1]


async def twice(asked: Asked, given: CandleAnswer | None) -> bool:
    await asked.get(given)
    return await asked.get(given)


async def test_the_same_question_is_answered_once_for_each_version() -> None:
    asked, one = Asked(), answer([START], START + HOUR)
    assert await twice(asked, one)
    asked.version = 2
    assert await twice(asked, one)
    assert asked.made == 2
    assert not await asked.get(one, "another question")


async def test_what_cannot_be_told_or_changed_meanwhile_is_not_kept() -> None:
    one = answer([START], START + HOUR)
    assert not await twice(Asked(version=None), one)
    assert not await twice(Asked(), None)
    moving = Asked(becomes=[2, 3])
    assert not await twice(moving, one)
    assert await twice(moving, one)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (answer([START], START + HOUR), True),
        (answer([START], START + HOUR, forming=True), False),
        (answer([START, START + HOUR], START + 2 * HOUR, derived=True), True),
        # The last hour is made of minutes behind the end: what is known of these the answer does not say.
        (answer([START, START + HOUR], START + 2 * HOUR - MINUTE, derived=True), False),
        (answer([], START + MINUTE, derived=True), True),
    ],
)
async def test_what_depends_on_more_than_the_answer_tells_is_not_kept(given: CandleAnswer, kept: bool) -> None:
    assert await twice(Asked(), given) is kept


async def test_the_future_is_not_missing_until_it_has_come() -> None:
    asked = Asked()
    open_ended = answer([START], asked.clock.now_ms() + HOUR)
    assert await twice(asked, open_ended)  # the ledger knows it already
    short = CandleAnswer(**{**vars(open_ended), "coverage": ()})
    assert not await twice(Asked(), short)


async def test_an_answer_ends_when_the_ledger_says_something_else() -> None:
    asked = Asked()
    one = answer([START], START + HOUR, expires_at=asked.clock.now_ms() + 10)
    assert await twice(asked, one)
    asked.clock.advance(9)
    assert await asked.get(one)
    asked.clock.advance(1)
    assert not await asked.get(one)
    # It has expired: it changes no more.
    assert await asked.get(one)
