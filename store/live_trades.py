"""Router memory inside one process: the trades of the last minutes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from market.clock import Clock
from market.trade import Trade

#: Trades kept of one instrument at most, whatever their age. The oldest give way.
_MOST = 20_000


class LiveTrades:
    """The recent trades of each instrument.

    :param clock: our clock.
    :param lifetime_ms: a trade received longer ago is no longer served.
    """

    def __init__(self, clock: Clock, lifetime_ms: int = 10 * 60_000) -> None:
        self._clock = clock
        self._lifetime_ms = lifetime_ms
        self._held: dict[tuple[str, str], deque[Trade]] = {}

    def sink(self, exchange: str, symbol: str) -> Callable[[Trade], None]:
        """Where the trades of one instrument are put, in the order of the exchange."""
        return self._held.setdefault((exchange, symbol), deque(maxlen=_MOST)).append

    def get(self, exchange: str, symbol: str, limit: int) -> list[Trade]:
        """The newest trades, at most `limit`, oldest first."""
        held = self._held.get((exchange, symbol))
        if not held:
            return []
        self._drop(held)
        first = max(0, len(held) - limit)
        return [held[at] for at in range(first, len(held))]

    def drop_old(self) -> None:
        """Let go of what is no longer served. Called about once a second: instruments that nobody reads would else
        keep their trades."""
        for held in self._held.values():
            self._drop(held)

    def _drop(self, held: deque[Trade]) -> None:
        oldest = self._clock.now_ms() - self._lifetime_ms
        while held and held[0].received_at < oldest:
            held.popleft()
