"""The clock of the simulated exchange, which may run faster than the machine's."""

from __future__ import annotations

import time
from collections.abc import Callable

from market.errors import BadInput


class ExchangeClock:
    """Exchange time: `start_ms` at the moment of creation, then `speed` times as fast as real time.

    :param start_ms: epoch milliseconds; None starts at the machine's time.
    :param speed: exchange seconds per real second, above zero.
    :param monotonic: real seconds from any origin, never going back.
    :raises BadInput: if `speed` is not a number above zero.
    """

    def __init__(
        self, start_ms: int | None = None, speed: float = 1.0, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        if not 0 < speed < float("inf"):
            raise BadInput("--speed", speed, "a number above zero (1 is real time, 600 is ten minutes a second)")
        self._start_ms = time.time_ns() // 1_000_000 if start_ms is None else start_ms
        self._monotonic = monotonic
        self._began = monotonic()
        self.speed = speed

    def now_ms(self) -> int:
        """Epoch milliseconds of the exchange."""
        return self._start_ms + int((self._monotonic() - self._began) * 1000 * self.speed)
