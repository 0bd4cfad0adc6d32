"""Asking an exchange with patience: time for it to recover, and obedience when it says to wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import stamina

from exchange.page import CandlePage
from market.errors import RateLimited, Retryable
from market.instrument import Instrument
from market.timeframe import Timeframe

Answer = TypeVar("Answer")
Sleep = Callable[[float], Awaitable[None]]


class History(Protocol):
    """What an exchange has traded. Every method raises the leaves of ``market.errors`` only."""

    #: ccxt's id.
    exchange: str

    async def candles(self, symbol: str, timeframe: Timeframe, start_ms: int, end_ms: int) -> CandlePage:
        """Candles that open in ``[start_ms, end_ms)``, from the first one on, as many as one page holds."""
        ...

    async def first_open(self, symbol: str, timeframe: Timeframe, start_ms: int, end_ms: int) -> int | None:
        """Open time of the first candle that opens in ``[start_ms, end_ms)``; None where there is none."""
        ...

    async def instruments(self) -> list[Instrument]:
        """Every market of the exchange."""
        ...

    async def server_time(self) -> int:
        """The exchange's time, epoch milliseconds."""
        ...

    def check_timeframe(self, timeframe: Timeframe) -> None:
        """Nothing, or BadInput that lists the timeframes of this exchange."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How often and how long to try. The defaults give up after about a minute."""

    #: Tries of one request, the first included.
    attempts: int = 8
    #: Seconds before the second try; doubled before each further one, plus up to a second of jitter.
    first_wait: float = 0.5
    #: The longest wait between two tries that we choose ourselves, seconds.
    longest_wait: float = 20.0
    #: The longest wait that an exchange may ask for, seconds; beyond it the request fails.
    longest_obeyed: float = 300.0


class Gate:
    """Holds back every request to one exchange for as long as it asked for.

    One gate is shared by all series of an exchange: limits count per address, not per request.
    """

    def __init__(
        self,
        longest_obeyed: float,
        sleep: Sleep = asyncio.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._longest_obeyed = longest_obeyed
        self._sleep = sleep
        self._monotonic = monotonic
        self._until = 0.0
        self._refusal: RateLimited | None = None

    def hold(self, refusal: RateLimited) -> None:
        """Wait as `refusal` says before any further request; a longer wait is never shortened."""
        self._until = max(self._until, self._monotonic() + refusal.retry_after)
        if refusal.retry_after > self._longest_obeyed:
            self._refusal = refusal

    def bears(self, refusal: RateLimited) -> bool:
        """True if the wait is one we are willing to sit out."""
        return refusal.retry_after <= self._longest_obeyed

    async def passed(self) -> None:
        """Return when requests are welcome.

        :raises RateLimited: at once, if the exchange asked for more than we are willing to wait.
        """
        while (left := self._until - self._monotonic()) > 0:
            if self._refusal is not None:
                raise RateLimited(str(self._refusal), left, banned=self._refusal.banned) from self._refusal
            await self._sleep(left)
        self._refusal = None


class PatientHistory:
    """A history whose questions are repeated while the exchange is in trouble, and counted."""

    def __init__(self, history: History, gate: Gate, patience: Patience) -> None:
        self._history = history
        self._gate = gate
        self._patience = patience
        #: Questions sent, repeats included.
        self.requests = 0
        self.exchange = history.exchange

    async def candles(self, symbol: str, timeframe: Timeframe, start_ms: int, end_ms: int) -> CandlePage:
        """See :meth:`History.candles`."""
        return await self._ask(lambda: self._history.candles(symbol, timeframe, start_ms, end_ms))

    async def first_open(self, symbol: str, timeframe: Timeframe, start_ms: int, end_ms: int) -> int | None:
        """See :meth:`History.first_open`."""
        return await self._ask(lambda: self._history.first_open(symbol, timeframe, start_ms, end_ms))

    async def instruments(self) -> list[Instrument]:
        """See :meth:`History.instruments`."""
        return await self._ask(self._history.instruments)

    async def server_time(self) -> int:
        """See :meth:`History.server_time`."""
        return await self._ask(self._history.server_time)

    async def _ask(self, question: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer, or the last error when patience has run out."""
        tries = stamina.retry_context(
            on=self._again,
            attempts=self._patience.attempts,
            timeout=None,
            wait_initial=self._patience.first_wait,
            wait_max=self._patience.longest_wait,
        )
        async for attempt in tries:
            with attempt:
                await self._gate.passed()
                self.requests += 1
                return await question()
        raise AssertionError("stamina either returns an answer or raises")

    def _again(self, error: Exception) -> bool | float:
        """Whether to try again, or after how many seconds; the gate does the waiting for a rate limit."""
        if isinstance(error, RateLimited):
            self._gate.hold(error)
            return 0.0 if self._gate.bears(error) else False
        return isinstance(error, Retryable)
