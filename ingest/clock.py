"""The exchange's time, which alone decides what is closed."""

from __future__ import annotations

from typing import Protocol

from market.clock import Clock


class TimeServer(Protocol):
    """Whoever can tell an exchange's time."""

    async def server_time(self) -> int:
        """Epoch milliseconds."""
        ...


class ExchangeClock:
    """The local clock, shifted to an exchange's.

    Between two readings it runs at the local pace. A simulated exchange may run faster, so read again before
    deciding what is closed; until then this clock is late, which never closes a candle too early.
    """

    def __init__(self, server: TimeServer, local: Clock) -> None:
        self._server = server
        self._local = local
        #: Exchange time minus local time at the last reading, milliseconds.
        self.offset_ms = 0
        #: Exchange milliseconds per local one, over the last two readings; 1 for a real exchange.
        self.pace = 1.0
        self._read: tuple[int, int] | None = None

    def now_ms(self) -> int:
        return self._local.now_ms() + self.offset_ms

    async def read(self) -> int:
        """Ask the exchange, and return its time now.

        The answer is taken to be new. Waiting in a queue, for a rate limit or for a further try counts into the
        round trip, so no part of it may be added: a clock that is ahead closes candles that are still forming.
        """
        answered = await self._server.server_time()
        received = self._local.now_ms()
        self.offset_ms = answered - received
        if self._read is not None and received > self._read[0]:
            self.pace = max(1.0, (answered - self._read[1]) / (received - self._read[0]))
        self._read = (received, answered)
        return self.now_ms()
